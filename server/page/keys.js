/** Ed25519 public keys: PEM text, key ids, and signatures checked by the browser itself. */
import { Refusal } from "./refusal.js";

const PREFIX = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const PEM = /^\s*-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*$/;

/** Lower-case hexadecimal digits of bytes. */
export const hex = (bytes) =>
  Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Bytes of base64 text; null when it is none. */
export function fromBase64(text) {
  try {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  } catch {
    return null;
  }
}

/** The browser's cryptography, which only pages from a secure origin have. */
export function subtle() {
  if (globalThis.crypto?.subtle) return globalThis.crypto.subtle;
  throw new Refusal(
    "Expected a page from https or from this very machine, got plain http, where browsers check " +
      "no signatures; open it over https, localhost or 127.0.0.1.",
  );
}

/** SHA-256 of bytes as 64 hexadecimal digits. */
export async function sha256(bytes) {
  return hex(new Uint8Array(await subtle().digest("SHA-256", bytes)));
}

/**
 * A public key file.
 *
 * @param {string} text PEM, SubjectPublicKeyInfo
 * @param {string} origin where it came from, for people
 * @returns {Promise<{id: string, origin: string, verify: (data: Uint8Array, signature: Uint8Array)
 *   => Promise<boolean>}>} the id is the first 16 digits of the SHA-256 of the raw key
 */
export async function readKey(text, origin) {
  const der = fromBase64((PEM.exec(text)?.[1] ?? "!").replace(/\s/g, ""));
  if (der?.length !== PREFIX.length + 32 || PREFIX.some((byte, at) => der[at] !== byte)) {
    throw new Refusal(
      `Expected an Ed25519 public key in PEM in ${origin}, got something else; ` +
        "use the .pub file that was made beside the signing key.",
    );
  }
  const raw = der.subarray(PREFIX.length);
  const key = await imported(raw);
  return {
    id: (await sha256(raw)).slice(0, 16),
    origin,
    verify: (data, signature) => subtle().verify("Ed25519", key, signature, data),
  };
}

async function imported(raw) {
  try {
    return await subtle().importKey("raw", raw, "Ed25519", false, ["verify"]);
  } catch (error) {
    if (error instanceof Refusal) throw error;
    throw new Refusal(
      "Expected a browser that checks Ed25519 signatures, got one that does not; use Chromium 137, " +
        "Firefox 130, Safari 17 or newer.",
    );
  }
}
