"""Detectors without a network: the baselines of a study, and two kinds of work.

Baselines see all participants' records together, without privacy. They are no private alternative;
they say what the data give without a network.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.gaussian import feature_radius
from fedlatent.shared.detection import baselines
from fedlatent.shared.privacy.accounting import GaussianEvent, calibrate
from fedlatent.shared.privacy.noise import NoiseSource, SimulationNoise
from fedlatent.simulations.study.evaluation import Detector, Rating, baseline_detector
from fedlatent.simulations.study.job import Found, Job
from fedlatent.simulations.study.methods import answered, everywhere
from fedlatent.simulations.study.tables import Baseline

#: Fit of each baseline, on preprocessed normal records [N, ...].
BASELINES: Mapping[Baseline, Callable[[NDArray[np.float32]], baselines.Scorer]] = {
    "pca": baselines.pca,
    "mahalanobis": baselines.mahalanobis,
    "knn": baselines.knn,
    "isolation-forest": baselines.isolation_forest,
    "one-class-svm": baselines.one_class_svm,
    "rolling-z-score": lambda normals: baselines.rolling_z_score,  # of series; nothing is fitted
}


def baseline_answers(job: Job, names: Sequence[Baseline]) -> dict[str, dict[str, Rating]]:
    """Ratings of baselines by name and question."""
    present = job.split.present
    rows = [site.train for site in present.sites]
    return {
        name: everywhere(job, baseline_detector(BASELINES[name], present.schema, rows))
        for name in names
    }


def own_baseline(job: Job, *, fit: Baseline) -> Found:
    """A baseline that each client fits on its own records; a new one on the few that it has."""
    schema, split = job.split.present.schema, job.split

    def fitted(rows: NDArray[np.generic]) -> Detector:
        return baseline_detector(BASELINES[fit], schema, [rows])

    def detector(normals: NDArray[np.generic] | None) -> Detector:
        return fitted(np.zeros((0, 1)) if normals is None else normals)

    own = [(site, fitted(site.train)) for site in split.rated_present]
    return Found(answers=answered(job, lambda: own, detector, without="absent"))


def dp_mahalanobis(
    job: Job,
    *,
    features: int = 32,
    radius: float | None = None,
    centred: bool = True,
    draw: int | None = None,
) -> Found:
    """The private detector without a network; the whole budget goes into its one release.

    Args:
        job: whose run says epsilon, delta, and the clipping radius of records.
        features: low cosine frequencies that are kept.
        radius: instead of that of the run's records.
        centred: whether the middle of the bounds is taken from records first.
        draw: keeps the noise apart from that of other work with the seed.
    """
    run, rows = job.run(), [site.train for site in job.split.present.sites]
    noise = SimulationNoise(job.cell.seed, *([] if draw is None else [draw]))
    detector = private_mahalanobis(
        run, rows, noise, features=features, radius=radius, centred=centred
    )
    own = [(site, detector(site.train)) for site in job.split.rated_present]
    return Found(answers=answered(job, lambda: own, detector))


def private_mahalanobis(
    run: RunConfig,
    rows: Sequence[NDArray[np.generic]],
    noise: NoiseSource,
    *,
    features: int = 32,
    radius: float | None = None,
    centred: bool = True,
) -> Callable[[NDArray[np.generic] | None], Detector]:
    """Fit the private detector without a network; a run without privacy adds no noise.

    Args:
        run: says schema, epsilon, delta, and the clipping radius of records.
        rows: raw normal records of each site.
        noise: of the one release.
        features: low cosine frequencies that are kept.
        radius: instead of that of the run's records.
        centred: whether the middle of the bounds is taken from records first.

    Returns:
        Makes the detector as it comes (of None), or re-centred on some raw normal records.
    """
    schema, privacy = run.data, run.privacy
    sigma = 0.0
    if privacy.mechanism != "none":
        event = GaussianEvent
        sigma = calibrate(privacy.epsilon, privacy.delta, lambda s: [event(noise_multiplier=s)])
    middle = np.float32((schema.lower + schema.upper) / 2 if centred else 0.0)

    def prepared(records: NDArray[np.generic]) -> NDArray[np.float32]:
        return schema.preprocess(records) - middle

    fitted = baselines.dp_mahalanobis(
        [prepared(one) for one in rows],
        features=min(features, math.prod(schema.shape)),
        radius=radius or feature_radius(run),
        noise_multiplier=sigma,
        noise=noise,
    )

    def detector(normals: NDArray[np.generic] | None) -> Detector:
        scorer = fitted if normals is None else fitted.recentre(prepared(normals))
        return lambda records: scorer(prepared(records))

    return detector
