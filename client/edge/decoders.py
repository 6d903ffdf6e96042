"""From bytes to rows: what the formats of a stream share (`fedlatent.client.edge.formats`).

A decoder takes bytes as they come and gives rows of numbers. It holds at most one unfinished line
or row, so memory stays flat. A row that is not as it must be comes after those before it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fedlatent.client.edge.windows import Rows
from fedlatent.shared.data.dialect import COMMAS, Dialect
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import ConfigError, DataError

#: Rows that a decoder gives at once, at most.
BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What rows of a source hold beside their values, and what is done about bad ones.

    Attributes:
        columns: header names of a CSV in record order; None takes those of the schema, or all that
            are nothing else where it has none. Other formats have none.
        names: what columns are called here, by the names that the source has for them.
        time: column (CSV) or key (JSON) of the rows' times; empty for none.
        group: column or key of the series that each row belongs to; empty for one series.
        skip_bad: count a row that is not as it must be and go on, rather than stop.
        name: of the source, for messages.
        dialect: how a CSV is written.
    """

    columns: Sequence[str] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    time: str = ""
    group: str = ""
    skip_bad: bool = False
    name: str = ""
    dialect: Dialect = COMMAS

    @property
    def sides(self) -> list[str]:
        """Names of the columns that hold no values."""
        return [name for name in (self.time, self.group) if name]

    @property
    def of(self) -> str:
        """The source, for messages."""
        return f" of {self.name}" if self.name else ""


class Decoder(ABC):
    """Rows of numbers from bytes.

    Attributes:
        schema: of one row; see `row_schema`.
        rows: how many have been given or refused.
        bad: how many were refused and passed over.
        cut: how many incomplete ones were dropped where the source broke off.
        missing: whether rows are missing before the next one.
        extra: columns that rows have and the columns of the schema have not.
        line: lines before the next one, in formats that have lines.
    """

    item_bytes = 0  #: of a value in a raw format; 0 for lines

    def __init__(self, schema: Schema, layout: Layout | None = None) -> None:
        """Make a decoder of rows of ``schema``.

        Raises:
            ConfigError: the format has no place for what the layout names.
        """
        self.schema, self.layout = schema, layout or Layout()
        self.rows = self.bad = self.cut = self.line = 0
        self.missing = False
        self.extra: tuple[str, ...] = ()
        self._rest = b""
        if schema.columns and self.layout.columns is not None:
            raise ConfigError(
                "Expected columns from the bundle alone, which names them, got others beside it; "
                "leave them out, or map names."
            )

    @abstractmethod
    def feed(self, data: bytes) -> Iterator[Rows]:
        """Rows that are complete with ``data``: float [n, size], 1 <= n <= `BATCH`.

        Raises:
            DataError: a row is not as it must be; the sentence names the row, never its values.
                Those before it have been given.
        """

    @abstractmethod
    def finish(self) -> Iterator[Rows]:
        """What is left when the source has ended, as in `feed`."""

    def drop(self, *, gap: bool = False) -> None:
        """Forget an incomplete row: what comes next begins another file or connection.

        Args:
            gap: whether rows may be missing in between.
        """
        self.cut += bool(self._rest)
        self.missing |= gap or bool(self._rest)
        self._rest, self.line = b"", 0

    def _see(self, names: Sequence[str]) -> None:
        """Keep which of the columns that rows have are none of the schema's."""
        known = {one.name for one in self.schema.columns} | set(self.layout.sides)
        if self.schema.columns:
            self.extra = tuple(name for name in names if name not in known)

    def _refuse(self, error: DataError) -> None:
        """Count one bad row, or stop with ``error``."""
        if not self._passed_over():
            raise error from None

    def _passed_over(self) -> bool:
        """Count one bad row; False when it has to stop the stream."""
        self.rows += 1
        self.bad += self.layout.skip_bad
        self.missing |= self.layout.skip_bad
        return self.layout.skip_bad

    def _not_finite(self, number: int) -> DataError:
        return DataError(
            "Expected finite values, got NaN, infinity or overflow in record "
            f"{number}{self.layout.of}; fill or drop it.",
            reason="finite",
        )
