/** The latent view: encode a record, move its latents, and see what the decoder makes of them. */
import { byId, figure, lanesOf, make, paintPicture, pictureOf, sharpen, theme } from "./dom.js";
import { sentence } from "./refusal.js";
import { preprocess, sizeOf } from "./schema.js";

const MAX_SLIDERS = 16;
const KL_RECORDS = 64;
const WIDTH = 3.5; // standard deviations to each side
const PEN = 1.3; // radius in pixels of the record

export class LatentView {
  #model = null;
  #records = [];
  #index = 0;
  #input = null; // Float32Array after preprocessing, or the raw drawing
  #latent = null;
  #encoded = null;
  #output = null;
  #order = [];
  #ink = null;
  #pending = null;

  constructor() {
    this.input = byId("input");
    this.output = byId("output");
    byId("next-record").addEventListener("click", () => this.choose(this.#index + 1));
    byId("previous-record").addEventListener("click", () => this.choose(this.#index - 1));
    byId("clear-drawing").addEventListener("click", () => this.#clearDrawing());
    byId("reset-latents").addEventListener("click", () => this.reset());
    this.#listenToPen();
    const again = () => this.#paint();
    new ResizeObserver(again).observe(this.input);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  }

  /** Show records of a model that has a decoder. */
  async show(model, records) {
    this.#model = model;
    this.#records = records;
    this.#ink = null;
    const drawable = pictureOf(model.schema.shape)?.planes === 1;
    byId("drawing").hidden = !drawable;
    this.input.classList.toggle("drawable", drawable);
    for (const canvas of [this.input, this.output]) {
      canvas.classList.toggle("curve", !pictureOf(model.schema.shape));
    }
    this.#order = await byDivergence(model, records.slice(0, KL_RECORDS));
    this.#makeSliders();
    await this.choose(0);
  }

  /** Forget everything, as when a bundle is refused. */
  clear() {
    this.#model = null;
    this.#latent = null;
  }

  /** Encode a record by its number; numbers wrap around. */
  async choose(index) {
    const count = this.#records.length;
    this.#index = ((index % count) + count) % count;
    this.#ink = null;
    byId("record-number").textContent = `record ${this.#index + 1} of ${count}`;
    await this.#encode(this.#records[this.#index]);
  }

  /** Put the latents back to those of the encoded record. */
  reset() {
    if (!this.#encoded) return;
    this.#latent = Float32Array.from(this.#encoded);
    this.#showSliders();
    this.#decode();
  }

  async #encode(raw) {
    const model = this.#model;
    try {
      const result = await model.score(raw);
      if (model !== this.#model) return;
      this.#input = preprocess(model.schema, raw);
      this.#encoded = result.mu;
      const verdict = byId("latent-verdict");
      byId("latent-score").textContent = figure(result.score);
      verdict.textContent = result.flag === null ? "" : result.flag ? "▲ flagged" : "normal";
      verdict.className = result.flag ? "tag tag-flag" : "tag";
      byId("latent-error").textContent = "";
      this.reset();
    } catch (error) {
      byId("latent-error").textContent = sentence(error);
    }
  }

  /** Decode the latest latents; values that a newer call overtakes are dropped. */
  async #decode() {
    const wanted = this.#latent;
    if (this.#pending) {
      this.#pending = wanted;
      return;
    }
    this.#pending = wanted;
    let next = wanted;
    try {
      do {
        next = this.#pending;
        this.#output = await this.#model.decode(Float32Array.from(next));
        this.#paint();
      } while (this.#pending !== next);
    } catch (error) {
      byId("latent-error").textContent = sentence(error);
    } finally {
      this.#pending = null;
    }
  }

  #makeSliders() {
    const { mean, deviation } = this.#model.density;
    const shown = this.#order.slice(0, MAX_SLIDERS);
    byId("sliders-note").textContent =
      `${shown.length} of ${this.#order.length} latents; those that say most about these records ` +
      "come first (KL divergence in nats).";
    const rows = shown.map(({ latent, divergence }) => {
      const centre = mean[latent];
      const reach = WIDTH * (deviation[latent] || 1);
      const id = `latent-${latent}`;
      const slider = make("input", {
        type: "range", id, min: centre - reach, max: centre + reach, step: "any",
        "data-latent": latent,
      });
      slider.addEventListener("input", () => this.#move(latent, Number(slider.value)));
      return make(
        "div", { class: "slider" },
        make("label", { for: id }, `z${latent + 1}`),
        slider,
        make("output", { for: id, "data-latent": latent }),
        make("small", {}, `${divergence.toFixed(2)} nats`),
      );
    });
    byId("sliders").replaceChildren(...rows);
  }

  #move(latent, value) {
    if (!this.#latent) return;
    this.#latent = Float32Array.from(this.#latent);
    this.#latent[latent] = value;
    this.#showValue(latent);
    this.#decode();
  }

  #showSliders() {
    for (const slider of byId("sliders").querySelectorAll("input")) {
      const value = this.#latent[Number(slider.dataset.latent)];
      slider.min = Math.min(Number(slider.min), value);
      slider.max = Math.max(Number(slider.max), value);
      slider.value = value;
      this.#showValue(Number(slider.dataset.latent));
    }
  }

  #showValue(latent) {
    const output = byId("sliders").querySelector(`output[data-latent="${latent}"]`);
    if (output) output.value = this.#latent[latent].toFixed(2).replace(/^-(0\.00)$/, "$1");
    const moved = this.#latent.some((value, at) => value !== this.#encoded[at]);
    byId("reset-latents").disabled = !moved;
  }

  #paint() {
    if (!this.#model || !this.#input) return;
    const picture = pictureOf(this.#model.schema.shape);
    for (const [canvas, values] of [[this.input, this.#input], [this.output, this.#output]]) {
      if (!values || canvas.clientWidth === 0) continue;
      if (picture) paintPicture(canvas, this.#model.schema, values);
      else this.#paintCurve(canvas, values);
    }
  }

  #paintCurve(canvas, values) {
    const { context, width, height } = sharpen(canvas);
    const colours = theme();
    const { length, lanes } = lanesOf(this.#model.schema.shape);
    const all = [...this.#input, ...(this.#output ?? [])];
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const lane = height / lanes;
    const trace = (data, colour, wide) => {
      context.strokeStyle = colour;
      context.lineWidth = wide;
      for (let row = 0; row < lanes; row += 1) {
        context.beginPath();
        for (let at = 0; at < length; at += 1) {
          const share = (data[row * length + at] - low) / (high - low || 1);
          context.lineTo((width * (at + 0.5)) / length, row * lane + lane * (0.94 - 0.88 * share));
        }
        context.stroke();
      }
    };
    if (values !== this.#input) trace(this.#input, colours.muted, 1);
    trace(values, colours.accent, 2);
  }

  // Drawing with a mouse, a pen or a finger.

  #listenToPen() {
    let last = null;
    const point = (event) => {
      const box = this.input.getBoundingClientRect();
      const { width, height } = pictureOf(this.#model.schema.shape);
      return [
        ((event.clientX - box.left) / box.width) * width,
        ((event.clientY - box.top) / box.height) * height,
      ];
    };
    const draw = (event) => {
      const here = point(event);
      this.#stroke(last ?? here, here);
      last = here;
    };
    this.input.addEventListener("pointerdown", (event) => {
      if (!this.#model || !this.input.classList.contains("drawable")) return;
      this.input.setPointerCapture(event.pointerId);
      event.preventDefault();
      last = null;
      draw(event);
    });
    this.input.addEventListener("pointermove", (event) => {
      if (this.input.hasPointerCapture(event.pointerId)) draw(event);
    });
  }

  #clearDrawing() {
    if (!this.#model) return;
    this.#ink = new Float64Array(sizeOf(this.#model.schema));
    this.#encodeDrawing();
  }

  #stroke([fromX, fromY], [toX, toY]) {
    const { schema } = this.#model;
    const { width, height } = pictureOf(schema.shape);
    const ink = this.#ink ?? Float64Array.from(this.#input, (v) => level(schema, v));
    const steps = Math.max(1, Math.ceil(2 * Math.hypot(toX - fromX, toY - fromY)));
    for (let step = 0; step <= steps; step += 1) {
      const x = fromX + ((toX - fromX) * step) / steps;
      const y = fromY + ((toY - fromY) * step) / steps;
      for (let row = Math.max(0, Math.floor(y - 2)); row < Math.min(height, y + 2); row += 1) {
        for (let column = Math.max(0, Math.floor(x - 2)); column < Math.min(width, x + 2); column += 1) {
          const distance = Math.hypot(column + 0.5 - x, row + 0.5 - y);
          const at = row * width + column;
          ink[at] = Math.max(ink[at], Math.min(1, Math.max(0, PEN + 0.5 - distance)));
        }
      }
    }
    this.#ink = ink;
    this.#encodeDrawing();
  }

  #encodeDrawing() {
    const { schema } = this.#model;
    byId("record-number").textContent = "your drawing";
    const span = schema.upper - schema.lower;
    this.#encode(Float64Array.from(this.#ink, (v) => (schema.lower + v * span) / schema.scale));
  }
}

const level = (schema, value) => (value - schema.lower) / (schema.upper - schema.lower);

/** Latents with their mean KL divergence from a standard normal on some records, largest first. */
async function byDivergence(model, records) {
  const outputs = await model.run(records);
  const [mu, logvar] = [outputs.get("mu"), outputs.get("logvar")];
  const count = mu.length / records.length;
  const sums = new Float64Array(count);
  mu.forEach((m, at) => {
    sums[at % count] += 0.5 * (m * m + Math.exp(logvar[at]) - logvar[at] - 1);
  });
  return Array.from(sums, (sum, latent) => ({ latent, divergence: sum / records.length })).sort(
    (one, other) => other.divergence - one.divergence,
  );
}
