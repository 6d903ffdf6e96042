"""What the homes of a node and of a server have in common."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from fedlatent.shared.sockets import home_path, make_home


@dataclass(frozen=True)
class Home(ABC):
    """Paths below one home directory; only what says so touches the disk.

    Attributes:
        root: Absolute path of the home directory (mode 0700).
        variable: Name of the environment variable that names the home.
        usual: The home where nothing names one.
        below: Names of the fixed folders right below the home.
    """

    root: Path

    variable: ClassVar[str]
    usual: ClassVar[str]
    below: ClassVar[tuple[str, ...]] = ("keys", "bundles", "services")

    @classmethod
    def find(cls, path: Path | str | None = None) -> Self:
        """Resolve the home: ``path``, else the value of ``variable``, else ``usual``.

        Raises:
            ConfigError: The account has no home, as one without a name often has none.
        """
        if path is None:
            path = os.environ.get(cls.variable) or cls.usual
        return cls(home_path(path))

    @classmethod
    def made(cls, path: Path | str | None = None) -> Self:
        """The same home, in which something was made before.

        Raises:
            ConfigError: Nothing was; nothing is made now.
        """
        home = cls.find(path)
        home.require()
        return home

    @abstractmethod
    def require(self) -> None:
        """See that something was made here; nothing is read or written.

        Raises:
            ConfigError: Nothing was.
        """

    def create(self) -> None:
        """Make the home and its fixed folders, readable by the owner alone.

        Raises:
            ServiceError: The home is there and belongs to someone else.
        """
        make_home(self.root, [self.root / name for name in self.below])

    @property
    def keys(self) -> Path:
        """Folder of this side's own private keys."""
        return self.root / "keys"

    @property
    def signing_key(self) -> Path:
        """Ed25519 private key that signs the bundles made here (mode 0600)."""
        return self.keys / "signing.pem"

    @property
    def bundles(self) -> Path:
        """Folder of the bundles made here."""
        return self.root / "bundles"

    @property
    def services(self) -> Path:
        """Folder of the supervised processes: logs, pid files, working directories."""
        return self.root / "services"
