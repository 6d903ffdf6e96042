"""Whether records mean what their schema says, told before anything is trained or charged.

A schema clips: a table in another unit becomes rows of ones, and no later step can tell. So what
reads records looks at them once, by column, and stops at what is most likely a mistake. What it
finds is about private records: it is shown where they lie, and never leaves. It holds shares,
counts and names of columns, and no value.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import DataError, RecordsRefused

Severity = Literal["stop", "warning"]
Kind = Literal[
    "few",
    "clipped",
    "far",
    "constant",
    "constants",
    "missing",
    "narrow",
    "unseen",
    "duplicates",
    "label",
    "left-out",
]

MOST_CLIPPED = 0.05  # of the values of a column
MOST_CONSTANT = 0.5  # of the columns
MOST_MISSING = 0.5  # of the values of a column
MOST_DUPLICATES = 0.5  # of the records
MOST_LEFT_OUT = 0.25  # of the records of a file, or of the rows of series
#: Factors between units that people mix up: millimetres, percent, thousands, and those of time.
UNITS = (10.0, 100.0, 1000.0, 1e6, 1e9, 60.0, 3600.0)

_TOLD = 3  # findings of a refusal
_FAR = 1e6  # times the largest bound: a mark for a gap, such as 1e30, and no measurement
_FITS = 0.9  # of the values, for a factor to explain them
_NARROW = 0.02  # of the range
_FEW_VALUES = 20  # of a column that is a copy of a label
_LEAST_LABELLED = 5  # of each kind of record, for a column to be compared with the label


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is most likely not as people believe.

    Attributes:
        kind: what it is about: one of `Kind`.
        column: name of the column; empty where it is about whole records.
        severity: "stop" where nothing should be trained until somebody accepts it.
        text: for people, one clause.
    """

    kind: Kind
    severity: Severity
    text: str
    column: str = ""

    @property
    def key(self) -> str:
        """How a person accepts it: "clipped:age", or the kind alone."""
        return f"{self.kind}:{self.column}" if self.column else self.kind


@dataclass(frozen=True, kw_only=True)
class ColumnFacts:
    """What the values of one column are like; of all values where nobody named columns.

    Attributes:
        name: of the column.
        clipped: share of its values that lie beyond the bounds.
        missing: share of its cells that hold none.
        constant: whether all its values are one after clipping.
        factor: the values look about so many times too large, or too small below 1; None where
            no factor between units explains them.
        unseen: levels that no record has.
    """

    name: str
    clipped: float
    missing: float
    constant: bool
    factor: float | None = None
    unseen: tuple[str | float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was found in the records of one file.

    Attributes:
        records: normal ones, on which a model would be trained.
        distinct: how many of them differ after preprocessing.
        columns: facts of each column.
        findings: the worst first.
    """

    records: int
    distinct: int
    columns: tuple[ColumnFacts, ...]
    findings: tuple[Finding, ...]

    def stops(self, accepted: Sequence[str] = ()) -> tuple[Finding, ...]:
        """The findings that stop, without those whose keys somebody accepted."""
        return tuple(
            one for one in self.findings if one.severity == "stop" and one.key not in accepted
        )

    def refuse(self, remedy: str, accepted: Sequence[str] = ()) -> None:
        """Refuse to go on while something stops.

        Args:
            remedy: how a person accepts it, such as "say --accept".
            accepted: keys of findings that somebody has accepted.

        Raises:
            RecordsRefused: saying the first findings; its field is the first one's column and its
                reason the first one's kind.
        """
        if not (found := self.stops(accepted)):
            return
        rest = f" and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
        told = "; ".join(one.text for one in found[:_TOLD])
        raise RecordsRefused(
            f"Expected records as their schema says, got: {told}{rest}; correct the file or the "
            f"schema, or, if all is as it should be, {remedy}.",
            field=found[0].column or None,
            reason=found[0].kind,
            check=self.to_json(),
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-ready values."""
        return {
            "records": self.records,
            "distinct": self.distinct,
            "columns": [asdict(one) for one in self.columns],
            "findings": [asdict(one) | {"key": one.key} for one in self.findings],
        }


def check(
    raw: NDArray[Any],
    schema: Schema,
    *,
    label: NDArray[np.uint8] | None = None,
    names: Sequence[str] = (),
    least: int = 1,
    left_out: Mapping[str, int] = MappingProxyType({}),
) -> Check:
    """Look at raw records before they are used.

    Args:
        raw: [N, *raw_shape] as `Schema.preprocess` takes them.
        schema: what they should be.
        label: [N], 0 normal and 1 anomalous, or None where all are normal.
        names: of the values of a record in the short form, where a table has them.
        least: records that a training needs.
        left_out: what of the file is not among these, how much for each reason: molecules, or
            rows of a series.

    Raises:
        DataError: no record is normal, or the records do not fit the schema at all.
    """
    normal = raw if label is None else raw[label == 0]
    if not len(normal):
        raise DataError(
            f"Expected normal records, got none among {len(raw)}; check the file, the label and "
            "which label is normal.",
            reason="few",
        )
    distinct = _distinct(schema.preprocess(normal))
    parts = list(_parts(normal, schema, names))
    facts = tuple(one.facts() for one in parts)
    findings: list[Finding] = []
    for part, one in zip(parts, facts, strict=True):
        findings += part.findings(one)
    if label is not None:
        findings += _copies(raw, schema, names, label)
    findings += [*_of_all(facts), *_of_records(len(normal), distinct, least)]
    window = schema.window
    found = len(raw) * (1 if window is None else min(window.step, window.length))
    findings += _of_left_out(found, left_out)
    findings.sort(key=lambda one: one.severity)
    return Check(records=len(normal), distinct=distinct, columns=facts, findings=tuple(findings))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """The values of one column, or of all where nobody named columns.

    Attributes:
        name: empty without names.
        values: [n] before clipping, NaN where missing; indices of levels of a column of classes.
        lower: least value that is not clipped.
        upper: greatest.
        levels: of a column of classes.
        even: whether the range is scaled as it is, without a logarithm.
    """

    name: str
    values: NDArray[np.float64]
    lower: float
    upper: float
    levels: Sequence[str | float] = ()
    even: bool = True

    def facts(self) -> ColumnFacts:
        present = self.values[~np.isnan(self.values)]
        missing = 1.0 - len(present) / max(1, len(self.values))
        inside = present if self.levels else np.clip(present, self.lower, self.upper)
        clipped = float((inside != present).mean()) if len(present) else 0.0
        seen = set(present.tolist()) if self.levels else ()
        return ColumnFacts(
            name=self.name,
            clipped=clipped,
            missing=missing,
            constant=not len(inside) or bool(inside.min() == inside.max()),
            factor=_factor(present, self.lower, self.upper) if clipped > MOST_CLIPPED else None,
            unseen=tuple(o for i, o in enumerate(self.levels) if i not in seen),
        )

    def findings(self, facts: ColumnFacts) -> Iterator[Finding]:
        where = f"the values of {self.name!r}" if self.name else "all values"
        if facts.clipped > MOST_CLIPPED:
            looks = "" if facts.factor is None else f", {_times(facts.factor)}"
            text = f"{_share(facts.clipped)} of {where} lie beyond the bounds{looks}"
            yield Finding(kind="clipped", severity="stop", column=self.name, text=text)
        elif far := self._far():
            text = f"{far} of {where} lie so far out that they look like a mark for a gap"
            yield Finding(kind="far", severity="stop", column=self.name, text=text)
        if facts.missing > MOST_MISSING:
            text = f"{_share(facts.missing)} of {where} are missing"
            yield Finding(kind="missing", severity="warning", column=self.name, text=text)
        if facts.unseen:
            text = f"{len(facts.unseen)} levels of {self.name!r} are in no record"
            yield Finding(kind="unseen", severity="warning", column=self.name, text=text)
        if self.name and facts.constant:
            text = f"{self.name!r} is constant"
            yield Finding(kind="constant", severity="warning", column=self.name, text=text)
        elif self.name and self._narrow():
            text = f"{where} fill less than {_share(_NARROW)} of the range; is it the same unit?"
            yield Finding(kind="narrow", severity="warning", column=self.name, text=text)

    def _far(self) -> int:
        """How many values no measurement would give."""
        bound = max(abs(self.lower), abs(self.upper))
        return 0 if self.levels else int((np.abs(self.values) > _FAR * bound).sum())

    def _narrow(self) -> bool:
        """Whether nearly all values lie in a small part of the range."""
        if self.levels or not self.even:
            return False
        low, high = np.nanquantile(self.values, [0.01, 0.99])
        return bool(high - low < _NARROW * (self.upper - self.lower))


def _parts(raw: NDArray[Any], schema: Schema, names: Sequence[str]) -> Iterator[_Part]:
    """Values by column; all in one part where nobody named columns."""
    flat = schema.unclipped(raw)
    named = [one.name for one in schema.columns] or list(names) or [""]
    by_column = flat.reshape(len(flat), len(named), -1)
    for at, name in enumerate(named):
        values = by_column[:, at].reshape(-1)
        if schema.columns:
            own = schema.columns[at]
            yield _Part(
                name=name,
                values=values,
                lower=own.lower,
                upper=own.upper,
                levels=own.levels,
                even=own.transform == "none",
            )
        else:
            yield _Part(name=name, values=values, lower=schema.lower, upper=schema.upper)


def _factor(values: NDArray[np.float64], lower: float, upper: float) -> float | None:
    """The factor between units that brings values into their range; None where none does."""
    middle = (abs(lower) + abs(upper)) / 2
    typical = max(float(np.median(np.abs(values))), 1e-300)
    found = []
    for factor in (*UNITS, *(1 / one for one in UNITS)):
        with np.errstate(over="ignore", under="ignore"):
            scaled = values / factor
        if float(((scaled >= lower) & (scaled <= upper)).mean()) >= _FITS:
            found.append((abs(np.log(typical / factor / middle)), factor))
    return float(min(found)[1]) if found else None


def _distinct(records: NDArray[np.float32]) -> int:
    """How many preprocessed records differ."""
    return len({row.tobytes() for row in records})


def _of_records(count: int, distinct: int, least: int) -> Iterator[Finding]:
    if count < least:
        text = f"{count} normal records, where a training needs at least {least}"
        yield Finding(kind="few", severity="stop", text=text)
    if distinct < (1.0 - MOST_DUPLICATES) * count:
        text = f"{distinct} distinct records of {count} after preprocessing"
        yield Finding(kind="duplicates", severity="stop", text=text)


def _of_left_out(count: int, left_out: Mapping[str, int]) -> Iterator[Finding]:
    if lost := sum(left_out.values()):
        told = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
        stops = lost > MOST_LEFT_OUT * (count + lost)
        yield Finding(
            kind="left-out",
            severity="stop" if stops else "warning",
            text=f"{lost} of about {count + lost} are left out: {told}",
        )


def _of_all(facts: Sequence[ColumnFacts]) -> Iterator[Finding]:
    constant = sum(one.constant for one in facts)
    if constant > MOST_CONSTANT * len(facts):
        text = f"{constant} of {len(facts)} columns are constant" if facts[0].name else "one value"
        yield Finding(kind="constants", severity="stop", text=text)


def _copies(
    raw: NDArray[Any], schema: Schema, names: Sequence[str], label: NDArray[np.uint8]
) -> Iterator[Finding]:
    """Columns of few values of which no normal record shares one with an anomaly."""
    counts = np.bincount(label, minlength=2)
    if counts.min() < _LEAST_LABELLED:
        return
    for part in _parts(raw, schema, names):
        if not part.name or len(part.values) != len(label):
            continue
        normal, other = (np.unique(part.values[label == kind]) for kind in (0, 1))
        few = len(normal) + len(other) <= _FEW_VALUES
        if few and not np.isin(other, normal).any():
            text = f"{part.name!r} says which records are anomalies, so it is a copy of the label"
            yield Finding(kind="label", severity="stop", column=part.name, text=text)


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _times(factor: float) -> str:
    size, word = (factor, "large") if factor > 1 else (1 / factor, "small")
    return f"as if they were about {size:g} times too {word}"
