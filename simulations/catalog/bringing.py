"""Bring a data set into the data folder, and say what a folder holds."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedlatent.shared.data.catalog import CATALOG, DataFile
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.files import sha256_hex, telling, write_atomic
from fedlatent.simulations.catalog.content import content_digest
from fedlatent.simulations.catalog.places import Folder, Place, Tell, Web
from fedlatent.simulations.catalog.preparation import PREPARATIONS

State = Literal["same file", "same content", "remade", "other content", "damaged", "absent"]

#: States in which a file may be used.
GOOD: tuple[State, ...] = ("same file", "same content", "remade")


@dataclass(frozen=True, kw_only=True)
class Held:
    """A file of the catalogue in a folder.

    Attributes:
        dataset: Name of its data set.
        file: What it should be.
        state: "same file" (the SHA-256 of the catalogue), "same content" in other bytes, "remade"
            from the originals with the difference that the catalogue tells, "other content",
            "damaged" or "absent".
    """

    dataset: str
    file: DataFile
    state: State


def known(names: Iterable[str]) -> list[str]:
    """The names, each once.

    Raises:
        ConfigError: One is not of the catalogue.
    """
    chosen = list(dict.fromkeys(names))
    wrong = next((name for name in chosen if name not in CATALOG), None)
    if wrong is not None:
        raise ConfigError(
            f"Expected a data set of {', '.join(CATALOG)}, got {wrong!r}; 'fedlatent data list' "
            "tells what each is."
        )
    return chosen


def check(folder: Path, names: Iterable[str]) -> list[Held]:
    """Compare the files of data sets in a folder with the catalogue.

    Raises:
        StorageError: A file cannot be read.
    """
    found = []
    for name in names:
        for file in CATALOG[name].files:
            path = folder / file.name
            with telling():
                data = path.read_bytes() if path.is_file() else None
            state: State = "absent" if data is None else state_of(file, data)
            found.append(Held(dataset=name, file=file, state=state))
    return found


def state_of(file: DataFile, data: bytes) -> State:
    """How bytes compare with a file of the catalogue."""
    if sha256_hex(data) == file.sha256:
        return "same file"
    try:
        digest = content_digest(file.name, data)
    except DataError:
        return "damaged"
    if digest not in file.contents:
        return "other content"
    return "same content" if digest == file.contents[0] else "remade"


def bring(name: str, folder: Path, place: Place | None, tell: Tell) -> list[Held]:
    """Bring a data set into a folder, verified; what is there and right is left alone.

    Args:
        name: Of the data set.
        folder: The data folder, made when absent.
        place: Has the prepared files or the originals; None downloads the originals from where
            they are published.
        tell: Told about the progress.

    Returns:
        The files, in the states that they have now.

    Raises:
        DataError: `place` has neither the files nor the originals, or other ones.
        ServiceError: No connection.
        StorageError: A file cannot be written.
    """
    held = check(folder, [name])
    if all(one.state in GOOD for one in held):
        return held
    origin = Web(words="its origin", addresses=PREPARATIONS[name].originals, tell=tell)
    source = place or origin
    files = prepared(name, source) or made(name, source, tell)
    for one in held:
        if state_of(one.file, files[one.file.name]) not in GOOD:
            raise DataError(
                f"Expected {one.file.name} of the catalogue's content in {source.words}, got "
                f"another; 'fedlatent data list' tells the origin of {name}.",
                field=one.file.name,
                reason="content",
            )
    with telling():
        for file, data in files.items():
            write_atomic(folder / file, data)
    return check(folder, [name])


def whole_in(place: Folder | Web) -> list[str]:
    """The data sets of which a folder has all prepared files.

    Raises:
        ConfigError: The place is a web address, which is not searched.
        DataError: The folder has none.
    """
    if isinstance(place, Web):
        raise ConfigError(
            f"Expected names of data sets for the web address {place.words}, got none; "
            "'fedlatent data list' tells the names."
        )
    found = [
        name
        for name, one in CATALOG.items()
        if all(place.find(file.name) is not None for file in one.files)
    ]
    if not found:
        raise DataError(
            f"Expected prepared files of the catalogue in {place.words}, got none; name a data set "
            "to have it made from its originals."
        )
    return found


def prepared(name: str, place: Place) -> dict[str, bytes] | None:
    """The prepared files of a data set at a place; None unless it has all."""
    found = {}
    for file in CATALOG[name].files:
        data = place.read(file.name)
        if data is None:
            return None
        found[file.name] = data
    return found


def made(name: str, place: Place, tell: Tell) -> dict[str, bytes]:
    """The files of a data set, made of the originals at a place.

    Raises:
        DataError: An original is not there, or is not what it must be.
    """
    preparation = PREPARATIONS[name]
    originals = {}
    for original in preparation.originals:
        data = place.read(original)
        if data is None:
            raise DataError(_lacking(name, place, original), field=original, reason="absent")
        originals[original] = data
    tell(f"{name}: made from the originals", 0.0)
    return _prepare(name, place, originals)


def _prepare(name: str, place: Place, originals: Mapping[str, bytes]) -> dict[str, bytes]:
    wrong = (ValueError, KeyError, IndexError, EOFError, OSError)
    try:
        return PREPARATIONS[name].make(originals)
    except (*wrong, zipfile.BadZipFile, zlib.error, tarfile.TarError) as error:
        raise DataError(
            f"Expected the originals of {name} in {place.words}, got other files "
            f"({type(error).__name__}: {error}); compare them with those of its origin, "
            f"{CATALOG[name].origin}.",
            reason="content",
        ) from error


def _lacking(name: str, place: Place, original: str) -> str:
    files = CATALOG[name].files
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    count = len(PREPARATIONS[name].originals)
    some = f"{original}, one of the {count} originals," if count > 1 else f"the original {original}"
    return (
        f"Expected {files[0].name}{more} or {some} in {place.words}, got neither; "
        f"{CATALOG[name].origin} has the originals."
    )
