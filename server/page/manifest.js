/** The signed manifest, read strictly: exact keys and types, finite numbers, no key twice. */
import { Refusal } from "./refusal.js";
import { shapeOf } from "./schema.js";

export const FORMAT = 2;

const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/;
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/;
const time = (value) => {
  const at = new Date(TIME.test(value) ? value : Number.NaN);
  return !Number.isNaN(at.getTime()) && at.toISOString() === value.replace("Z", ".000Z");
};
const OUTPUT = /^[a-z][a-z0-9_]{0,63}$/;
const FILE = /^[a-z]+\.(onnx|ort|npz|md)$/;
const DIGEST = /^[0-9a-f]{64}$/;
const METRIC = /^[A-Za-z0-9][A-Za-z0-9_.@/-]{0,63}$/;
const MAX_ITEMS = 256;
const MAX_TEXT = 256;
const MAX_TOLERANCE = 0.25;
const MAX_VALUES = 1 << 20;
const MAX_COLUMNS = 4096;
const MAX_WINDOW = 1 << 16;
const MAX_WORD = 64;

const text = (pattern) => (value) =>
  typeof value === "string" && value.length <= MAX_TEXT && pattern.test(value);
const printable = text(/^[^\p{C}]+$/u);
const label = (value) => value === "" || printable(value);
const number = (value) => typeof value === "number" && Number.isFinite(value);
const integer = (least, most = Number.MAX_SAFE_INTEGER) => (value) =>
  Number.isSafeInteger(value) && value >= least && value <= most;
const list = (item) => (value) =>
  Array.isArray(value) && value.length <= MAX_ITEMS && value.every(item);
const distinct = (item) => (value) => list(item)(value) && new Set(value).size === value.length;
const nullable = (test) => (value) => value === null || test(value);
const isObject = (value) =>
  typeof value === "object" && value !== null && !Array.isArray(value) &&
  Object.keys(value).length <= MAX_ITEMS;
const mapping = (key, item) => (value) =>
  isObject(value) && Object.entries(value).every(([name, each]) => key.test(name) && item(each));
const record = (fields) => (value) =>
  isObject(value) && Object.keys(value).length === Object.keys(fields).length &&
  Object.entries(fields).every(([name, test]) => Object.hasOwn(value, name) && test(value[name]));
const both = (...tests) => (value) => tests.every((test) => test(value));

const product = (sides) => sides.reduce((total, side) => total * side, 1);
const magnitude = (value) => number(value) && Math.abs(value) < 1e30;

/** A record of which some keys may be left out. */
const open = (fields, more) => (value) =>
  isObject(value) && record({
    ...fields,
    ...Object.fromEntries(Object.entries(more).filter(([name]) => Object.hasOwn(value, name))),
  })(value);
const many = (item) => (value) =>
  Array.isArray(value) && value.length <= MAX_COLUMNS && value.every(item);
const words = both(text(/^[^\p{C}]+$/u), (value) => value.length <= MAX_WORD);
const level = (value) => magnitude(value) || words(value);

const COLUMN = both(
  record({
    name: words,
    unit: (value) => value === "" || words(value),
    lower: magnitude,
    upper: magnitude,
    transform: text(/^(none|log)$/),
    levels: both(many(level), (value) => new Set(value).size === value.length),
    missing: text(/^(refuse|mask|value)$/),
    fill: nullable(level),
  }),
  ({ lower, upper, levels, transform, missing, fill }) =>
    (levels.length
      ? levels.length >= 2 && transform === "none"
      : lower < upper && (transform === "none" || lower > -1)) &&
    (missing === "value") === (fill !== null) &&
    (fill === null ||
      (levels.length ? levels.includes(fill) : number(fill) && fill >= lower && fill <= upper)),
);
const WINDOW = record({
  length: integer(1, MAX_WINDOW),
  step: integer(1, MAX_WINDOW),
  time: (value) => value === "" || words(value),
  group: (value) => value === "" || words(value),
  rate: both(magnitude, (value) => value >= 0),
  gap: both(magnitude, (value) => value >= 1),
});

const SCHEMA = both(
  open({
    name: text(NAME),
    shape: (value) =>
      list(integer(1))(value) && value.length >= 1 && value.length <= 4 &&
      product(value) <= MAX_VALUES,
    unit: label,
    scale: (value) => magnitude(value) && value !== 0,
    center: text(/^(none|median|mean)$/),
    lower: magnitude,
    upper: magnitude,
  }, { columns: both(many(COLUMN), ({ length }) => length > 0), window: WINDOW }),
  (value) => value.lower < value.upper,
  ({ shape, window }) => !window || shape.at(-1) === window.length,
  ({ columns, shape, window }) =>
    !columns || shapeOf(columns, window).join() === shape.join(),
);
const COMBINATION = both(
  record({
    names: distinct(text(OUTPUT)),
    mean: list(number),
    scale: list((value) => number(value) && value > 0),
    weights: list(number),
  }),
  ({ names, mean, scale, weights }) =>
    names.length > 0 && [mean, scale, weights].every((each) => each.length === names.length),
);
const PRIVACY = record({
  epsilon: (value) => number(value) && value >= 0,
  delta: (value) => number(value) && value > 0 && value < 1,
  noise_multiplier: (value) => number(value) && value > 0,
  sample_rate: (value) => number(value) && value > 0 && value <= 1,
  steps: integer(0),
  rng: text(/^(secure|simulation)$/),
  adjacency: text(NAME),
  unit: text(NAME),
});
const FIELDS = {
  format_version: integer(0),
  kind: text(/^(global|site)$/),
  name: text(NAME),
  version: integer(1),
  created: time,
  run_id: text(NAME),
  family: text(NAME),
  latent_dim: integer(1, 4096),
  schema: SCHEMA,
  score: record({ outputs: distinct(text(OUTPUT)), combine: nullable(COMBINATION) }),
  thresholds: record({
    quantile: (value) => number(value) && value > 0 && value < 1,
    absolute: nullable(number),
    recentred: nullable(number),
  }),
  privacy: nullable(PRIVACY),
  training: record({
    rounds: integer(0),
    clients: integer(0),
    sharing: text(/^(encoder|summary|encoder\+summary|full)$/),
  }),
  runtime: record({
    format: text(/^(onnx|ort)$/),
    precision: text(/^(fp32|fp16|int8-weights|int8-dynamic|int8-static)$/),
    opset: integer(1, 99),
    min_onnxruntime: text(/^\d{1,3}\.\d{1,3}$/),
    tolerance: (value) => number(value) && value > 0 && value <= MAX_TOLERANCE,
    target: text(NAME),
    hardware: printable,
  }),
  expires: nullable(time),
  metrics: mapping(METRIC, number),
  files: mapping(FILE, record({ sha256: text(DIGEST), bytes: integer(0) })),
};

/** Number of keys in all objects of a JSON value. */
function countKeys(value) {
  if (typeof value !== "object" || value === null) return 0;
  const own = Array.isArray(value) ? 0 : Object.keys(value).length;
  return Object.values(value).reduce((sum, each) => sum + countKeys(each), own);
}

function parseJson(bytes) {
  let source = "";
  let value = null;
  try {
    source = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    value = JSON.parse(source);
  } catch {
    source = "";
  }
  const keys = source.matchAll(/"(?:[^"\\]|\\.)*"(\s*:)?/g);
  const written = Array.from(keys).filter((match) => match[1]).length;
  if (isObject(value) && written === countKeys(value)) return value;
  throw new Refusal(
    "Expected strict JSON in manifest.json (UTF-8, finite numbers, no key twice), got something " +
      "else; get the bundle again.",
  );
}

/**
 * Parse a manifest.
 *
 * @param {Uint8Array} bytes whose signature holds
 * @returns {object} the manifest as it stands in the JSON
 */
export function readManifest(bytes) {
  const value = parseJson(bytes);
  if (value.format_version !== FORMAT) {
    throw new Refusal(
      `Expected bundle format version ${FORMAT}, got ${String(value.format_version).slice(0, 20)}; ` +
        "use a page of that version or export the bundle again.",
    );
  }
  for (const [name, test] of Object.entries(FIELDS)) {
    if (!Object.hasOwn(value, name) || !test(value[name])) {
      throw new Refusal(
        `Expected a valid ${name} in manifest.json, got none or another; get the bundle again.`,
      );
    }
  }
  const unknown = Object.keys(value).filter((name) => !Object.hasOwn(FIELDS, name));
  if (unknown.length) {
    throw new Refusal(
      `Expected no other keys in manifest.json, got ${unknown[0].slice(0, 40)}; ` +
        "the bundle may be of a newer version than this page.",
    );
  }
  checkSense(value);
  return value;
}

function checkSense(manifest) {
  const { outputs, combine } = manifest.score;
  const { absolute, recentred } = manifest.thresholds;
  const decoder = manifest.kind === "site" || manifest.training.sharing === "full";
  const faults = [
    [!outputs.includes("score"), "an output named score"],
    [combine && !combine.names.every((name) => outputs.includes(name)), "a score of its outputs"],
    [!decoder && outputs.includes("reconstruction_error"), "no score of a decoder kept at a site"],
    [recentred !== null && !outputs.includes("recentred_distance"), "a re-centred output"],
    [absolute === null && recentred === null, "at least one threshold"],
  ];
  const found = faults.find(([wrong]) => wrong);
  if (found) {
    throw new Refusal(
      `Expected ${found[1]} in manifest.json, got otherwise; get the bundle again.`,
    );
  }
}
