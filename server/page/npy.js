/** Numpy's npy and npz files: finite little-endian floats, no compression, never a pickle. */
import { Refusal } from "./refusal.js";
import { readZip } from "./zip.js";

const MAGIC = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59];
const MAX_ARRAYS = 64;
const HEADER =
  /^\{'descr': '<f([248])', 'fortran_order': (True|False), 'shape': \(((?:\d+, ?)*\d*)\), \}\s*$/;

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return exponent
    ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024)
    : sign * 2 ** -14 * (fraction / 1024);
}

const READERS = {
  2: (view, at) => half(view.getUint16(at, true)),
  4: (view, at) => view.getFloat32(at, true),
  8: (view, at) => view.getFloat64(at, true),
};

/** Position in C order of each element as it lies in Fortran order. */
function fortranPositions(shape, size) {
  const positions = new Uint32Array(size);
  const index = shape.map(() => 0);
  for (let at = 0; at < size; at += 1) {
    positions[at] = index.reduce((sum, value, axis) => sum * shape[axis] + value, 0);
    for (let axis = 0; axis < shape.length; axis += 1) {
      index[axis] += 1;
      if (index[axis] < shape[axis]) break;
      index[axis] = 0;
    }
  }
  return positions;
}

/**
 * One array.
 *
 * @returns {{shape: number[], data: Float64Array}} values in C order
 */
export function readNpy(bytes, where) {
  const wrong = () =>
    new Refusal(`Expected finite float arrays in ${where}, got something else; export it again.`);
  if (bytes.length < 12 || MAGIC.some((value, at) => bytes[at] !== value)) throw wrong();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const short = bytes[6] === 1;
  const start = (short ? 10 : 12) + (short ? view.getUint16(8, true) : view.getUint32(8, true));
  if (start > bytes.length) throw wrong();
  const text = new TextDecoder("latin1").decode(bytes.subarray(short ? 10 : 12, start));
  const found = HEADER.exec(text);
  if (!found) throw wrong();
  const width = Number(found[1]);
  const shape = found[3].split(",").map((part) => part.trim()).filter(Boolean).map(Number);
  const size = shape.reduce((product, side) => product * side, 1);
  if (start + size * width !== bytes.length) throw wrong();
  const data = new Float64Array(size);
  const positions = found[2] === "True" ? fortranPositions(shape, size) : null;
  for (let at = 0; at < size; at += 1) {
    data[positions ? positions[at] : at] = READERS[width](view, start + at * width);
  }
  if (!data.every(Number.isFinite)) throw wrong();
  return { shape, data };
}

/**
 * Every array of an npz by name.
 *
 * @returns {Map<string, {shape: number[], data: Float64Array}>}
 */
export function readNpz(bytes, where) {
  const files = readZip(bytes, `an uncompressed npz in ${where}`, MAX_ARRAYS);
  const arrays = new Map();
  for (const [name, data] of files) arrays.set(name.replace(/\.npy$/, ""), readNpy(data, where));
  return arrays;
}
