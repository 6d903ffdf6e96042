/**
 * A bundle's way from bytes to trust: names and lengths, the canonical archive, the signature over
 * the exact manifest bytes, the manifest's meaning, and the digest of every file.
 *
 * The same checks in the same order as the device makes. Nothing is run before all of them hold.
 */
import { Refusal } from "./refusal.js";
import { fromBase64, sha256 } from "./keys.js";
import { readManifest } from "./manifest.js";
import { packZip, readZip } from "./zip.js";

const MANIFEST = "manifest.json";
const SIGNATURE = "manifest.sig";

/** Every permitted name with its largest length in bytes, in archive order. */
export const SIZE_CAPS = new Map([
  [MANIFEST, 65_536],
  [SIGNATURE, 1_024],
  ["scorer.onnx", 1 << 25],
  ["scorer.ort", 1 << 25],
  ["decoder.onnx", 1 << 25],
  ["density.npz", 1 << 24],
  ["golden.npz", 1 << 24],
  ["card.md", 1 << 18],
]);
export const MAX_BYTES = Array.from(SIZE_CAPS.values()).reduce((a, b) => a + b, 4_096);

const SIGNATURE_TEXT =
  /^\{"algorithm":"ed25519","key_id":"([0-9a-f]{16})","signature":"([A-Za-z0-9+/]{86}==)"\}$/;

/** Name of the scorer's file. */
export const scorerName = (manifest) => `scorer.${manifest.runtime.format}`;

/**
 * Verify a bundle.
 *
 * @param {Uint8Array} bytes the whole file
 * @param {{id: string, verify: Function}[]} keys whose signature is accepted
 * @param {(name: string, text: string, warn?: boolean) => void} done told of every step that held
 * @param {string} where the bytes came from, for error sentences
 * @returns {Promise<{manifest: object, files: Map<string, Uint8Array>, keyId: string,
 *   digest: string}>}
 */
export async function openBundle(bytes, keys, done, where) {
  const contents = unpack(bytes, where);
  done("Archive", `${contents.size} files, ${bytes.length.toLocaleString("en")} bytes`);
  const text = contents.get(MANIFEST);
  const keyId = await verified(text, contents.get(SIGNATURE), keys);
  done("Signature", `key ${keyId}`);
  const manifest = readManifest(text);
  contents.delete(MANIFEST);
  contents.delete(SIGNATURE);
  checkNames(manifest, contents);
  done("Manifest", `${manifest.name}, version ${manifest.version}, ${manifest.kind}`);
  await checkDigests(manifest, contents);
  done("Digests", `SHA-256 of ${contents.size} files match`);
  const expired = manifest.expires !== null && Date.parse(manifest.expires) < Date.now();
  if (expired) done("Expiry", `expired on ${manifest.expires}; devices no longer install it`, true);
  return { manifest, files: contents, keyId, digest: await sha256(bytes) };
}

/** The steps of `openBundle`, in order. */
export const STEPS = ["Archive", "Signature", "Manifest", "Digests"];

function unpack(bytes, where) {
  if (bytes.length > MAX_BYTES) {
    throw new Refusal(
      `Expected a bundle of at most ${MAX_BYTES} bytes in ${where}, got a larger file; ` +
        "check the address.",
    );
  }
  const contents = readZip(bytes, `an edge bundle in ${where}`, SIZE_CAPS.size, (name, size) => {
    if (!SIZE_CAPS.has(name)) {
      throw new Refusal(
        `Expected only known file names in a bundle, got ${name.slice(0, 40)}; ` +
          "get the bundle again.",
      );
    }
    if (size > SIZE_CAPS.get(name)) {
      throw new Refusal(`Expected at most ${SIZE_CAPS.get(name)} bytes in ${name}, got ${size}.`);
    }
  });
  const entries = Array.from(SIZE_CAPS.keys(), (name) => [name, contents.get(name)]);
  const canonical = packZip(entries.filter(([, data]) => data !== undefined));
  const named = contents.has(MANIFEST) && contents.has(SIGNATURE);
  if (!named || !same(canonical, bytes)) {
    throw new Refusal(
      `Expected an edge bundle in its one canonical form in ${where}, got something else or a ` +
        "changed file; get the bundle again.",
    );
  }
  return contents;
}

function same(one, other) {
  return one.length === other.length && one.every((byte, at) => byte === other[at]);
}

async function verified(text, stored, keys) {
  const found = SIGNATURE_TEXT.exec(new TextDecoder("latin1").decode(stored));
  if (!found) {
    throw new Refusal(
      `Expected an Ed25519 signature in ${SIGNATURE}, got something else; get the bundle again.`,
    );
  }
  const [, keyId, encoded] = found;
  const trusted = keys.filter((key) => key.id === keyId);
  if (!trusted.length) {
    const known = keys.map((key) => key.id).join(", ") || "none";
    throw new Refusal(
      `Expected a bundle signed by a trusted key (${known}), got unknown key ${keyId}; ` +
        "add the publisher's public key only after checking its id with the publisher.",
    );
  }
  const signature = fromBase64(encoded);
  const exact = btoa(String.fromCharCode(...signature)) === encoded;
  const held = await Promise.all(trusted.map((key) => key.verify(text, signature)));
  if (!exact || !held.includes(true)) {
    throw new Refusal(
      `Expected a valid signature of key ${keyId} over the manifest, got a bad one; ` +
        "the bundle is damaged or was changed, so get it again.",
    );
  }
  return keyId;
}

function checkNames(manifest, contents) {
  const required = [scorerName(manifest), "density.npz", "golden.npz", "card.md"];
  const decoder = manifest.kind === "site" || manifest.training.sharing === "full";
  const allowed = decoder ? [...required, "decoder.onnx"] : required;
  const missing = required.filter((name) => !contents.has(name));
  const extra = Array.from(contents.keys()).filter((name) => !allowed.includes(name));
  if (missing.length || extra.length) {
    throw new Refusal(
      `Expected the files of a ${manifest.kind} bundle (${allowed.join(", ")}), got missing: ` +
        `${missing.join(", ") || "none"}, not permitted: ${extra.join(", ") || "none"}.`,
    );
  }
  const listed = Object.keys(manifest.files);
  if (listed.length !== contents.size || !listed.every((name) => contents.has(name))) {
    throw new Refusal(
      "Expected exactly the files that the manifest lists, got others; get the bundle again.",
    );
  }
}

async function checkDigests(manifest, contents) {
  for (const [name, data] of contents) {
    const entry = manifest.files[name];
    if (entry.bytes !== data.length || entry.sha256 !== (await sha256(data))) {
      throw new Refusal(
        `Expected ${name} to match its digest in the signed manifest, got other bytes; ` +
          "the bundle is damaged or was changed, so get it again.",
      );
    }
  }
}
