"""What is looked at on a machine before a run is blamed: parts that servers and nodes share."""

import os
import platform
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from fedlatent.shared.errors import FedlatentError, StorageError
from fedlatent.shared.keys import check_private
from fedlatent.shared.plugins import GROUPS, all_problems
from fedlatent.shared.sockets import check_folder

Health = Literal["well", "warning", "ill"]

_LEAST_BYTES, _FEW_BYTES = 200 << 20, 2 << 30  # free on the disk of a home
_EARLIEST = 1_767_225_600  # 2026-01-01: a clock before it is not set
#: Packages whose versions the two sides of a federation are to agree on.
PACKAGES = ("fedlatent", "flwr", "torch", "opacus", "numpy", "onnx", "onnxruntime", "cryptography")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        health: "ill" where nothing can work so.
        text: what was found and, unless all is well, what to do.
    """

    name: str
    health: Health
    text: str


def tried(name: str, work: Callable[[], str]) -> Finding:
    """A finding of work that says what is well, or raises an error that says what is ill."""
    try:
        return Finding(name=name, health="well", text=work())
    except FedlatentError as error:
        return Finding(name=name, health="ill", text=str(error))
    except OSError as error:
        return Finding(name=name, health="ill", text=str(StorageError.of(error)))


def machine(home: Path, keys: Iterable[Path]) -> Iterator[Finding]:
    """Clock, versions, disk and permissions, the same for both sides.

    Args:
        home: folder of the server or node.
        keys: its private files.
    """
    yield _clock()
    yield _versions()
    yield _plugins()
    yield _disk(home)
    yield tried("home", lambda: _own(home))
    yield tried("keys", lambda: _private(keys))


def _own(home: Path) -> str:
    check_folder(home)
    return f"{home} is this user's alone to write"


def _clock() -> Finding:
    told = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if time.time() < _EARLIEST:
        text = f"the clock says {told}, which is long ago; set it, certificates depend on it"
        return Finding(name="clock", health="ill", text=text)
    return Finding(name="clock", health="well", text=f"the clock says {told}")


def _versions() -> Finding:
    """Versions that count, and those that this package does not allow."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    unfit = [
        f"{one.name} {one.specifier}"
        for one in _wanted()
        if one.name in found and not one.specifier.contains(found[one.name], prereleases=True)
    ]
    told = ", ".join(f"{name} {one}" for name, one in found.items())
    told = f"Python {platform.python_version()}, {told}"
    if unfit:
        text = f"{told}; expected {', '.join(unfit)}: install fedlatent again with its constraints"
        return Finding(name="versions", health="ill", text=text)
    return Finding(name="versions", health="well", text=told)


def _plugins() -> Finding:
    """What other packages add, and what of it cannot be used."""
    names = [
        f"{one.name} ({group})"
        for group in GROUPS
        for one in entry_points(group=f"fedlatent.{group}")
    ]
    if not names:
        return Finding(name="plugins", health="well", text="none are installed")
    from fedlatent.shared.data.readers import READERS
    from fedlatent.shared.models import FAMILIES
    from fedlatent.shared.summaries import SUMMARIES

    for table in (READERS, FAMILIES, SUMMARIES):
        table.problems()
    if problems := all_problems():
        return Finding(name="plugins", health="ill", text=" ".join(problems))
    return Finding(name="plugins", health="well", text=", ".join(names))


def _wanted() -> list[Requirement]:
    """What the installed package demands of others."""
    try:
        return [Requirement(text) for text in requires("fedlatent") or ()]
    except PackageNotFoundError:
        return []


def _disk(home: Path) -> Finding:
    free = shutil.disk_usage(home).free
    told = f"{free / 1e9:.1f} GB free at {home}"
    if free < _LEAST_BYTES:
        return Finding(name="disk", health="ill", text=f"{told}; make room, nothing can be stored")
    if free < _FEW_BYTES:
        return Finding(name="disk", health="warning", text=f"{told}; make room for logs and runs")
    return Finding(name="disk", health="well", text=told)


def _private(keys: Iterable[Path]) -> str:
    count = 0
    for path in keys:
        check_private(path)
        count += 1
    return f"{count} private files have mode 0600"


def sqlite_whole(path: Path) -> str:
    """See that a SQLite file that is there is whole.

    Raises:
        StorageError: It is damaged or cannot be read.
    """
    if not path.exists():
        return f"{path.name} is not there yet"
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            (told,) = connection.execute("PRAGMA quick_check").fetchone()
        connection.close()
    except sqlite3.Error as error:
        told = type(error).__name__
    if told != "ok":
        raise StorageError(
            f"Expected a whole SQLite file at {path}, got {told}; put its copy back, or see "
            "'when something breaks' in the guide."
        )
    return f"{path.name} is whole"


def proxies(environment: Iterable[str] = os.environ) -> str:
    """Which variables of the environment name a proxy."""
    named = sorted(one for one in environment if one.lower() in _PROXIES)
    return f"the environment has {', '.join(named)}" if named else "the environment names no proxy"


_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
