"""A user's own file as a federation, for the demo."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np

from fedlatent.shared.config import Data, invalid
from fedlatent.shared.data.readers import Fields, read_raw
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.sources import Federation, SiteData, from_file
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.toml import parse_toml

_LEAST_TRAINING = 20  # normal records that a site of the demo needs


def federation_of_file(
    path: Path,
    sites: int,
    *,
    schema: Path | None = None,
    seed: int = 0,
    **where: Unpack[Fields],
) -> Federation:
    """Read a file as ``sites`` clients: its own clients, or equal random parts without names.

    Without ``schema`` the bounds are the smallest and largest value of the file. A real run must
    not do that, since it publishes them; the note of the federation says so.

    Args:
        path: CSV, Parquet or NPZ.
        sites: clients wanted, participating and absent together.
        schema: a TOML file with a table ``[data]``.
        seed: draws training and test records, and the parts.
        where: what the file calls its records, labels and clients, as ``readers.Fields`` says;
            the AUROC needs labels with anomalies.

    Raises:
        DataError: the file does not fit, has too few clients or records, or no anomaly.
        ConfigError: the schema is not one.
    """
    chosen = _load_schema(schema) if schema else _schema_of_values(path, **where)
    whole = from_file(path, chosen, seed=seed, **where)
    parts = list(whole.sites) if where.get("client_key") else _cut(whole.sites[0], sites, seed)
    parts = [replace(one, name=_plain(one.name)) for one in parts]
    if len(parts) < sites:
        raise DataError(f"Expected at least {sites} clients in {path}, got {len(parts)}.")
    parts = parts[:sites]
    small = [one.name for one in parts if len(one.train) < _LEAST_TRAINING]
    if small:
        raise DataError(
            f"Expected at least {_LEAST_TRAINING} normal training records per client, got fewer "
            f"in {', '.join(small[:5])}; ask for fewer sites."
        )
    if not all(one.test_label.any() for one in parts):
        raise DataError(
            "Expected anomalies in every client to rate detectors with, got some without; name "
            "the label with --label and the normal value with --normal-label."
        )
    note = whole.note
    if schema is None:
        note += " Bounds were taken from the file: good for a demo, a leak in a real run."
    return replace(whole, sites=tuple(parts), note=note)


def _load_schema(path: Path) -> Schema:
    from pydantic import TypeAdapter, ValidationError

    try:
        table = parse_toml(path.read_text(encoding="utf-8"), str(path)).get("data")
        return TypeAdapter(Data).validate_python(table)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Expected a TOML file with a table [data], got: {error}.") from None
    except ValidationError as error:
        raise invalid(f"{path}, table [data]", error) from None


def _schema_of_values(path: Path, **where: Unpack[Fields]) -> Schema:
    rows = np.asarray(read_raw(path, **where).records, dtype=np.float64)
    if not len(rows) or not np.isfinite(rows).all():
        raise DataError(f"Expected finite records in {path}, got none or NaN; clean the file.")
    low, high = float(rows.min()), float(rows.max())
    shape = rows.shape[1:]
    if len(shape) == 2:
        shape = (1, *shape)  # grey images
    scale = 2.0 / (high - low) if high > low else 1.0
    return Schema(
        name=_plain(path.name.split(".")[0]) or "file",
        shape=shape,
        unit="",
        scale=scale,
        center="none",
        lower=low * scale,
        upper=high * scale if high > low else low * scale + 1.0,
    )


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
