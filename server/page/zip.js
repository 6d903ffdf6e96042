/**
 * Zip files of stored entries: a reader, and the writer of the one canonical form.
 *
 * Only what Python's zipfile writes without compression is read. Sizes come from the directory at
 * the end of the file; every offset is checked against the bytes that are there.
 */
import { Refusal } from "./refusal.js";

const LOCAL = 0x04034b50;
const CENTRAL = 0x02014b50;
const END = 0x06054b50;
const END_BYTES = 22;
const VERSION = 20;
const UNIX = 3;
const DATE = (1 << 5) | 1; // 1 January 1980
const MODE = 0o100644 << 16;

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** CRC-32 of bytes, as zip files carry it. */
export function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC_TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

function asciiName(bytes) {
  if (bytes.some((byte) => byte < 32 || byte > 126)) throw new RangeError("name");
  return String.fromCharCode(...bytes);
}

function entryAt(bytes, view, at) {
  if (view.getUint32(at, true) !== CENTRAL) throw new RangeError("directory");
  const nameLength = view.getUint16(at + 28, true);
  const size = view.getUint32(at + 24, true);
  const local = view.getUint32(at + 42, true);
  const stored = view.getUint16(at + 10, true) === 0 && view.getUint32(at + 20, true) === size;
  if (!stored || view.getUint16(at + 8, true) !== 0) throw new RangeError("compressed");
  if (view.getUint32(local, true) !== LOCAL) throw new RangeError("local header");
  const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
  if (start + size > bytes.length) throw new RangeError("length");
  return {
    name: asciiName(bytes.subarray(at + 46, at + 46 + nameLength)),
    crc: view.getUint32(at + 16, true),
    data: bytes.subarray(start, start + size),
    next: at + 46 + nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true),
  };
}

/**
 * Read all entries.
 *
 * @param {Uint8Array} bytes the whole file
 * @param {string} where names it in error sentences
 * @param {number} most largest number of entries
 * @param {(name: string, size: number) => void} check called for each entry before it is kept
 * @returns {Map<string, Uint8Array>} content by name, in the order of the directory
 */
export function readZip(bytes, where, most, check = () => {}) {
  const damaged = new Refusal(
    `Expected ${where}, got something else or a damaged or cut file; get it again.`,
  );
  const contents = new Map();
  try {
    const view = viewOf(bytes);
    const end = bytes.length - END_BYTES;
    const count = view.getUint16(end + 10, true);
    if (view.getUint32(end, true) !== END || count > most) throw damaged;
    let at = view.getUint32(end + 16, true);
    for (let index = 0; index < count; index += 1) {
      const entry = entryAt(bytes, view, at);
      check(entry.name, entry.data.length);
      if (contents.has(entry.name) || crc32(entry.data) !== entry.crc) throw damaged;
      contents.set(entry.name, entry.data);
      at = entry.next;
    }
    if (at !== end) throw damaged;
  } catch (error) {
    throw error instanceof Refusal ? error : damaged; // RangeError: an offset outside the file
  }
  return contents;
}

function header(name, data, crc, offset) {
  const common = new Uint8Array(26);
  const view = viewOf(common);
  view.setUint16(0, VERSION, true);
  view.setUint16(8, DATE, true);
  view.setUint32(10, crc, true);
  view.setUint32(14, data.length, true);
  view.setUint32(18, data.length, true);
  view.setUint16(22, name.length, true);
  const local = new Uint8Array(30 + name.length);
  viewOf(local).setUint32(0, LOCAL, true);
  local.set(common, 4);
  local.set(name, 30);
  const central = new Uint8Array(46 + name.length);
  const out = viewOf(central);
  out.setUint32(0, CENTRAL, true);
  out.setUint8(4, VERSION);
  out.setUint8(5, UNIX);
  central.set(common, 6);
  out.setUint32(38, MODE, true);
  out.setUint32(42, offset, true);
  central.set(name, 46);
  return { local, central };
}

/**
 * The one archive of some contents: fixed time and mode, no compression.
 *
 * @param {[string, Uint8Array][]} entries in archive order
 * @returns {Uint8Array}
 */
export function packZip(entries) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const [text, data] of entries) {
    const name = new TextEncoder().encode(text);
    const { local, central } = header(name, data, crc32(data), offset);
    parts.push(local, data);
    directory.push(central);
    offset += local.length + data.length;
  }
  const length = directory.reduce((sum, part) => sum + part.length, 0);
  const end = new Uint8Array(END_BYTES);
  const view = viewOf(end);
  view.setUint32(0, END, true);
  view.setUint16(8, directory.length, true);
  view.setUint16(10, directory.length, true);
  view.setUint32(12, length, true);
  view.setUint32(16, offset, true);
  return joined([...parts, ...directory, end]);
}

function joined(parts) {
  const result = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result;
}
