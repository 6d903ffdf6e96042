/** Raw records: streams that lie beside the page, and CSV files that a person opens. */
import { Refusal } from "./refusal.js";
import { rawSizeOf } from "./schema.js";

const NUMBER = /^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)$/i;
/** A cell and the comma after it; one in double quotes may hold commas, and two quotes are one. */
const CELL = /(?:"((?:[^"]|"")*)"|((?:[^",][^,]*)?)),/g;
/** Texts that stand for no value, unless they are levels of the column. */
const GAPS = new Set(["", "na", "n/a", "nan", "null", "none", "?"]);
const SHORT_STEP = 0.5; // of the time between rows that a rate says
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

/** The raw number of a cell of a column, NaN for a gap and null for a cell that is refused. */
function codeOf({ levels, missing }, cell) {
  const text = cell.trim();
  const value = GAPS.has(text.toLowerCase()) ? Number.NaN : numberOf(text);
  if (!levels.length) return Number.isNaN(value) && missing === "refuse" ? null : value;
  const at = levels.indexOf(levels.includes(text) ? text : value);
  if (at >= 0) return at;
  return missing === "refuse" ? null : Number.NaN;
}

/** Why a cell is refused: a gap where none may be, no level of the column, or no number. */
function whyRefused(column, cell) {
  if (column && GAPS.has(cell.trim().toLowerCase())) return "missing";
  return column?.levels.length ? "level" : "number";
}

/** A time in seconds; dates without a zone are UTC. */
function secondsOf(cell) {
  const text = cell.trim();
  const zoned = /(z|[+-]\d\d:?\d\d)$/i.test(text) || !/[t ]\d/i.test(text) ? text : `${text}Z`;
  if (/^(19|20)\d{10}(\d\d)?$/.test(text)) return Number.NaN; // a date without its dashes
  return numberOf(text) ?? Date.parse(zoned.replace(" ", "T")) / 1000;
}

/** Records [C, length] of rows: see `fedlatent.shared.data.series`. */
function windowsOf(rows, { length, step, rate, gap }, times, groups) {
  const longest = rate ? gap / rate : Number.POSITIVE_INFINITY;
  const follows = (at) =>
    (!groups || groups[at] === groups[at - 1]) &&
    (!times || (times[at] > times[at - 1] && times[at] - times[at - 1] <= longest));
  const records = [];
  let start = 0;
  rows.forEach((_, at) => {
    if (at > 0 && !follows(at)) start = at;
    const begin = at + 1 - length;
    if (begin < start || (begin - start) % step !== 0) return;
    const record = new Float64Array(rows[0].length * length);
    for (let back = 0; back < length; back += 1) {
      rows[begin + back].forEach((value, lane) => { record[lane * length + back] = value; });
    }
    records.push(record);
  });
  return records;
}

/** Whether the first line is the header; one that may be a record as well is refused. */
function isHeader(cells, asked, wrong) {
  const numbers = cells.map((cell) => numberOf(cell) !== null);
  if (!numbers.some(Boolean)) {
    if (cells.length === 1 && /[;\t|]/.test(cells[0])) {
      throw wrong("delimiter", "commas between cells", "none in the first line");
    }
    return cells.length > 0;
  }
  if (asked.length) return !numbers.every(Boolean) && asked.every((name) => cells.includes(name));
  const counts = cells.length >= 3 && cells.every((cell, at) => cell.trim() === String(at));
  if (numbers.every(Boolean) && !counts) return false;
  throw wrong("header", "names or a record in the first line", "one that may be either");
}

/** Refuse numbered columns that stand in another order: nobody chose it. */
function checkOrder(names, wrong) {
  const found = names.map((name) => /^(\D*)(\d{1,9})$/.exec(name.trim()));
  if (!found.every((one) => one && one[1] === found[0][1])) return;
  const at = found.findIndex((one, place) => place && Number(one[2]) < Number(found[place - 1][2]));
  if (at < 0) return;
  throw wrong("order", "columns in the order of their numbers", `${names[at]} after ${names[at - 1]}`);
}

/**
 * Records of a CSV file, by the rule of `fedlatent.shared.data.table`: one a line; a first line
 * with a cell that is no number is the header, and a later line that equals it is passed over.
 * Columns of a schema are found by their names; a window cuts rows into records.
 *
 * @param {string} text
 * @param {object} schema of a record
 * @param {string} where names the file in error sentences
 * @returns {Float64Array[]} raw records
 */
export function parseCsv(text, schema, where) {
  const wrong = (reason, expected, got) =>
    new Refusal(`Expected ${expected} in ${where}, got ${got}; correct it or choose another.`, reason);
  if (text.includes("\uFFFD")) throw wrong("encoding", "CSV in UTF-8", "something else");
  const lines = text.replace(/^\uFEFF/, "").split("\n").map((line) => line.trim()).filter(Boolean);
  const first = lines.length ? cellsOf(lines[0]) : [];
  const { columns, window } = schema;
  const asked = [...(columns ?? []).map(({ name }) => name), window?.time, window?.group];
  const header = isHeader(first ?? [], asked.filter(Boolean), wrong) ? lines[0] : null;
  const size = rawSizeOf(schema) / (window?.length ?? 1);
  const place = (name) => {
    const at = header === null ? -1 : first.indexOf(name);
    if (at >= 0 && first.indexOf(name, at + 1) < 0) return at;
    throw wrong("column", `column ${name} once in the header`, at < 0 ? "none" : "two");
  };
  const at = columns?.map(({ name }) => place(name));
  if (!columns && header !== null) {
    const twice = first.find((name, index) => first.indexOf(name) < index);
    if (twice !== undefined) throw wrong("column", `column ${twice} once in the header`, "two");
    checkOrder(first, wrong);
  }
  const sides = ["time", "group"].map((key) => (window?.[key] ? place(window[key]) : null));
  const kept = lines.filter((line) => line !== header).map((line, row) => {
    const cells = cellsOf(line);
    if (!cells || line.includes("\r")) {
      throw wrong("encoding", "CSV with one record a line", `something else in record ${row + 1}`);
    }
    const width = columns || header !== null ? first.length : size;
    if (cells.length !== width) {
      throw wrong("width", `${width} cells a line`, `${cells.length} in record ${row + 1}`);
    }
    return cells;
  });
  const own = first.map((_, cell) => cell).filter((cell) => !sides.includes(cell));
  if (!columns && kept.length && own.length !== size) {
    throw wrong("width", `${size} cells a line`, `${own.length} in record 1`);
  }
  const largest = columns ? Number.MAX_VALUE : LARGEST; // columns have no scale
  const rows = kept.map((cells, row) =>
    Float64Array.from(at ?? own, (cell, column) => {
      const value = columns ? codeOf(columns[column], cells[cell]) : numberOf(cells[cell]);
      const named = `column ${header === null ? cell + 1 : first[cell]} of record ${row + 1}`;
      if (value === null) {
        const reason = whyRefused(columns?.[column], cells[cell]);
        throw wrong(reason, "what the column holds", `another cell in ${named}`);
      }
      if (Number.isNaN(value) ? !columns : !(Math.abs(value) <= largest)) {
        throw wrong("finite", "finite values", `NaN, infinity or overflow in ${named}`);
      }
      return value;
    }),
  );
  const [times, groups] = sides.map((cell) => cell === null ? null : kept.map((row) => row[cell]));
  const seconds = times?.map(secondsOf);
  const never = seconds?.findIndex((one) => !Number.isFinite(one)) ?? -1;
  if (never >= 0) {
    throw wrong("time", `seconds or a date in column ${window.time}`, `another in record ${never + 1}`);
  }
  const steps = (seconds ?? []).slice(1).map((one, at) => one - seconds[at]).filter((one) => one > 0);
  const middle = steps.sort((one, other) => one - other)[steps.length >> 1];
  if (window?.rate && middle < SHORT_STEP / window.rate) {
    throw wrong("rate", `${1 / window.rate} seconds from row to row`, `${middle} in the middle`);
  }
  const records = window ? windowsOf(rows, window, seconds, groups) : rows;
  if (!records.length && rows.length) {
    throw wrong("short", `${window.length} rows that follow each other`, "fewer in every series");
  }
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
