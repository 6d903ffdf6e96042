"""One file to one signed bundle and a report: the shortest way from own records to a detector.

The records are in one place, so nothing is secret from whoever trains. Without an epsilon all of
them are trained on together, and the bundle holds exact statistics of them: it stays where the
records may be. With one, each client is a node with a ledger of its own, and everything in the
bundle is covered by it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
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
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.export.bundling import BundleContents, BundleReport, make_bundle
from fedlatent.shared.files import write_atomic, write_json
from fedlatent.shared.keys import SigningKey, VerifyKey, public_path
from fedlatent.shared.models import FAMILIES
from fedlatent.shared.privacy.delta import largest_delta
from fedlatent.shared.privacy.plan import PrivacyPlan, drowned
from fedlatent.simulations.federation import Engine, Progress, datasets, simulate
from fedlatent.simulations.report import Report, report_on
from fedlatent.simulations.study.methods import union

KEY = "publisher.pem"
RUN_ID = "trained"

_BATCH = 128  # expected records of a step without privacy
_PRIVATE_BATCH = 256
_STEPS = (100, 1000)  # without privacy, at least and at most; more overfit small tables
_PRIVATE_STEPS = 200
_EPOCHS = 10
_ROUNDS = 10
_QUANTILE = 0.95  # of normals below the threshold; files are often too small for more
_FEATURES = 32  # of the released Gaussian of the records


@dataclass(frozen=True, kw_only=True, repr=False)
class Trained:
    """What training on a file gave.

    Attributes:
        bundle: the signed bundle, and how it was made.
        public_key: that verifies it.
        run: the configuration.
        model: the bundle, verified and loaded.
        report: beside simple baselines.
        page: the report as a file.
    """

    bundle: BundleReport
    public_key: Path
    run: RunConfig
    model: EdgeModel
    report: Report
    page: Path

    def __repr__(self) -> str:
        """The bundle, its key and its report."""
        places = f"key {self.public_key}, report {self.page}"
        return f"Trained(bundle {self.bundle.path}, {places})\n{self.report}"

    def to_json(self) -> dict[str, object]:
        """All of it as one JSON object."""
        return {
            "bundle": str(self.bundle.path),
            "bundle_bytes": self.bundle.size,
            "public_key": str(self.public_key),
            **self.report.to_json(),
            "report": str(self.page),
        }

    def _repr_html_(self) -> str:
        """The report, in a notebook."""
        return self.report._repr_html_()


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
        delta = min(1e-5, largest_delta(min(counts)))
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
    if not 0 < absent < len(federation.sites):
        raise ConfigError(
            f"Expected fewer absent clients than the {len(federation.sites)} that there are, got "
            f"{absent}; leave out fewer.",
            field="absent",
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
    if target.is_dir():
        raise ConfigError(
            f"Expected a file for the bundle, got the folder {target}; name a file in it.",
            field="out",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    contents = contents_of(chosen, present, work, watch)
    tested = np.concatenate([site.test for site in present.sites])
    bundle, public = signed(target, contents, signing_key or target.parent / KEY, tested)
    model = EdgeModel.load(target, [public])
    found = report_on(model, chosen, present, away, name=target.name)
    trained = Trained(
        bundle=bundle,
        public_key=public_path(signing_key or target.parent / KEY),
        run=chosen,
        model=model,
        report=found,
        page=target.with_suffix(".html"),
    )
    write_json(target.with_suffix(".json"), trained.to_json())
    write_atomic(trained.page, found.html().encode())
    return trained


def signed(
    target: Path, contents: BundleContents, key: Path, records: NDArray[Any] | None = None
) -> tuple[BundleReport, VerifyKey]:
    """Write a bundle signed by ``key``, which is made where it is not there.

    Args:
        target: the bundle.
        contents: what it is made of.
        key: private; the public one is beside it.
        records: raw ones for the check against torch.

    Raises:
        BundleError: the graphs differ from torch.
    """
    signer = SigningKey.load(key) if key.exists() else SigningKey.generate(key)
    target.parent.mkdir(parents=True, exist_ok=True)
    return make_bundle(target, contents, signer, records), signer.public


def contents_of(
    run: RunConfig,
    present: Federation,
    work: Path,
    watch: Callable[[Progress], None] | None = None,
) -> BundleContents:
    """What a bundle is made of: a private federation, or all records together.

    Args:
        run: what to train.
        present: the clients that take part.
        work: folder of what is kept while training.
        watch: told about progress.

    Raises:
        ConfigError: the run does not fit the records.
    """
    if run.privacy.mechanism == "none":
        together = datasets(union(present))
        site = next(iter(together))
        done = simulate(run, together, work, run_id=RUN_ID, engine="stacked", watch=watch)
        return site_contents(done.material(site), together[site].records)
    # Secure noise is paid for in a ledger, which nodes alone keep.
    engine: Engine = "nodes" if run.privacy.rng == "secure" else "stacked"
    done = simulate(run, datasets(present), work, run_id=RUN_ID, engine=engine, watch=watch)
    return global_contents(done.result, RUN_ID)
