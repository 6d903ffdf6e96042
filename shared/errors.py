"""The one error tree: every failure that a person must act on, with its exit code.

    FedlatentError              error          1
    ├── ConfigError             config         2   a file or an argument is not what it must be
    ├── DataError               data           3   records do not fit their schema
    │   └── RecordsRefused      data           3   ... or fit, and are most likely not what it means
    ├── ProtocolError  *        protocol       4   a message of another machine is malformed
    │   └── SignatureError  *   signature      4   ... or does not prove whose it is
    ├── PolicyRefusal  *        policy         5   the node's own rules forbid it
    ├── BudgetExceeded  *       budget         6   the privacy budget does not reach
    ├── ReleaseRefused          release        7   it may not leave the node
    ├── BundleError             bundle         8   a bundle is damaged, untrusted or unfit
    │   ├── UpgradeNeeded       needs-upgrade  8   ... or newer than this program
    │   └── UpdateRefused       update        11   the device keeps what it runs
    ├── ServiceError            service        9   a process, port or peer failed
    │   └── LedgerError         ledger        12   the privacy ledger is damaged or lost
    ├── QuorumLost              quorum        10   too few nodes answered
    └── StorageError            storage       13   a file cannot be read or written

The columns are the class, its stable ``code`` (on the wire, in logs, in JSON output), and its
``exit_code`` on the command line; the sentences of a starred class may travel to a server. A
message is one sentence for people: what was expected, what came, what to do. It never holds values
of private records. Programs never read the sentence: they look at the class, at ``field`` (what is
to blame) and at ``reason`` (why).
"""

import errno
import sys
from collections.abc import Callable
from typing import Any, ClassVar, Self


class FedlatentError(Exception):
    """Base of all errors raised by this project for bad input or refused operations.

    Attributes:
        code: stable short name of the kind of error.
        exit_code: process exit status that the command line uses for it.
        travels: whether the sentence holds public facts only and may be sent to a server.
        field: what is to blame, such as "training.rounds" of a run file; None where no one thing
            is.
        reason: stable short name of why, such as "missing"; None where the class says all.

    Examples:
        >>> try:
        ...     fl.read("patients.csv", client="ward")
        ... except fl.FedlatentError as error:
        ...     print(error.code, error.field)
        data ward
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    travels: ClassVar[bool] = False

    def __init__(
        self, sentence: str = "", *, field: str | None = None, reason: str | None = None
    ) -> None:
        """Say ``sentence`` ("Expected X, got Y; what to do")."""
        super().__init__(sentence)
        self.field = field
        self.reason = reason

    @property
    def details(self) -> dict[str, object]:
        """What the sentence is about, by name, for scripts: field and reason, or None each."""
        return {"field": self.field, "reason": self.reason}

    @property
    def facts(self) -> dict[str, object]:
        """The whole error as JSON values: code, message and details."""
        return {"code": self.code, "message": str(self), **self.details}


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


class RecordsRefused(DataError):
    """The check of records found what is most likely a mistake, and nobody accepted it.

    Attributes:
        check: all that the check found, as JSON-ready values; none of it is a record's value.
    """

    def __init__(
        self, sentence: str, *, field: str | None, reason: str, check: dict[str, Any]
    ) -> None:
        """Say ``sentence`` ("Expected X, got Y; what to do")."""
        super().__init__(sentence, field=field, reason=reason)
        self.check = check

    @property
    def details(self) -> dict[str, object]:
        """Field, reason and check."""
        return {**super().details, "check": self.check}


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
    reason: str

    def __init__(self, reason: str, sentence: str) -> None:
        """Say ``sentence`` ("Expected X, got Y; what to do") under the name ``reason``."""
        super().__init__(sentence, reason=reason)


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
        """Field, reason, event and entry."""
        return {**super().details, "event": self.event, "entry": self.entry}


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

        Returns:
            The error, with that name as its field and the system's name of the error, such as
            "ENOSPC", as its reason.
        """
        found, remedy = _REMEDIES.get(
            error.errno or 0, (error.strerror or type(error).__name__, "see to that, then repeat")
        )
        name = what or error.filename
        sentence = f"Expected {name or 'a file'} to be usable, got {found}; {remedy}."
        if name is None and error.errno not in _REMEDIES:  # such as a connection, or a short write
            sentence = f"Expected the system to do its part, got {error}; mend it, then repeat."
        return cls(sentence, field=name and str(name), reason=errno.errorcode.get(error.errno or 0))


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
    reason: str

    def __init__(self, reason: str, sentence: str) -> None:
        """Say ``sentence`` ("Expected X, got Y; what to do") under the name ``reason``."""
        super().__init__(f"Refused ({reason}): {sentence}", reason=reason)
