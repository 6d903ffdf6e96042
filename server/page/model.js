/**
 * Scoring with a verified bundle: ONNX Runtime Web on bytes, one thread, and the golden vectors.
 *
 * ONNX Runtime is loaded here and only here, after the bundle has been verified.
 */
import { scorerName } from "./bundle.js";
import { readNpz } from "./npy.js";
import { Refusal } from "./refusal.js";
import { preprocess, sizeOf } from "./schema.js";

const VENDOR = new URL("./vendor/", import.meta.url);
const POSTERIOR = ["mu", "logvar"];
let runtime = null;

async function loadRuntime() {
  if (runtime) return runtime;
  const ort = await import("./vendor/ort.js");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = {
    mjs: new URL("ort-wasm.js", VENDOR).href,
    wasm: new URL("ort-wasm.wasm", VENDOR).href,
  };
  ort.env.logLevel = "fatal"; // failures come as exceptions
  runtime = ort;
  return ort;
}

/** Version of the runtime, once a bundle has been verified. */
export const runtimeVersion = () => runtime?.env.versions.web ?? runtime?.env.versions.common;

/** A verified bundle, ready to score. */
export class EdgeModel {
  #queue = Promise.resolve();
  #scorer;
  #decoder;
  #ort;

  /**
   * Load the graphs and run the golden vectors.
   *
   * @param {{manifest: object, files: Map<string, Uint8Array>}} bundle from `openBundle`
   * @param {(name: string, text: string) => void} done told of every step that held
   */
  static async load(bundle, done) {
    const model = new EdgeModel();
    model.bundle = bundle;
    model.manifest = bundle.manifest;
    model.schema = bundle.manifest.schema;
    model.density = readDensity(bundle);
    model.center = Float32Array.from(model.density.mean);
    model.#ort = await loadRuntime();
    checkVersion(bundle.manifest.runtime.min_onnxruntime);
    const scorer = scorerName(bundle.manifest);
    model.#scorer = await openGraph(model.#ort, bundle.files.get(scorer), scorer);
    checkGraph(model.#scorer, scorer, bundle.manifest);
    const decoder = bundle.files.get("decoder.onnx");
    if (decoder) model.#decoder = await openGraph(model.#ort, decoder, "decoder.onnx");
    done("Runtime", `ONNX Runtime Web ${runtimeVersion()}`);
    model.goldenError = await checkGolden(model);
    const { tolerance } = bundle.manifest.runtime;
    const error = model.goldenError.toExponential(1);
    done("Golden vectors", `error ${error}, permitted ${tolerance.toExponential(0)}`);
    return model;
  }

  /** Whether records can be decoded. */
  get decodes() {
    return this.#decoder !== undefined;
  }

  /** The threshold in use; null when this bundle has none before it is re-centred. */
  get threshold() {
    return this.manifest.thresholds.absolute;
  }

  /**
   * Score raw records in one call.
   *
   * @param {ArrayLike<number>[]} rows
   * @returns {Promise<Map<string, Float32Array>>} every output by name
   */
  run(rows) {
    return this.#inTurn(() => this.#run(rows));
  }

  async #run(rows) {
    const size = sizeOf(this.schema);
    const x = new Float32Array(rows.length * size);
    rows.forEach((row, at) => x.set(preprocess(this.schema, row), at * size));
    const outputs = await this.#scorer.run({
      x: new this.#ort.Tensor("float32", x, [rows.length, ...this.schema.shape]),
      center: new this.#ort.Tensor("float32", this.center, [this.center.length]),
    });
    const values = new Map();
    for (const name of this.#scorer.outputNames) {
      const data = outputs[name].data;
      if (data.length % rows.length !== 0 || !data.every(Number.isFinite)) {
        throw new Refusal(`Expected finite ${name} for every record, got others; export it again.`);
      }
      values.set(name, data);
    }
    return values;
  }

  /**
   * Score one raw record, timed from raw values to the score.
   *
   * @returns {Promise<{score: number, flag: boolean | null, mu: Float32Array,
   *   logvar: Float32Array, parts: Map<string, Float32Array>, ms: number}>}
   */
  async score(row) {
    const { parts, ms } = await this.#inTurn(async () => {
      const start = performance.now();
      return { parts: await this.#run([row]), ms: performance.now() - start };
    });
    const score = parts.get("score")[0];
    // float32 scores are compared in float32, as numpy does
    const flag = this.threshold === null ? null : score > Math.fround(this.threshold);
    return { score, flag, mu: parts.get("mu"), logvar: parts.get("logvar"), parts, ms };
  }

  /**
   * Decode one latent.
   *
   * @param {Float32Array} latent [k]
   * @returns {Promise<Float32Array>} a record in the unit after preprocessing
   */
  async decode(latent) {
    const z = new this.#ort.Tensor("float32", latent, [1, latent.length]);
    const outputs = await this.#inTurn(() => this.#decoder.run({ z }));
    return outputs[this.#decoder.outputNames[0]].data;
  }

  /** One call of the runtime at a time; a failure ends that call only. */
  #inTurn(call) {
    const result = this.#queue.then(call);
    this.#queue = result.then(
      () => undefined,
      () => undefined,
    );
    return result;
  }
}

async function openGraph(ort, bytes, where) {
  try {
    return await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  } catch {
    throw new Refusal(
      `Expected a graph that ONNX Runtime Web ${runtimeVersion()} loads in ${where}, got another; ` +
        "export the bundle for the web, or use a newer page.",
    );
  }
}

function checkVersion(least) {
  const [major, minor] = least.split(".").map(Number);
  const [ownMajor, ownMinor] = runtimeVersion().split(".").map(Number);
  if (ownMajor < major || (ownMajor === major && ownMinor < minor)) {
    throw new Refusal(
      `Expected ONNX Runtime ${least} or newer for this bundle, got ${runtimeVersion()}; ` +
        "build the page with a newer one.",
    );
  }
}

function checkGraph(session, where, manifest) {
  const equal = (names, expected) =>
    names.length === expected.length && expected.every((name) => names.includes(name));
  const outputs = [...POSTERIOR, ...manifest.score.outputs];
  if (!equal(session.inputNames, ["x", "center"]) || !equal(session.outputNames, outputs)) {
    throw new Refusal(
      `Expected ${where} to take x and center and to give ${outputs.join(", ")}, got other names; ` +
        "export the bundle again.",
    );
  }
}

function readDensity({ files, manifest }) {
  const arrays = readNpz(files.get("density.npz"), "density.npz");
  const size = manifest.latent_dim;
  const lengths = { count: 1, mean: size, covariance: size * size, within: size * size };
  const fits = Object.entries(lengths).every(([name, n]) => arrays.get(name)?.data.length === n);
  if (!fits || arrays.size !== 4) {
    throw new Refusal(
      `Expected count, mean, covariance and within for ${size} latent dimensions in density.npz, ` +
        "got other arrays; export the bundle again.",
    );
  }
  const covariance = arrays.get("covariance").data;
  const deviation = Float64Array.from({ length: size }, (_, i) =>
    Math.sqrt(Math.max(covariance[i * size + i], 0)),
  );
  return { mean: arrays.get("mean").data, deviation };
}

/** Rows of a matrix of records. */
export function rowsOf(data, count) {
  const size = data.length / count;
  return Array.from({ length: count }, (_, at) => data.subarray(at * size, (at + 1) * size));
}

async function checkGolden(model) {
  const arrays = readNpz(model.bundle.files.get("golden.npz"), "golden.npz");
  const records = arrays.get("records");
  arrays.delete("records");
  const count = records?.shape[0] ?? 0;
  if (!count || !arrays.size) {
    throw new Refusal("Expected at least one record in golden.npz, got none; export it again.");
  }
  model.golden = rowsOf(records.data, count);
  const actual = await model.run(model.golden);
  let worst = 0;
  for (const [name, expected] of arrays) {
    const values = actual.get(name.replace(/^scorer_/, ""));
    if (values?.length !== expected.data.length || arrays.size !== actual.size) {
      throw new Refusal("Expected golden.npz to hold the outputs of this scorer, got others.");
    }
    expected.data.forEach((value, at) => {
      worst = Math.max(worst, Math.abs(values[at] - value) / Math.max(Math.abs(value), 1));
    });
  }
  const { tolerance } = model.manifest.runtime;
  if (!(worst <= tolerance)) {
    throw new Refusal(
      `Expected golden outputs within ${tolerance}, got a difference of ${worst.toPrecision(2)}; ` +
        "this browser computes otherwise, so do not use it.",
    );
  }
  return worst;
}
