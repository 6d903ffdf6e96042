"""What an experiment measures in a cell: points of the curve, the final questions, baselines.

The curve is the simulator's own observation. It uses each round's encoder with an exact density of
all participants' records, which no deployed server sees and no plan pays for.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.data.tabular import contaminate
from fedlatent.shared.detection import baselines
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.wire import Arrays
from fedlatent.simulations.evaluation import (
    Detector,
    Rating,
    baseline_detector,
    global_detector,
    latent_detector,
    normals_of,
    rate,
    site_detector,
)
from fedlatent.simulations.federation import Simulation

#: Name -> fit of the baselines; both see all participants' records together, without privacy.
BASELINES = {"pca": baselines.pca, "mahalanobis": baselines.mahalanobis}

_ABSENT_OFFSET, _DRAW_OFFSET = 5, 6  # keep the draws of one seed apart


@dataclass(frozen=True, kw_only=True)
class Split:
    """The clients of one cell.

    Attributes:
        present: those that take part.
        absent: those that do not, or None.
        rated_present: the participants that are rated.
        rated_absent: the absent clients that are rated; empty without any.
    """

    present: Federation
    absent: Federation | None
    rated_present: tuple[SiteData, ...]
    rated_absent: tuple[SiteData, ...]

    @property
    def curve_sites(self) -> tuple[SiteData, ...]:
        """Whom the curve is about: absent clients, or all participants without any."""
        return self.rated_absent or self.rated_present


def split(
    federation: Federation, absent: int, cap: int, seed: int, contamination: float = 0.0
) -> Split:
    """Draw who stays away and who is rated.

    Args:
        federation: all clients.
        absent: how many take no part.
        cap: most clients that are rated on either side.
        seed: of all draws.
        contamination: share of anomalies among the participants' training records.

    Raises:
        ConfigError: too few clients, or none of the rated ones has normal and abnormal records.
    """
    count = len(federation.sites)
    if absent >= count:
        raise ConfigError(f"expected at most {count - 1}, the clients less one, got {absent}.")
    present, away = federation, None
    if absent:
        present, away = federation.hold_out(absent, seed + _ABSENT_OFFSET)
    present = contaminate(present, contamination, seed)
    made = Split(
        present=present,
        absent=away,
        rated_present=_draw(present.sites, cap, seed),
        rated_absent=_draw(away.sites, cap, seed) if away else (),
    )
    for sites in (made.rated_present, made.rated_absent) if away else (made.rated_present,):
        if not any(len(np.unique(site.test_label)) == 2 for site in sites):
            raise ConfigError(
                f"expected normal and abnormal test records at one of the {len(sites)} rated "
                "clients at least, got none; rate more clients or share the records otherwise."
            )
    return made


def point(run: RunConfig, arrays: Arrays, cell: Split) -> Rating:
    """One point of the curve: the global detector with this encoder and an exact density."""
    rows = [site.train for site in cell.present.sites]
    detector = latent_detector(run, arrays, rows)
    return rate([(site, detector) for site in cell.curve_sites])


def answers(
    simulation: Simulation, cell: Split, questions: Sequence[str], seed: int
) -> dict[str, Rating]:
    """The final answers by question; without absent clients only "seen" can be answered."""
    result = simulation.result

    def pairs(question: str) -> list[tuple[SiteData, Detector]]:
        if question == "seen":
            return list(_site_detectors(simulation, cell.rated_present))
        if question == "absent":
            detector = global_detector(result)
            return [(site, detector) for site in cell.rated_absent]
        count = int(question.removeprefix("new"))
        return [
            (site, global_detector(result, normals_of(site, count, seed)))
            for site in cell.rated_absent
        ]

    asked = [question for question in questions if question == "seen" or cell.absent]
    return {question: rate(pairs(question)) for question in asked}


def baseline_answers(cell: Split) -> dict[str, dict[str, Rating]]:
    """Baselines by name and question, fitted on the participants' pooled records."""
    rows = [site.train for site in cell.present.sites]
    asked = {"seen": cell.rated_present, "absent": cell.rated_absent}
    made: dict[str, dict[str, Rating]] = {}
    for name, fit in BASELINES.items():
        detector = baseline_detector(fit, cell.present.schema, rows)
        made[name] = {
            question: rate([(site, detector) for site in sites])
            for question, sites in asked.items()
            if sites
        }
    return made


def _site_detectors(
    simulation: Simulation, sites: Sequence[SiteData]
) -> Iterator[tuple[SiteData, Detector]]:
    """Of the sites that answered to the end; one that was away then has no bundle."""
    for site in sites:
        with contextlib.suppress(DataError):
            yield site, site_detector(simulation.material(site.name), site)


def _draw(sites: tuple[SiteData, ...], cap: int, seed: int) -> tuple[SiteData, ...]:
    """At most ``cap`` of the sites that have test records, in their order."""
    tested = [site for site in sites if len(site.test)]
    order = np.random.default_rng(seed + _DRAW_OFFSET).permutation(len(tested))
    return tuple(tested[i] for i in sorted(order[:cap].tolist()))
