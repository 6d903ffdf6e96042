"""Records that are in memory already, which readers take in place of a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fedlatent.shared.data.archives import checked_records
from fedlatent.shared.data.asked import Asked, Found, check_keys
from fedlatent.shared.data.frames import cells_by_name, found_in
from fedlatent.shared.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, eq=False)
class TableInMemory:
    """A table with a row for each record, or for each row of a series.

    Attributes:
        frame: Columns by name.
        name: What notes and errors call it.
    """

    frame: "pd.DataFrame"
    name: str = "table"

    def find(self, asked: Asked) -> Found:
        """Records and other columns.

        Raises:
            DataError: A column is absent or there twice, or holds what does not fit.
        """
        return found_in(self._named(), self.name, asked)

    def cells(self) -> dict[str, list[Any]]:
        """The cells of the columns by name."""
        return cells_by_name(self._named(), self.name)

    def _named(self) -> "pd.DataFrame":
        """The table with texts as names of its columns: numbers and several levels become some."""
        names = [
            ".".join(map(str, one)) if isinstance(one, tuple) else str(one)
            for one in self.frame.columns
        ]
        return self.frame.set_axis(names, axis="columns")


@dataclass(frozen=True, kw_only=True, eq=False)
class ArraysInMemory:
    """Arrays as an NPZ archive has them.

    Attributes:
        arrays: By name: records [N, ...], and what is told of each of them [N].
        name: What notes and errors call them.
    """

    arrays: Mapping[str, NDArray[Any]]
    name: str = "arrays"

    def find(self, asked: Asked) -> Found:
        """Records and other arrays.

        Raises:
            DataError: An array is absent, or there are columns of records by name.
        """
        if any(isinstance(one, str) for one in asked.columns or ()):
            raise DataError("Expected no columns by name for arrays, got some; leave them out.")
        return Found(self.records(asked.records_key), [self._array(one) for one in asked.others])

    def records(self, key: str) -> NDArray[Any]:
        """The records [N, ...] of that name.

        Raises:
            DataError: There are none, or they are no numbers.
        """
        records = checked_records(self._array(key), self.name, key)
        if records.dtype.kind not in "biuf":
            raise DataError(
                f"Expected records of numbers in {self.name}, got type {records.dtype}; convert "
                "them, or give a data frame where columns are of several types.",
                field=key,
                reason="number",
            )
        return records

    def _array(self, key: str) -> NDArray[Any]:
        check_keys(self.name, "array", [key], [*self.arrays])
        return self.arrays[key]


InMemory = TableInMemory | ArraysInMemory
