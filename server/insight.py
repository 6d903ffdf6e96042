"""What released moments tell of the sites: who is like whom, and whose data has moved.

Everything here is post-processing of releases and costs no privacy. The number of records N of a
site is public, so its mean is the released sum over N, with Gaussian noise of known variance: each
statistic below is compared with what that noise alone, and the finite number of records, explain.

The second part takes records of one site as independent draws with the pooled covariance within
sites. Records of one person are not independent, so where a site holds few people, differences
between people show as differences between sites. A diagonal release tells no correlations; where
latents are correlated, false alarms are then up to about twice as frequent as stated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.stats import chi2

from fedlatent.server.checkpoint import Checkpoint, CheckpointStore
from fedlatent.server.home import ServerHome
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.files import read_json
from fedlatent.shared.models.base import ENCODER_PREFIX
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import as_matrix
from fedlatent.shared.summaries import SUMMARIES, latent_radius, scaling_of
from fedlatent.shared.wire import check_run_id

#: Chance that like sites are told apart, or that an alarm is raised though nothing moved.
LEVEL = 0.01


@dataclass(frozen=True, kw_only=True)
class SiteMean:
    """The latent mean of one site as it was released.

    Attributes:
        name: of the site.
        records: N; public.
        mean: [k], with noise.
        variance: of the privacy noise in each coordinate of ``mean``; 0 without privacy.
    """

    name: str
    records: int
    mean: np.ndarray
    variance: float


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Whether a site's mean has moved against those of the others.

    Attributes:
        name: of the site.
        statistic: squared change in units of its noise; chi-square of k where nothing moved.
        p_value: of that statistic, times the number of sites (Bonferroni), 1 at most.
        alarm: the noise does not explain the change.
    """

    name: str
    statistic: float
    p_value: float
    alarm: bool


def distances(sites: Sequence[SiteMean], within: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance of each pair of means, less what noise adds: float64 [C, C].

    Args:
        sites: C of them.
        within: [k, k] covariance of records about their own site's mean.
    """
    points, variances = _whitened(sites, within)
    offsets = points[:, None] - points[None]
    noise = variances[:, None] + variances[None]
    found: np.ndarray = np.maximum((np.square(offsets) - noise).sum(axis=2), 0.0)
    np.fill_diagonal(found, 0.0)
    return found


def distances_to_all(sites: Sequence[SiteMean], within: np.ndarray) -> np.ndarray:
    """The same of each site's mean from the mean of all records: float64 [C]."""
    points, variances = _whitened(sites, within)
    shares = np.asarray([site.records for site in sites], dtype=np.float64)
    weights = np.eye(len(sites)) - shares / shares.sum()
    offsets, noise = weights @ points, np.square(weights) @ variances
    found: np.ndarray = np.maximum((np.square(offsets) - noise).sum(axis=1), 0.0)
    return found


def clusters(sites: Sequence[SiteMean], within: np.ndarray, level: float = LEVEL) -> list[int]:
    """Number of each site's group, from 1 in the order of first members.

    Average linkage of each pair's chi-square statistic over its critical value (Bonferroni over
    pairs): groups join unless their average distance is larger than noise explains. Sites of one
    population make one group with a chance of at least 1 - ``level``.
    """
    if len(sites) < 2:
        return [1] * len(sites)
    points, variances = _whitened(sites, within)
    first, second = np.triu_indices(len(sites), k=1)
    offsets, noise = points[first] - points[second], variances[first] + variances[second]
    critical = float(chi2.isf(level / len(first), points.shape[1]))
    ratios = (np.square(offsets) / noise).sum(axis=1) / critical
    joined = fcluster(linkage(ratios, method="average"), t=1.0, criterion="distance")
    numbers: dict[int, int] = {}
    return [numbers.setdefault(int(one), len(numbers) + 1) for one in joined]


def drifts(
    before: Sequence[SiteMean],
    after: Sequence[SiteMean],
    within: np.ndarray | None = None,
    level: float = LEVEL,
) -> list[Drift]:
    """Which sites' means moved between two releases by more than noise explains.

    A change is measured against the mean change of the other sites, so that what moves all of them
    alike raises no alarm. The worst site is taken out of the others and the rest is looked at
    again, until noise explains the rest; so a site that moved does not accuse those that stayed.
    With no change at all, some alarm is raised with a chance of at most ``level``.

    Args:
        before: of at least three sites.
        after: of the same sites in the same order, under the same encoder.
        within: [k, k] covariance of records within sites, where the records may be other ones of
            the same population; None where the same records were summarised twice.
        level: chance of a false alarm among all sites together.

    Raises:
        ValueError: fewer than three sites, other sites, or no noise to compare a change with.
    """
    names = [site.name for site in before]
    if len(names) < 3 or names != [site.name for site in after]:
        raise ValueError("Expected two releases of the same three or more sites, got others.")
    (old, old_noise), (new, new_noise) = _whitened(before, within), _whitened(after, within)
    changes, noise = new - old, old_noise + new_noise
    if not noise.min() > 0:
        raise ValueError("Expected releases with noise, got some without; give `within`.")
    degrees, calm = changes.shape[1], np.ones(len(names), dtype=bool)
    while calm.sum() > 2:
        statistics = np.where(calm, _against_others(changes, noise, calm), 0.0)
        worst = int(statistics.argmax())
        if chi2.sf(statistics[worst], degrees) * len(names) >= level:
            break
        calm[worst] = False
    statistics = _against_others(changes, noise, calm)
    values = np.minimum(chi2.sf(statistics, degrees) * len(names), 1.0)
    return [
        Drift(name=name, statistic=float(s), p_value=float(p), alarm=bool(p < level))
        for name, s, p in zip(names, statistics, values, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class RunSites:
    """The newest moments of a run, site by site.

    Attributes:
        run: its configuration.
        state: its last checkpoint.
        sites: by name; one whose node was replaced since the moments is left out.
        within: [k, k] released covariance of records within sites.
    """

    run: RunConfig
    state: Checkpoint
    sites: tuple[SiteMean, ...]
    within: np.ndarray

    @classmethod
    def load(cls, home: ServerHome, run_id: str) -> "RunSites":
        """Read them from the last checkpoint of a run.

        Raises:
            ConfigError: there is no such run, or it has released no moments yet.
            DataError: its checkpoints are damaged.
        """
        folder = home.run(check_run_id(run_id))
        config = folder / "config.json"
        run = RunConfig.parse(read_json(config), str(config)) if config.exists() else None
        state = CheckpointStore(folder / "checkpoints", run).load() if run else None
        if run is None or state is None or not state.released.moments:
            raise ConfigError(
                f"Expected a run with released moments named {run_id!r} in {home.root}, got none; "
                "see 'fedlatent server status'."
            )
        within = state.released.density.within
        return cls(run=run, state=state, sites=site_means(state, run), within=within)

    @property
    def radius(self) -> float:
        """The public radius that latents were clipped to."""
        return latent_radius(self.run, len(self.within))

    def drifts_to(self, later: "RunSites") -> list[Drift]:
        """Drift of the sites that both runs have; records may differ between the runs.

        Raises:
            ConfigError: the runs' latents cannot be compared, or share fewer than three sites.
        """
        self._check_comparable(later)
        known = {site.name: site for site in later.sites}
        before = [site for site in self.sites if site.name in known]
        if len(before) < 3:
            raise ConfigError(
                f"Expected runs with at least three sites in common, got {len(before)}; "
                "drift is measured against the other sites."
            )
        return drifts(before, [known[site.name] for site in before], self.within)

    def _check_comparable(self, later: "RunSites") -> None:
        for one in (self, later):
            kinds = [str(entry["kind"]) for entry in one.state.history]
            if "train" in kinds[_last(kinds, "moments") :]:
                raise ConfigError(
                    f"Expected run {one.state.run_id!r} to be complete, got one that trains on "
                    "after its moments; wait for its end or resume it."
                )
        if self.radius != later.radius or not _equal(_seen(self), _seen(later)):
            raise ConfigError(
                f"Expected two runs with the same encoder, got another one in "
                f'{later.state.run_id!r}; make a run with sharing = "summary" and model.start = '
                f"{self.state.run_id!r}."
            )


def site_means(state: Checkpoint, run: RunConfig) -> tuple[SiteMean, ...]:
    """The released means of a checkpoint's moments, in the order of site names."""
    sigma = PrivacyPlan.from_config(run).multiplier("moments")
    found = []
    for name, facts in sorted(state.sites.items()):
        released = state.released.moments.get(int(str(facts["node_id"])))
        if released is None:
            continue
        records, matrix = int(str(facts["records"])), as_matrix(released)
        k = len(matrix) - 1
        spec = SUMMARIES["moments"].spec(run, k, state.released)
        deviation = spec.sensitivity * sigma / (np.sqrt(2.0) if spec.symmetric else 1.0)
        scale = latent_radius(run, k) / records
        found.append(
            SiteMean(
                name=name,
                records=records,
                mean=matrix[-1, :-1] * scale,
                variance=float(deviation * scale) ** 2,
            )
        )
    return tuple(found)


def _whitened(
    sites: Sequence[SiteMean], within: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Means and the variances of their coordinates, both [C, k], which are then independent.

    With ``within``, coordinates are those in which it is the identity, and each variance has the
    share of N records beside that of the privacy noise.
    """
    means = np.stack([site.mean for site in sites])
    noise = np.asarray([site.variance for site in sites])[:, None]
    if within is None:
        return means, np.broadcast_to(noise, means.shape)
    values, vectors = np.linalg.eigh(within)
    records = np.asarray([site.records for site in sites])[:, None]
    return means @ vectors / np.sqrt(values), 1.0 / records + noise / values


def _against_others(changes: np.ndarray, noise: np.ndarray, calm: np.ndarray) -> np.ndarray:
    """Chi-square statistic [C] of each change [C, k] against the mean of the other calm ones.

    The mean weighs changes by their precision; any weights give an exact statistic.
    """
    others = np.tile(calm / noise.sum(axis=1), (len(changes), 1))
    np.fill_diagonal(others, 0.0)
    weights = np.eye(len(changes)) - others / others.sum(axis=1, keepdims=True)
    offsets, variances = weights @ changes, np.square(weights) @ noise
    statistics: np.ndarray = (np.square(offsets) / variances).sum(axis=1)
    return statistics


def _last(kinds: Sequence[str], kind: str) -> int:
    return max(number for number, one in enumerate(kinds) if one == kind)


def _seen(one: RunSites) -> dict[str, np.ndarray]:
    """The arrays that make latents out of records."""
    scaling = one.state.released.sent(scaling_of(one.run))
    encoder = {k: v for k, v in one.state.encoder.items() if k.startswith(ENCODER_PREFIX)}
    return encoder | scaling


def _equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(value, second[key]) for key, value in first.items()
    )
