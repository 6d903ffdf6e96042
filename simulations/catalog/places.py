"""Where a file of a data set may come from: a folder, a web address, the pages of its origin."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.shared.files import telling

#: Told a sentence and the share, 0 to 1, that is done.
Tell = Callable[[str, float], None]

_TIMEOUT_S = 30.0
_PIECE = 1 << 16
_ADVICE = "name a copy at hand with --from FOLDER"


class Place(Protocol):
    """Something that has files by name."""

    @property
    def words(self) -> str:
        """What it is, for a sentence."""
        ...

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, such as "train/machine-1-6.txt"; None where it has none."""
        ...


@dataclass(frozen=True)
class Folder:
    """Files in a folder, or anywhere below it, such as in a clone of a repository.

    Attributes:
        path: Of the folder.
    """

    path: Path

    @property
    def words(self) -> str:
        """Its path."""
        return str(self.path)

    @cached_property
    def _below(self) -> tuple[str, ...]:
        return tuple(sorted(one.as_posix() for one in self.path.rglob("*") if one.is_file()))

    def find(self, name: str) -> Path | None:
        """The file of that path in the folder, else the first one below that ends in it."""
        direct = self.path / name
        below = (Path(one) for one in self._below if one.endswith(f"/{name}"))
        return direct if direct.is_file() else next(below, None)

    def read(self, name: str) -> bytes | None:
        """The bytes of the file that `find` gives.

        Raises:
            StorageError: It cannot be read.
        """
        chosen = self.find(name)
        with telling():
            return None if chosen is None else chosen.read_bytes()


@dataclass(frozen=True, kw_only=True)
class Web:
    """Files at web addresses.

    Attributes:
        words: What it is, for a sentence.
        base: Address of the folder that has files by name; empty for none but `addresses`.
        addresses: Address of a file by its name, before `base`.
        tell: Told about the progress.
    """

    words: str
    base: str = ""
    addresses: Mapping[str, str]
    tell: Tell

    def read(self, name: str) -> bytes | None:
        """Download a file; None where the server says that it has none.

        Raises:
            ServiceError: No connection, or another answer of the server.
        """
        address = self.addresses.get(name) or (self.base and f"{self.base.rstrip('/')}/{name}")
        return download(address, self.tell) if address else None


def place_of(text: str, tell: Tell) -> "Folder | Web":
    """A place by its name: a web address or the path of a folder.

    Raises:
        ConfigError: It is neither.
    """
    if text.startswith(("https://", "http://")):
        return Web(words=text, base=text, addresses={}, tell=tell)
    path = Path(text)
    if not path.is_dir():
        raise ConfigError(
            f"Expected --from to be a folder or an address that begins with https://, got "
            f"{text!r}, which is no folder; correct it."
        )
    return Folder(path)


def download(address: str, tell: Tell) -> bytes | None:
    """The bytes at a web address; None where there is no such page.

    Raises:
        ServiceError: No connection, or another answer of the server.
    """
    from urllib.error import HTTPError
    from urllib.request import urlopen

    name = address.rpartition("/")[2]
    try:
        with urlopen(address, timeout=_TIMEOUT_S) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            pieces: list[bytes] = []
            done = 0
            while piece := answer.read(_PIECE):
                pieces.append(piece)
                done += len(piece)
                tell(f"{name}: {done / 1e6:.1f} MB", done / size if size else 0.0)
    except HTTPError as error:
        if error.code in (404, 410):
            return None
        raise ServiceError(
            f"Expected the file at {address}, got the answer {error.code} {error.reason}; "
            f"{_ADVICE}."
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ServiceError(
            f"Expected the file at {address}, got no connection ({reason}); {_ADVICE}."
        ) from None
    if size and done != size:
        raise ServiceError(
            f"Expected {size} bytes at {address}, got {done}; repeat the command, or {_ADVICE}."
        )
    tell(f"{name}: {done / 1e6:.1f} MB", 1.0)
    return b"".join(pieces)
