"""Builds the browser page: a folder that any static server can show, online or not.

The page holds our modules, one pinned build of ONNX Runtime Web, verified bundles, the public
keys that it trusts, and streams of records to show. Records on a page are public to whoever can
open it, so only records that may be published belong in a stream.
"""

import base64
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedlatent.shared.bundle.archive import Bundle, read_bundle
from fedlatent.shared.data.table import read_table
from fedlatent.shared.errors import BundleError, ConfigError, DataError, ServiceError
from fedlatent.shared.files import ending_of, sha256_hex, write_atomic, write_json
from fedlatent.shared.keys import VerifyKey
from fedlatent.shared.quiet import cache_folder

PAGE_FORMAT = 1
PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
#: Of the published tarball, as the package registry states it.
INTEGRITY = (
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8p"
    "ZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
MAX_STREAM_RECORDS = 500

_OWN = Path(__file__).resolve().parent
_OWN_SUFFIXES = frozenset({".html", ".css", ".js"})
_STREAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_. -]{0,63}")
_NPM_TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class _Vendored:
    """One file of the package. Older servers do not know .mjs, so all scripts are named .js."""

    source: str
    target: str
    sha256: str


_VENDORED = (
    _Vendored(
        source="dist/ort.wasm.min.mjs",
        target="ort.js",
        sha256="219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    ),
    _Vendored(
        source="dist/ort-wasm-simd-threaded.mjs",
        target="ort-wasm.js",
        sha256="e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    ),
    _Vendored(
        source="dist/ort-wasm-simd-threaded.wasm",
        target="ort-wasm.wasm",
        sha256="3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
)
_NOTICES = ("LICENSE", "ThirdPartyNotices.txt")
_LICENSE = f"""ONNX Runtime Web {VERSION} (npm package {PACKAGE}), three files, two of them renamed:
{", ".join(f"{one.source} as {one.target}" for one in _VENDORED)}.
Its own dependencies are listed in
https://github.com/microsoft/onnxruntime/blob/v{VERSION}/ThirdPartyNotices.txt

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True, kw_only=True)
class PageReport:
    """What was built.

    Attributes:
        folder: of the page.
        files: length in bytes by path within the folder.
        bundles: names that the page shows them under.
        streams: number of records by name.
        sites: those of ``bundles`` that are site bundles and must stay within their site.
    """

    folder: Path
    files: Mapping[str, int]
    bundles: tuple[str, ...]
    streams: Mapping[str, int]
    sites: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all files of the page together."""
        return sum(self.files.values())


def build_page(
    folder: Path,
    bundles: Sequence[Path],
    keys: Sequence[VerifyKey],
    streams: Mapping[str, Path] | None = None,
    *,
    package: Path | None = None,
    within_site: bool = False,
    records: int = MAX_STREAM_RECORDS,
) -> PageReport:
    """Write the page into a new or empty folder.

    Args:
        folder: target; serve it as it is.
        bundles: files to show, each verified first; at least one.
        keys: that the page trusts.
        streams: raw records to show by name: .csv, .csv.gz, .npy, or .npz with the array ``X``.
            They become public with the page.
        package: tarball or unpacked folder of the pinned ONNX Runtime Web; None takes it from the
            user's cache or fetches it with npm.
        within_site: also place bundles that hold a site's decoder; the page must then stay there.
        records: at most so many of each stream.

    Raises:
        ConfigError: the folder holds something, or a bundle may not be placed there.
        BundleError: a bundle is damaged or untrusted.
        DataError: a stream cannot be read or fits no bundle.
        ServiceError: npm is absent or offline, or the package is another.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"Expected no folder or an empty one at {folder}, got another; choose a new one."
        )
    read = _read_bundles(bundles, keys, within_site)
    sizes = {bundle.manifest.schema.raw_size for bundle, _ in read.values()}
    arrays = {
        name: read_stream(name, path, sizes, records) for name, path in (streams or {}).items()
    }
    vendored = _vendored_files(fetch_package() if package is None else package)
    for source in sorted(_OWN.iterdir()):
        if source.suffix in _OWN_SUFFIXES:
            write_atomic(folder / source.name, source.read_bytes())
    for name, data in vendored.items():
        write_atomic(folder / "vendor" / name, data)
    for name, (_, data) in read.items():
        write_atomic(folder / "bundles" / name, data)
    entries = [_write_stream(folder, name, array) for name, array in arrays.items()]
    _write_index(folder, tuple(read), keys, entries)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return PageReport(
        folder=folder,
        files={str(path.relative_to(folder)): path.stat().st_size for path in paths},
        bundles=tuple(read),
        streams={name: len(array) for name, array in arrays.items()},
        sites=tuple(name for name, (one, _) in read.items() if one.manifest.kind == "site"),
    )


def _read_bundles(
    paths: Sequence[Path], keys: Sequence[VerifyKey], within_site: bool
) -> dict[str, tuple[Bundle, bytes]]:
    """Verified bundles with their bytes, by file name."""
    if not paths:
        raise ConfigError("Expected at least one bundle for the page, got none; name one.")
    read: dict[str, tuple[Bundle, bytes]] = {}
    for path in paths:
        if path.name in read or not _STREAM_NAME.fullmatch(path.name):
            raise ConfigError(
                f"Expected bundles with plain file names that differ, got {path.name[:40]!r} "
                "again or with other characters; rename it."
            )
        bundle = read_bundle(path, keys)
        if bundle.manifest.kind == "site" and not within_site:
            raise ConfigError(
                f"Expected bundles that may leave their site, got the site bundle {path.name}; "
                "leave it out, or say that the page stays within the site."
            )
        data = path.read_bytes()
        if sha256_hex(data) != bundle.digest:
            raise BundleError(
                f"Expected {path.name} to stay as it was verified, got other bytes; build again."
            )
        read[path.name] = (bundle, data)
    return read


def read_stream(name: str, path: Path, sizes: set[int], most: int) -> np.ndarray:
    """Raw records of a file.

    Args:
        name: shown on the page.
        path: .csv, .csv.gz, .npy, or .npz with the array ``X``.
        sizes: permitted numbers of values in a record.
        most: records that are kept, the first ones.

    Returns:
        float64 [n, size], 1 <= n <= ``most``.

    Raises:
        DataError: the name or the file is another.
    """
    if not _STREAM_NAME.fullmatch(name):
        raise DataError(
            f"Expected a stream name of letters, digits, space, '.', '_' and '-', got "
            f"{name[:40]!r}; rename it."
        )
    try:
        tabular = ending_of(path, [".csv", ".csv.gz"])
        array = read_table(path)[0] if tabular else _read_array(path)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise DataError(
            f"Expected numbers in .csv, .csv.gz, .npy or .npz (array X) at {path}, got "
            f"{type(error).__name__}; check the path and the file."
        ) from None
    if array.dtype.kind not in "iuf" or array.ndim < 2 or not len(array):
        raise DataError(f"Expected numeric records, one a row, in {path}, got others.")
    flat = array[:most].reshape(min(len(array), most), -1).astype(np.float64)
    if flat.shape[1] not in sizes:
        wanted = " or ".join(str(size) for size in sorted(sizes))
        raise DataError(
            f"Expected records of {wanted} values in {path}, as the bundles take, got "
            f"{flat.shape[1]}; choose other records or another bundle."
        )
    if not np.isfinite(flat).all():
        raise DataError(f"Expected finite values in {path}, got NaN or infinity; remove them.")
    return flat


def _read_array(path: Path) -> np.ndarray:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        array: np.ndarray = loaded["X"]
    return array


def _write_stream(folder: Path, name: str, array: np.ndarray) -> dict[str, object]:
    """Write one stream and return its entry; float32 where that loses nothing."""
    narrow = array.astype("<f4")
    exact = np.array_equal(narrow.astype(np.float64), array)
    path = f"streams/{name.replace(' ', '-')}.bin"
    write_atomic(folder / path, (narrow if exact else array.astype("<f8")).tobytes())
    return {
        "name": name,
        "file": path,
        "dtype": "float32" if exact else "float64",
        "records": len(array),
        "size": array.shape[1],
    }


def _write_index(
    folder: Path,
    bundles: Sequence[str],
    keys: Sequence[VerifyKey],
    streams: Sequence[Mapping[str, object]],
) -> None:
    value = {
        "format": PAGE_FORMAT,
        "bundles": [{"name": name, "file": f"bundles/{name}"} for name in bundles],
        "keys": [{"id": key.key_id, "pem": key.to_pem().decode("ascii")} for key in keys],
        "streams": [dict(entry) for entry in streams],
    }
    write_json(folder / "page.json", value)


def cached_package() -> Path:
    """Where the pinned tarball is kept between builds."""
    tag = hashlib.sha256(INTEGRITY.encode()).hexdigest()[:16]
    return cache_folder() / f"{PACKAGE}-{VERSION}-{tag}.tgz"


def fetch_package() -> Path:
    """The pinned tarball: from the user's cache, else fetched with npm and kept there.

    Raises:
        ServiceError: npm is absent, offline, or gave another package.
    """
    kept = cached_package()
    if kept.is_file() and _integrity(kept.read_bytes()) == INTEGRITY:
        return kept
    npm = shutil.which("npm")
    if npm is None:
        raise ServiceError(
            f"Expected npm to fetch {PACKAGE} {VERSION}, got none on this machine; install it, or "
            "fetch the package elsewhere and name its file."
        )
    with tempfile.TemporaryDirectory(prefix="fedlatent-page-") as folder:
        data = _npm_pack(npm, Path(folder))
    if _integrity(data) != INTEGRITY:
        raise _other_package(f"what npm fetched for {PACKAGE} {VERSION}")
    write_atomic(kept, data)
    return kept


def _npm_pack(npm: str, folder: Path) -> bytes:
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--silent"]
    try:
        result = subprocess.run(
            [*command, "--pack-destination", str(folder)],
            cwd=folder,
            capture_output=True,
            timeout=_NPM_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        result = None
    files = list(folder.glob("*.tgz"))
    if result is None or result.returncode != 0 or len(files) != 1:
        raise ServiceError(
            f"Expected npm to fetch {PACKAGE} {VERSION}, got no package; go online once, or fetch "
            "it on another machine with 'npm pack' and name its file."
        )
    return files[0].read_bytes()


def _integrity(data: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode("ascii")


def _other_package(where: str) -> ServiceError:
    return ServiceError(
        f"Expected {PACKAGE} {VERSION} with its pinned digests in {where}, got another; get that "
        "very version from the npm registry."
    )


def _vendored_files(package: Path) -> dict[str, bytes]:
    """The needed files of a tarball or an unpacked folder, checked against their pinned digests."""
    read = _folder_reader(package) if package.is_dir() else _tarball_reader(package)
    files: dict[str, bytes] = {}
    for one in _VENDORED:
        data = read(one.source)
        if data is None or sha256_hex(data) != one.sha256:
            raise _other_package(str(package))
        files[one.target] = data
    found = {name: data for name in _NOTICES if (data := read(name)) is not None}
    return files | {"LICENSE.txt": _LICENSE.encode()} | found


def _folder_reader(folder: Path) -> Callable[[str], bytes | None]:
    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.is_file() else None

    return read


def _tarball_reader(path: Path) -> Callable[[str], bytes | None]:
    """Reads single members into memory; nothing of the archive is ever written as it names it."""
    try:
        if _integrity(path.read_bytes()) != INTEGRITY:
            raise _other_package(str(path))
    except OSError as error:
        raise ConfigError(
            f"Expected a package file or folder at {path}, got {type(error).__name__}; "
            "check the path."
        ) from None

    def read(name: str) -> bytes | None:
        with tarfile.open(path, "r:gz") as archive:
            try:
                member = archive.extractfile(f"package/{name}")
            except KeyError:
                return None
            return None if member is None else member.read()

    return read
