"""Results of a study: its folder as tables, in Parquet for analysis and in JSON for scripts.

``results.parquet`` has one row a cell, ``rounds.parquet`` one row a cell and phase, and
``results.json`` the cells and their means over seeds. All are made anew from the cells' own files.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.files import read_json, write_atomic, write_json
from fedlatent.simulations.study.spec import Cell, Study, label_of, parse, text_of
from fedlatent.simulations.study.tables import QUESTIONS

COPY = "experiment.toml"
CELL, PICTURE = "cell.json", "picture.png"
JSON, CELLS_TABLE, ROUNDS_TABLE = "results.json", "results.parquet", "rounds.parquet"
FORMAT = 1

Row = dict[str, Any]


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
        found = pd.Series(list(values), dtype=float).dropna()
        if found.empty:
            return None
        deviation = float(found.std()) if len(found) > 1 else None
        return cls(mean=float(found.mean()), deviation=deviation, count=len(found))

    def text(self, digits: int = 3) -> str:
        """Mean ± deviation; the mean alone of a single value."""
        mean = f"{self.mean:.{digits}f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.{digits}f}"

    def to_json(self) -> dict[str, object]:
        """Mean, ``sd`` (null for a single value) and n."""
        return {"mean": self.mean, "sd": self.deviation, "n": self.count}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All measures of one setting.

    Attributes:
        setting: data set, method and swept values by short name.
        label: the same in words.
        measures: by column of the cells' table.
    """

    setting: dict[str, object]
    label: str
    measures: dict[str, Spread]


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the folder of a study holds, be it finished or not.

    Attributes:
        folder: of the study.
        study: its file.
        cells: content of ``cell.json`` of each cell that is done, in the order of the study.
    """

    folder: Path
    study: Study
    cells: list[Row]

    @classmethod
    def load(cls, folder: Path) -> "Results":
        """Read a folder.

        Raises:
            ConfigError: it is not the folder of a study.
            DataError: a file in it is damaged.
        """
        copy = folder / COPY
        if not copy.is_file():
            raise ConfigError(
                f"Expected the folder of a study, with an {COPY}, got {folder}; "
                "'fedlatent simulate list' names those that are there."
            )
        study = parse(copy.read_text(encoding="utf-8"), str(copy))
        return cls.of(study, folder)

    @classmethod
    def of(cls, study: Study, folder: Path) -> "Results":
        """The cells of ``study`` that are done in ``folder``."""
        cells = []
        for cell in study.cells:
            if is_done(folder, cell):
                found = read_json(cell_folder(folder, cell) / CELL)
                if not isinstance(found, dict):
                    raise DataError(f"Expected a result in the folder of cell {cell.id}, got none.")
                found["setting"] = cell.setting  # JSON has lost the order of the sweeps
                cells.append(found)
        return cls(folder=folder, study=study, cells=cells)

    @property
    def complete(self) -> bool:
        """Whether every cell is done."""
        return len(self.cells) == len(self.study.cells)

    def rows(self) -> list[Row]:
        """One row a cell; every row has the same columns."""
        return _even([self._row(cell) for cell in self.cells])

    def rounds(self) -> list[Row]:
        """One row a cell and phase."""
        rows = []
        for cell in self.cells:
            for facts in cell["rounds"]:
                low, middle, high = facts["loss_spread"] or (None, None, None)
                own = {key: value for key, value in facts.items() if key != "loss_spread"}
                rows.append(
                    {
                        **self._names(cell),
                        "round": own.pop("number"),
                        **own,
                        "loss_p10": low,
                        "loss_p50": middle,
                        "loss_p90": high,
                    }
                )
        return _even(rows)

    def frame(self) -> pd.DataFrame:
        """A row a cell: its number among the settings, and every measure as a number."""
        settings = list(dict.fromkeys(cell.label for cell in self.study.cells))
        rows = [
            {
                "setting": settings.index(label_of(cell["setting"])),
                **{key: value for key, value in self.measures(cell).items() if _is_number(value)},
            }
            for cell in self.cells
        ]
        return pd.DataFrame(rows, columns=list(dict.fromkeys(k for row in rows for k in row)))

    def summaries(self) -> list[Summary]:
        """Mean and spread over seeds of each setting, in the order of the file."""
        if not self.cells:
            return []
        settings = {cell.label: cell.setting for cell in self.study.cells}
        grouped = self.frame().set_index("setting").astype(float).groupby(level=0)
        made = []
        for number, part in grouped:
            spreads = {str(key): Spread.of(part[key]) for key in part.columns}
            measures = {key: spread for key, spread in spreads.items() if spread}
            label = list(settings)[int(str(number))]
            made.append(Summary(setting=settings[label], label=label, measures=measures))
        return made

    def to_json(self) -> dict[str, object]:
        """The content of ``results.json``."""
        study = self.study
        return {
            "format": FORMAT,
            "name": study.name,
            "description": study.description,
            "digest": study.digest(),
            "complete": self.complete,
            "cells": len(study.cells),
            "done": len(self.cells),
            "seeds": list(study.seeds),
            "sweeps": study.sweeps,
            "rows": self.rows(),
            "summary": [
                {
                    "setting": one.setting,
                    "label": one.label,
                    "measures": {key: one.measures[key].to_json() for key in one.measures},
                }
                for one in self.summaries()
            ],
        }

    def _names(self, cell: Row) -> Row:
        values = {
            name: _column_value(cell["setting"].get(name), sweep)
            for name, sweep in self.study.sweeps.items()
        }
        return {"cell": cell["id"], **values, "seed": cell["seed"]}

    def _row(self, cell: Row) -> Row:
        data = cell.get("data_facts") or {}
        return {
            **self._names(cell),
            **{key: data[key] for key in ("participants", "absent", "records") if key in data},
            **self.measures(cell),
        }

    def measures(self, cell: Row) -> Row:
        """What a cell found, by column of the tables."""
        return {
            **_ratings(cell, self.study.evaluate.metrics),
            **(_costs(cell) if "plan" in cell else {}),
            **_flat(cell.get("figures", {})),
        }


def _ratings(cell: Row, metrics: Sequence[str]) -> Row:
    """Measures of all answers, those of baselines after those of the cell's own work."""
    answers = dict(sorted(cell["answers"].items(), key=lambda item: _place(item[0])))
    for name, ratings in cell.get("baselines", {}).items():
        answers |= {f"{name}_{question}": one for question, one in ratings.items()}
    row: Row = {}
    for name, rating in answers.items():
        for metric in metrics:
            row[f"{metric}_{name}"] = rating.get("pooled" if metric == "auroc" else metric)
        if "auroc" in metrics:
            row[f"auroc_{name}_sites"] = rating["site_mean"]
    return row


def _place(name: str) -> tuple[bool, int]:
    """Questions in their order, then those of other kinds, then those of combined scores."""
    question = name.removeprefix("combined_")
    known = question in QUESTIONS
    return question != name, QUESTIONS.index(question) if known else len(QUESTIONS)


def _costs(cell: Row) -> Row:
    plan, rounds = cell["plan"], cell["rounds"]
    training = [facts for facts in rounds if facts["kind"] == "train"]
    seconds = sum(facts["seconds"] for facts in training)
    private = plan["private"]
    spent = [facts["epsilon"] for facts in rounds if facts["epsilon"] is not None]
    row = {
        "epsilon_spent": max(spent, default=plan["epsilon"]) if private else None,
        "delta": plan["delta"] if private else None,
        "sigma": plan["noise_multiplier"] if private else None,
    }
    if not rounds:
        return row
    return row | {
        "loss": training[-1]["loss"] if training else None,
        "bytes_up": sum(facts["bytes_up"] for facts in rounds),
        "bytes_down": sum(facts["bytes_down"] for facts in rounds),
        "seconds": sum(facts["seconds"] for facts in rounds),
        "clients_per_second": sum(facts["good"] for facts in training) / seconds
        if seconds
        else None,
    }


def _flat(figures: Mapping[str, Any], path: str = "") -> Row:
    """Figures as columns whose names say the way to them, such as "nats: VAE: nll"."""
    row: Row = {}
    for key, value in figures.items():
        name = f"{path}: {key}" if path else key
        if is_nested(value):
            parts = value.items() if isinstance(value, Mapping) else enumerate(value)
            row |= _flat({str(part): inner for part, inner in parts}, name)
        else:
            row[name] = value
    return row


def is_nested(value: object) -> bool:
    """Whether it is or holds a dictionary; a list of plain values is one value."""
    if isinstance(value, list):
        return any(isinstance(part, Mapping) for part in value)
    return isinstance(value, Mapping)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain(value: object) -> Any:  # noqa: ANN401
    """``value`` as JSON carries it: numpy's numbers and arrays unpacked, no NaN or infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cell_folder(out: Path, cell: Cell) -> Path:
    """The folder of a cell."""
    return out / "cells" / cell.id


def is_done(out: Path, cell: Cell) -> bool:
    """Whether a cell has its result."""
    return (cell_folder(out, cell) / CELL).is_file()


def write_results(study: Study, out: Path) -> dict[str, object]:
    """Write the three result files from the cells that are done; the content of the JSON one."""
    results = Results.of(study, out)
    write_atomic(out / CELLS_TABLE, _parquet(results.rows()))
    write_atomic(out / ROUNDS_TABLE, _parquet(results.rounds()))
    content = results.to_json()
    write_json(out / JSON, content)
    return content


def _column_value(value: object, sweep: Sequence[object]) -> object:
    """A swept value for a column of one type: a number, or text; "none" among numbers is null."""
    kinds = {type(one) for one in sweep if one != "none"}
    if kinds and kinds <= {int, float}:
        return None if value in ("none", None) else float(str(value)) if float in kinds else value
    return None if value is None else text_of(value)


def _even(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows with the columns of all of them; what a row lacks is None."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in columns} for row in rows]


def _parquet(rows: Sequence[Row]) -> bytes:
    """A column of words and numbers is one of words."""
    stream = io.BytesIO()
    frame = pd.DataFrame([plain(row) for row in rows], dtype=object)
    for key in frame.columns:
        kinds = {type(value) for value in frame[key] if value is not None}
        if len(kinds) > 1 and not kinds <= {int, float}:
            frame[key] = [None if value is None else text_of(value) for value in frame[key]]
    pq.write_table(pa.Table.from_pylist(frame.to_dict("records")), stream)
    return stream.getvalue()
