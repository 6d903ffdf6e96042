"""Named arrays as npz bytes: no pickle, equal arrays give equal bytes."""

import io
import zipfile
from collections.abc import Mapping

import numpy as np

from fedlatent.shared.errors import BundleError

MAX_ARRAYS = 64


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Encode ``arrays`` as an uncompressed npz."""
    buffer = io.BytesIO()
    # numpy's typing takes **kwargs for its own option; names here are file entries
    np.savez(buffer, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})
    return buffer.getvalue()


def unpack_arrays(data: bytes, where: str) -> dict[str, np.ndarray]:
    """Decode what `pack_arrays` made: finite float arrays only.

    Raises:
        BundleError: ``data`` is no such npz, is compressed, or holds other types or NaN.
    """
    damaged = BundleError(
        f"Expected an npz of finite float arrays in {where}, got something else; "
        "export the bundle again."
    )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
        # stored entries cannot grow beyond the bytes that are here
        if len(infos) > MAX_ARRAYS or any(i.compress_type != zipfile.ZIP_STORED for i in infos):
            raise damaged
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError):
        raise damaged from None
    if not all(a.dtype.kind == "f" and np.isfinite(a).all() for a in arrays.values()):
        raise damaged
    return arrays
