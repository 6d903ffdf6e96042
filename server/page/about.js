/** The facts of a verified bundle, in words. */
import { byId, figure, make } from "./dom.js";
import { runtimeVersion } from "./model.js";

function facts(list, rows) {
  list.replaceChildren(
    ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]),
  );
}

/** Show everything about a model. */
export function showAbout(model) {
  const { manifest, bundle } = model;
  const { schema, runtime, training, thresholds } = manifest;
  facts(byId("facts-model"), [
    ["Name", `${manifest.name}, version ${manifest.version}`],
    ["Kind", kindOf(manifest)],
    ["Made", manifest.created],
    ["Expires", manifest.expires ?? "never"],
    ["Run", `${manifest.run_id}, ${training.rounds} rounds, ${training.clients} clients`],
    ["Clients shared", training.sharing],
    ["Family", `${manifest.family}, ${manifest.latent_dim} latents`],
    ["Records", `${schema.name}, ${schema.shape.join(" × ")} values${schema.unit ? ` in ${schema.unit}` : ""}`],
    ["Threshold", `${figure(thresholds.absolute)} (${(100 * thresholds.quantile).toFixed(1)} % of normal records lie below)`],
  ]);
  facts(byId("facts-privacy"), privacyRows(manifest.privacy));
  facts(byId("facts-runtime"), [
    ["Runtime", `ONNX Runtime Web ${runtimeVersion()}, WebAssembly, one thread`],
    ["Graphs", `${runtime.format}, ${runtime.precision}, opset ${runtime.opset}, made for ${runtime.target}`],
    ["Golden vectors", `${model.goldenError.toExponential(2)} of ${runtime.tolerance.toExponential(0)} permitted`],
    ["Signed by", `Ed25519 key ${bundle.keyId}`],
    ["SHA-256", bundle.digest],
  ]);
  const rows = Array.from(bundle.files, ([name, data]) =>
    make(
      "tr", {},
      make("th", { scope: "row" }, name),
      make("td", {}, data.length.toLocaleString("en")),
      make("td", { class: "hash" }, manifest.files[name].sha256),
    ),
  );
  byId("files").replaceChildren(...rows);
  byId("card").replaceChildren(...cardOf(new TextDecoder().decode(bundle.files.get("card.md"))));
}

function kindOf({ kind }) {
  if (kind === "global") return "global: works for clients who took no part";
  return "site: for that site's own devices only";
}

function privacyRows(privacy) {
  if (!privacy) return [["Privacy", "none: trained without differential privacy"]];
  const rows = [
    ["Epsilon", figure(privacy.epsilon)],
    ["Delta", figure(privacy.delta)],
    ["Protects", `one ${privacy.unit} (${privacy.adjacency} neighbours)`],
    ["Noise", `multiplier ${figure(privacy.noise_multiplier)}, ${privacy.steps} steps at sampling rate ${figure(privacy.sample_rate)}`],
  ];
  if (privacy.rng === "simulation") {
    rows.push(["Beware", "seeded simulation noise: do not rely on this very model to protect anyone"]);
  }
  return rows;
}

/** The model card: headings, points and paragraphs of plain text. */
function cardOf(markdown) {
  const blocks = [];
  for (const line of markdown.split("\n")) {
    const point = /^- (.*)/.exec(line);
    const heading = /^(#+) (.*)/.exec(line);
    if (point) {
      if (blocks.at(-1)?.tagName !== "UL") blocks.push(make("ul"));
      blocks.at(-1).append(make("li", {}, point[1]));
    } else if (heading) {
      blocks.push(make(heading[1].length === 1 ? "h3" : "h4", {}, heading[2]));
    } else if (line.trim()) {
      blocks.push(make("p", {}, line));
    }
  }
  return blocks;
}
