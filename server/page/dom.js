/** Small helpers for elements, numbers and canvases. Text is only ever set as text. */

/** The element of an id. */
export const byId = (id) => document.getElementById(id);

/** A new element with attributes and children (elements or text). */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A number for people: about four digits. */
export function figure(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return size >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
}

/** The value below which a share of the values lies; NaN when there is none. */
export function quantile(values, share) {
  if (!values.length) return Number.NaN;
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

/** Colours of the page's theme as they are now. */
export function theme() {
  const style = getComputedStyle(document.documentElement);
  const names = ["muted", "line", "accent", "flag", "flag-soft", "threshold"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** A canvas made sharp for this screen; drawing units are CSS pixels. */
export function sharpen(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = globalThis.devicePixelRatio || 1;
  const context = canvas.getContext("2d");
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** Height, width and planes of records that are pictures; null for all others. */
export function pictureOf(shape) {
  if (shape.length === 2 && shape[0] === shape[1]) {
    return { height: shape[0], width: shape[1], planes: 1 };
  }
  if (shape.length === 3 && (shape[0] === 1 || shape[0] === 3)) {
    return { height: shape[1], width: shape[2], planes: shape[0] };
  }
  return null;
}

/** Lanes and length of records that are curves: [T] is one lane, [C, T] is C lanes. */
export function lanesOf(shape) {
  const length = shape[shape.length - 1];
  return { length, lanes: shape.reduce((product, side) => product * side, 1) / length };
}

/** A picture record, in the unit after preprocessing, as a canvas of its own size. */
export function paintPicture(canvas, schema, values) {
  const { height, width, planes } = pictureOf(schema.shape);
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  const area = width * height;
  const level = (value) => (255 * (value - schema.lower)) / (schema.upper - schema.lower);
  for (let at = 0; at < area; at += 1) {
    for (let channel = 0; channel < 3; channel += 1) {
      image.data[at * 4 + channel] = level(values[at + (planes === 3 ? channel * area : 0)]);
    }
    image.data[at * 4 + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
