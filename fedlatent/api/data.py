"""Records as a federation of clients."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.dialect import Dialect
from fedlatent.shared.data.labels import Label
from fedlatent.shared.data.memory import ArraysInMemory, InMemory, TableInMemory
from fedlatent.shared.data.readers import Fields
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.sources import Federation
from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.own_data import clients_of_file

if TYPE_CHECKING:
    import pandas as pd

_SIDES = {"label": "labels", "client": "clients"}


def read(
    source: "str | Path | pd.DataFrame | NDArray[Any]",
    *,
    schema: str | Path | Schema | None = None,
    client: str | Sequence[Any] | NDArray[Any] | None = None,
    label: str | Sequence[Any] | NDArray[Any] | None = None,
    normal_label: Label | None = None,
    column: Sequence[str] | None = None,
    array: str = "X",
    delimiter: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
    header: bool | None = None,
    accept: bool = False,
    seed: int = 0,
) -> Federation:
    """Read records as the clients of a federation, and look at them before anything is trained.

    Args:
        source: a file or folder (CSV, Parquet, Arrow, NPZ, NPY, images, WFDB, EDF, a database by
            its ``.sql`` or ``.duckdb`` file, SMILES), a data frame with a record in each row, or
            an array of records [N, ...] of one kind of value (signals, images).
        schema: what a record is: a `Schema`, or a TOML file with a table ``[data]``. Without one,
            bounds follow the records: good for a try, a leak in a real run.
        client: who holds each record: name of a column or array, or [N] values beside an array.
            One client by default.
        label: which records are anomalies: likewise. They are not trained on.
        normal_label: the label of normal records; None where labels are 0 (normal) and 1.
        column: columns of a record, in order; all but label and client by default.
        array: of an NPZ, the array of records.
        delimiter: between the cells of a CSV file.
        decimal: before the decimals of a CSV file.
        encoding: of a CSV file; UTF-8 by default.
        header: whether a CSV file's first line is names; by default it shows.
        accept: go on although the look at the records found what is most likely a mistake.
        seed: draws the split into training (70 % of the normal records) and test records.

    Returns:
        Clients with raw records: see `Federation`.

    Raises:
        DataError: the source cannot be read, does not fit, or has too few normal records.
        RecordsRefused: the look at the records found something and ``accept`` is false.
        ConfigError: the schema is not one, or an argument does not go with the source.

    Examples:
        >>> import fedlatent as fl
        >>> clients = fl.read("patients.csv", client="hospital", label="disease")
        >>> [site.name for site in clients.sites]
        ['east', 'north', 'south', 'west']
        >>> beats = fl.read(beats_array, label=beats_label)
        >>> beats.schema.shape
        (96,)
    """
    place, sides = _place(source, {"label": label, "client": client})
    where: Fields = {
        "records_key": array if isinstance(place, Path) else "X",
        "columns": column,
        "label_key": sides["label"],
        "normal_label": normal_label,
        "client_key": sides["client"],
    }
    asked = {"delimiter": delimiter, "decimal": decimal, "encoding": encoding, "header": header}
    said = {key: value for key, value in asked.items() if value is not None}
    if said and not isinstance(place, Path):
        raise ConfigError(
            f"Expected {', '.join(said)} for a CSV file, got records in memory; leave it out.",
            field=next(iter(said)),
        )
    where["dialect"] = Dialect(**said)  # type: ignore[arg-type]
    own = Path(schema) if isinstance(schema, str) else schema
    found = clients_of_file(place, schema=own, seed=seed, **where)
    if found.check is not None and not accept:
        found.check.refuse("pass accept=True")
    return found


def _place(source: object, sides: dict[str, Any]) -> tuple[Path | InMemory, dict[str, str | None]]:
    """The source as readers take it, and the names of its labels and clients."""
    if isinstance(source, (str, Path)):
        return Path(source), {key: _name(key, value) for key, value in sides.items()}
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        named = {key: _name(key, value) for key, value in sides.items()}
        return TableInMemory(frame=source), named  # type: ignore[arg-type]
    arrays = {"X": np.asarray(source)}
    names: dict[str, str | None] = {}
    for key, value in sides.items():
        if isinstance(value, str):
            raise ConfigError(
                f"Expected values for {key} beside an array of records, got the name {value!r}; "
                "pass one value for each record.",
                field=key,
            )
        names[key] = None if value is None else _SIDES[key]
        if value is not None:
            arrays[_SIDES[key]] = np.asarray(value)
    return ArraysInMemory(arrays=arrays), names


def _name(key: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ConfigError(
        f"Expected {key} to be the name of a column or array, got {type(value).__name__}; values "
        "by themselves go with an array of records only.",
        field=key,
    )
