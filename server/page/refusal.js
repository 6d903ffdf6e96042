/** A failure that a person can act on: one sentence, "Expected X, got Y; what to do". */
export class Refusal extends Error {
  /** @param {string} message @param {string} [reason] short name of why, for programs */
  constructor(message, reason) {
    super(message);
    this.reason = reason;
  }
}

/** The sentence of any failure, for the page. */
export function sentence(error) {
  if (error instanceof Refusal) return error.message;
  return `Expected this step to finish, got ${error?.name ?? "an error"}: ${error?.message ?? error}`;
}
