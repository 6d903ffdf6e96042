"""The one error tree: every failure that a person must act on, with its exit code.

Each class carries a stable ``code`` (used on the wire, in logs and in JSON output) and an
``exit_code`` for the command line. Messages are one sentence: what was expected, what came,
what to do. They must never hold values of private records, since some of them travel.
"""

import errno
import sys
from collections.abc import Callable
from typing import ClassVar, Self


class FedlatentError(Exception):
    """Base of all errors raised by this project for bad input or refused operations.

    Attributes:
        code: stable short name of the kind of error.
        exit_code: process exit status that the command line uses for it.
        travels: whether the sentence holds public facts only and may be sent to a server.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    travels: ClassVar[bool] = False

    @property
    def details(self) -> dict[str, object]:
        """What the sentence is about, by name, for scripts; nothing by default."""
        return {}


def exit_code_of(work: Callable[[], object]) -> int:
    """Do the work of a process; an error of ours becomes a sentence on standard error.

    Returns:
        The exit status of the process: that of the error, or 0.
    """
    try:
        work()
    except FedlatentError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


class ConfigError(FedlatentError):
    """A run, node or policy file, or a command-line value, is not what it must be."""

    code = "config"
    exit_code = 2


class DataError(FedlatentError):
    """A data file or array does not fit its schema."""

    code = "data"
    exit_code = 3


class ProtocolError(FedlatentError):
    """A message from another machine is malformed, or speaks another protocol version."""

    code = "protocol"
    exit_code = 4
    travels = True


class SignatureError(ProtocolError):
    """A message does not prove whose it is, for whom, for when, or that it is unchanged.

    Attributes:
        reason: "unsigned", "certificate", "receiver", "expired" or "altered".
    """

    code = "signature"

    def __init__(self, reason: str, sentence: str) -> None:
        """Say ``sentence`` ("Expected X, got Y; what to do") under the name ``reason``."""
        super().__init__(sentence)
        self.reason = reason

    @property
    def details(self) -> dict[str, object]:
        """The reason."""
        return {"reason": self.reason}


class PolicyRefusal(FedlatentError):
    """A node's own policy does not allow what a run asks for."""

    code = "policy"
    exit_code = 5
    travels = True


class BudgetExceeded(FedlatentError):
    """A spend would pass the privacy budget of a data set."""

    code = "budget"
    exit_code = 6
    travels = True


class ReleaseRefused(FedlatentError):
    """Something that may not leave the node was handed to the release door."""

    code = "release"
    exit_code = 7


class BundleError(FedlatentError):
    """An edge bundle or an exported model is damaged, untrusted or unfit."""

    code = "bundle"
    exit_code = 8


class UpgradeNeeded(BundleError):
    """A bundle is for a newer program or a newer ONNX Runtime than the one here."""

    code = "needs-upgrade"


class ServiceError(FedlatentError):
    """A process, port, certificate or peer did not do what it must."""

    code = "service"
    exit_code = 9


class LedgerError(ServiceError):
    """The privacy ledger is not the one that paid for what left, or was changed by hand.

    Attributes:
        event: number of the chain's event at which it shows, or None.
        entry: number of the entry it is about, or None.
    """

    code = "ledger"
    exit_code = 12

    def __init__(
        self, sentence: str, *, event: int | None = None, entry: int | None = None
    ) -> None:
        """Say ``sentence`` ("Expected X, got Y; what to do")."""
        super().__init__(sentence)
        self.event = event
        self.entry = entry

    @property
    def details(self) -> dict[str, object]:
        """Event and entry."""
        return {"event": self.event, "entry": self.entry}


class StorageError(FedlatentError):
    """The operating system does not let a file be written or read."""

    code = "storage"
    exit_code = 13

    @classmethod
    def of(cls, error: OSError, what: str | None = None) -> Self:
        """Say which file an error of the operating system is about, and what to do.

        Args:
            error: of a file, not of a connection.
            what: what it is about; by default, the file that the error names.
        """
        found, remedy = _REMEDIES.get(
            error.errno or 0, (error.strerror or type(error).__name__, "see to that, then repeat")
        )
        name = what or error.filename
        if name is None and error.errno not in _REMEDIES:  # such as a connection, or a short write
            return cls(f"Expected the system to do its part, got {error}; mend it, then repeat.")
        return cls(f"Expected {name or 'a file'} to be usable, got {found}; {remedy}.")


_FULL = ("no room for it", "make room, or raise the limit of this account, then repeat")
_CLOSED = ("no permission", "give this account the right to it, then repeat")
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.EROFS: ("a read-only file system", "mount it for writing, then repeat"),
    errno.ENOENT: ("no such file or folder", "check the path, then repeat"),
    errno.ENOTDIR: ("a file where a folder must be", "check the path, then repeat"),
    errno.EISDIR: ("a folder", "name a file, then repeat"),
    errno.ENAMETOOLONG: ("a name that is too long", "choose a shorter one, then repeat"),
    errno.EIO: ("an error of the disk", "check the disk, then repeat"),
}
"""What the operating system found, and what a person does about it, by the error's number."""


class QuorumLost(FedlatentError):
    """Too few nodes answered in time for a round to count."""

    code = "quorum"
    exit_code = 10


class UpdateRefused(BundleError):
    """A device does not install what a release folder offers, and keeps what it runs.

    Attributes:
        reason: stable short name of why, such as "rollback" or "expired-metadata"; the sentence
            starts with it.
    """

    code = "update"
    exit_code = 11

    def __init__(self, reason: str, sentence: str) -> None:
        """Say ``sentence`` ("Expected X, got Y; what to do") under the name ``reason``."""
        super().__init__(f"Refused ({reason}): {sentence}")
        self.reason = reason
