"""The three questions every evaluation answers, and the baselines beside them.

1. seen: clients that took part, scored with their own site detector;
2. absent: clients that took no part, scored with the global detector as it comes;
3. new: the same clients after re-centring on 10, 30 or 100 of their normal records.

A detector is any function from raw records to scores (higher is more anomalous), so the same
questions serve models in memory and ONNX bundles. Every answer is given twice: all sites under
one threshold ("pooled"), and as the mean over sites.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedlatent.client.compute import load_weights, scaled
from fedlatent.client.edge import recentring
from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.export import fit_score, site_model, site_parts
from fedlatent.client.store import SiteMaterial
from fedlatent.client.trainer import train_round
from fedlatent.server.results import RunFolder
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.scaling import Scaling
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.sources import SiteData
from fedlatent.shared.detection import baselines
from fedlatent.shared.detection.metrics import auprc, auroc, fpr_at_tpr, per_site_mean, pooled
from fedlatent.shared.detection.parts import score_parts
from fedlatent.shared.models import VAE, build_model, load_encoder
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import (
    default_radius,
    latent_density,
    moments,
    squared_distance,
)

Detector = Callable[[NDArray[np.generic]], NDArray[np.float64]]

QUESTIONS = ("seen", "absent", "new10", "new30", "new100")


@dataclass(frozen=True, kw_only=True)
class Rating:
    """Measures of one answer.

    Attributes:
        pooled: AUROC of all sites' records together, under one threshold.
        site_mean: mean AUROC over the sites that hold both classes.
        auprc: area under precision and recall, all sites together.
        fpr95: share of normals flagged where 95 % of anomalies are, all sites together.
    """

    pooled: float
    site_mean: float
    auprc: float
    fpr95: float


def rate(pairs: Sequence[tuple[SiteData, Detector]], kind: str = "V") -> Rating:
    """Rate detectors on the test records of their sites.

    Args:
        pairs: each site with the detector that scores it.
        kind: "V" rates the standard test; another kind rates normal test records against the
            ``extra`` records of that kind.

    Raises:
        ValueError: no anomaly of that kind in any site.
    """
    answers = []
    for site, detector in pairs:
        rows, label = site.test, site.test_label
        if kind != "V":
            normal = site.test_label == 0
            extra = site.extra[site.extra_kind == kind]
            rows = np.concatenate([site.test[normal], extra])
            label = np.concatenate([np.zeros(normal.sum()), np.ones(len(extra))]).astype(np.uint8)
        answers.append((label, detector(rows)))
    return Rating(
        pooled=pooled(auroc, answers),
        site_mean=per_site_mean(auroc, answers),
        auprc=pooled(auprc, answers),
        fpr95=pooled(fpr_at_tpr, answers),
    )


def normals_of(site: SiteData, count: int, seed: int) -> NDArray[np.generic]:
    """``count`` normal records of a new client; none of them is in its test."""
    order = np.random.default_rng([seed, count]).permutation(len(site.train))
    chosen: NDArray[np.generic] = site.train[order[:count]]
    return chosen


def site_detector(material: SiteMaterial, site: SiteData) -> Detector:
    """The score of a site bundle: parts of the global encoder and the site's own decoder."""
    model, schema = site_model(material), material.config.data
    combine, _ = fit_score(material, model, schema.preprocess(site.train))
    return lambda rows: combine(site_parts(material, model, schema.preprocess(rows)))


def edge_detector(model: EdgeModel) -> Detector:
    """The score of a bundle."""
    return lambda rows: model.score(rows).score


def global_detector(result: RunFolder, normals: NDArray[np.generic] | None = None) -> Detector:
    """The score of the global bundle beside its threshold.

    It is re-centred on ``normals`` where there are some and a device would trust them.
    """
    latents = _latents(result.config, result.arrays, result.released.scaling)
    density, thresholds = result.released.density, result.released.thresholds
    center, moved = density.mean, False
    if normals is not None:
        own = latents(normals)
        moved = recentring.doubt(own, density.mean, density.within) is None
        center = own.mean(axis=0) if moved else center
    precision = density.precision(recentred=moved)
    threshold = thresholds["recentred" if moved else "absolute"]
    return lambda rows: squared_distance(latents(rows), center, precision) - threshold


def combined_detector(
    result: RunFolder, normals: NDArray[np.generic] | None = None
) -> Detector | None:
    """The score that adds all parts under their released density; None where a run has none.

    Re-centred on ``normals``, distances are about their mean and within clients, and the density's
    mean moves to that of the normals' parts, as far as their number bears it.
    """
    scores, density, gaussian = (
        result.released.scores,
        result.released.density,
        result.released.gaussian,
    )
    if scores is None:
        return None
    run, schema = result.config, result.config.data
    model = build_model(run)
    load_weights(model, result.arrays, whole=run.shares_decoder)
    center: NDArray[np.float64] | None = None
    if normals is not None:
        center = _latents(run, result.arrays, result.released.scaling)(normals).mean(axis=0)
        if gaussian is not None:
            gaussian = gaussian.recentred(schema.preprocess(normals))

    def parts(rows: NDArray[np.generic]) -> dict[str, NDArray[np.float64]]:
        records = torch.from_numpy(schema.preprocess(rows))
        return score_parts(
            model, records, scaled(records, result.released.scaling), density, gaussian, center
        )

    if normals is not None:
        scores = scores.recentred(parts(normals))
    chosen = scores
    return lambda rows: chosen(parts(rows))


def latent_detector(
    run: RunConfig,
    encoder: Mapping[str, np.ndarray],
    sites: Sequence[NDArray[np.generic]],
    normals: NDArray[np.generic] | None = None,
) -> Detector:
    """The same score with a given encoder and an exact density of the given sites' records."""
    latents = _latents(run, encoder)
    means = [latents(rows) for rows in sites]
    radius = default_radius(means[0].shape[1])
    density = latent_density([moments(one, radius) for one in means], radius, 0.0)
    center = density.mean if normals is None else latents(normals).mean(axis=0)
    precision = density.precision(recentred=normals is not None)
    return lambda rows: squared_distance(latents(rows), center, precision)


def train_alone(run: RunConfig, records: NDArray[np.float32], key: int) -> VAE:
    """Train the run's whole model on one set of records, with its plan but without exchange.

    Args:
        run: gives model, plan and training; a run without privacy trains without noise.
        records: preprocessed [N, *shape].
        key: keeps the noise of different sites apart.
    """
    model, plan = build_model(run), PrivacyPlan.from_config(run)
    state: Mapping[str, torch.Tensor] = {}
    data = torch.from_numpy(np.ascontiguousarray(records))
    for number in range(run.training.rounds):
        noise = SimulationNoise(run.seed, key, number)
        result = train_round(model, data, plan, run.training, noise, state, trained=number)
        state = result.optimizer
    return model


def reconstruction_detector(model: VAE, schema: Schema) -> Detector:
    """Score by reconstruction error alone."""

    def detector(rows: NDArray[np.generic]) -> NDArray[np.float64]:
        x = torch.from_numpy(schema.preprocess(rows))
        model.eval()
        with torch.no_grad():
            error = model.reconstruction_error(x, model.decode(model.encode(x)[0]))
        return np.asarray(error.double().numpy())

    return detector


def baseline_detector(
    fit: Callable[[NDArray[np.float32]], baselines.Scorer],
    schema: Schema,
    rows: Sequence[NDArray[np.generic]],
) -> Detector:
    """A detector without a network, fitted on the given raw normal records."""
    scorer = fit(schema.preprocess(np.concatenate(rows)))
    return lambda records: scorer(schema.preprocess(records))


def rated(
    questions: Sequence[str],
    *,
    seen: Callable[[], Sequence[tuple[SiteData, Detector]]],
    absent: Sequence[SiteData],
    detector: Callable[[NDArray[np.generic] | None], Detector],
    seed: int,
) -> dict[str, Rating]:
    """Answers by question: "seen", "absent", and "new10" for 10 normal records and so on.

    Args:
        questions: to be answered, if they can be: without absent clients only "seen" can.
        seen: makes the participating sites with their own detectors.
        absent: sites that took no part.
        detector: makes the global detector as it comes (of None), or of one new client from its
            few normal records.
        seed: draws those records.
    """
    answers = {}
    for question in questions:
        if question == "seen":
            answers[question] = rate(seen())
        elif absent and question == "absent":
            as_it_comes = detector(None)
            answers[question] = rate([(site, as_it_comes) for site in absent])
        elif absent:
            count = int(question.removeprefix("new"))
            own = [(site, detector(normals_of(site, count, seed))) for site in absent]
            answers[question] = rate(own)
    return answers


def _latents(
    run: RunConfig, arrays: Mapping[str, np.ndarray], scaling: Scaling | None = None
) -> Callable[[NDArray[np.generic]], NDArray[np.float64]]:
    """Latent means [N, k] of raw records under the encoder in ``arrays``."""
    model, schema = build_model(run), run.data
    load_encoder(model, _tensors({k: v for k, v in arrays.items() if k.startswith("encoder.")}))
    model.eval()

    def latents(rows: NDArray[np.generic]) -> NDArray[np.float64]:
        with torch.no_grad():
            records = scaled(torch.from_numpy(schema.preprocess(rows)), scaling)
            mean = model.encode(records)[0]
        return np.asarray(mean.double().numpy())

    return latents


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
