"""A user's own file as a federation: for the demo, for studies and for training."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np
from pydantic import TypeAdapter, ValidationError

from fedlatent.shared.config import Data, invalid
from fedlatent.shared.data.describe import cells_of, describe, is_table
from fedlatent.shared.data.dialect import Dialect
from fedlatent.shared.data.memory import InMemory
from fedlatent.shared.data.readers import Fields
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.sources import TRAIN_FRACTION, Federation, SiteData, from_file
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.toml import parse_toml

LEAST_TRAINING = 20  # normal records that a client trains on, at least
LEAST_RECORDS = math.ceil(LEAST_TRAINING / TRAIN_FRACTION)  # normal ones that it holds then


def clients_of_file(
    path: Path | InMemory,
    *,
    schema: Path | Schema | None = None,
    seed: int = 0,
    **where: Unpack[Fields],
) -> Federation:
    """Read a file as its own clients, or as one where it names none.

    Without ``schema`` the bounds are the smallest and largest value of the file. A real run must
    not do that, since it publishes them; the note of the federation says so.

    Args:
        path: any kind of file that `fedlatent.shared.data.readers` reads, or what is in memory.
        schema: one, or a TOML file with a table ``[data]``.
        seed: draws training and test records.
        where: what the file calls its records, labels and clients, as ``readers.Fields`` says.

    Raises:
        DataError: the file does not fit, or every client has too few normal records; the note names
            those that are left out for that.
        ConfigError: the schema is not one.
    """
    if isinstance(schema, Path):
        schema = load_schema(schema)
    chosen = schema or _schema_of_values(path, **where)
    if chosen.columns:
        where.pop("columns", None)  # the schema has them
    whole = from_file(path, chosen, seed=seed, **where)
    sites = [replace(one, name=_plain(one.name) or "client") for one in whole.sites]
    small = [one.name for one in sites if len(one.train) < LEAST_TRAINING]
    sites = [one for one in sites if one.name not in small]
    if not sites:
        raise DataError(
            f"Expected at least {LEAST_RECORDS} normal records of one client in {path.name}, of "
            f"which {LEAST_TRAINING} are trained on, got fewer at {_some(small)}; train on more "
            "records, or check the labels.",
            field=small[0] if small else None,
            reason="few",
        )
    note = whole.note
    if schema is None:
        note += " Bounds were taken from the file: good for a try, a leak in a real run."
    if small:
        note += f" Left out, with fewer than {LEAST_RECORDS} normal records: {_some(small)}."
    return replace(whole, sites=tuple(sites), note=note)


def federation_of_file(
    path: Path,
    sites: int,
    *,
    schema: Path | None = None,
    seed: int = 0,
    **where: Unpack[Fields],
) -> Federation:
    """Read a file as ``sites`` clients: its own clients, or equal random parts without names.

    Clients without anomalies take part; the note names them.

    Args:
        path: any kind of file that `fedlatent.shared.data.readers` reads.
        sites: clients wanted, participating and absent together.
        schema: a TOML file with a table ``[data]``; see `clients_of_file`.
        seed: draws training and test records, and the parts.
        where: what the file calls its records, labels and clients, as ``readers.Fields`` says;
            the AUROC needs labels with anomalies.

    Raises:
        DataError: the file does not fit, has too few clients or records, or no anomaly.
        ConfigError: the schema is not one.
    """
    whole = clients_of_file(path, schema=schema, seed=seed, **where)
    parts = list(whole.sites) if where.get("client_key") else _cut(whole.sites[0], sites, seed)
    if len(parts) < sites:
        raise DataError(
            f"Expected at least {sites} clients in {path}, got {len(parts)}; ask for fewer."
        )
    parts = parts[:sites]
    if not where.get("client_key"):
        least = min(len(one.train) for one in parts)
        if least < LEAST_TRAINING:
            raise DataError(
                f"Expected at least {LEAST_TRAINING} normal training records per client, got "
                f"{least} when {path.name} is cut into {sites}; ask for fewer sites."
            )
    quiet = [one.name for one in parts if not one.test_label.any()]
    if len(quiet) == len(parts):
        raise DataError(
            f"Expected anomalies in {path.name} to rate detectors with, got none; name the label "
            "with --label and the normal value with --normal-label."
        )
    note = whole.note
    if quiet:
        note += f" Clients without anomalies, which are not rated by themselves: {_some(quiet)}."
    return replace(whole, sites=tuple(parts), note=note)


def _some(names: Sequence[str]) -> str:
    """At most ten of the names, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def load_schema(path: Path) -> Schema:
    """The schema of a TOML file with a table ``[data]``.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        table = parse_toml(path.read_text(encoding="utf-8"), str(path)).get("data")
        return TypeAdapter(Data).validate_python(table)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Expected a TOML file with a table [data], got: {error}.") from None
    except ValidationError as error:
        raise invalid(f"{path}, table [data]", error) from None


def _schema_of_values(path: Path | InMemory, **where: Unpack[Fields]) -> Schema:
    """A schema that is proposed from the file itself, without the columns that are no inputs."""
    chosen = where.get("columns")
    keys = [where.get(key) for key in ("label_key", "client_key", "person_key")]
    table = is_table(path)
    dialect = where.get("dialect", Dialect())
    aside = [str(key) for key in keys if key] if table else []
    if chosen is not None and table:
        aside = [name for name in cells_of(path, dialect) if name not in chosen]
    proposal = describe(
        path, skip=aside, records_key=where.get("records_key", "X"), dialect=dialect
    )
    for name, why in proposal.left_out.items():
        if name in (chosen or ()):
            raise DataError(
                f"Expected a column of numbers or classes as {name!r} of {path.name}, but {why}; "
                "leave it out, or give a schema that says what it is.",
                field=name,
                reason="column",
            )
    found: Schema = TypeAdapter(Data).validate_python(proposal.data)
    return found


def _cut(site: SiteData, count: int, seed: int) -> list[SiteData]:
    """Equal random parts of one client."""
    rng = np.random.default_rng(seed)
    trains = np.array_split(rng.permutation(len(site.train)), count)
    tests = np.array_split(rng.permutation(len(site.test)), count)
    return [
        replace(
            site,
            name=f"part-{i:02d}",
            train=site.train[train],
            test=site.test[test],
            test_label=site.test_label[test],
            test_kind=site.test_kind[test],
        )
        for i, (train, test) in enumerate(zip(trains, tests, strict=True))
    ]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:60]
