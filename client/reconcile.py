"""Whether a node's ledger is the one that paid for what left it, and for what it keeps.

Release journal, log, outbox and the local state of rounds are written after the ledger, so a
ledger may know more than they do: that is a crash between the two. One of them that knows more than
the ledger means that an older copy of the ledger was put back, or none is there: what was charged
since would be forgotten, a repeated request would get other bytes for nothing, and a round could
go on from a state that nothing pays for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedlatent.client.home import ClientHome
from fedlatent.client.journal import SHORT, logged_releases, read_journal
from fedlatent.client.ledger import Payment, Verified
from fedlatent.client.ledger_file import COUNTED, REMEDY
from fedlatent.shared.errors import LedgerError


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A release that must be in the ledger.

    Attributes:
        source: where it is written.
        entry: number of the entry that paid for it; None where that is not written.
        run_id: its run; None where that is not written.
        sha256: of the bytes that left, or its first digits; None where they may never have left.
    """

    source: str
    entry: int | None
    run_id: str | None
    sha256: str | None


def claims(home: ClientHome) -> list[Claim]:
    """Every release that journal, outbox, local state and log tell of, oldest line first.

    Raises:
        OSError: a file cannot be read.
    """
    found = (_journal_claims(home.release_journal), _outbox_claims(home.outbox))
    return [*found[0], *found[1], *_store_claims(home.store), *_log_claims(home.release_log)]


def traces(home: ClientHome, found: list[Claim]) -> str | None:
    """Where a home tells of a release, so that no new ledger may begin there; None if nowhere.

    Args:
        home: the home.
        found: what ``claims`` gave.

    Raises:
        OSError: a file cannot be read.
    """
    if found:
        return f"a release that {found[0].source} tells of"
    if torn := read_journal(home.release_journal).torn:
        return f"{torn} damaged lines of {home.release_journal}"
    kept = next(home.root.glob(f"{home.ledger.name}.kept-*"), None)
    return None if kept is None else f"a former one, {kept}"


def reconcile(ledger: Path, verified: Verified, found: list[Claim]) -> None:
    """Refuse a ledger that does not hold, as released, everything that left.

    Args:
        ledger: its file, for the error.
        verified: what it holds, read after ``found``.
        found: what ``claims`` gave.

    Raises:
        LedgerError: naming the first release that is missing and what to do.
    """
    payments = verified.payments.values()
    left = {payment.sha256 for payment in payments if payment.state == "released"}
    begun = {digest[:SHORT] for digest in left if digest is not None}
    runs = {payment.run_id for payment in payments}
    # What was counted when the ledger was made again stands for what is not known otherwise.
    counted = sum(payment.reason == COUNTED for payment in payments)
    for claim in found:
        if claim.entry is not None:
            known = claim.sha256 in left
            problem = None if known else _problem(claim, verified.payments.get(claim.entry))
            what = f"entry {claim.entry} of run {claim.run_id!r}"
        elif claim.sha256 in begun or claim.run_id in runs:
            continue
        else:
            counted -= 1
            problem = "none" if counted < 0 else None
            what = "an entry" if claim.run_id is None else f"an entry of run {claim.run_id!r}"
        if problem is not None:
            raise LedgerError(
                f"Expected the ledger {ledger} to hold {what}, which {claim.source} tells of, got "
                f"{problem}: an older copy of the ledger was put back. {REMEDY}",
                entry=claim.entry,
            )


def _problem(claim: Claim, payment: Payment | None) -> str | None:
    if payment is None:
        return "none of that number"
    if payment.run_id != claim.run_id:
        return f"one of run {payment.run_id!r}"
    if claim.sha256 is None:
        return None
    if payment.state != "released":
        return f"one that is {payment.state}, not released"
    return None if payment.sha256 == claim.sha256 else "one that paid for other bytes"


def _journal_claims(journal: Path) -> Iterator[Claim]:
    for number, sent in read_journal(journal).rows:
        if sent.entry is not None:
            source = f"line {number} of {journal}"
            yield Claim(source=source, entry=sent.entry, run_id=sent.run, sha256=sent.sha256)


def _outbox_claims(outbox: Path) -> Iterator[Claim]:
    # A payload is stored before its entry is marked; a crash between the two is no loss.
    for number, path in numbered(outbox.glob("*/*.bin")):
        yield Claim(source=str(path), entry=number, run_id=path.parent.name, sha256=None)


def _store_claims(store: Path) -> Iterator[Claim]:
    # What an attempt left is drawn, too, and later rounds go on from it once its entry is released.
    for number, path in numbered(store.glob("*/round-*.safetensors")):
        yield Claim(source=str(path), entry=number, run_id=path.parent.name, sha256=None)
    for path in sorted(store.glob("*/site.safetensors")):
        yield Claim(source=str(path), entry=None, run_id=path.parent.name, sha256=None)


def _log_claims(log: Path) -> Iterator[Claim]:
    for digest in logged_releases(log):
        source = f"the line of {digest} in {log}"
        yield Claim(source=source, entry=None, run_id=None, sha256=digest)


def numbered(paths: Iterable[Path]) -> Iterator[tuple[int, Path]]:
    """Files whose name ends in the number of an entry, with it, in the order of their names."""
    for path in sorted(paths):
        number = path.stem.rsplit("-", 1)[-1]
        if number.isdecimal() and len(number) < 19:  # SQLite's largest
            yield int(number), path
