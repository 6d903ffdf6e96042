"""A set of preprocessed records of one schema, with optional owners, persons and labels."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Records ready for a model.

    Attributes:
        records: float32 [N, *schema.shape], as `Schema.preprocess` returns them.
        schema: What the records are.
        client_id: Owner of each record as text [N], or None when all belong to one client.
        label: uint8 [N], 0 normal and 1 anomalous, or None when unknown. Only for evaluation;
            training never reads it except to leave known anomalies out.
        person: int64 [N], which person each record is about, or None when nobody said. Never a
            part of a record, and never released.

    Raises:
        DataError: If lengths or types do not agree.

    Examples:
        >>> schema = fl.Schema(name="pair", shape=(2,), lower=0.0, upper=1.0)
        >>> records = schema.preprocess([[0.25, 0.5], [0.5, 7.0], [0.0, 1.0]])
        >>> dataset = fl.Dataset(records=records, schema=schema, label=np.uint8([0, 1, 0]))
        >>> len(dataset), len(dataset.normals())
        (3, 2)
    """

    records: NDArray[np.float32]
    schema: Schema
    client_id: NDArray[np.str_] | None = None
    label: NDArray[np.uint8] | None = None
    person: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Check that all arrays describe the same records."""
        if self.records.dtype != np.float32 or self.records.shape[1:] != self.schema.shape:
            raise DataError(
                f"Expected float32 records of shape {list(self.schema.shape)}, got "
                f"{self.records.dtype} of shape {list(self.records.shape[1:])}; "
                "use Schema.preprocess."
            )
        sides = (("client_id", self.client_id), ("label", self.label), ("person", self.person))
        for name, values in sides:
            if values is not None and values.shape != (len(self.records),):
                raise DataError(
                    f"Expected one {name} for each of {len(self.records)} records, got shape "
                    f"{list(values.shape)}; give one value per record."
                )
        if self.label is not None and not np.isin(self.label, (0, 1)).all():
            raise DataError(
                "Expected labels 0 (normal) or 1 (anomalous), got other values; "
                "name the normal label when reading."
            )

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.records)

    def select(self, which: ArrayLike) -> "Dataset":
        """Return the records that a boolean mask [N] or an array of indices chooses."""
        index = np.asarray(which)
        return replace(
            self,
            records=self.records[index],
            client_id=None if self.client_id is None else self.client_id[index],
            label=None if self.label is None else self.label[index],
            person=None if self.person is None else self.person[index],
        )

    def normals(self) -> "Dataset":
        """Return the records that are not labelled anomalous: all of them without labels."""
        return self if self.label is None else self.select(self.label == 0)

    def capped(self, most: int) -> "Dataset":
        """Return at most so many records of each person, in their order.

        Which ones is a public rule that looks at nothing but how many records the person has: the
        person's records are numbered from 0 in their order here, and those whose number, as
        decimal text, has the smallest SHA-256 stay. So they lie all over the person's records, and
        the same ones stay as long as the person's records do.

        Raises:
            DataError: If the records carry no persons.
            ValueError: If `most` is below 1.
        """
        if most < 1:
            raise ValueError(f"Expected at least one record of a person, got {most}.")
        if self.person is None:
            raise DataError(
                "Expected records with persons, got none; name the person's column when reading."
            )
        by_person = np.argsort(self.person, kind="stable")
        parts = np.split(by_person, np.flatnonzero(np.diff(self.person[by_person])) + 1)
        places = _places(max(len(rows) for rows in parts))
        kept = [rows[np.argsort(places[: len(rows)])[:most]] for rows in parts]
        return self.select(np.sort(np.concatenate(kept)))

    def by_client(self) -> dict[str, "Dataset"]:
        """Return one data set per client, in the order of their sorted names.

        Raises:
            DataError: If the records carry no client names.
        """
        if self.client_id is None:
            raise DataError(
                "Expected records with client names, got none; name the client column when reading."
            )
        names = sorted({str(name) for name in self.client_id})
        return {name: self.select(self.client_id == name) for name in names}

    def split(self, fraction: float, seed: int) -> tuple["Dataset", "Dataset"]:
        """Split at random into round-down `fraction` of the records and the rest.

        Raises:
            ValueError: If `fraction` is not strictly between 0 and 1.
        """
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"Expected a fraction between 0 and 1, got {fraction}.")
        order = np.random.default_rng(seed).permutation(len(self))
        first = int(len(self) * fraction)
        return self.select(order[:first]), self.select(order[first:])


def _places(count: int) -> NDArray[np.int64]:
    """The place of each number below `count` in the order of the SHA-256 of its decimal text."""
    digests = [hashlib.sha256(str(number).encode()).digest() for number in range(count)]
    return np.argsort(sorted(range(count), key=digests.__getitem__))
