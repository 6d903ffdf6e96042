"""The site bundle: the global encoder with this site's own decoder, for this site's devices.

It holds statistics computed exactly on the site's records (latent density, constants and threshold
of the score). No epsilon covers them; the one in its manifest is that of what the site released.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedlatent.client.home import ClientHome
from fedlatent.client.ledger import Ledger
from fedlatent.client.local import open_ledger, read_dataset
from fedlatent.client.policy import NodeConfig
from fedlatent.client.store import SiteMaterial, Store
from fedlatent.shared.bundle.manifest import POSTERIOR, SCORE, Thresholds
from fedlatent.shared.detection.combine import ScoreCombination
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.export.bundling import BundleContents, BundleReport, Form, make_next
from fedlatent.shared.export.onnx import Scorer, scorer_outputs
from fedlatent.shared.export.parity import run_onnx
from fedlatent.shared.keys import SigningKey
from fedlatent.shared.models import VAE, build_model, load_state

Parts = dict[str, np.ndarray]


def export_site(
    home: ClientHome,
    run_id: str | None = None,
    path: Path | None = None,
    *,
    decoder: bool = False,
    expires: str | None = None,
    form: Form = Form(),  # noqa: B008 - frozen
) -> BundleReport:
    """Make and sign the site bundle of a run; it must not leave the site.

    Args:
        home: the node's home, with its records and its signing key.
        run_id: the run; by default the latest that reached its threshold here.
        path: target; by default ``bundles/<name>-<version>.fedlatent`` in the home.
        decoder: also ship the decoder, for reconstructions.
        expires: UTC time after which no device installs it.
        form: of the scorer; its thresholds come from this site's own records.

    Raises:
        ConfigError: no run has finished here.
        DataError: the records cannot be read, or are too few.
        LedgerError: the ledger is not the one that paid for what left.
        BundleError: the exported graphs differ from torch.
    """
    config = NodeConfig.load(home.config)
    dataset = read_dataset(home, config.data).normals()
    config.policy.check_least(len(dataset))
    store = Store(home.store)
    runs = store.site_runs()
    if not runs:
        raise ConfigError("Expected a run that finished on this node, got none; let one finish.")
    ledger, _ = open_ledger(home, config, len(dataset))
    material = _up_to_date(store.load_site(run_id or runs[-1]), ledger)
    run = material.config
    model = site_model(material)
    combine, threshold = fit_score(material, model, dataset.records)

    def rethreshold(scorer: bytes) -> Thresholds:
        inputs = {"x": dataset.records, "center": material.center.astype(np.float32)}
        level = conformal(run_onnx(scorer, inputs)[SCORE], run.scoring.quantile)
        return Thresholds(quantile=run.scoring.quantile, absolute=level, recentred=None)

    contents = BundleContents(
        kind="site",
        run_id=material.run_id,
        run=run,
        model=model,
        density=replace(material.density, mean=material.center),
        thresholds=Thresholds(quantile=run.scoring.quantile, absolute=threshold, recentred=None),
        epsilon=material.epsilon,
        delta=material.delta,
        rng=material.rng,
        clients=1,
        combine=combine,
        decoder=decoder,
        scaling=material.scaling,
        expires=expires,
        note=_person_note(material),
    )
    stored = form if form.target is None else replace(form, rethreshold=rethreshold)
    return make_next(home.bundles, contents, SigningKey.load(home.signing_key), path, stored)[1]


def _up_to_date(material: SiteMaterial, ledger: Ledger) -> SiteMaterial:
    """The material with what the data set has spent by now, also in runs after this one."""
    epsilon, person = ledger.epsilon(), ledger.person
    private = math.isfinite(epsilon)
    return replace(
        material,
        epsilon=epsilon if private else None,
        delta=ledger.delta,
        rng=ledger.rng(),
        person_records=person.records if person and private else None,
        person_epsilon=ledger.person_epsilon() if person and private else None,
    )


def _person_note(material: SiteMaterial) -> str:
    """What the site's releases cost one person, for the model card; empty where nobody said."""
    if material.person_epsilon is None:
        return ""
    return (
        f"Each person has at most {material.person_records} records here. Everything the site "
        f"has released so far, this run included, is ({material.person_epsilon:.3g}, "
        f"{material.delta:.3g})-differentially private per person, for neighbours that differ in "
        "all records of one person, by privacy loss distributions."
    )


def site_model(material: SiteMaterial) -> VAE:
    """The whole model of a site: global encoder, own decoder."""
    run = material.config
    model = build_model(run)
    arrays = {**material.encoder, **material.decoder}
    load_state(model, {key: torch.from_numpy(value) for key, value in arrays.items()})
    return model.eval()


def site_parts(material: SiteMaterial, model: VAE, records: np.ndarray) -> Parts:
    """The scorer's outputs for preprocessed records, about this site's own centre."""
    scorer = Scorer(model, material.density, with_decoder=True, scaling=material.scaling).eval()
    center = torch.from_numpy(material.center.astype(np.float32))
    with torch.no_grad():
        scores = scorer(torch.from_numpy(records), center)[len(POSTERIOR) :]
    names = scorer_outputs(with_decoder=True)
    return {name: value.double().numpy() for name, value in zip(names, scores, strict=True)}


def fit_score(
    material: SiteMaterial, model: VAE, records: np.ndarray
) -> tuple[ScoreCombination, float]:
    """The combined score and its threshold from this site's own normal records.

    Both stay at the site, so they are exact.
    """
    parts = site_parts(material, model, records)
    combine = ScoreCombination.fit(parts)
    return combine, conformal(combine(parts), material.config.scoring.quantile)


def conformal(scores: np.ndarray, quantile: float) -> float:
    """The score of rank ceil((n + 1) * quantile), or the largest where n is too small for it."""
    rank = math.ceil((len(scores) + 1) * quantile)
    return float(np.sort(scores)[min(rank, len(scores)) - 1])
