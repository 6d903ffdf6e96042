/** The page: load, verify, show. Everything that is shown of a bundle passed every check first. */
import { showAbout } from "./about.js";
import { MAX_BYTES, STEPS, openBundle } from "./bundle.js";
import { report, scoreAll } from "./check.js";
import { byId, make } from "./dom.js";
import { readKey } from "./keys.js";
import { LatentView } from "./latent.js";
import { EdgeModel } from "./model.js";
import { fetchBytes, fetchStream, parseCsv } from "./records.js";
import { Refusal, sentence } from "./refusal.js";
import { rawSizeOf } from "./schema.js";
import { StreamView, fillStreams } from "./stream.js";

const MAX_PAGE_BYTES = 1 << 20;
const MAX_CSV_BYTES = 1 << 26;
const ALL_STEPS = [...STEPS, "Runtime", "Golden vectors"];
const query = new URLSearchParams(location.search);

const state = { page: null, keys: [], bytes: null, where: "", model: null, own: new Map(), turn: 0 };
const streamView = new StreamView();
const latentView = new LatentView();

// Verification, line by line.

let lines = [];

function addLine(name, text, kind) {
  lines.push({ name, text, kind });
  const words = { ok: "passed", bad: "refused", warn: "note", skip: "not reached" };
  const marks = { ok: "✓", bad: "✕", warn: "!", skip: "·" };
  byId("steps").append(
    make(
      "li", { class: `step step-${kind}` },
      make("span", { class: "mark", role: "img", "aria-label": words[kind] }, marks[kind]),
      make("div", {}, make("strong", {}, name), make("p", {}, text)),
    ),
  );
}

function verdict(kind, text) {
  byId("verdict").textContent = text;
  byId("verification").dataset.state = kind;
  byId("verification").open = kind !== "ok" || matchMedia("(min-width: 801px)").matches;
}

function refuse(error) {
  const passed = new Set(lines.map((line) => line.name));
  const left = ALL_STEPS.filter((name) => !passed.has(name));
  addLine(left[0] ?? "Check", sentence(error), "bad");
  for (const name of left.slice(1)) addLine(name, "not reached", "skip");
  // until its digests hold, ONNX Runtime is not even fetched
  byId("refusal-note").hidden = passed.has("Digests");
  verdict("bad", passed.has("Digests") ? "Refused: it is not used" : "Refused: nothing was loaded");
  byId("refusal-reason").textContent = sentence(error);
  byId("refusal-bundle").textContent = state.where;
}

/** Take a bundle through every check; the views follow only when all held. */
async function load(bytes, where) {
  const turn = ++state.turn;
  state.bytes = bytes;
  state.where = where;
  forget();
  const done = (name, text, warn = false) => {
    if (turn === state.turn) addLine(name, text, warn ? "warn" : "ok");
  };
  try {
    const bundle = await openBundle(bytes, state.keys, done, where);
    const model = await EdgeModel.load(bundle, done);
    if (turn !== state.turn) return;
    state.model = model;
    verdict("ok", `Verified: ${bundle.manifest.name} ${bundle.manifest.version}`);
    await showModel(model);
  } catch (error) {
    if (turn === state.turn) refuse(error);
  }
}

function forget() {
  lines = [];
  state.model = null;
  state.own.clear();
  streamView.clear();
  latentView.clear();
  byId("steps").replaceChildren();
  byId("refusal-reason").textContent = "";
  byId("site-note").hidden = true;
  byId("message").textContent = "";
  verdict("busy", "Checking …");
}

// Views.

async function showModel(model) {
  showAbout(model);
  byId("site-note").hidden = model.manifest.kind !== "site";
  byId("tab-latent").hidden = !model.decodes;
  listStreams(query.get("records"));
  const wanted = query.get("view") ?? "stream";
  choose(wanted === "latent" && !model.decodes ? "stream" : wanted);
  await showRecords();
}

function streamsOf(model) {
  const size = rawSizeOf(model.schema);
  return state.page.streams.filter((stream) => stream.size === size);
}

function listStreams(chosen) {
  const names = [
    ...streamsOf(state.model).map((stream) => stream.name), ...state.own.keys(), "golden vectors",
  ];
  fillStreams(byId("stream"), names);
  if (names.includes(chosen)) byId("stream").value = chosen;
}

async function recordsOf(model, name) {
  if (state.own.has(name)) return state.own.get(name);
  const stream = streamsOf(model).find((each) => each.name === name);
  if (stream) return fetchStream(stream);
  if (name === "golden vectors") return model.golden;
  throw new Refusal(`Expected a stream named ${name} that fits this bundle, got none.`);
}

async function showRecords() {
  const { model } = state;
  const name = byId("stream").value;
  try {
    const records = await recordsOf(model, name);
    if (model !== state.model) return;
    streamView.show(model, records, name);
    if (model.decodes) await latentView.show(model, records);
  } catch (error) {
    byId("message").textContent = sentence(error);
  }
}

function choose(view) {
  for (const name of ["stream", "latent", "about"]) {
    const on = name === view;
    byId(`tab-${name}`).setAttribute("aria-selected", String(on));
    byId(`tab-${name}`).tabIndex = on ? 0 : -1;
    byId(`view-${name}`).hidden = !on;
  }
}

function listenToTabs() {
  const tabs = Array.from(document.querySelectorAll("[role=tab]"));
  for (const tab of tabs) {
    tab.addEventListener("click", () => choose(tab.dataset.view));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const shown = tabs.filter((each) => !each.hidden);
      const next = shown[(shown.indexOf(tab) + step + shown.length) % shown.length];
      choose(next.dataset.view);
      next.focus();
    });
  }
}

// Files that a person opens or drops.

async function openFile(file) {
  const bytes = async (most) => {
    if (file.size <= most) return new Uint8Array(await file.arrayBuffer());
    throw new Refusal(`Expected at most ${most} bytes in ${file.name}, got ${file.size}.`);
  };
  const text = async (most) => new TextDecoder().decode(await bytes(most));
  if (/\.(pub|pem)$/i.test(file.name)) {
    state.keys = [await readKey(await text(16_384), file.name)];
    showKeys();
    if (state.bytes) await load(state.bytes, state.where);
  } else if (/\.csv$/i.test(file.name)) {
    if (!state.model) throw new Refusal("Expected a verified bundle before records, got none.");
    const rows = parseCsv(await text(MAX_CSV_BYTES), state.model.schema, file.name);
    state.own.set(file.name, rows);
    listStreams(file.name);
    await showRecords();
  } else if (/\.fedlatent$/i.test(file.name)) {
    const opened = byId("bundle").querySelector("[data-opened]") ?? make("option", { value: "" });
    opened.dataset.opened = "";
    opened.disabled = true; // the list leads back to the page's own bundles only
    opened.textContent = file.name;
    byId("bundle").prepend(opened);
    byId("bundle").value = "";
    await load(await bytes(MAX_BYTES), file.name);
  } else {
    throw new Refusal(
      `Expected a bundle (.fedlatent), a public key (.pub) or records (.csv), got ${file.name}.`,
    );
  }
}

async function openFiles(files) {
  byId("message").textContent = "";
  // a key before the bundle that it verifies, records after the bundle that scores them
  const rank = ({ name }) => (/\.(pub|pem)$/i.test(name) ? 0 : /\.csv$/i.test(name) ? 2 : 1);
  try {
    for (const file of Array.from(files).sort((a, b) => rank(a) - rank(b))) await openFile(file);
  } catch (error) {
    byId("message").textContent = sentence(error);
  }
}

function listenToFiles() {
  byId("files-input").addEventListener("change", async (event) => {
    await openFiles(event.target.files);
    event.target.value = "";
  });
  const over = (on) => (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", on);
  };
  addEventListener("dragover", over(true));
  addEventListener("dragleave", over(false));
  addEventListener("drop", (event) => {
    over(false)(event);
    openFiles(event.dataTransfer.files);
  });
}

function showKeys() {
  const items = state.keys.map((key) =>
    make("li", {}, make("code", {}, key.id), make("span", {}, ` ${key.origin}`)),
  );
  byId("keys").replaceChildren(...(items.length ? items : [make("li", {}, "none: open a .pub key")]));
}

// Start.

async function loadNamed(name) {
  const entry = state.page.bundles.find((bundle) => bundle.name === name);
  if (!entry) throw new Refusal(`Expected a bundle named ${name} on this page, got none.`);
  byId("bundle").value = name;
  state.where = entry.file;
  await load(await fetchBytes(entry.file, MAX_BYTES), entry.file);
}

async function start() {
  const source = new TextDecoder().decode(await fetchBytes("page.json", MAX_PAGE_BYTES));
  state.page = JSON.parse(source);
  state.keys = await Promise.all(
    state.page.keys.map((key) => readKey(key.pem, "listed by this page")),
  );
  showKeys();
  const { bundles } = state.page;
  byId("bundle").replaceChildren(
    ...bundles.map(({ name }) => make("option", { value: name }, name)),
  );
  byId("bundle").addEventListener("change", (event) => attempt(() => loadNamed(event.target.value)));
  byId("stream").addEventListener("change", () => showRecords());
  listenToTabs();
  listenToFiles();
  await loadNamed(query.get("bundle") ?? bundles[0].name);
}

async function attempt(work) {
  try {
    await work();
  } catch (error) {
    forget();
    refuse(error);
  }
}

async function selfCheck() {
  await start();
  if (!state.model) throw new Refusal(lines.find((line) => line.kind === "bad").text);
  streamView.pause();
  const result = await scoreAll(state.model, await recordsOf(state.model, query.get("records")));
  return { ...result, violations };
}

const violations = [];
addEventListener("securitypolicyviolation", (event) => {
  violations.push(`${event.effectiveDirective} ${event.blockedURI}`);
});
globalThis.fedlatent = { state, streamView, latentView, steps: () => lines };
if (query.has("report")) report(query.get("report"), () => lines, selfCheck);
else attempt(start);
