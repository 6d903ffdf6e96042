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

/** Values of a record that a column takes. */
const widthOf = ({ levels, missing }) => levels.length || (missing === "mask" ? 2 : 1);

/** Shape of records of these columns, with a window or without. */
export function shapeOf(columns, window) {
  const width = columns.reduce((sum, column) => sum + widthOf(column), 0);
  if (!window) return [width];
  return width === 1 ? [window.length] : [width, window.length];
}

/** Number of values in one raw record: of every column, at every row of a window. */
export const rawSizeOf = (schema) =>
  schema.columns ? schema.columns.length * (schema.window?.length ?? 1) : sizeOf(schema);

/** A raw number scaled to [0, 1] by its column's range. */
function scaled({ lower, upper, transform }, value) {
  const inside = Math.min(Math.max(value, lower), upper);
  const place = transform === "log" ? Math.log1p : (number) => number;
  return (place(inside) - place(lower)) / (place(upper) - place(lower));
}

/** The values of one raw number: see `Column.encode` of `fedlatent.shared.data.column`. */
function encoded(column, raw) {
  const { levels, missing, fill, lower } = column;
  const there = !Number.isNaN(raw);
  if (levels.length) {
    const at = there || fill === null ? raw : levels.indexOf(fill);
    return levels.map((_, index) => Number(index === at));
  }
  if (missing === "mask") return there ? [scaled(column, raw), 1] : [0, 0];
  return [scaled(column, there ? raw : fill ?? lower)];
}

function ofColumns(schema, raw) {
  const length = schema.window?.length ?? 1;
  const result = new Float32Array(sizeOf(schema));
  let lane = 0;
  schema.columns.forEach((column, at) => {
    for (let step = 0; step < length; step += 1) {
      const value = raw[at * length + step];
      if (Number.isNaN(value) ? column.missing === "refuse" : !Number.isFinite(value)) {
        throw notFinite();
      }
      encoded(column, value).forEach((part, index) => {
        result[(lane + index) * length + step] = part;
      });
    }
    lane += widthOf(column);
  });
  return result;
}

const notFinite = () => new Refusal(
  "Expected finite values, got NaN, infinite or overflowing ones in a record; " +
    "remove or fill such records.",
);

/**
 * One raw record as model input.
 *
 * @param {{shape: number[], scale: number, center: string, lower: number, upper: number,
 *   columns?: object[], window?: object}} schema
 * @param {ArrayLike<number>} raw as many values as a raw record has; classes are indices of their
 *   levels, and NaN is a gap
 * @returns {Float32Array} within [lower, upper]
 */
export function preprocess(schema, raw) {
  const size = rawSizeOf(schema);
  if (raw.length !== size) {
    throw new Refusal(
      `Expected ${size} values in a record of ${schema.name}, got ${raw.length}; ` +
        "choose other records or another bundle.",
    );
  }
  if (schema.columns) return ofColumns(schema, raw);
  const values = Float64Array.from(raw, (value) => value * schema.scale);
  const center = CENTERS[schema.center](values);
  const result = new Float32Array(size);
  for (let at = 0; at < size; at += 1) {
    const value = schema.center === "none" ? values[at] : values[at] - center;
    if (!Number.isFinite(value)) {
      throw notFinite();
    }
    result[at] = Math.min(Math.max(value, schema.lower), schema.upper);
  }
  return result;
}
