"""The experiment file: one TOML file that names data, a run, what to sweep and what to measure.

A list where one value is expected is a sweep. Every combination of swept values with every seed is
a cell: one simulated run with its own split, first weights and noise. Errors name the file, the
line, the key, what was expected and what came.
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
from fedlatent.shared.toml import parse_toml
from fedlatent.simulations.experiments import tables
from fedlatent.simulations.experiments.lines import key_lines
from fedlatent.simulations.experiments.tables import (
    AvailabilityTable,
    CellTable,
    DataTable,
    EvaluateTable,
    FileTable,
    Grid,
    Mistake,
    mistake_of,
)

#: Columns of the result tables; a swept key of the same name is called by more of its path.
RESERVED = frozenset(
    {"cell", "seed", "participants", "absent", "records", "epsilon_spent", "delta", "sigma"}
    | {"loss", "loss_p10", "loss_p50", "loss_p90", "bytes_up", "bytes_down", "seconds"}
    | {"clients_per_second", "round", "kind", "asked", "good", "late", "away", "auroc"}
)

#: Stands for the schema until the data are read.
_ANY_DATA = {"name": "any", "shape": [1]}
_SWEPT_TABLES = ("grid", "data", "run", "availability")
_LONGEST_ID = 100

AnyTable = TypeVar("AnyTable", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One simulated run of an experiment.

    Attributes:
        id: name of the cell's folder.
        seed: of split, first weights and noise.
        setting: the swept values by short name; epsilon "none" for no privacy.
        grid: who runs the clients.
        data: records and clients.
        availability: how often clients do not answer.
        run: the tables of a run file, without name, seed and data.
    """

    id: str
    seed: int
    setting: dict[str, object]
    grid: Grid
    data: DataTable
    availability: AvailabilityTable
    run: dict[str, Any]

    @property
    def label(self) -> str:
        """The setting in words; empty without a sweep."""
        return label_of(self.setting)

    def data_key(self) -> str:
        """A short name for the cell's data: equal for cells with the same clients."""
        data = canonical_json(self.data.model_dump(mode="json"))
        return f"{self.data.source}-{sha256_hex(data)[:12]}_seed-{self.seed}"

    def facts(self) -> dict[str, object]:
        """All that bears on the cell's result, as JSON values."""
        return {
            "id": self.id,
            "seed": self.seed,
            "setting": self.setting,
            "grid": self.grid,
            "data": self.data.model_dump(mode="json"),
            "availability": self.availability.model_dump(mode="json"),
            "run": self.run,
        }


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A checked experiment file.

    Attributes:
        name: of the experiment.
        description: one or two sentences on what it is for.
        source: where the text came from, for messages.
        text: the file as it was read.
        sweeps: swept values by short name.
        keys: the whole path of each swept key by short name.
        seeds: one repetition each.
        evaluate: what is measured.
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
    cells: tuple[Cell, ...]
    lines: Mapping[tuple[str, ...], int] = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> "Experiment":
        """Read an experiment file.

        Raises:
            ConfigError: the file is absent or wrong; names line and key.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "bytes that are not UTF-8"
            raise ConfigError(
                f"Expected a readable experiment file at {path}, got: {reason}; "
                "'fedlatent simulate list' names the shipped ones."
            ) from None
        return parse(text, str(path))

    def digest(self) -> str:
        """SHA-256 of all that bears on the results; comments and the description do not."""
        cells = [cell.facts() for cell in self.cells]
        whole = {"name": self.name, "evaluate": self.evaluate.model_dump(), "cells": cells}
        return sha256_hex(canonical_json(whole))

    def error(self, path: Sequence[str], sentence: str) -> ConfigError:
        """A mistake at a key, with its line when the key stands in the file."""
        return Mistake(path, sentence).said(self.source, self.lines)


def parse(text: str, source: str) -> Experiment:
    """Check the text of an experiment file and expand its sweeps.

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
        swept = dict(_sweeps(value))
        names = _short_names(list(swept))
        cells = tuple(_cells(file, value, swept, names))
        _check_questions(file, cells)
    except Mistake as error:
        raise error.said(source, lines) from None
    return Experiment(
        name=file.name,
        description=file.description,
        source=source,
        text=text,
        sweeps={names[path]: values for path, values in swept.items()},
        keys={name: ".".join(path) for path, name in names.items()},
        seeds=file.seeds,
        evaluate=file.evaluate,
        cells=cells,
        lines=lines,
    )


def bind(experiment: Experiment, cell: Cell, schema: Schema, participants: int) -> RunConfig:
    """The run of a cell on data that have been read, checked down to its model and its noise.

    Nodes and quorum are by default all clients that take part, or as many as are likely to answer
    when some do not.

    Raises:
        ConfigError: the run does not fit the data, or cannot reach its epsilon.
    """
    tables = copy.deepcopy(cell.run)
    federation = tables.setdefault("federation", {})
    federation.setdefault("quorum", likely_quorum(participants, cell.availability))
    federation.setdefault("nodes", federation["quorum"])
    for key in ("quorum", "nodes"):
        if federation[key] > participants:
            raise experiment.error(
                ("run", "federation", key),
                f"expected at most {participants}, the clients that take part, "
                f"got {federation[key]}.",
            )
    run = RunConfig.parse(
        {"name": experiment.name, "seed": cell.seed, "data": schema.to_dict(), **tables},
        experiment.source,
    )
    try:
        build_model(run)
    except ConfigError as error:
        path = ("run", *(error.field or "model").split("."))
        sentence = str(error)
        raise experiment.error(path, sentence[0].lower() + sentence[1:]) from None
    try:
        PrivacyPlan.from_config(run)
    except ValueError:
        raise experiment.error(
            ("run", "privacy", "epsilon"),
            f"expected an epsilon that can be reached, got {run.privacy.epsilon:g}; raise it or "
            "train for fewer rounds or steps.",
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
    """A setting in words, such as "epsilon 4, rounds 10"; empty without a sweep."""
    return ", ".join(
        "no privacy" if (name, value) == ("epsilon", "none") else f"{name} {text_of(value)}"
        for name, value in setting.items()
    )


def _validated(model: type[AnyTable], value: object) -> AnyTable:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise mistake_of(error, model) from None


def _sweeps(value: Mapping[str, Any]) -> Iterator[tuple[tables.Path, list[object]]]:
    """Path and values of each sweep, in the order of the file."""

    def within(item: object, path: tables.Path) -> Iterator[tuple[tables.Path, list[object]]]:
        if isinstance(item, Mapping):
            for key, inner in item.items():
                yield from within(inner, (*path, key))
        elif isinstance(item, list) and not (
            tables.takes_list(path) and not (item and all(isinstance(one, list) for one in item))
        ):
            _check_values(path, item)
            yield path, item

    for key in value:
        if key in _SWEPT_TABLES:
            yield from within(value[key], (key,))


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
            if alone and name not in RESERVED and not name.startswith("auroc"):
                break
    return names


def _cells(
    file: FileTable,
    value: Mapping[str, Any],
    swept: Mapping[tables.Path, list[object]],
    names: Mapping[tables.Path, str],
) -> Iterator[Cell]:
    seen: set[str] = set()
    if len(set(file.seeds)) < len(file.seeds):
        raise Mistake(("seeds",), f"expected different seeds, got {list(file.seeds)}.")
    for seed in file.seeds:
        for values in itertools.product(*swept.values()):
            whole = copy.deepcopy({key: value[key] for key in _SWEPT_TABLES if key in value})
            for path, one in zip(swept, values, strict=True):
                _put(whole, path, one)
            setting = {names[path]: one for path, one in zip(swept, values, strict=True)}
            yield _cell(whole, seed, setting, file.name, seen)


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
    checked = _validated(
        CellTable,
        {
            "grid": whole.get("grid", "stacked"),
            "data": whole["data"],
            "availability": whole.get("availability", {}),
            "run": {"name": name, "seed": seed, "data": _ANY_DATA, **run},
        },
    )
    away = checked.availability.dropout + checked.availability.late
    if away >= 1:
        raise Mistake(
            ("availability",), f"expected dropout and late with a sum below 1, got {away:g}."
        )
    if away and checked.grid not in ("stacked", "nodes"):
        raise Mistake(
            ("availability",), f"expected grid stacked or nodes for this, got {checked.grid!r}."
        )
    identifier = _identifier(setting, seed)
    if identifier in seen or len(identifier) > _LONGEST_ID:
        identifier = f"{identifier[:_LONGEST_ID]}_{len(seen)}"
    seen.add(identifier)
    return Cell(
        id=identifier,
        seed=seed,
        setting=setting,
        grid=checked.grid,
        data=checked.data,
        availability=checked.availability,
        run=run,
    )


def _identifier(setting: Mapping[str, object], seed: int) -> str:
    parts = [f"{name}-{text_of(value)}" for name, value in setting.items()]
    return "_".join(re.sub(r"[^a-zA-Z0-9.+-]+", "-", part) for part in [*parts, f"seed-{seed}"])


def _put(table: dict[str, Any], path: tables.Path, value: object) -> None:
    for part in path[:-1]:
        table = table[part]
    table[path[-1]] = value


def _check_questions(file: FileTable, cells: Sequence[Cell]) -> None:
    """Questions that were asked for in so many words need absent clients."""
    if "questions" not in file.evaluate.model_fields_set:
        return
    asked = [question for question in file.evaluate.questions if question != "seen"]
    if asked and any(not cell.data.absent for cell in cells):
        raise Mistake(
            ("evaluate", "questions"),
            f"expected data.absent of at least 1 for the question {asked[0]!r}, got 0.",
        )
