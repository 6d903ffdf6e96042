"""One file to one signed bundle and a report: the shortest way from own records to a detector.

The records are in one place, so nothing is secret from whoever trains. Without an epsilon all of
them are trained on together, and the bundle holds exact statistics of them: it stays where the
records may be. With one, each client is a node with a ledger of its own, and everything in the
bundle is covered by it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.export import site_contents
from fedlatent.server.export import global_contents
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.schema import SELFIES
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.detection import baselines
from fedlatent.shared.detection.metrics import auroc, pooled
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.export.bundling import BundleContents, BundleReport, make_bundle
from fedlatent.shared.files import write_atomic, write_json
from fedlatent.shared.keys import SigningKey
from fedlatent.shared.models import FAMILIES
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan, drowned
from fedlatent.simulations.federation import Engine, Progress, datasets, simulate
from fedlatent.simulations.study.baselines import BASELINES, private_mahalanobis
from fedlatent.simulations.study.evaluation import (
    Detector,
    baseline_detector,
    edge_detector,
)
from fedlatent.simulations.study.methods import union
from fedlatent.simulations.study.page import render
from fedlatent.simulations.study.tables import Baseline

KEY = "publisher.pem"
RUN_ID = "trained"

#: Baselines of the report, by what a person calls them; the first four know no privacy.
_COMPARED: dict[str, Baseline] = {
    "PCA": "pca",
    "Mahalanobis": "mahalanobis",
    "isolation forest": "isolation-forest",
    "kNN": "knn",
}
_BATCH = 128  # expected records of a step without privacy
_PRIVATE_BATCH = 256
_STEPS = (100, 1000)  # without privacy, at least and at most; more overfit small tables
_PRIVATE_STEPS = 200
_EPOCHS = 10
_ROUNDS = 10
_QUANTILE = 0.95  # of normals below the threshold; files are often too small for more
_FEATURES = 32  # of the released Gaussian of the records


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


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training on a file gave.

    Attributes:
        bundle: the signed bundle, and how it was made.
        public_key: that verifies it.
        run: the configuration.
        epsilon: that covers the bundle, or None.
        note: on the records.
        clients: a row each.
        auroc: over all clients that took part, under one threshold, by detector; "absent" ones
            beside them. None where there are no anomalies.
        report: the page.
    """

    bundle: BundleReport
    public_key: Path
    run: RunConfig
    epsilon: float | None
    note: str
    clients: tuple[ClientRow, ...]
    auroc: Mapping[str, Mapping[str, float | None]]
    report: Path

    @property
    def absent(self) -> list[str]:
        """Names of the clients that took no part."""
        return [one.name for one in self.clients if not one.took_part]

    @property
    def beaten_by(self) -> dict[str, float]:
        """Baselines whose AUROC on clients that took part is above the bundle's; best first."""
        row = self.auroc["took part"]
        own = row["fedlatent"]
        found = {} if own is None else {k: v for k, v in row.items() if v is not None and v > own}
        return dict(sorted(found.items(), key=lambda one: -one[1]))

    def to_json(self) -> dict[str, object]:
        """All of it as one JSON object."""
        return {
            "bundle": str(self.bundle.path),
            "bundle_bytes": self.bundle.size,
            "public_key": str(self.public_key),
            "epsilon": self.epsilon,
            "delta": None if self.epsilon is None else self.run.privacy.delta,
            "family": self.run.model.family,
            "absent": self.absent,
            "auroc": {name: dict(values) for name, values in self.auroc.items()},
            "beaten_by": self.beaten_by,
            "clients": [asdict(one) for one in self.clients],
            "note": self.note,
            "report": str(self.report),
        }


def run_of(
    federation: Federation,
    *,
    family: str | None = None,
    options: Mapping[str, object] | None = None,
    epsilon: float | None = None,
    seed: int = 0,
) -> RunConfig:
    """A run that suits the number and the size of the records.

    Args:
        federation: those that take part.
        family: of the model; by default gaussian, or molecule where records are molecules.
        options: of the family; by default two layers of 64 and eight latent dimensions, where it
            has such.
        epsilon: of each client, or None.
        seed: of first weights and simulated noise.

    Raises:
        ConfigError: the family or an option is unknown or does not fit the records.
    """
    if family == "molecule" and federation.schema.unit != SELFIES:
        raise ConfigError(
            f"Expected records of molecules for the family 'molecule', got those of "
            f"{federation.schema.name!r}; give a schema whose unit is {SELFIES!r}, or choose "
            "another family.",
            field="family",
        )
    family = family or ("molecule" if federation.schema.unit == SELFIES else "gaussian")
    counts = [len(site.train) for site in federation.sites]
    private = epsilon is not None
    if not private:  # all together
        counts = [sum(counts)]
    size, middle = federation.schema.size, float(np.median(counts))
    batch = _PRIVATE_BATCH if private else _BATCH
    rate = min(1.0, batch / middle)
    steps = _PRIVATE_STEPS
    if not private:
        steps = int(np.clip(_EPOCHS / rate, *_STEPS))
    usual = _usual_options(family, size)
    privacy: dict[str, object] = {"mechanism": "none", "rng": "simulation"}
    if private:
        delta = min(1e-5, 1.0 / (10.0 * min(counts)))
        privacy = {"epsilon": epsilon, "delta": delta, "rng": "secure"}
    return RunConfig.parse(
        {
            "name": "trained",
            "seed": seed,
            "sharing": "full" if private else "encoder",
            "data": federation.schema.to_dict(),
            "model": {"family": family, "options": usual if options is None else dict(options)},
            "privacy": {**privacy, "sample_rate": rate},
            "training": {
                "rounds": _ROUNDS,
                "steps_per_round": max(1, steps // _ROUNDS),
                "learning_rate": 2e-3,
            },
            "summaries": {
                "data": "gaussian" if private else "none",
                "features": min(_FEATURES, size),
                "robust": False,
            },
            "scoring": {"combined": private, "quantile": _QUANTILE},
            "strategy": {"robust": "none"},
            "federation": {"nodes": len(counts), "quorum": len(counts)},
        },
        "train",
    )


def worry(run: RunConfig, present: Federation) -> str | None:
    """What to know before training: see `fedlatent.shared.privacy.plan.drowned`."""
    records = [len(site.train) for site in present.sites]
    return drowned(run, PrivacyPlan.from_config(run), records)


def _usual_options(family: str, size: int) -> dict[str, object]:
    """Two layers of 64 and eight latent dimensions, where a family has options of that kind."""
    usual = {"latent_dim": min(8, size), "hidden": (64, 64)}
    options = fields(FAMILIES[family].config) if family in FAMILIES else ()
    return {
        one.name: usual[one.name]
        for one in options
        if isinstance(one.default, type(usual.get(one.name)))
    }


def leave_out(
    federation: Federation, absent: int, seed: int = 0
) -> tuple[Federation, tuple[SiteData, ...]]:
    """Those who take part, and ``absent`` clients drawn by ``seed`` that do not.

    Raises:
        ConfigError: as many are to be absent as there are.
    """
    if not absent:
        return federation, ()
    if absent >= len(federation.sites):
        raise ConfigError(
            f"Expected fewer absent clients than the {len(federation.sites)} of the file, got "
            f"{absent}; leave out fewer."
        )
    present, left = federation.hold_out(absent, seed)
    return present, left.sites


def train(
    present: Federation,
    target: Path,
    *,
    run: RunConfig | None = None,
    away: Sequence[SiteData] = (),
    signing_key: Path | None = None,
    work: Path,
    watch: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train on clients that are all here, sign a bundle, and report on it.

    Args:
        present: the clients that take part.
        target: the bundle; ``.html`` and ``.json`` of its name beside it are the report.
        run: what to train; by default `run_of` those that take part.
        away: clients that take no part, to see how new ones fare: see `leave_out`.
        signing_key: by default ``publisher.pem`` beside the target, made when it is not there.
        work: folder of what is kept while training.
        watch: told about progress.

    Raises:
        ConfigError: the run does not fit the records.
        BundleError: the graphs differ from torch.
    """
    chosen = run or run_of(present)
    contents = _trained(chosen, present, work, watch)
    key = signing_key or target.parent / KEY
    signer = SigningKey.load(key) if key.exists() else SigningKey.generate(key)
    target.parent.mkdir(parents=True, exist_ok=True)
    tested = np.concatenate([site.test for site in present.sites])
    bundle = make_bundle(target, contents, signer, tested)
    model = EdgeModel.load(target, [signer.public])
    detectors = {"fedlatent": edge_detector(model)} | compared(present, chosen)
    rows = [_row(site, model, detectors, took_part=True) for site in present.sites]
    rows += [_row(site, model, detectors, took_part=False) for site in away]
    auroc_of = {"took part": _together(present.sites, detectors)}
    if away:
        auroc_of["absent"] = _together(away, detectors)
    trained = Trained(
        bundle=bundle,
        public_key=key.with_name(key.name + ".pub"),
        run=chosen,
        epsilon=contents.epsilon,
        note=present.note,
        clients=tuple(rows),
        auroc=auroc_of,
        report=target.with_suffix(".html"),
    )
    write_json(target.with_suffix(".json"), trained.to_json())
    write_atomic(trained.report, page(trained).encode())
    return trained


def _trained(
    run: RunConfig,
    present: Federation,
    work: Path,
    watch: Callable[[Progress], None] | None,
) -> BundleContents:
    """The bundle's contents: of a private federation, or of all records together."""
    if run.privacy.mechanism == "none":
        together = datasets(union(present))
        site = next(iter(together))
        done = simulate(run, together, work, run_id=RUN_ID, engine="stacked", watch=watch)
        return site_contents(done.material(site), together[site].records)
    # Secure noise is paid for in a ledger, which nodes alone keep.
    engine: Engine = "nodes" if run.privacy.rng == "secure" else "stacked"
    done = simulate(run, datasets(present), work, run_id=RUN_ID, engine=engine, watch=watch)
    return global_contents(done.result, RUN_ID)


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


def page(trained: Trained) -> str:
    """The report as one HTML file."""
    names = list(next(iter(trained.auroc.values())))
    privacy = (
        "No privacy: keep the bundle where the records may be"
        if trained.epsilon is None
        else f"Epsilon {trained.epsilon:.3g} at delta {trained.run.privacy.delta:g} for each client"
    )
    clients = [
        [
            (one.name, "" if one.took_part else "absent"),
            one.trained,
            one.tested,
            one.anomalies,
            _shown(one.false_alarms),
            _shown(one.found),
            *(_shown(one.auroc[name]) for name in names),
        ]
        for one in trained.clients
    ]
    return render(
        "train.html",
        title=f"{trained.bundle.path.name}: report",
        name=trained.bundle.path.name,
        note=trained.note,
        privacy=privacy,
        private=trained.epsilon is not None,
        absent=", ".join(trained.absent),
        without=", ".join(one.name for one in trained.clients if not one.anomalies),
        numbered=[f"#{name}" for name in names],
        auroc=[[who, *map(_shown, row.values())] for who, row in trained.auroc.items()],
        beaten=", ".join(f"{name} {_shown(value)}" for name, value in trained.beaten_by.items()),
        rated=any(value is not None for row in trained.auroc.values() for value in row.values()),
        clients=clients,
        run=trained.run.to_json(),
    )


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
