/**
 * The self-check: `?report=URL&records=NAME` scores a whole stream in the way the page does, and
 * posts what it found as JSON to an address of the same server.
 */
import { quantile } from "./dom.js";
import { sentence } from "./refusal.js";
import { runtimeVersion } from "./model.js";

/** Score all records one by one. */
export async function scoreAll(model, records) {
  const results = [];
  for (const row of records) results.push(await model.score(row));
  const times = results.map((result) => result.ms);
  return {
    records: records.length,
    scores: results.map((result) => result.score),
    flags: results.map((result) => result.flag),
    mu: results.map((result) => Array.from(result.mu)),
    threshold: model.threshold,
    p50_ms: quantile(times, 0.5),
    p99_ms: quantile(times, 0.99),
    golden_error: model.goldenError,
    runtime: runtimeVersion(),
    digest: model.bundle.digest,
  };
}

/** Run a self-check and post the answer, a failure included. */
export async function report(address, steps, work) {
  let value = null;
  try {
    value = { ok: true, ...(await work()) };
  } catch (error) {
    value = { ok: false, error: sentence(error) };
  }
  await fetch(new URL(address, location.href), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...value, steps: steps() }),
  });
}
