"""What a record is: shape, unit and public bounds, and the one way from raw to model input.

Training and the edge runtime both call `Schema.preprocess`, so a record means the same in both.
Nothing here depends on the data: every constant is public (a data-dependent scaling would be a
release). Only numpy and the standard library are imported.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.files import canonical_json, sha256_hex

Center = Literal["none", "median", "mean"]

MAX_VALUES_PER_RECORD = 1 << 20
MAX_DIMENSIONS = 4
MAX_TEXT = 64
MAX_MAGNITUDE = 1e30

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class _Limits:
    """Limits of a field, for the files that pydantic reads; devices have no pydantic."""

    def __init__(self, **limits: float) -> None:
        self._limits = limits

    def __get_pydantic_core_schema__(
        self, source: object, handler: Callable[[object], dict[str, Any]]
    ) -> dict[str, Any]:
        """Pydantic's schema of the field, with the limits."""
        return handler(source) | self._limits


@dataclass(frozen=True, kw_only=True)
class Schema:
    """One kind of record; the table [data] of a run file and [data.schema] of a node file.

    Attributes:
        name: Identifier of letters, digits, dot, dash and underscore.
        shape: Shape of one record, channels first for images: (128,), (1, 8, 8).
        unit: Unit of the values after scaling, for people: "mV"; empty when there is none.
        scale: Raw values are multiplied by this: 1e-3 from microvolt to millivolt.
        center: What each record loses after scaling: nothing, its own median or its own mean.
        lower: Least value after scaling and centring; what lies below is clipped.
        upper: Greatest value after scaling and centring; what lies above is clipped.

    Raises:
        ConfigError: If a field has the wrong type or lies outside its limits.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "allow_inf_nan": False,
    }

    name: str
    shape: Annotated[tuple[Annotated[int, _Limits(ge=1)], ...], _Limits(min_length=1, max_length=3)]
    unit: str = ""
    scale: Annotated[float, _Limits(gt=0)] = 1.0
    center: Center = "none"
    lower: float = -1.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        """Check every field and turn whole numbers given for floats into floats."""
        _check_text("name", self.name, least=1)
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"Expected a schema name of letters, digits, '.', '_' and '-', got {self.name!r}; "
                "rename it.",
                field="name",
            )
        _check_text("unit", self.unit, least=0)
        object.__setattr__(self, "shape", _checked_shape(self.shape))
        for key in ("scale", "lower", "upper"):
            object.__setattr__(self, key, _checked_float(key, getattr(self, key)))
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

    @property
    def size(self) -> int:
        """Number of values in one record."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, object]:
        """Return a JSON-ready mapping that `from_dict` turns back into an equal schema."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Schema":
        """Build a schema from a mapping that holds exactly the seven fields.

        Raises:
            ConfigError: If a key is missing or unknown, or a value is not permitted.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"Expected a schema table, got {type(values).__name__}; see the schema fields."
            )
        expected = {field.name for field in fields(cls)}
        if set(values) != expected:
            missing = ", ".join(sorted(expected - set(values))) or "none"
            unknown = ", ".join(sorted(str(key)[:MAX_TEXT] for key in set(values) - expected))
            raise ConfigError(
                f"Expected exactly the schema keys {', '.join(sorted(expected))}; "
                f"got missing: {missing}, unknown: {unknown or 'none'}; correct these keys."
            )
        shape = values["shape"]
        if not isinstance(shape, list | tuple):
            raise ConfigError(
                f"Expected schema shape as a list of sizes, got {type(shape).__name__}; "
                "write it as [128] or [1, 8, 8]."
            )
        return cls(**{**values, "shape": tuple(shape)})

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the canonical JSON form."""
        return sha256_hex(canonical_json(self.to_dict()))

    def preprocess(self, raw: ArrayLike) -> NDArray[np.float32]:
        """Scale, centre and clip raw records.

        Args:
            raw: Numbers of shape [N, *shape], or flat rows of shape [N, size]. N may be 0.

        Returns:
            float32 of shape [N, *shape], within [lower, upper].

        Raises:
            DataError: If the shape or type does not fit, or a value is NaN, infinite or so large
                that it overflows. The message counts records and shows no value.
        """
        records = self._flat(raw)
        with np.errstate(all="ignore"):
            records = records * self.scale
            if self.center == "median":
                records = records - row_medians(records)
            elif self.center == "mean":
                records = records - records.mean(axis=1, keepdims=True)
        finite = np.asarray(np.isfinite(records).all(axis=1))
        if not finite.all():
            raise DataError(
                f"Expected finite values, got NaN, infinite or overflowing values in "
                f"{int((~finite).sum())} of {len(finite)} records; remove or fill these records."
            )
        clipped = np.clip(records, self.lower, self.upper).astype(np.float32)
        return clipped.reshape(len(clipped), *self.shape)

    def _flat(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Check type and shape of `raw` and return it as float64 [N, size]."""
        try:
            array = np.asarray(raw)
        except ValueError as error:
            raise DataError(
                f"Expected records of shape [N, {_shape_text(self.shape)}], got rows of unequal "
                "length; give every record the same number of values."
            ) from error
        if array.dtype.kind not in "iuf":
            raise DataError(
                f"Expected integer or floating-point records, got type {array.dtype}; "
                "convert them to numbers."
            )
        rows = array.shape[1:]
        if array.ndim < 2 or rows not in (self.shape, (self.size,)):
            raise DataError(
                f"Expected records of shape [N, {_shape_text(self.shape)}] for schema "
                f"{self.name!r}, got {list(array.shape)}; choose other columns or another schema."
            )
        return array.reshape(len(array), self.size).astype(np.float64)


def row_medians(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of each row of [N, n] as [N, 1]; what numpy.median gives, without its imports."""
    low, high = (rows.shape[1] - 1) // 2, rows.shape[1] // 2
    parted = np.partition(rows, (low, high), axis=1)
    return (parted[:, low : low + 1] + parted[:, high : high + 1]) / 2


def _check_text(key: str, value: object, least: int) -> None:
    """Raise ConfigError unless `value` is a printable string of `least` to MAX_TEXT characters."""
    if not isinstance(value, str) or not least <= len(value) <= MAX_TEXT or not value.isprintable():
        raise ConfigError(
            f"Expected schema {key} to be {least} to {MAX_TEXT} printable characters, "
            f"got {type(value).__name__} {str(value)[:MAX_TEXT]!r}; shorten or correct it.",
            field=key,
        )


def _checked_float(key: str, value: object) -> float:
    """Return `value` as a finite float; raise ConfigError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"Expected schema {key} to be a number, got {type(value).__name__}; write a number.",
            field=key,
        )
    if not -MAX_MAGNITUDE < value < MAX_MAGNITUDE:
        raise ConfigError(
            f"Expected a finite schema {key} below {MAX_MAGNITUDE:g} in size; write such a number.",
            field=key,
        )
    return float(value)


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


def _shape_text(shape: tuple[int, ...]) -> str:
    """Return "1, 8, 8" for (1, 8, 8)."""
    return ", ".join(str(n) for n in shape)
