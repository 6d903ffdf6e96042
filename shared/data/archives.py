"""Read arrays of numpy: NPZ archives, and NPY files of one array."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.asked import Asked, Found, check_keys
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import ending_of

#: Endings of the files of arrays.
ARRAYS = (".npz", ".npy")


def read_npz(path: Path | str, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read named arrays of an NPZ archive, without pickled objects.

    Raises:
        DataError: If the file is absent, is no such archive, or lacks a key.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"Expected a data file at {path}, got none; check the path.")
    try:
        # Opened here since numpy leaves its own stream open when the archive is damaged.
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            with archive:
                check_keys(path.name, "array", keys, archive.files)
                return {key: archive[key] for key in keys}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"Expected a readable NPZ archive of plain arrays at {path}, got a "
            f"{type(error).__name__}; write the file again with numpy.savez."
        ) from error


def load_records(path: Path, records_key: str) -> NDArray[Any]:
    """The records [N, ...] of an archive or of a file of one array.

    Raises:
        DataError: it cannot be read, has no such array, or that is none of records.
    """
    if ending_of(path, [".npy"]):
        return checked_records(_read_npy(path), path.name)
    return checked_records(read_npz(path, [records_key])[records_key], path.name, records_key)


def checked_records(records: NDArray[Any], name: str, key: str | None = None) -> NDArray[Any]:
    """The same, where they may be records [N, ...].

    Args:
        records: To be looked at.
        name: What errors call the place they are from.
        key: Their name there; None where nothing else is there.

    Raises:
        DataError: They may not.
    """
    if records.ndim < 2:
        raise DataError(
            f"Expected records [N, ...] {'' if key is None else f'under {key!r} '}in "
            f"{name}, got shape {list(records.shape)}; "
            f"{'write one row per record' if key is None else 'name another array'}."
        )
    return records


def find_in_archive(path: Path, asked: Asked) -> Found:
    """Records and other arrays of an NPZ archive; an NPY file has records alone."""
    if any(isinstance(one, str) for one in asked.columns or ()):
        raise DataError(
            f"Expected no columns for {path.name}, an array, got {len(asked.columns or ())}; "
            "leave them out."
        )
    if asked.others and ending_of(path, [".npy"]):
        raise DataError(
            f"Expected no {asked.others[0]!r} for {path.name}, which is one array of records, got "
            "it; put both into an NPZ (numpy.savez).",
            field=asked.others[0],
            reason="column",
        )
    records = load_records(path, asked.records_key)
    sides = read_npz(path, asked.others) if asked.others else {}
    return Found(records, [sides[key] for key in asked.others])


def _read_npy(path: Path) -> NDArray[Any]:
    """One array of a file, without pickled objects."""
    try:
        with path.open("rb") as stream:
            found = np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"Expected a readable NPY file of one plain array at {path}, got a "
            f"{type(error).__name__}; write the file again with numpy.save."
        ) from error
    return np.asarray(found)
