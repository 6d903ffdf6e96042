"""The study file: one TOML file that names data, a run, what to sweep and what to measure.

A list where one value is expected is a sweep, and ``[methods.NAME]`` and ``[datasets.NAME]`` are
named overrides of the rest of the file, which may hold sweeps of their own. Every combination with
every seed is a cell: one piece of work with its own split, first weights and noise. Errors name the
file, the line, the key, what was expected and what came.
"""

import copy
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.files import canonical_json, sha256_hex
from fedlatent.shared.models import build_model
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.toml import dumps, parse_toml
from fedlatent.simulations.partition import source_needs
from fedlatent.simulations.study import tables
from fedlatent.simulations.study.lines import key_lines
from fedlatent.simulations.study.tables import (
    METRICS,
    SWEPT,
    VARIANTS,
    AvailabilityTable,
    CellTable,
    DataTable,
    EvaluateTable,
    FileTable,
    Grid,
    Mistake,
    ReportTable,
    mistake_of,
)
from fedlatent.simulations.study.works import WORKS

#: Columns of the result tables; a swept key of the same name is called by more of its path.
RESERVED = frozenset(
    {"cell", "seed", "participants", "absent", "records", "epsilon_spent", "delta", "sigma"}
    | {"data", "method"}
    | {"loss", "loss_p10", "loss_p50", "loss_p90", "bytes_up", "bytes_down", "seconds"}
    | {"clients_per_second", "round", "kind", "asked", "good", "late", "away", "auroc"}
)

#: Stands for the schema until the data are read.
_ANY_DATA = {"name": "any", "shape": [1]}
_LONGEST_ID = 100

AnyTable = TypeVar("AnyTable", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One piece of work of a study.

    Attributes:
        id: name of the cell's folder.
        seed: of split, first weights and noise.
        setting: data set, method and swept values by short name; epsilon "none" for no privacy.
        work: name of the function that does it, of ``study.works.WORKS``.
        grid: who runs the clients.
        data: records and clients; None for work that has its own.
        availability: how often clients do not answer.
        run: the tables of a run file, without name, seed and data.
        parameters: of the function.
    """

    id: str
    seed: int
    setting: dict[str, object]
    work: str
    grid: Grid
    data: DataTable | None
    availability: AvailabilityTable
    run: dict[str, Any]
    parameters: dict[str, Any]

    @property
    def label(self) -> str:
        """The setting in words; empty without a sweep."""
        return label_of(self.setting)

    @property
    def needs(self) -> tuple[str, ...]:
        """Data sets of the catalogue that its work reads."""
        shared = source_needs(self.data.source) if self.data else ()
        return (*shared, *WORKS[self.work].needs(self.parameters))

    @property
    def within(self) -> tuple[tables.Path, ...]:
        """The named overrides that this cell takes its keys from, the strongest first."""
        return _overrides(self.setting)

    def data_key(self) -> str:
        """A short name for the cell's data: equal for cells with the same clients."""
        source = self.data.source if self.data else "own"
        digest = sha256_hex(canonical_json(self.facts()["data"]))[:12]
        return f"{source}-{digest}_seed-{self.seed}"

    def facts(self) -> dict[str, object]:
        """All that bears on the cell's result, as JSON values."""
        return {
            "id": self.id,
            "seed": self.seed,
            "setting": self.setting,
            "work": self.work,
            "grid": self.grid,
            "data": self.data.facts() if self.data else None,
            "availability": self.availability.model_dump(mode="json"),
            "run": self.run,
            "parameters": self.parameters,
        }


@dataclass(frozen=True, kw_only=True)
class Study:
    """A checked study file.

    Attributes:
        name: of the study.
        description: one or two sentences on what it is for.
        source: where the text came from, for messages.
        text: the file as it was read, with the changes that were asked for.
        sweeps: data sets, methods and swept values by short name.
        keys: the whole path of each of these by short name.
        seeds: one repetition each.
        evaluate: what is measured.
        report: how the tables of results are laid out.
        cells: all combinations; all settings of the first seed come first.
        lines: where each key stands in the text.
    """

    name: str
    description: str
    source: str
    text: str
    sweeps: dict[str, list[object]]
    keys: dict[str, str]
    seeds: tuple[int, ...]
    evaluate: EvaluateTable
    report: ReportTable
    cells: tuple[Cell, ...]
    lines: Mapping[tables.Path, int] = field(repr=False)

    @classmethod
    def load(cls, path: Path, changes: Sequence[str] = (), *, quick: bool = False) -> "Study":
        """Read a study file.

        Args:
            path: of the file.
            changes: lines of TOML such as ``run.training.rounds = 2``, which replace its keys.
            quick: take the values of its table ``[quick]``, too.

        Raises:
            ConfigError: the file is absent or wrong; names line and key.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "bytes that are not UTF-8"
            raise ConfigError(
                f"Expected a readable study file at {path}, got: {reason}; "
                "'fedlatent simulate list' names the shipped ones."
            ) from None
        return parse(_changed(text, str(path), changes, quick=quick), str(path))

    @property
    def data(self) -> str:
        """Names of the data sets, with commas; "own" for work that has its own."""
        names = dict.fromkeys(cell.data.source if cell.data else "own" for cell in self.cells)
        return ", ".join(names)

    @property
    def needs(self) -> tuple[str, ...]:
        """Data sets of the catalogue that its cells read, each once."""
        return tuple(dict.fromkeys(name for cell in self.cells for name in cell.needs))

    def digest(self) -> str:
        """SHA-256 of all that bears on the results; comments and the description do not."""
        cells = [cell.facts() for cell in self.cells]
        whole = {"name": self.name, "evaluate": self.evaluate.model_dump(), "cells": cells}
        return sha256_hex(canonical_json(whole))

    def error(self, path: Sequence[str], sentence: str, cell: Cell | None = None) -> ConfigError:
        """A mistake at a key of a cell, with its line when the key stands in the file."""
        return Mistake(path, sentence, cell.within if cell else ()).said(self.source, self.lines)


def parse(text: str, source: str) -> Study:
    """Check the text of a study file and expand its sweeps.

    Args:
        text: TOML.
        source: name of the file, for messages.

    Raises:
        ConfigError: one sentence with file, line, key, what was expected and what came.
    """
    value = parse_toml(text, source)
    lines = key_lines(text)
    try:
        file = _validated(FileTable, value)
        variants = list(_variants(file, value))
        swept = {path: None for variant in variants for path in variant.swept}
        names = _short_names(list(swept))
        cells = tuple(_cells(file, variants, names))
        _check_questions(file, cells)
        sweeps = _axes(cells)
        _check_report(file.report, sweeps)
    except Mistake as error:
        raise error.said(source, lines) from None
    return Study(
        name=file.name,
        description=file.description,
        source=source,
        text=text,
        sweeps=sweeps,
        keys={axis: key for key, axis in VARIANTS.items() if axis in sweeps}
        | {name: ".".join(path) for path, name in names.items()},
        seeds=file.seeds,
        evaluate=file.evaluate,
        report=file.report,
        cells=cells,
        lines=lines,
    )


def merged(table: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``table`` with the values of ``over``, table by table.

    A list is replaced; by one value, too, which stays a sweep of that value alone.
    """
    found = dict(table)
    for key, value in over.items():
        there = found.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            found[key] = merged(there, value)
        else:
            alone = isinstance(there, list) and not isinstance(value, list)
            found[key] = [value] if alone else copy.deepcopy(value)
    return found


def bind(
    study: Study, cell: Cell, schema: Schema, participants: int, quorum: int | None = None
) -> RunConfig:
    """The run of a cell on data that have been read, checked down to its model and its noise.

    Nodes and quorum are by default all clients that take part, or as many as are likely to answer
    when some do not; with a ``quorum`` given, nodes are all of them.

    Raises:
        ConfigError: the run does not fit the data, or cannot reach its epsilon.
    """
    tables = copy.deepcopy(cell.run)
    federation = tables.setdefault("federation", {})
    federation.setdefault("quorum", quorum or likely_quorum(participants, cell.availability))
    federation.setdefault("nodes", participants if quorum else federation["quorum"])
    for key in ("quorum", "nodes"):
        if federation[key] > participants:
            raise study.error(
                ("run", "federation", key),
                f"expected at most {participants}, the clients that take part, "
                f"got {federation[key]}.",
                cell,
            )
    run = RunConfig.parse(
        {"name": study.name, "seed": cell.seed, "data": schema.to_dict(), **tables},
        study.source,
    )
    try:
        build_model(run)
    except ConfigError as error:
        path = ("run", *(error.field or "model").split("."))
        sentence = str(error)
        raise study.error(path, sentence[0].lower() + sentence[1:], cell) from None
    try:
        PrivacyPlan.from_config(run)
    except ValueError:
        raise study.error(
            ("run", "privacy", "epsilon"),
            f"expected an epsilon that can be reached, got {run.privacy.epsilon:g}; raise it or "
            "train for fewer rounds or steps.",
            cell,
        ) from None
    return run


def likely_quorum(participants: int, availability: AvailabilityTable) -> int:
    """All clients; with dropout four standard deviations below the mean number of answers."""
    answers = 1 - availability.dropout - availability.late
    if answers == 1:
        return participants
    spread = math.sqrt(participants * answers * (1 - answers))
    return max(1, math.floor(participants * answers - 4 * spread))


def text_of(value: object) -> str:
    """A swept value for people: 4, none, 64x32."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "x".join(map(text_of, value))
    if isinstance(value, Mapping):
        return " ".join(f"{key} {text_of(item)}" for key, item in value.items())
    return str(value)


def label_of(setting: Mapping[str, object]) -> str:
    """A setting in words, such as "mitbih, epsilon 4"; empty without a sweep."""
    return ", ".join(value_text(name, value) for name, value in setting.items())


def value_text(name: str, value: object) -> str:
    """One part of a setting in words."""
    if (name, value) == ("epsilon", "none"):
        return "no privacy"
    return text_of(value) if name in VARIANTS.values() else f"{name} {text_of(value)}"


def _validated(model: type[AnyTable], value: object) -> AnyTable:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise mistake_of(error, model) from None


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """The file under one data set and one method.

    Attributes:
        names: of these, by axis.
        whole: the swept tables with their overrides.
        swept: path and values of each sweep, in the order of the tables.
    """

    names: dict[str, object]
    whole: dict[str, Any]
    swept: dict[tables.Path, list[object]]


def _overrides(setting: Mapping[str, object]) -> tuple[tables.Path, ...]:
    """The named tables that a setting takes its keys from, the strongest first."""
    axes = reversed(VARIANTS.items())
    return tuple((key, str(setting[axis])) for key, axis in axes if axis in setting)


def _variants(file: FileTable, value: Mapping[str, Any]) -> Iterator[_Variant]:
    base = {key: value[key] for key in value if key in SWEPT}
    for table, named in (("datasets", file.datasets), ("methods", file.methods)):
        for name, over in named.items():
            for key in over:
                if key not in SWEPT:
                    raise tables.unknown((table, name, key), SWEPT)
    none: Mapping[str, dict[str, object]] = {"": {}}
    for data, method in itertools.product(file.datasets or none, file.methods or none):
        whole = merged(base, (file.datasets or none)[data])
        whole = merged(whole, (file.methods or none)[method])
        axes = zip(VARIANTS.values(), (data, method), strict=True)
        made = _Variant(names={axis: name for axis, name in axes if name}, whole=whole, swept={})
        try:
            made.swept.update(_sweeps(whole))
        except Mistake as error:
            raise Mistake(error.path, error.sentence, _overrides(made.names)) from None
        yield made


def _sweeps(value: Mapping[str, Any]) -> Iterator[tuple[tables.Path, list[object]]]:
    """Path and values of each sweep."""

    def within(item: object, path: tables.Path) -> Iterator[tuple[tables.Path, list[object]]]:
        if isinstance(item, Mapping):
            for key, inner in item.items():
                yield from within(inner, (*path, key))
        elif isinstance(item, list) and not (
            tables.takes_list(path) and not (item and all(isinstance(one, list) for one in item))
        ):
            _check_values(path, item)
            yield path, item

    for key, item in value.items():
        yield from within(item, (key,))


def _check_values(path: tables.Path, values: list[object]) -> None:
    if not values:
        raise Mistake(path, "expected a value or a list of values to sweep, got an empty list.")
    texts = [text_of(value) for value in values]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise Mistake(path, f"expected different values to sweep, got {twice} twice.")


def _short_names(paths: Sequence[tables.Path]) -> dict[tables.Path, str]:
    """The last part of each key, with as much before it as makes it unique."""
    names: dict[tables.Path, str] = {}
    for path in paths:
        for length in range(1, len(path) + 1):
            end = path[-length:]
            alone = sum(other[-length:] == end for other in paths) == 1
            name = ".".join(end)
            names[path] = name
            if alone and name not in RESERVED and not name.startswith(METRICS):
                break
    return names


def _cells(
    file: FileTable, variants: Sequence[_Variant], names: Mapping[tables.Path, str]
) -> Iterator[Cell]:
    seen: set[str] = set()
    if len(set(file.seeds)) < len(file.seeds):
        raise Mistake(("seeds",), f"expected different seeds, got {list(file.seeds)}.")
    for seed in file.seeds:
        for variant in variants:
            for values in itertools.product(*variant.swept.values()):
                whole = copy.deepcopy(variant.whole)
                for path, one in zip(variant.swept, values, strict=True):
                    _put(whole, path, one)
                found = {name: _get(whole, path) for path, name in names.items()}
                setting = variant.names | {k: v for k, v in found.items() if v is not None}
                try:
                    yield _cell(whole, seed, setting, file.name, seen)
                except Mistake as error:
                    raise Mistake(error.path, error.sentence, _overrides(variant.names)) from None


def _cell(
    whole: dict[str, Any], seed: int, setting: dict[str, object], name: str, seen: set[str]
) -> Cell:
    run = whole.get("run", {})
    for key in ("name", "seed", "data"):
        if key in run:
            raise tables.unknown(("run", key), ())
    privacy = run.setdefault("privacy", {})
    if isinstance(privacy, dict):
        privacy.setdefault("rng", "simulation")
        if privacy.get("epsilon") == "none":
            del privacy["epsilon"]
            privacy["mechanism"] = "none"
    work = whole.get("work", "federated")
    if work not in WORKS:
        hint = tables.near(str(work), list(WORKS)) or f"; known are {', '.join(WORKS)}."
        raise Mistake(("work",), f"expected the name of a work, got {work!r}{hint}")
    if WORKS[work].shared and "data" not in whole:
        raise Mistake(("data",), "expected a value, got none; add it.")
    checked = _validated(
        CellTable,
        {
            "work": work,
            "grid": whole.get("grid", "stacked"),
            "data": whole.get("data"),
            "availability": whole.get("availability", {}),
            "run": {"name": name, "seed": seed, "data": _ANY_DATA, **run},
            "parameters": whole.get("parameters", {}),
        },
    )
    _check_availability(checked)
    identifier = _identifier(setting, seed)
    if identifier in seen or len(identifier) > _LONGEST_ID:
        identifier = f"{identifier[:_LONGEST_ID]}_{len(seen)}"
    seen.add(identifier)
    return Cell(
        id=identifier,
        seed=seed,
        setting=setting,
        work=checked.work,
        grid=checked.grid,
        data=checked.data,
        availability=checked.availability,
        run=run,
        parameters=checked.parameters,
    )


def _check_availability(cell: CellTable) -> None:
    away = cell.availability.dropout + cell.availability.late
    if away >= 1:
        raise Mistake(
            ("availability",), f"expected dropout and late with a sum below 1, got {away:g}."
        )
    if away and cell.grid not in ("stacked", "nodes"):
        raise Mistake(
            ("availability",), f"expected grid stacked or nodes for this, got {cell.grid!r}."
        )


def _identifier(setting: Mapping[str, object], seed: int) -> str:
    parts = [f"{name}-{text_of(value)}" for name, value in setting.items()]
    return "_".join(re.sub(r"[^a-zA-Z0-9.+-]+", "-", part) for part in [*parts, f"seed-{seed}"])


def _put(table: dict[str, Any], path: tables.Path, value: object) -> None:
    for part in path[:-1]:
        table = table[part]
    table[path[-1]] = value


def _get(table: Mapping[str, Any], path: tables.Path) -> object:
    """The value at ``path``, or None; a run without privacy has epsilon "none"."""
    found: object = table
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _axes(cells: Sequence[Cell]) -> dict[str, list[object]]:
    """The values that each part of the settings takes, in the order of the cells."""
    found: dict[str, list[object]] = {}
    for cell in cells:
        for name, value in cell.setting.items():
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)
    return found


def _check_report(report: ReportTable, sweeps: Mapping[str, list[object]]) -> None:
    """The axes that the tables are laid out by are swept."""
    asked: list[tuple[tuple[str, ...], str]] = [
        ((key,), getattr(report, key)) for key in ("rows", "columns", "over")
    ]
    asked += [(("against", axis), axis) for axis in report.against]
    for path, axis in asked:
        if axis and axis not in sweeps:
            known = ", ".join(sweeps)
            raise Mistake(("report", *path), f"expected one of {known}, got {axis!r}.")


def _changed(text: str, source: str, changes: Sequence[str], *, quick: bool) -> str:
    """The text with other values; without any changes it stays as it is."""
    if not (changes or quick):
        return text
    value = parse_toml(text, source)
    value = merged(value, value.pop("quick", {}) if quick else {})
    for change in changes:
        value = merged(value, parse_toml(change, f"the change {change!r}"))
    return dumps(value)


def _check_questions(file: FileTable, cells: Sequence[Cell]) -> None:
    """Questions that were asked for in so many words need absent clients."""
    if "questions" not in file.evaluate.model_fields_set:
        return
    asked = [question for question in file.evaluate.questions if question != "seen"]
    if asked and any(cell.data and not cell.data.absent for cell in cells):
        raise Mistake(
            ("evaluate", "questions"),
            f"expected data.absent of at least 1 for the question {asked[0]!r}, got 0.",
        )
