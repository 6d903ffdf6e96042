"""What a record is: shape, unit and public bounds, and the one way from raw to model input.

One range for all values is the short form, for signals and images; a table has `columns`, each with
a range or levels of its own. Series have a `window` that cuts them into records.

Training and the edge runtime both call `Schema.preprocess`, so a record means the same in both.
Nothing here depends on the data: every constant is public (a data-dependent scaling would be a
release). Only numpy and the standard library are imported.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlatent.shared.data.column import Column
from fedlatent.shared.data.limits import MAX_TEXT, Limits, check_text, checked_float
from fedlatent.shared.data.series import Window
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.files import canonical_json, sha256_hex

Center = Literal["none", "median", "mean"]

#: Unit of records of molecules: each value is the index of a SELFIES token, 0 behind the last one;
#: see `fedlatent.shared.data.selfies_tokens`. Readers turn SMILES into such records.
SELFIES = "SELFIES token"
SELFIES_TOKENS = 70  # indices of the alphabet, from 1 on: upper of such a schema
MAX_VALUES_PER_RECORD = 1 << 20
MAX_DIMENSIONS = 4
MAX_COLUMNS = 4096

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """One kind of record; the table [data] of a run file and [data.schema] of a node file.

    Attributes:
        name: Identifier of letters, digits, dot, dash and underscore.
        shape: Shape of one record, channels first for images: (128,), (1, 8, 8). With `columns` it
            follows from them and may be left out: (values,), or (values, length) with a window,
            or (length,) of a window over one value.
        unit: Unit of the values after scaling, for people: "mV"; empty when there is none.
        scale: Raw values are multiplied by this: 1e-3 from microvolt to millivolt.
        center: What each record loses after scaling: nothing, its own median or its own mean.
        lower: Least value after scaling and centring; what lies below is clipped.
        upper: Greatest value after scaling and centring; what lies above is clipped.
        columns: What each column of a table is; records then lie in [0, 1], and `unit`, `scale`,
            `center`, `lower` and `upper` stay as they are without being given.
        window: How rows that are time steps become records; None where a row is a record.

    Raises:
        ConfigError: If a field has the wrong type or lies outside its limits.

    Examples:
        >>> beats = fl.Schema(name="beat", shape=(4,), unit="mV", scale=1e-3, lower=-2.5, upper=2.5)
        >>> beats.preprocess([[0, 500, 2000, 9000]])  # raw values are microvolt; 9 mV are clipped
        array([[0. , 0.5, 2. , 2.5]], dtype=float32)
    """

    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "allow_inf_nan": False,
    }

    name: str
    shape: Annotated[tuple[Annotated[int, Limits(ge=1)], ...], Limits(max_length=3)] = ()
    unit: str = ""
    scale: Annotated[float, Limits(gt=0)] = 1.0
    center: Center = "none"
    lower: float = -1.0
    upper: float = 1.0
    columns: Annotated[tuple[Column, ...], Limits(max_length=MAX_COLUMNS)] = ()
    window: Window | None = None

    def __post_init__(self) -> None:
        """Check every field and turn whole numbers given for floats into floats."""
        check_text("name", self.name, least=1)
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"Expected a schema name of letters, digits, '.', '_' and '-', got {self.name!r}; "
                "rename it.",
                field="name",
            )
        check_text("unit", self.unit, least=0)
        if self.columns:
            self._take_columns()
        object.__setattr__(self, "shape", _checked_shape(self.shape))
        if self.window is not None and self.shape[-1] != self.window.length:
            raise ConfigError(
                f"Expected schema shape to end in the {self.window.length} rows of its window, got "
                f"{list(self.shape)}; correct one of them.",
                field="shape",
            )
        for key in ("scale", "lower", "upper"):
            object.__setattr__(self, key, checked_float(key, getattr(self, key)))
        if self.center not in get_args(Center):
            raise ConfigError(
                f"Expected schema center to be one of {', '.join(get_args(Center))}, "
                f"got {self.center!r}; choose one of them.",
                field="center",
            )
        if self.scale == 0.0:
            raise ConfigError(
                "Expected a schema scale other than 0, got 0; use 1 for no scaling.", field="scale"
            )
        if not self.lower < self.upper:
            raise ConfigError(
                f"Expected schema lower < upper, got {self.lower} and {self.upper}; "
                "set both in the unit that holds after scaling."
            )

    def _take_columns(self) -> None:
        """Let range and shape follow from the columns, which have to fit each other."""
        _check_names([column.name for column in self.columns], self.window)
        for key, value in _TABLE.items():
            if getattr(self, key) not in (value, Schema.__dataclass_fields__[key].default):
                raise ConfigError(
                    f"Expected a range or unit for each column by itself, got {key} "
                    f"{str(getattr(self, key))[:MAX_TEXT]!r} for all; move it to [[data.columns]].",
                    field=key,
                )
        for key, value in _TABLE.items():
            object.__setattr__(self, key, value)
        width = sum(column.width for column in self.columns)
        shape: tuple[int, ...] = (width,)
        if self.window is not None:
            shape = (self.window.length,) if width == 1 else (width, self.window.length)
        if self.shape not in ((), shape):
            raise ConfigError(
                f"Expected schema shape {list(shape)} as its columns make it, got "
                f"{str(self.shape)[:MAX_TEXT]}; leave it out.",
                field="shape",
            )
        object.__setattr__(self, "shape", shape)

    @property
    def size(self) -> int:
        """Number of values in one record."""
        return math.prod(self.shape)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape of one record before `preprocess`: (C,) or (C, length) of C columns, or `shape`."""
        if not self.columns:
            return self.shape
        return (len(self.columns), *(() if self.window is None else (self.window.length,)))

    @property
    def raw_size(self) -> int:
        """Number of values in one record before `preprocess`."""
        return math.prod(self.raw_shape)

    @property
    def row_size(self) -> int:
        """Number of values in a row of a file: of a time step where there is a window."""
        return self.raw_size // (1 if self.window is None else self.window.length)

    def to_dict(self) -> dict[str, object]:
        """Return a JSON-ready mapping that `from_dict` turns back into an equal schema.

        `columns` and `window` are left out where there are none, as before there were any.
        """
        found = {key: getattr(self, key) for key in _SHORT}
        more: dict[str, object] = {}
        if self.columns:
            more["columns"] = [column.to_dict() for column in self.columns]
        if self.window is not None:
            more["window"] = self.window.to_dict()
        return {**found, "shape": list(self.shape), **more}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Schema":
        """Build a schema from a mapping as `to_dict` gives it.

        Raises:
            ConfigError: If a key is missing or unknown, or a value is not permitted.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"Expected a schema table, got {type(values).__name__}; see the schema fields."
            )
        _check_keys("schema", set(values), set(_SHORT), {"columns", "window"})
        shape, columns = values["shape"], values.get("columns", [])
        for key, value in (("shape", shape), ("columns", columns)):
            if not isinstance(value, list | tuple):
                raise ConfigError(
                    f"Expected schema {key} as a list, got {type(value).__name__}; write it as "
                    "[...].",
                    field=key,
                )
        return cls(
            **{key: values[key] for key in _SHORT if key != "shape"},
            shape=tuple(shape),
            columns=tuple(_part(Column, "column", one) for one in columns),
            window=_part(Window, "window", values["window"]) if "window" in values else None,
        )

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the canonical JSON form."""
        return sha256_hex(canonical_json(self.to_dict()))

    def preprocess(self, raw: ArrayLike) -> NDArray[np.float32]:
        """Scale, centre and clip raw records.

        Args:
            raw: Numbers of shape [N, *raw_shape], or flat rows of shape [N, raw_size]. N may be 0.
                With columns, classes are indices of levels and NaN is a gap: see `Column.codes`.

        Returns:
            float32 of shape [N, *shape], within [lower, upper].

        Raises:
            DataError: If the shape or type does not fit, or a value is NaN where no column takes
                gaps, infinite or so large that it overflows. The message counts records and shows
                no value.
        """
        records = self._flat(raw)
        if self.columns:
            return self._encoded(records)
        records = self._scaled(records)
        _check_finite(np.asarray(np.isfinite(records).all(axis=1)))
        clipped = np.clip(records, self.lower, self.upper).astype(np.float32)
        return clipped.reshape(len(clipped), *self.shape)

    def check_raw(self, raw: ArrayLike, name: str = "") -> None:
        """Check that raw records are numbers of the right shape, finite but for gaps of columns.

        Args:
            raw: As of `preprocess`.
            name: Of the file, for messages.

        Raises:
            DataError: They are not. The message counts records and shows no value.
        """
        records = self._fitting(raw, name)
        if records.dtype.kind == "f":
            _check_finite(self._whole(records.reshape(len(records), self.raw_size)), name)

    def outside(self, raw: ArrayLike) -> NDArray[np.int64]:
        """Count the values of each record that lie beyond the public bounds, so are clipped.

        Args:
            raw: As of `preprocess`, which has to take it.

        Returns:
            Counts [N].
        """
        records = self._flat(raw)
        if self.columns:
            by_column = self._by_column(records)
            beyond = [one.outside(by_column[:, at]) for at, one in enumerate(self.columns)]
            return np.asarray(np.sum(np.stack(beyond, 1), axis=(1, 2)), dtype=np.int64)
        records = self._scaled(records)
        return np.asarray(((records < self.lower) | (records > self.upper)).sum(axis=1))

    def unclipped(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Values [N, raw_size] as the bounds meet them: scaled and centred, not yet clipped.

        Those of columns are as they are, NaN in gaps.

        Args:
            raw: As of `preprocess`.

        Raises:
            DataError: The shape or type does not fit.
        """
        records = self._flat(raw)
        return records if self.columns else self._scaled(records)

    def _scaled(self, records: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of the short form before they are clipped."""
        with np.errstate(all="ignore"):
            records = records * self.scale
            if self.center == "median":
                return records - row_medians(records)
            if self.center == "mean":
                return np.asarray(records - records.mean(axis=1, keepdims=True))
        return records

    def _by_column(self, records: NDArray[np.float64]) -> NDArray[np.float64]:
        """Flat raw rows as [N, C, T], T being 1 without a window."""
        columns = len(self.columns)
        return records.reshape(len(records), columns, records.shape[1] // columns)

    def _encoded(self, records: NDArray[np.float64]) -> NDArray[np.float32]:
        """Records of the columns' values, each scaled to [0, 1] by its own range."""
        _check_finite(self._whole(records))
        by_column = self._by_column(records)
        parts = [column.encode(by_column[:, at]) for at, column in enumerate(self.columns)]
        encoded = np.concatenate(parts, axis=1).astype(np.float32)
        return encoded.reshape(len(encoded), *self.shape)

    def _whole(self, records: NDArray[Any]) -> NDArray[np.bool_]:
        """Which flat rows [N, raw_size] are finite, but for NaN where a column takes gaps."""
        fine = np.isfinite(records)
        if self.columns:
            gaps = [column.missing != "refuse" for column in self.columns]
            fine |= np.isnan(records) & np.repeat(gaps, self.raw_size // len(gaps))
        return np.asarray(fine.all(axis=1))

    def _flat(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Check type and shape of `raw` and return it as float64 [N, size]."""
        array = self._fitting(raw)
        return array.reshape(len(array), self.raw_size).astype(np.float64)

    def _fitting(self, raw: ArrayLike, name: str = "") -> NDArray[Any]:
        """Check type and shape of `raw`, of a file where it has a name."""
        of = f" of {name}" if name else ""
        try:
            array = np.asarray(raw)
        except ValueError as error:
            raise DataError(
                f"Expected records{of} of shape [N, {_shape_text(self.raw_shape)}], got rows of "
                "unequal length; give every record the same number of values."
            ) from error
        if array.dtype.kind not in "iuf":
            raise DataError(
                f"Expected integer or floating-point records{of}, got type {array.dtype}; "
                "convert them to numbers."
            )
        rows, fitting = array.shape[1:], [self.raw_shape, (self.raw_size,)]
        if self.raw_shape[0] == 1:  # grey images come without their one channel, too
            fitting.append(self.raw_shape[1:])
        if array.ndim < 2 or rows not in fitting:
            raise DataError(
                f"Expected records{of} of shape [N, {_shape_text(self.raw_shape)}] for schema "
                f"{self.name!r}, got {list(array.shape)}; choose other columns or another schema."
            )
        return array


#: What the fields of one range for all are where columns have ranges of their own.
_TABLE: dict[str, float | str] = {
    "unit": "",
    "scale": 1.0,
    "center": "none",
    "lower": 0.0,
    "upper": 1.0,
}
#: The fields that every schema has, in the order of its mapping.
_SHORT = ("name", "shape", "unit", "scale", "center", "lower", "upper")


def row_medians(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of each row of [N, n] as [N, 1]; what numpy.median gives, without its imports."""
    low, high = (rows.shape[1] - 1) // 2, rows.shape[1] // 2
    parted = np.partition(rows, (low, high), axis=1)
    return (parted[:, low : low + 1] + parted[:, high : high + 1]) / 2


def _checked_shape(shape: object) -> tuple[int, ...]:
    """Return `shape` if it is a tuple of 1 to 4 positive sizes with a bounded product."""
    if (
        not isinstance(shape, tuple)
        or not 1 <= len(shape) <= MAX_DIMENSIONS
        or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape)
        or math.prod(shape) > MAX_VALUES_PER_RECORD
    ):
        raise ConfigError(
            f"Expected schema shape to be 1 to {MAX_DIMENSIONS} positive sizes with a product of "
            f"at most {MAX_VALUES_PER_RECORD}, got {str(shape)[:MAX_TEXT]}; correct the sizes.",
            field="shape",
        )
    return shape


def _check_finite(good: NDArray[np.bool_], name: str = "") -> None:
    """Raise DataError unless all records [N] are good."""
    if not good.all():
        raise DataError(
            f"Expected finite values{f' in {name}' if name else ''}, got NaN, infinite or "
            f"overflowing values in {int((~good).sum())} of {len(good)} records, record "
            f"{int(np.argmin(good)) + 1} first; remove or fill these records.",
            reason="finite",
        )


def _check_names(names: Sequence[str], window: Window | None) -> None:
    """Raise ConfigError unless names of columns are distinct and none tells series apart."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(
            f"Expected schema columns of distinct names, got {twice!r} twice; correct them.",
            field="columns",
        )
    if window is not None and window.group in names:
        raise ConfigError(
            f"Expected column {window.group!r} to tell series apart and nothing else, got it among "
            "the columns, too; leave it out there.",
            field="window.group",
        )


def _check_keys(what: str, given: set[Any], needed: set[str], more: set[str]) -> None:
    """Raise ConfigError unless all needed keys are given and no others than those and `more`."""
    if needed <= given <= needed | more:
        return
    missing = ", ".join(sorted(needed - given)) or "none"
    unknown = ", ".join(sorted(str(key)[:MAX_TEXT] for key in given - needed - more)) or "none"
    raise ConfigError(
        f"Expected exactly the {what} keys {', '.join(sorted(needed))}; got missing: {missing}, "
        f"unknown: {unknown}; correct these keys."
    )


_Part = TypeVar("_Part", Column, Window)


def _part(kind: type[_Part], what: str, values: object) -> _Part:
    """A column or the window of a schema out of its mapping."""
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"Expected a table for each {what}, got {type(values).__name__}; correct the schema."
        )
    _check_keys(what, set(values), {field.name for field in fields(kind)}, set())
    found = dict(values)
    if not isinstance(found.get("levels", []), list | tuple):
        raise ConfigError("Expected levels as a list, got another value; write it as [...].")
    return kind(**found | ({"levels": tuple(found["levels"])} if "levels" in found else {}))


def _shape_text(shape: tuple[int, ...]) -> str:
    """Return "1, 8, 8" for (1, 8, 8)."""
    return ", ".join(str(n) for n in shape)
