"""The model card: the manifest in words, for the people who deploy a bundle."""

from fedlatent.shared.bundle.manifest import Manifest, Privacy
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.schema import Schema

_EXACT = (
    "- **No epsilon covers this bundle.** It holds exact statistics of one site's records: latent "
    "density, constants and threshold of the score; and the site's own decoder. It is for that "
    "site's own devices alone: keep it within the site."
)


def model_card(manifest: Manifest, note: str = "") -> str:
    """Markdown text about a model: what it is for, how it was trained, what it reveals.

    Args:
        manifest: of the bundle.
        note: more text of the publisher, put at the end.
    """
    sections = [
        _head(manifest),
        _use(manifest),
        _form(manifest),
        _privacy(manifest),
        _metrics(manifest),
    ]
    if note:
        sections.append(f"## Note of the publisher\n{note.strip()}\n")
    return "\n".join(sections)


def _head(manifest: Manifest) -> str:
    scope = {
        "global": "It knows no client's decoder and works for clients who took no part.",
        "site": "It holds the decoder of one site and is for that site's own devices only.",
    }[manifest.kind]
    return (
        f"# {manifest.name}, version {manifest.version}\n\n"
        f"A {manifest.kind} anomaly scorer made on {manifest.created} from run {manifest.run_id}: "
        f"encoder of a variational autoencoder (family {manifest.family}, "
        f"{manifest.latent_dim} latent dimensions), trained over {manifest.training.rounds} rounds "
        f"with {manifest.training.clients} clients. {scope}\n"
    )


def _use(manifest: Manifest) -> str:
    thresholds = manifest.thresholds
    lines = [
        "## Use",
        *_records(manifest.schema),
        f"- A record is flagged when its score exceeds the threshold, below which about "
        f"{thresholds.quantile:.1%} of normal records lie.",
        f"- Threshold as delivered: {_figure(thresholds.absolute)}; "
        f"after re-centring on normal records of the device: {_figure(thresholds.recentred)}.",
        "- Check the rate of flags on normal records of your own before you rely on it.\n",
    ]
    return "\n".join(lines)


def _records(schema: Schema) -> list[str]:
    """What a record is, and each column of a table."""
    shape = " x ".join(str(size) for size in schema.shape)
    if not schema.columns:
        return [
            f"- Records: {schema.name}, {shape} values in {schema.unit} after multiplying raw "
            f"values by {schema.scale:g}, centring: {schema.center}, clipped to "
            f"[{schema.lower:g}, {schema.upper:g}]. The runtime does this itself."
        ]
    window = schema.window
    rows = "a row each" if window is None else f"{window.length} rows each, one every {window.step}"
    return [
        f"- Records: {schema.name}, {rows}, of columns found by name:",
        *(f"  - {column.name}: {_column(column)}" for column in schema.columns),
    ]


def _column(column: Column) -> str:
    """Range or levels of a column, and what a gap does."""
    if column.levels:
        what = "one of " + ", ".join(str(level) for level in column.levels)
    else:
        scale = " on a logarithmic scale" if column.transform == "log" else ""
        unit = f" {column.unit}" if column.unit else ""
        what = f"{column.lower:g} to {column.upper:g}{unit}{scale}"
    gaps = {"refuse": "refused", "mask": "allowed", "value": f"taken as {column.fill}"}
    return f"{what}; gaps {gaps[column.missing]}"


def _form(manifest: Manifest) -> str:
    runtime = manifest.runtime
    lines = [
        "## Form",
        f"- {runtime.precision}, {runtime.format}, opset {runtime.opset}, for ONNX Runtime "
        f"{runtime.min_onnxruntime} or newer; chosen for: {runtime.target}.",
        f"- Hardware: {runtime.hardware}.",
        f"- Golden outputs must agree to {runtime.tolerance:g} on a device.",
        f"- No device installs it after: {manifest.expires or 'no date is set'}.\n",
    ]
    return "\n".join(lines)


def _privacy(manifest: Manifest) -> str:
    privacy = manifest.privacy
    lines = [_EXACT] if manifest.kind == "site" else []
    if privacy is None:
        lines.append("None: this model was trained without differential privacy.")
    else:
        lines += _claims(manifest, privacy)
    return "\n".join(["## Privacy", *lines, ""])


def _claims(manifest: Manifest, privacy: Privacy) -> list[str]:
    lines = [
        f"- Everything each client has released so far, this run included, is "
        f"({privacy.epsilon:.3g}, {privacy.delta:.3g})-differentially private per {privacy.unit}, "
        f"for {privacy.adjacency} neighbours, by Renyi accounting.",
        f"- Training: noise multiplier {privacy.noise_multiplier:.4g}, Poisson sampling rate "
        f"{privacy.sample_rate:.4g}, {privacy.steps} steps.",
    ]
    if manifest.kind == "site":
        lines.append("- That is a statement about what the site released, not about this bundle.")
    if privacy.rng == "simulation":
        lines.append(
            "- The noise came from a seeded simulation generator: the figures say what secure "
            "noise would give; do not rely on this very model to protect anyone."
        )
    return lines


def _metrics(manifest: Manifest) -> str:
    rows = [f"- {name}: {value:.4g}" for name, value in sorted(manifest.metrics.items())]
    return "\n".join(["## Evaluation", *(rows or ["- None recorded."]), ""])


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
