"""A detector beside simple baselines, client by client."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.detection import baselines
from fedlatent.shared.detection.metrics import auroc, pooled
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.simulations.study.baselines import BASELINES, private_mahalanobis
from fedlatent.simulations.study.evaluation import Detector, baseline_detector, edge_detector
from fedlatent.simulations.study.page import render
from fedlatent.simulations.study.tables import Baseline

if TYPE_CHECKING:
    import pandas as pd

#: Baselines of the report, by what a person calls them; the first four know no privacy.
_COMPARED: dict[str, Baseline] = {
    "PCA": "pca",
    "Mahalanobis": "mahalanobis",
    "isolation forest": "isolation-forest",
    "kNN": "knn",
}


@dataclass(frozen=True, kw_only=True)
class ClientRow:
    """What the report says of one client.

    Attributes:
        name: of the client.
        took_part: whether its records were trained on.
        trained: normal records that were trained on.
        tested: other records, normal and abnormal.
        anomalies: among them.
        false_alarms: share of its normal test records that the bundle flags, or None.
        found: share of its anomalies that the bundle flags, or None.
        auroc: by detector; None where the client has no anomalies or no normal test records.
    """

    name: str
    took_part: bool
    trained: int
    tested: int
    anomalies: int
    false_alarms: float | None
    found: float | None
    auroc: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """What a bundle finds, beside what detectors without a network find.

    Attributes:
        name: of the bundle.
        note: on the records.
        run: the configuration.
        epsilon: that covers the bundle, or None.
        clients: a row each.
        auroc: over all clients that took part, under one threshold, by detector; "absent" ones
            beside them. None where there are no anomalies.
    """

    name: str
    note: str
    run: RunConfig
    epsilon: float | None
    clients: tuple[ClientRow, ...]
    auroc: Mapping[str, Mapping[str, float | None]]

    def __repr__(self) -> str:
        """The table of detectors."""
        return f"Report of {self.name}\n{self.detectors.round(3)}"

    @property
    def absent(self) -> list[str]:
        """Names of the clients that took no part."""
        return [one.name for one in self.clients if not one.took_part]

    @property
    def rated(self) -> bool:
        """Whether anomalies are known, so that detectors can be rated."""
        return any(value is not None for row in self.auroc.values() for value in row.values())

    @property
    def beaten_by(self) -> dict[str, float]:
        """Baselines whose AUROC on clients that took part is above the bundle's; best first."""
        row = self.auroc["took part"]
        own = row["fedlatent"]
        found = {} if own is None else {k: v for k, v in row.items() if v is not None and v > own}
        return dict(sorted(found.items(), key=lambda one: -one[1]))

    @cached_property
    def detectors(self) -> "pd.DataFrame":
        """AUROC by detector (rows), on clients that took part and on absent ones (columns)."""
        import pandas as pd

        return pd.DataFrame(self.auroc, dtype=float).rename_axis("detector")

    @cached_property
    def by_client(self) -> "pd.DataFrame":
        """A row for each client: counts, false alarms, share found, and AUROC by detector."""
        import pandas as pd

        rows = [{**asdict(one), "auroc": None} | dict(one.auroc) for one in self.clients]
        return pd.DataFrame(rows).drop(columns="auroc").set_index("name").rename_axis("client")

    def to_json(self) -> dict[str, object]:
        """All of it as one JSON object."""
        return {
            "epsilon": self.epsilon,
            "delta": None if self.epsilon is None else self.run.privacy.delta,
            "family": self.run.model.family,
            "absent": self.absent,
            "auroc": {name: dict(values) for name, values in self.auroc.items()},
            "beaten_by": self.beaten_by,
            "clients": [asdict(one) for one in self.clients],
            "note": self.note,
        }

    def html(self) -> str:
        """The report as one HTML page, which opens without a network."""
        return render("train.html", **self._facts(), title=f"{self.name}: report")

    def _repr_html_(self) -> str:
        """The report in a notebook: its body without the page around it."""
        return render("train-body.html", **self._facts())

    def _facts(self) -> dict[str, Any]:
        names = list(next(iter(self.auroc.values())))
        delta = self.run.privacy.delta
        return {
            "name": self.name,
            "note": self.note,
            "privacy": "No privacy: keep the bundle where the records may be"
            if self.epsilon is None
            else f"Epsilon {self.epsilon:.3g} at delta {delta:g} for each client",
            "private": self.epsilon is not None,
            "absent": ", ".join(self.absent),
            "without": ", ".join(one.name for one in self.clients if not one.anomalies),
            "numbered": [f"#{name}" for name in names],
            "auroc": [[who, *map(_shown, row.values())] for who, row in self.auroc.items()],
            "beaten": ", ".join(
                f"{name} {_shown(value)}" for name, value in self.beaten_by.items()
            ),
            "rated": self.rated,
            "clients": [_cells(one, names) for one in self.clients],
            "run": self.run.to_json(),
        }


def report_on(
    model: EdgeModel,
    run: RunConfig,
    present: Federation,
    away: Sequence[SiteData] = (),
    *,
    name: str,
) -> Report:
    """Rate a bundle on the test records of clients, beside baselines fitted on their records.

    Args:
        model: the bundle.
        run: that it comes from.
        present: the clients that took part.
        away: those that did not.
        name: of the bundle, for people.
    """
    detectors = {"fedlatent": edge_detector(model)} | compared(present, run)
    rows = [_row(site, model, detectors, took_part=True) for site in present.sites]
    rows += [_row(site, model, detectors, took_part=False) for site in away]
    auroc_of = {"took part": _together(present.sites, detectors)}
    if away:
        auroc_of["absent"] = _together(away, detectors)
    privacy = model.bundle.manifest.privacy
    return Report(
        name=name,
        note=present.note,
        run=run,
        epsilon=None if privacy is None or run.privacy.mechanism == "none" else privacy.epsilon,
        clients=tuple(rows),
        auroc=auroc_of,
    )


def compared(present: Federation, run: RunConfig) -> dict[str, Detector]:
    """The baselines of a report, fitted on the records of all that take part.

    Those without privacy see all records; DP Mahalanobis has the run's whole epsilon for itself.
    A window's rolling z-score needs no fit.
    """
    schema, rows = present.schema, [site.train for site in present.sites]
    found = {
        name: baseline_detector(BASELINES[kind], schema, rows) for name, kind in _COMPARED.items()
    }
    if run.privacy.mechanism != "none":
        private = private_mahalanobis(run, rows, SimulationNoise(run.seed))
        found["DP Mahalanobis"] = private(None)
    if schema.window is not None:
        found["rolling z-score"] = lambda records: baselines.rolling_z_score(
            schema.preprocess(records)
        )
    return found


def _row(
    site: SiteData, model: EdgeModel, detectors: Mapping[str, Detector], *, took_part: bool
) -> ClientRow:
    """One client's row; figures that its records do not give are None."""
    flag = model.score(site.test).flag if len(site.test) else np.zeros(0, dtype=np.bool_)
    bad = site.test_label == 1
    return ClientRow(
        name=site.name,
        took_part=took_part,
        trained=len(site.train) if took_part else 0,
        tested=len(site.test),
        anomalies=int(bad.sum()),
        false_alarms=float(flag[~bad].mean()) if (~bad).any() else None,
        found=float(flag[bad].mean()) if bad.any() else None,
        auroc=_together([site], detectors),
    )


def _together(
    sites: Sequence[SiteData], detectors: Mapping[str, Detector]
) -> dict[str, float | None]:
    """AUROC of each detector over sites, under one threshold; None without both classes."""
    label: NDArray[Any] = np.concatenate([site.test_label for site in sites])
    if len(np.unique(label)) < 2:
        return dict.fromkeys(detectors)
    return {
        name: pooled(auroc, [(site.test_label, detector(site.test)) for site in sites])
        for name, detector in detectors.items()
    }


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cells(one: ClientRow, names: Sequence[str]) -> list[object]:
    """The cells of a client's row in the page."""
    return [
        (one.name, "" if one.took_part else "absent"),
        one.trained,
        one.tested,
        one.anomalies,
        _shown(one.false_alarms),
        _shown(one.found),
        *(_shown(one.auroc[name]) for name in names),
    ]
