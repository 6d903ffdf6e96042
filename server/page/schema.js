/**
 * From raw records to model input, as training and the devices do it: float64 arithmetic, the
 * median and the mean as numpy computes them, clipping, and one rounding to float32 at the end.
 */
import { Refusal } from "./refusal.js";

const BLOCK = 128;

/** Number of values in one record. */
export const sizeOf = (schema) => schema.shape.reduce((product, side) => product * side, 1);

/** The value in the middle, or the mean of the two. */
export function median(values) {
  const sorted = Float64Array.from(values).sort();
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Sum in numpy's order (pairwise, eight running sums in a block), so that means agree exactly. */
function pairwiseSum(values, start, count) {
  if (count < 8) {
    let sum = -0;
    for (let at = 0; at < count; at += 1) sum += values[start + at];
    return sum;
  }
  if (count > BLOCK) {
    const half = (count >> 1) - ((count >> 1) % 8);
    return pairwiseSum(values, start, half) + pairwiseSum(values, start + half, count - half);
  }
  const sums = Array.from(values.subarray(start, start + 8));
  let at = 8;
  for (; at < count - (count % 8); at += 8) {
    for (let lane = 0; lane < 8; lane += 1) sums[lane] += values[start + at + lane];
  }
  let total =
    sums[0] + sums[1] + (sums[2] + sums[3]) + (sums[4] + sums[5] + (sums[6] + sums[7]));
  for (; at < count; at += 1) total += values[start + at];
  return total;
}

/** Arithmetic mean. */
export const mean = (values) => pairwiseSum(values, 0, values.length) / values.length;

const CENTERS = { none: () => 0, median, mean };

/**
 * One raw record as model input.
 *
 * @param {{shape: number[], scale: number, center: string, lower: number, upper: number}} schema
 * @param {ArrayLike<number>} raw as many values as a record has
 * @returns {Float32Array} within [lower, upper]
 */
export function preprocess(schema, raw) {
  const size = sizeOf(schema);
  if (raw.length !== size) {
    throw new Refusal(
      `Expected ${size} values in a record of ${schema.name}, got ${raw.length}; ` +
        "choose other records or another bundle.",
    );
  }
  const values = Float64Array.from(raw, (value) => value * schema.scale);
  const center = CENTERS[schema.center](values);
  const result = new Float32Array(size);
  for (let at = 0; at < size; at += 1) {
    const value = schema.center === "none" ? values[at] : values[at] - center;
    if (!Number.isFinite(value)) {
      throw new Refusal(
        "Expected finite values, got NaN, infinite or overflowing ones in a record; " +
          "remove or fill such records.",
      );
    }
    result[at] = Math.min(Math.max(value, schema.lower), schema.upper);
  }
  return result;
}
