"""What one column of a table is: its unit, public range or levels, and what stands for a gap.

Nothing here is taken from the rows: a range or a set of levels that follows them would be a
release. Only numpy and the standard library are imported, since devices read columns, too.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlatent.shared.data.cells import is_gap, number_of, numbers_of
from fedlatent.shared.data.limits import check_text, checked_float
from fedlatent.shared.errors import ConfigError, DataError

Level = str | float
Transform = Literal["none", "log"]
Missing = Literal["refuse", "mask", "value"]

MAX_LEVELS = 1024
_EXPECTED = {
    "number": "a number",
    "finite": "a finite number",
    "missing": "a value",
    "level": "one of its levels",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: of numbers from `lower` to `upper`, or of classes where it has `levels`.

    A record has one value for a column of numbers, scaled to [0, 1], and one for each level of a
    column of classes, 1 at its level and 0 elsewhere.

    Attributes:
        name: In the table's header.
        unit: Unit of the numbers, for people: "mmHg"; empty when there is none.
        lower: Number that becomes 0; what lies below is clipped.
        upper: Number that becomes 1; what lies above is clipped.
        transform: "log" scales after log(1 + number), for counts.
        levels: Every class. Numbers among them equal cells by value, texts letter by letter.
        missing: What an empty cell or an unknown class does. "refuse": the record is refused.
            "mask": a number is 0 and a second value of the record says so (1 where it is there);
            classes are all 0. "value": `fill` stands in for it.
        fill: Number within the range, or level, that stands in.

    Raises:
        ConfigError: A field is not as it must be, or they do not fit each other.
    """

    name: str
    unit: str = ""
    lower: float = 0.0
    upper: float = 1.0
    transform: Transform = "none"
    levels: tuple[Level, ...] = ()
    missing: Missing = "refuse"
    fill: Level | None = None

    def __post_init__(self) -> None:
        """Check every field; whole numbers become floats."""
        check_text("column name", self.name, least=1)
        check_text(f"unit of column {self.name}", self.unit, least=0)
        for key in ("lower", "upper"):
            value = checked_float(f"{key} of column {self.name}", getattr(self, key))
            object.__setattr__(self, key, value)
        object.__setattr__(self, "levels", tuple(map(self._level, self.levels)))
        if self.fill is not None:
            object.__setattr__(self, "fill", self._level(self.fill))
        self._choice("transform", get_args(Transform))
        self._choice("missing", get_args(Missing))
        self._check_values()

    def _level(self, value: object) -> Level:
        if isinstance(value, str):
            check_text(f"level of column {self.name}", value, least=1)
            return value
        return checked_float(f"level of column {self.name}", value)

    def _choice(self, key: str, choices: Sequence[str]) -> None:
        if getattr(self, key) not in choices:
            raise self._wrong(key, f"one of {', '.join(choices)}", repr(getattr(self, key)))

    def _check_values(self) -> None:
        if self.levels:
            distinct = len(set(self.levels)) == len(self.levels)
            if not distinct or not 2 <= len(self.levels) <= MAX_LEVELS:
                raise self._wrong(
                    "levels", f"2 to {MAX_LEVELS} distinct levels", str(self.levels)[:60]
                )
            if self.transform != "none":
                raise self._wrong("transform", "none for a column of classes", self.transform)
        elif not self.lower < self.upper:
            raise self._wrong("lower", "lower < upper", f"{self.lower:g} and {self.upper:g}")
        elif self.transform == "log" and not self.lower > -1.0:
            raise self._wrong("lower", "counts above -1 under a logarithm", f"{self.lower:g}")
        self._check_fill()

    def _check_fill(self) -> None:
        if (self.fill is None) == (self.missing == "value"):
            raise self._wrong("fill", "fill and missing 'value' together", "only one of them")
        if self.fill is None:
            return
        if self.levels:
            if self.fill not in self.levels:
                raise self._wrong("fill", "one of its levels", repr(self.fill))
        elif isinstance(self.fill, str) or not self.lower <= self.fill <= self.upper:
            raise self._wrong("fill", "a number within its range", repr(self.fill))

    def _wrong(self, key: str, expected: str, got: str) -> ConfigError:
        return ConfigError(
            f"Expected {key} of column {self.name!r} to be {expected}, got {got}; correct it.",
            field=f"columns.{self.name}.{key}",
        )

    @property
    def width(self) -> int:
        """Values of a record that the column takes."""
        return len(self.levels) or (2 if self.missing == "mask" else 1)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of all fields."""
        return {**asdict(self), "levels": list(self.levels)}

    def codes(self, cells: ArrayLike, *, first: int = 1, name: str = "") -> NDArray[np.float64]:
        """Raw numbers of the column's cells: float64 [N].

        A number is itself, a class the index of its level, a gap NaN.

        Args:
            cells: Texts, numbers or truth values [N]; None is a gap.
            first: Number of the first record, for messages.
            name: Of the file, for messages.

        Raises:
            DataError: A cell of a column of numbers holds text ("number") or is infinite
                ("finite"); a cell is empty ("missing") or no level ("level") where the column
                refuses that.
        """
        cells = self._spelled(np.asarray(cells))
        number, kind, got = -1, "", ""
        if self.levels:
            found = self._indices(cells)
        elif cells.dtype.kind in "biuf":
            found = cells.astype(np.float64)
        else:
            numbers = numbers_of(cells.tolist())
            if None in numbers:
                number, kind, got = numbers.index(None), "number", "text"
            found = np.array([np.nan if one is None else one for one in numbers], np.float64)
        infinite = np.flatnonzero(np.isinf(found))
        gaps = np.flatnonzero(np.isnan(found)) if self.missing == "refuse" else infinite[:0]
        if not kind and len(infinite):
            number, kind, got = int(infinite[0]), "finite", "infinity"
        elif not kind and len(gaps):
            number, kind, got = int(gaps[0]), "missing", "none"
            if self.levels and not is_gap(cells.tolist()[number]):
                kind, got = "level", "another value"
        if kind:
            raise DataError(
                f"Expected {_EXPECTED[kind]} in column {self.name!r}{f' of {name}' if name else ''}"
                f", got {got} in record {first + number}; correct it, drop it or change the "
                "column in the schema.",
                field=self.name,
                reason=kind,
            )
        return found

    def encode(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of records from raw numbers as `codes` gives them.

        Args:
            raw: [N] or [N, T], NaN in gaps where the column takes them.

        Returns:
            Within [0, 1], [N, width] or [N, width, T].
        """
        there = ~np.isnan(raw)
        if self.levels:
            if self.fill is not None:
                raw = np.where(there, raw, self.levels.index(self.fill))
            return np.stack([raw == at for at in range(len(self.levels))], 1).astype(np.float64)
        fill = self.lower if self.fill is None else float(self.fill)
        inside = np.clip(np.where(there, raw, fill), self.lower, self.upper)
        low, high = self.lower, self.upper
        if self.transform == "log":
            low, high, inside = math.log1p(low), math.log1p(high), np.log1p(inside)
        scaled = (inside - low) / (high - low)
        if self.missing != "mask":
            return np.asarray(scaled[:, np.newaxis])
        return np.stack([np.where(there, scaled, 0.0), there], 1)

    def raw_of(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raw numbers, of the same shape, that stand at shares [0, 1] of the range or levels."""
        if self.levels:
            return np.minimum(np.floor(shares * len(self.levels)), len(self.levels) - 1)
        if self.transform == "log":
            low, high = math.log1p(self.lower), math.log1p(self.upper)
            return np.asarray(np.expm1(low + shares * (high - low)))
        return self.lower + shares * (self.upper - self.lower)

    def outside(self, raw: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which raw numbers, of any shape, lie beyond the public range; gaps and classes do not."""
        if self.levels:
            return np.zeros(raw.shape, dtype=np.bool_)
        with np.errstate(invalid="ignore"):
            return np.asarray((raw < self.lower) | (raw > self.upper))

    def _spelled(self, cells: NDArray[Any]) -> NDArray[Any]:
        """Truth values as the levels write them ("true", "True"), else as 0 and 1, NaN in gaps."""
        if cells.dtype.kind not in "bO":
            return cells
        values = cells.tolist()
        kinds = {type(one) for one in values} - {type(None)}
        if not kinds or not kinds <= {bool, np.bool_}:
            return cells
        spelled = {one.lower(): one for one in self.levels if isinstance(one, str)}
        if not {"true", "false"} & spelled.keys():
            return np.array([math.nan if one is None else float(one) for one in values])
        texts = {one: spelled.get(str(one).lower(), str(one)) for one in (True, False)}
        return np.array([None if one is None else texts[one] for one in values], dtype=object)

    def _indices(self, cells: NDArray[Any]) -> NDArray[np.float64]:
        """Index of the level of each cell, NaN where it is none."""
        texts = {level: at for at, level in enumerate(self.levels) if isinstance(level, str)}
        numbers = {level: at for at, level in enumerate(self.levels) if not isinstance(level, str)}
        if cells.dtype.kind in "biuf" and not texts:
            cells = cells.astype(np.float64)
        # Few distinct cells stand for many.
        kinds, places = np.unique(
            np.array(["" if one is None else str(one).strip() for one in cells.tolist()]),
            return_inverse=True,
        )
        found = [
            texts[kind] if kind in texts else None if value is None else numbers.get(value)
            for kind, value in ((kind, number_of(kind)) for kind in kinds.tolist())
        ]
        return np.array([np.nan if at is None else float(at) for at in found])[places.reshape(-1)]


def layout(columns: Sequence[Column]) -> list[int]:
    """The option `columns` of the mixed family: 0 for numbers, else the number of levels.

    Raises:
        ConfigError: A column of numbers takes no gaps.
    """
    for column in columns:
        if not column.levels and column.missing != "mask":
            raise ConfigError(
                f"Expected missing 'mask' of column {column.name!r} for the mixed family, got "
                f"{column.missing!r}; change it, or choose another family.",
                field=f"columns.{column.name}.missing",
            )
    return [len(column.levels) for column in columns]
