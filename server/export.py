"""The global bundle: encoder, released latent density and released threshold of a finished run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from fedlatent.server.home import ServerHome
from fedlatent.server.registry import Registry
from fedlatent.server.results import RunFolder, silent_ones
from fedlatent.shared.bundle.manifest import Thresholds
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.export.bundling import BundleContents, BundleReport, Form, make_next
from fedlatent.shared.export.released import Released
from fedlatent.shared.files import sha256_hex
from fedlatent.shared.keys import SigningKey
from fedlatent.shared.models import build_model, load_encoder, load_state
from fedlatent.shared.models.base import ENCODER_PREFIX


def export_global(
    home: ServerHome,
    run_id: str | None = None,
    path: Path | None = None,
    *,
    decoder: bool = False,
    expires: str | None = None,
    form: Form = Form(),  # noqa: B008 - frozen
) -> BundleReport:
    """Make and sign the global bundle of a run.

    Args:
        home: the server's home, with its signing key.
        run_id: the run; by default the latest that is complete.
        path: target; by default ``bundles/<name>-<version>.fedlatent`` in the home.
        decoder: also ship the decoder of a run whose clients shared it.
        expires: UTC time after which no device installs it.
        form: of the scorer.

    Raises:
        ConfigError: there is no server or no such finished run, it has no decoder to ship, or a
            threshold of it flags nothing.
        BundleError: the exported graphs differ from torch.
    """
    home.require()
    with Registry(home.registry) as registry:
        chosen = run_id or _latest(registry)
        run = registry.run(chosen)
        if run is None or run.status != "complete":
            state = "none" if run is None else f"one that is {run.status}"
            raise ConfigError(
                f"Expected a complete run named {chosen!r}, got {state}; see 'server status'."
            )
        result = RunFolder.load(home.run(chosen) / "result")
        contents = replace(global_contents(result, chosen), decoder=decoder, expires=expires)
        key = _signer(home)
        target, report = make_next(home.bundles, contents, key, path, form)
        data = target.read_bytes()
        registry.add_artefact(chosen, "bundle", target, sha256_hex(data), len(data))
    return report


def _signer(home: ServerHome) -> SigningKey:
    """The key of a home; a simulated server, which has no authority, gets one when it needs it."""
    simulated = not home.ca_certificate.exists()
    if simulated and not home.signing_key.exists():
        return SigningKey.generate(home.signing_key)
    return SigningKey.load(home.signing_key)


def _latest(registry: Registry) -> str:
    for run in registry.runs():  # the newest first
        if run.status == "complete":
            return run.id
    raise ConfigError("Expected a complete run, got none; train one with 'server run'.")


def global_contents(result: RunFolder, run_id: str) -> BundleContents:
    """What the global bundle of a finished run is made of.

    Raises:
        ConfigError: a threshold that it would carry lies in the last bin of scores.
    """
    state = result.released
    used = ("absolute" if state.scores is None else "combined", "recentred")
    quiet = [name for name in silent_ones(state.thresholds) if name in used]
    if quiet:
        raise ConfigError(
            f"Expected thresholds that flag something, got that of {' and '.join(quiet)} scores in "
            "their last bin; find the sites whose scores are out of range, or take more records "
            "where 'privacy plan --records' warns of their noise, and train again."
        )
    run = result.config
    model = build_model(run)
    weights = {key: torch.from_numpy(value) for key, value in result.arrays.items()}
    if run.shares_decoder:
        load_state(model, weights)
    else:
        own = {key: value for key, value in weights.items() if key.startswith(ENCODER_PREFIX)}
        load_encoder(model, own)
    sites = result.facts["sites"]
    facts = list(sites.values()) if isinstance(sites, Mapping) else []
    released = None
    if (scores := state.scores) is not None:
        threshold = state.thresholds["combined"]
        released = Released(scores=scores, gaussian=state.gaussian, threshold=threshold)
    # Sites state epsilon at their own delta; (epsilon, delta) also holds at any larger delta.
    spent = [site["epsilon"] for site in facts if site["epsilon"] is not None]
    return BundleContents(
        kind="global",
        run_id=run_id,
        run=run,
        model=model,
        density=state.density,
        scaling=state.scaling,
        released=released,
        thresholds=Thresholds(
            quantile=run.scoring.quantile,
            absolute=released.threshold if released else state.thresholds["absolute"],
            recentred=state.thresholds["recentred"],
        ),
        epsilon=max(spent) if spent and run.privacy.mechanism != "none" else None,
        delta=max((site["delta"] for site in facts if site["delta"]), default=run.privacy.delta),
        clients=len(facts),
    )
