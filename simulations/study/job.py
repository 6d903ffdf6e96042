"""One cell at work: its records, its run, and what it found."""

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.data.tabular import contaminate
from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.federation import Progress, RoundFacts
from fedlatent.simulations.own_data import clients_of_file
from fedlatent.simulations.partition import (
    Partition,
    chosen_clients,
    named_federation,
    repartition,
)
from fedlatent.simulations.study.evaluation import Rating
from fedlatent.simulations.study.spec import Cell, Study, bind
from fedlatent.simulations.study.tables import DataTable, Mistake, parameters_of
from fedlatent.simulations.study.works import WORKS

_ABSENT_OFFSET, _DRAW_OFFSET = 5, 6  # keep the draws of one seed apart

#: Told about progress: of a simulated run, or a line of text.
Tell = Callable[[Progress | str], None]


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


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a cell found.

    Attributes:
        answers: ratings by question; "combined_" before one means the score that adds all parts.
        figures: any other numbers and words, as deep as they need be.
        run: the configuration of the run that was simulated, or None.
        history: facts of that run's phases.
        curve: AUROC by round, pooled and as the mean of sites.
        picture: a PNG, or None.
    """

    answers: Mapping[str, Rating] = field(default_factory=dict)
    figures: Mapping[str, object] = field(default_factory=dict)
    run: RunConfig | None = None
    history: Sequence[RoundFacts] = ()
    curve: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    picture: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell and where it works.

    Attributes:
        study: that the cell is of.
        cell: what to do.
        data_dir: folder of the real data sets.
        folder: of the cell.
        device: of the stacked engine.
        tell: told about progress.
    """

    study: Study
    cell: Cell
    data_dir: Path
    folder: Path
    device: str = "cpu"
    tell: Tell = lambda news: None

    def work(self) -> Found:
        """Do what the cell says.

        Raises:
            ConfigError: the parameters are not those of its function.
        """
        chosen = WORKS[self.cell.work]
        function = getattr(importlib.import_module(chosen.module), chosen.function)
        found: Found = function(self, **self.parameters(function))
        return found

    def check(self) -> None:
        """Raise ConfigError with the line of what does not fit, before anything runs."""
        chosen = WORKS[self.cell.work]
        self.parameters(getattr(importlib.import_module(chosen.module), chosen.function))
        if chosen.shared:
            self.run()

    def parameters(self, function: Callable[..., Found]) -> dict[str, Any]:
        """The cell's parameters, checked against the function's own."""
        try:
            return parameters_of(function, self.cell.parameters)
        except Mistake as error:
            path = ("parameters", *error.path)
            raise self.study.error(path, error.sentence, self.cell) from None

    def run(self, clients: int | None = None, quorum: int | None = None) -> RunConfig:
        """The checked run of the cell; by default all clients that are present take part."""
        present = self.split.present
        return bind(self.study, self.cell, present.schema, clients or len(present.sites), quorum)

    @property
    def data_seed(self) -> int:
        """Draws records and who is absent."""
        data = self.cell.data
        return self.cell.seed if data is None or data.seed is None else data.seed

    @property
    def split(self) -> Split:
        """The clients of the cell; equal cells that follow each other share them.

        Raises:
            ConfigError: the data are not there or do not fit what is asked of them.
        """
        if self.cell.data is None:
            raise ValueError("Expected a cell with shared data, got one without.")
        cap = self.study.evaluate.clients
        try:
            return _split(self.cell.data, self.data_seed, cap, self.data_dir)
        except Mistake as error:
            raise self.study.error(error.path, error.sentence, self.cell) from None


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


@functools.lru_cache(maxsize=1)
def _split(data: DataTable, seed: int, cap: int, data_dir: Path) -> Split:
    federation = _federation(data, seed, data_dir)
    try:
        return split(federation, data.absent, cap, seed, data.contamination)
    except ConfigError as error:
        raise Mistake(("data", "absent"), str(error)) from None


def _federation(data: DataTable, seed: int, data_dir: Path) -> Federation:
    try:
        partition = Partition(
            kind=data.partition,
            clients=data.clients,
            alpha=data.alpha,
            shards=data.shards,
            strength=data.strength,
        )
        if data.source != "file":
            return named_federation(data.source, data_dir, partition, seed)
        whole = file_federation(data, data_dir, seed)
        if data.partition == "natural":
            return chosen_clients(whole, data.clients, seed)
        return repartition(whole, partition, seed, images=len(whole.schema.shape) == 3)
    except ConfigError as error:
        key = {"kind": "partition"}.get(error.field or "", error.field)
        sentence = str(error)
        path = ("data", key) if key else ("data",)
        raise Mistake(path, sentence[:1].lower() + sentence[1:]) from None


def file_federation(data: DataTable, data_dir: Path, seed: int) -> Federation:
    """The clients of a user's own file.

    Raises:
        ConfigError: there is no such file, or its schema is none.
        DataError: it does not fit.
    """
    path, schema = (_file_at(data_dir, name) for name in (data.path, data.schema_file))
    return clients_of_file(
        path,
        schema=schema if data.schema_file else None,
        seed=seed,
        records_key=data.array,
        columns=data.columns,
        label_key=data.label or None,
        normal_label=data.normal_label,
        client_key=data.client or None,
        dialect=data.dialect,
    )


def _file_at(data_dir: Path, name: str) -> Path:
    """A path from here, or else from the folder of data sets."""
    return Path(name) if Path(name).exists() else data_dir / name


def _draw(sites: tuple[SiteData, ...], cap: int, seed: int) -> tuple[SiteData, ...]:
    """At most ``cap`` of the sites that have test records, in their order."""
    tested = [site for site in sites if len(site.test)]
    order = np.random.default_rng(seed + _DRAW_OFFSET).permutation(len(tested))
    return tuple(tested[i] for i in sorted(order[:cap].tolist()))
