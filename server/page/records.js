/** Raw records: streams that lie beside the page, and CSV files that a person opens. */
import { Refusal } from "./refusal.js";

const NUMBER = /^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)$/i;
/** A cell and the comma after it; one in double quotes may hold commas, and two quotes are one. */
const CELL = /(?:"((?:[^"]|"")*)"|((?:[^",][^,]*)?)),/g;
const LARGEST = 1e150; // of a value; its product with a scale stays finite
const READERS = {
  float32: (view, at) => view.getFloat32(at * 4, true),
  float64: (view, at) => view.getFloat64(at * 8, true),
};
const WIDTHS = { float32: 4, float64: 8 };

/** The number in a cell, or null where it holds none. */
function numberOf(cell) {
  const text = cell.trim();
  return NUMBER.test(text) ? Number(text.replace(/inf(inity)?/i, "Infinity")) : null;
}

/** The cells of a line, or null where its quotes are wrong. */
function cellsOf(line) {
  const found = [...`${line},`.matchAll(CELL)];
  if (found.reduce((sum, [whole]) => sum + whole.length, 0) !== line.length + 1) return null;
  return found.map(([, quoted, bare]) => bare ?? quoted.replaceAll('""', '"'));
}

/**
 * Records of a CSV file, by the rule of `fedlatent.shared.data.table`: one a line; a first line
 * with a cell that is no number is the header, and a later line that equals it is passed over.
 *
 * @param {string} text
 * @param {number} size values in a record
 * @param {string} where names the file in error sentences
 * @returns {Float64Array[]}
 */
export function parseCsv(text, size, where) {
  const wrong = (reason, expected, got) =>
    new Refusal(`Expected ${expected} in ${where}, got ${got}; correct it or choose another.`, reason);
  if (text.includes("\uFFFD")) throw wrong("encoding", "CSV in UTF-8", "something else");
  const lines = text.replace(/^\uFEFF/, "").split("\n").map((line) => line.trim()).filter(Boolean);
  const first = lines.length ? cellsOf(lines[0]) : [];
  const header = first?.some((cell) => numberOf(cell) === null) ? lines[0] : null;
  const kept = lines.filter((line) => line !== header);
  const records = kept.map((line, at) => {
    const cells = cellsOf(line);
    const place = `record ${at + 1}`;
    if (!cells || line.includes("\r")) {
      throw wrong("encoding", "CSV with one record a line", `something else in ${place}`);
    }
    if (cells.length !== size) {
      throw wrong("width", `${size} cells a line`, `${cells.length} in ${place}`);
    }
    return Float64Array.from(cells, (cell, column) => {
      const value = numberOf(cell);
      const named = `column ${header === null ? column + 1 : first[column]} of ${place}`;
      if (value === null) throw wrong("number", "numbers", `a cell that is none in ${named}`);
      if (!(Math.abs(value) <= LARGEST)) {
        throw wrong("finite", "finite values", `NaN, infinity or overflow in ${named}`);
      }
      return value;
    });
  });
  if (!records.length) throw wrong("empty", "records", "none");
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
