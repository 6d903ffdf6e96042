"""Results of an experiment: its folder as tables, in Parquet for analysis and in JSON for scripts.

``results.parquet`` has one row a cell, ``rounds.parquet`` one row a cell and phase, and
``results.json`` the cells and their means over seeds. All are made anew from the cells' own files.
"""

import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.files import read_json, write_atomic, write_json
from fedlatent.simulations.experiments.spec import Cell, Experiment, label_of, parse, text_of
from fedlatent.simulations.experiments.tables import QUESTIONS

COPY = "experiment.toml"
CELL = "cell.json"
JSON, CELLS_TABLE, ROUNDS_TABLE = "results.json", "results.parquet", "rounds.parquet"
FORMAT = 1

Row = dict[str, Any]

#: Measures of a cell that are not an AUROC, in the order of the tables.
FIGURES = (
    *("epsilon_spent", "delta", "sigma", "loss", "bytes_up", "bytes_down", "seconds"),
    "clients_per_second",
)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A measure over the seeds of one setting.

    Attributes:
        mean: of the values.
        deviation: sample standard deviation (n - 1); None for a single value.
        count: number of values.
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Of the values that are there; None without any."""
        found = [float(value) for value in values if value is not None]
        if not found:
            return None
        deviation = statistics.stdev(found) if len(found) > 1 else None
        return cls(mean=statistics.fmean(found), deviation=deviation, count=len(found))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All measures of one setting.

    Attributes:
        setting: the swept values by short name.
        label: the same in words.
        measures: by column of the cells' table.
    """

    setting: dict[str, object]
    label: str
    measures: dict[str, Spread]


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the folder of an experiment holds, be it finished or not.

    Attributes:
        folder: of the experiment.
        experiment: its file.
        cells: content of ``cell.json`` of each cell that is done, in the order of the experiment.
    """

    folder: Path
    experiment: Experiment
    cells: list[Row]

    @classmethod
    def load(cls, folder: Path) -> "Results":
        """Read a folder.

        Raises:
            ConfigError: it is not the folder of an experiment.
            DataError: a file in it is damaged.
        """
        copy = folder / COPY
        if not copy.is_file():
            raise ConfigError(
                f"Expected the folder of an experiment, with an {COPY}, got {folder}; "
                "'fedlatent simulate list' names those that are there."
            )
        experiment = parse(copy.read_text(encoding="utf-8"), str(copy))
        return cls.of(experiment, folder)

    @classmethod
    def of(cls, experiment: Experiment, folder: Path) -> "Results":
        """The cells of ``experiment`` that are done in ``folder``."""
        cells = []
        for cell in experiment.cells:
            if is_done(folder, cell):
                found = read_json(cell_folder(folder, cell) / CELL)
                if not isinstance(found, dict):
                    raise DataError(f"Expected a result in the folder of cell {cell.id}, got none.")
                found["setting"] = cell.setting  # JSON has lost the order of the sweeps
                cells.append(found)
        return cls(folder=folder, experiment=experiment, cells=cells)

    @property
    def complete(self) -> bool:
        """Whether every cell is done."""
        return len(self.cells) == len(self.experiment.cells)

    def rows(self) -> list[Row]:
        """One row a cell; every row has the same columns."""
        return _even([self._row(cell) for cell in self.cells])

    def rounds(self) -> list[Row]:
        """One row a cell and phase."""
        rows = []
        for cell in self.cells:
            for facts in cell["rounds"]:
                low, middle, high = facts["loss_spread"] or (None, None, None)
                plain = {key: value for key, value in facts.items() if key != "loss_spread"}
                rows.append(
                    {
                        **self._names(cell),
                        "round": plain.pop("number"),
                        **plain,
                        "loss_p10": low,
                        "loss_p50": middle,
                        "loss_p90": high,
                    }
                )
        return _even(rows)

    def summaries(self) -> list[Summary]:
        """Mean and spread over seeds of each setting, in the order of the file."""
        groups: dict[str, list[tuple[Row, Row]]] = {}
        for cell, row in zip(self.cells, self.rows(), strict=True):
            groups.setdefault(label_of(cell["setting"]), []).append((cell, row))
        order = [label_of(cell.setting) for cell in self.experiment.cells]
        made = []
        for label, members in sorted(groups.items(), key=lambda item: order.index(item[0])):
            spreads = {
                key: Spread.of(row[key] for _, row in members)
                for key in members[0][1]
                if key in FIGURES or key.startswith("auroc")
            }
            measures = {key: spread for key, spread in spreads.items() if spread}
            setting = members[0][0]["setting"]
            made.append(Summary(setting=setting, label=label, measures=measures))
        return made

    def to_json(self) -> dict[str, object]:
        """The content of ``results.json``."""
        experiment = self.experiment
        return {
            "format": FORMAT,
            "name": experiment.name,
            "description": experiment.description,
            "digest": experiment.digest(),
            "complete": self.complete,
            "cells": len(experiment.cells),
            "done": len(self.cells),
            "seeds": list(experiment.seeds),
            "sweeps": experiment.sweeps,
            "rows": self.rows(),
            "summary": [
                {
                    "setting": one.setting,
                    "label": one.label,
                    "measures": {
                        key: {"mean": value.mean, "sd": value.deviation, "n": value.count}
                        for key, value in one.measures.items()
                    },
                }
                for one in self.summaries()
            ],
        }

    def _names(self, cell: Row) -> Row:
        values = {
            name: _column_value(cell["setting"][name], sweep)
            for name, sweep in self.experiment.sweeps.items()
        }
        return {"cell": cell["id"], **values, "seed": cell["seed"]}

    def _row(self, cell: Row) -> Row:
        asked = [name for name in QUESTIONS if name in cell["answers"]]
        answers = {f"auroc_{name}": cell["answers"][name] for name in asked}
        for name, ratings in cell["baselines"].items():
            answers |= {f"auroc_{name}_{question}": one for question, one in ratings.items()}
        aurocs = {}
        for name, rating in answers.items():
            aurocs[name], aurocs[f"{name}_sites"] = rating["pooled"], rating["site_mean"]
        data, plan, rounds = cell["data_facts"], cell["plan"], cell["rounds"]
        training = [facts for facts in rounds if facts["kind"] == "train"]
        seconds = sum(facts["seconds"] for facts in training)
        private = plan["private"]
        spent = [facts["epsilon"] for facts in rounds if facts["epsilon"] is not None]
        return {
            **self._names(cell),
            **{key: data[key] for key in ("participants", "absent", "records")},
            **aurocs,
            "epsilon_spent": max(spent, default=plan["epsilon"]) if private else None,
            "delta": plan["delta"] if private else None,
            "sigma": plan["noise_multiplier"] if private else None,
            "loss": training[-1]["loss"] if training else None,
            "bytes_up": sum(facts["bytes_up"] for facts in rounds),
            "bytes_down": sum(facts["bytes_down"] for facts in rounds),
            "seconds": sum(facts["seconds"] for facts in rounds),
            "clients_per_second": sum(facts["good"] for facts in training) / seconds
            if seconds
            else None,
        }


def cell_folder(out: Path, cell: Cell) -> Path:
    """The folder of a cell."""
    return out / "cells" / cell.id


def is_done(out: Path, cell: Cell) -> bool:
    """Whether a cell has its result."""
    return (cell_folder(out, cell) / CELL).is_file()


def write_results(experiment: Experiment, out: Path) -> dict[str, object]:
    """Write the three result files from the cells that are done; the content of the JSON one."""
    results = Results.of(experiment, out)
    write_atomic(out / CELLS_TABLE, _parquet(results.rows()))
    write_atomic(out / ROUNDS_TABLE, _parquet(results.rounds()))
    content = results.to_json()
    write_json(out / JSON, content)
    return content


def _column_value(value: object, sweep: Sequence[object]) -> object:
    """A swept value for a column of one type: a number, or text; "none" among numbers is null."""
    kinds = {type(one) for one in sweep if one != "none"}
    if kinds and kinds <= {int, float}:
        return None if value == "none" else float(str(value)) if float in kinds else value
    return text_of(value)


def _even(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows with the columns of all of them; what a row lacks is None."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in columns} for row in rows]


def _parquet(rows: Sequence[Row]) -> bytes:
    stream = io.BytesIO()
    table = pa.Table.from_pylist([{k: _finite(v) for k, v in row.items()} for row in rows])
    pq.write_table(table, stream)
    return stream.getvalue()


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
