/** The live view: a moving trace of records, and below it the score of each. */
import { byId, figure, lanesOf, make, paintPicture, pictureOf, quantile, sharpen, theme } from "./dom.js";
import { sentence } from "./refusal.js";
import { preprocess } from "./schema.js";

const MARGIN = { left: 52, right: 14 };
const RECORD_PIXELS = 100;
const KEPT_TIMES = 2000;
const MAX_LANES = 12;
const FRAME_BUDGET_MS = 12;

export class StreamView {
  #model = null;
  #records = [];
  #inputs = [];
  #results = [];
  #tiles = [];
  #times = [];
  #flagged = 0;
  #clock = 0; // in records: record i arrives from i to i + 1
  #playing = false;
  #last = 0;
  #busy = false;
  #ranges = [];
  #top = 1;
  #bottom = 0;

  constructor() {
    this.trace = byId("trace");
    this.chart = byId("chart");
    this.overview = byId("overview");
    byId("play").addEventListener("click", () => this.toggle());
    byId("restart").addEventListener("click", () => this.restart());
    byId("speed").addEventListener("change", () => this.#draw());
    const again = () => this.#draw();
    new ResizeObserver(again).observe(this.trace);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    requestAnimationFrame((now) => this.#frame(now));
  }

  /** Show records of a model from the first; plays unless the person wants less motion. */
  show(model, records, name) {
    this.#model = model;
    this.#records = records;
    this.name = name;
    this.#inputs = records.map((row) => preprocess(model.schema, row));
    this.#ranges = rangesOf(this.#inputs.slice(0, 300), model.schema.shape);
    this.restart();
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) this.#play(false);
  }

  /** Forget everything, as when a bundle is refused. */
  clear() {
    this.#model = null;
    this.#records = [];
    this.#play(false);
  }

  restart() {
    this.#results = [];
    this.#tiles = [];
    this.#times = [];
    this.#flagged = 0;
    this.#clock = 0;
    this.#top = 1;
    this.#bottom = 0;
    byId("stream-error").textContent = "";
    this.#play(this.#records.length > 0);
    this.#report();
    this.#draw();
  }

  toggle() {
    if (this.#done()) this.restart();
    else this.#play(!this.#playing);
  }

  /** Stop where it is. */
  pause() {
    this.#play(false);
  }

  /** Score at once up to a number of records, and stop there. */
  async advance(count) {
    this.#play(false);
    while (this.#busy) await new Promise((resolve) => setTimeout(resolve, 5));
    const until = Math.min(count, this.#records.length);
    while (this.#results.length < until) await this.#scoreNext();
    this.#clock = Math.max(this.#clock, until);
    this.#report();
    this.#draw();
  }

  #done() {
    return this.#records.length > 0 && this.#clock >= this.#records.length;
  }

  #play(on) {
    this.#playing = on;
    this.#last = 0;
    const button = byId("play");
    button.textContent = on ? "Pause" : this.#done() ? "Play again" : "Play";
    button.setAttribute("aria-pressed", String(on));
  }

  #frame(now) {
    requestAnimationFrame((next) => this.#frame(next));
    const hidden = this.trace.clientWidth === 0;
    if (!this.#playing || this.#busy || hidden) {
      this.#last = now;
      return;
    }
    const passed = this.#last ? Math.min((now - this.#last) / 1000, 0.25) : 0;
    this.#last = now;
    const rate = byId("speed").value;
    this.#step(rate === "max" ? null : passed * Number(rate));
  }

  async #step(records) {
    this.#busy = true;
    const model = this.#model;
    try {
      const end = performance.now() + FRAME_BUDGET_MS;
      const target = Math.min(this.#clock + (records ?? Infinity), this.#records.length);
      while (this.#results.length < Math.floor(target) && performance.now() < end) {
        await this.#scoreNext();
        if (model !== this.#model) return;
      }
      this.#clock = records === null ? this.#results.length : Math.min(target, this.#results.length + 1);
    } catch (error) {
      byId("stream-error").textContent = sentence(error);
      this.#play(false);
    } finally {
      this.#busy = false;
    }
    if (this.#done()) this.#play(false);
    this.#report();
    this.#draw();
  }

  async #scoreNext() {
    const index = this.#results.length;
    const result = await this.#model.score(this.#records[index]);
    if (this.#results.length !== index) return; // restarted meanwhile
    this.#results.push(result);
    this.#times.push(result.ms);
    if (this.#times.length > KEPT_TIMES) this.#times.shift();
    if (result.flag) this.#flagged += 1;
  }

  #report() {
    const last = this.#results.at(-1);
    const count = this.#results.length;
    byId("now-score").textContent = figure(last?.score);
    const verdict = byId("now-verdict");
    verdict.textContent = !last ? "" : last.flag === null ? "no threshold" : last.flag ? "▲ flagged" : "normal";
    verdict.className = last?.flag ? "tag tag-flag" : "tag";
    byId("now-threshold").textContent = figure(this.#model?.threshold);
    byId("now-flagged").textContent = `${this.#flagged} of ${count}`;
    byId("now-p50").textContent = count ? `${quantile(this.#times, 0.5).toFixed(2)} ms` : "–";
    byId("now-p99").textContent = count ? `${quantile(this.#times, 0.99).toFixed(2)} ms` : "–";
    byId("progress").textContent = `record ${count} of ${this.#records.length}`;
  }

  // Drawing. Record i covers the x of clock i to i + 1; the right edge is now.

  #layout(canvas) {
    const { context, width, height } = sharpen(canvas);
    const span = Math.max(width - MARGIN.left - MARGIN.right, 10);
    const visible = Math.max(3, Math.round(span / RECORD_PIXELS));
    const step = span / visible;
    const right = width - MARGIN.right;
    const first = Math.max(0, Math.floor(this.#clock - visible));
    const last = Math.min(this.#records.length, Math.ceil(this.#clock));
    // until the trace fills the screen it grows from the left
    const origin = this.#clock < visible ? MARGIN.left + this.#clock * step : right;
    const x = (clock) => origin - (this.#clock - clock) * step;
    return { context, width, height, step, right, first, last, x };
  }

  #draw() {
    if (!this.#model || this.trace.clientWidth === 0) return;
    const colours = theme();
    this.#drawTrace(colours);
    this.#drawChart(colours);
    this.#drawOverview(colours);
  }

  #drawTrace(colours) {
    const plot = this.#layout(this.trace);
    const { context, height, first, last, x, step, right } = plot;
    context.save();
    context.beginPath();
    context.rect(MARGIN.left, 0, Math.min(x(this.#clock), right) - MARGIN.left, height);
    context.clip();
    for (let index = first; index < last; index += 1) {
      const flag = this.#results[index]?.flag;
      if (flag) {
        context.fillStyle = colours["flag-soft"];
        context.fillRect(x(index), 0, step, height);
      }
      context.strokeStyle = colours.line;
      context.lineWidth = 1;
      line(context, [x(index + 1), 0], [x(index + 1), height]);
      const colour = flag ? colours.flag : colours.accent;
      if (pictureOf(this.#model.schema.shape)) this.#drawTile(plot, index, flag, colours);
      else this.#drawCurve(plot, index, colour);
    }
    context.restore();
    if (!pictureOf(this.#model.schema.shape)) this.#drawUnit(plot, colours);
    const flags = this.#results.slice(first).filter((result) => result.flag).length;
    this.trace.setAttribute(
      "aria-label",
      `Trace of records ${first + 1} to ${last} of ${this.name}; ${flags} of them flagged`,
    );
  }

  #drawCurve({ context, height, x, step }, index, colour) {
    const values = this.#inputs[index];
    const { length, lanes } = lanesOf(this.#model.schema.shape);
    const shown = Math.min(lanes, MAX_LANES);
    const lane = (height - 16) / shown;
    context.strokeStyle = colour;
    context.lineWidth = shown > 4 ? 1 : 1.6;
    context.lineJoin = "round";
    for (let row = 0; row < shown; row += 1) {
      const [low, high] = this.#ranges[row];
      context.beginPath();
      for (let at = 0; at < length; at += 1) {
        const share = (values[row * length + at] - low) / (high - low);
        const y = 8 + row * lane + lane * (1 - Math.min(Math.max(share, 0), 1));
        context.lineTo(x(index) + (step * (at + 0.5)) / length, y);
      }
      context.stroke();
    }
  }

  #drawTile({ context, height, x, step }, index, flag, colours) {
    if (!this.#tiles[index]) {
      this.#tiles[index] = document.createElement("canvas");
      paintPicture(this.#tiles[index], this.#model.schema, this.#inputs[index]);
    }
    const side = Math.min(step - 16, height - 24);
    const left = x(index) + (step - side) / 2;
    const top = (height - side) / 2;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.#tiles[index], left, top, side, side);
    if (!flag) return;
    context.strokeStyle = colours.flag;
    context.lineWidth = 3;
    context.strokeRect(left, top, side, side);
  }

  #drawUnit({ context, height }, colours) {
    context.fillStyle = colours.muted;
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "right";
    const { lanes } = lanesOf(this.#model.schema.shape);
    const [low, high] = this.#ranges[0];
    if (lanes === 1) {
      context.textBaseline = "top";
      context.fillText(figure(Number(high.toPrecision(2))), MARGIN.left - 8, 6);
      context.textBaseline = "bottom";
      context.fillText(figure(Number(low.toPrecision(2))), MARGIN.left - 8, height - 6);
    }
    context.textBaseline = "middle";
    const label = lanes === 1 ? this.#model.schema.unit : `${Math.min(lanes, MAX_LANES)}/${lanes}`;
    context.fillText(label, MARGIN.left - 8, height / 2);
  }

  /** Every record of the stream in one strip; flagged ones stand out. */
  #drawOverview(colours) {
    const { context, width, height } = sharpen(this.overview);
    const span = width - MARGIN.left - MARGIN.right;
    const step = span / Math.max(this.#records.length, 1);
    context.fillStyle = colours.line;
    context.fillRect(MARGIN.left, height / 2 - 1, span, 2);
    context.fillStyle = colours.accent;
    context.fillRect(MARGIN.left, height / 2 - 1, this.#clock * step, 2);
    context.fillStyle = colours.flag;
    this.#results.forEach((result, at) => {
      if (result.flag) context.fillRect(MARGIN.left + at * step, 4, Math.max(step - 1, 2), height - 8);
    });
    context.fillStyle = colours.muted;
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillText("all", MARGIN.left - 8, height / 2);
    this.overview.setAttribute(
      "aria-label",
      `Whole stream: ${this.#flagged} of ${this.#results.length} records flagged`,
    );
  }

  #scale(results) {
    const threshold = this.#model.threshold;
    const seen = results.map((result) => result.score);
    const values = threshold === null ? seen : [...seen, threshold];
    const high = Math.max(...values, 0);
    const low = Math.min(...values, 0);
    const wanted = [low < 0 ? low * 1.15 : 0, high * 1.15 || 1];
    const ease = this.#playing ? 0.15 : 1;
    this.#bottom += (wanted[0] - this.#bottom) * ease;
    this.#top += (wanted[1] - this.#top) * ease;
    return [this.#bottom, Math.max(this.#top, this.#bottom + 1e-9)];
  }

  #drawChart(colours) {
    const plot = this.#layout(this.chart);
    const { context, height, first, x, step, right } = plot;
    const results = this.#results.slice(first);
    const [low, high] = this.#scale(results);
    const y = (value) => height - 22 - ((height - 36) * (value - low)) / (high - low);
    drawTicks(context, [low, high], y, right, colours);
    context.save();
    context.beginPath();
    context.rect(MARGIN.left, 0, right - MARGIN.left, height);
    context.clip();
    results.forEach((result, at) => {
      const middle = x(first + at) + step / 2;
      context.strokeStyle = result.flag ? colours.flag : colours.accent;
      context.fillStyle = context.strokeStyle;
      context.lineWidth = 2;
      line(context, [middle, y(Math.max(low, 0))], [middle, y(result.score)]);
      marker(context, middle, y(result.score), result.flag);
    });
    context.restore();
    drawThreshold(context, this.#model.threshold, y, right, colours);
    drawNumbers(context, plot, results.length, colours);
    const last = this.#results.at(-1);
    this.chart.setAttribute(
      "aria-label",
      `Scores of records ${first + 1} to ${first + results.length}, threshold ` +
        `${figure(this.#model.threshold)}, last score ${figure(last?.score)}`,
    );
  }
}

/** For each lane that is drawn, values between which nearly all records lie, with some room. */
function rangesOf(inputs, shape) {
  const { length, lanes } = lanesOf(shape);
  return Array.from({ length: Math.min(lanes, MAX_LANES) }, (_, lane) => {
    const part = [lane * length, (lane + 1) * length];
    const values = inputs.flatMap((input) => Array.from(input.subarray(...part)));
    const low = quantile(values, 0.001);
    const high = quantile(values, 0.999);
    const room = 0.08 * (high - low) || 1;
    return [low - room, high + room];
  });
}

function line(context, from, to) {
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
}

/** A dot, or a triangle for a flagged record, so that colour is not the only sign. */
function marker(context, x, y, flag) {
  context.beginPath();
  if (flag) {
    context.moveTo(x, y - 8);
    context.lineTo(x + 7, y + 5);
    context.lineTo(x - 7, y + 5);
  } else {
    context.arc(x, y, 4, 0, 2 * Math.PI);
  }
  context.fill();
}

function drawTicks(context, [low, high], y, right, colours) {
  const rough = (high - low) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  context.font = "12px system-ui, sans-serif";
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.lineWidth = 1;
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) {
    context.strokeStyle = colours.line;
    line(context, [MARGIN.left, y(value)], [right, y(value)]);
    context.fillStyle = colours.muted;
    context.fillText(figure(Number(value.toPrecision(6))), MARGIN.left - 8, y(value));
  }
}

function drawThreshold(context, threshold, y, right, colours) {
  if (threshold === null) return;
  context.save();
  context.strokeStyle = colours.threshold;
  context.lineWidth = 1.5;
  context.setLineDash([6, 4]);
  line(context, [MARGIN.left, y(threshold)], [right, y(threshold)]);
  context.restore();
  context.fillStyle = colours.threshold;
  context.textAlign = "right";
  context.textBaseline = "bottom";
  context.fillText(`threshold ${figure(threshold)}`, right - 2, y(threshold) - 3);
}

function drawNumbers(context, { first, x, step, height }, count, colours) {
  context.fillStyle = colours.muted;
  context.textAlign = "center";
  context.textBaseline = "bottom";
  for (let at = 0; at < count; at += 1) {
    const middle = x(first + at) + step / 2;
    if (middle > MARGIN.left) context.fillText(String(first + at + 1), middle, height - 3);
  }
}

/** The list of streams that a person can choose from. */
export function fillStreams(select, names) {
  select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
}
