"""Read NPZ archives of plain arrays."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.asked import Asked, Found, check_keys
from fedlatent.shared.errors import DataError


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


def find_in_archive(path: Path, asked: Asked) -> Found:
    """Records and other arrays of an NPZ archive."""
    if any(isinstance(one, str) for one in asked.columns or ()):
        raise DataError(
            f"Expected no columns for the NPZ file {path.name}, got {len(asked.columns or ())}; "
            "use records_key."
        )
    arrays = read_npz(path, [asked.records_key, *asked.others])
    if arrays[asked.records_key].ndim < 2:
        raise DataError(
            f"Expected records [N, ...] under {asked.records_key!r} in {path.name}, got shape "
            f"{list(arrays[asked.records_key].shape)}; name another array."
        )
    return arrays[asked.records_key], [arrays[key] for key in asked.others]
