/** Raw records: streams that lie beside the page, and CSV files that a person opens. */
import { Refusal } from "./refusal.js";

const NUMBER = /^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)$/i;
const READERS = {
  float32: (view, at) => view.getFloat32(at * 4, true),
  float64: (view, at) => view.getFloat64(at * 8, true),
};
const WIDTHS = { float32: 4, float64: 8 };

function numberOf(cell) {
  const text = cell.trim().replace(/^"(.*)"$/, "$1");
  return NUMBER.test(text) ? Number(text.replace(/inf(inity)?/i, "Infinity")) : null;
}

/**
 * Records of a CSV file, one a row; a first row with a cell that is no number is the header.
 *
 * @param {string} text
 * @param {number} size values in a record
 * @param {string} where names the file in error sentences
 * @returns {Float64Array[]}
 */
export function parseCsv(text, size, where) {
  const lines = text.split(/\r?\n/).filter((line) => line.trim());
  const rows = lines.map((line) => line.split(","));
  const header = rows.length && rows[0].some((cell) => numberOf(cell) === null);
  const records = (header ? rows.slice(1) : rows).map((row, at) => {
    const values = row.map(numberOf);
    if (values.length !== size || values.includes(null)) {
      throw new Refusal(
        `Expected ${size} numbers in record ${at + 1} of ${where}, got ${values.length} cells or ` +
          "one that is no number; choose other records or another bundle.",
      );
    }
    return Float64Array.from(values);
  });
  if (!records.length) throw new Refusal(`Expected records in ${where}, got none; choose another.`);
  return records;
}

/**
 * Records of a stream of this page.
 *
 * @param {{name: string, file: string, dtype: string, records: number, size: number}} stream
 * @returns {Promise<Float64Array[]>}
 */
export async function fetchStream(stream) {
  const bytes = await fetchBytes(stream.file, stream.records * stream.size * 8);
  const width = WIDTHS[stream.dtype];
  if (!width || bytes.length !== width * stream.records * stream.size) {
    throw new Refusal(`Expected the records of ${stream.name}, got others; build the page again.`);
  }
  const view = new DataView(bytes.buffer);
  return Array.from({ length: stream.records }, (_, row) =>
    Float64Array.from({ length: stream.size }, (_, at) =>
      READERS[stream.dtype](view, row * stream.size + at),
    ),
  );
}

/** Bytes of a file beside the page, at most `most`. */
export async function fetchBytes(path, most) {
  let response = null;
  try {
    response = await fetch(new URL(path, import.meta.url), { cache: "no-cache" });
  } catch {
    response = null;
  }
  if (!response?.ok) {
    throw new Refusal(
      `Expected ${path} beside this page, got ${response ? `status ${response.status}` : "no answer"}; ` +
        "check the server and build the page again.",
    );
  }
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytes.length > most) {
    throw new Refusal(`Expected at most ${most} bytes in ${path}, got more; build the page again.`);
  }
  return bytes;
}
