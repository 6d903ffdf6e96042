"""Whether a node's ledger is the one that paid for what left it, and for what it keeps.

The release journal, the outbox and the local state of rounds are written after the ledger, so a
ledger may know more than they do: that is a crash between the two. One of them that knows more than
the ledger means that an older copy of the ledger was put back, or none is there: what was charged
since would be forgotten, a repeated request would get other bytes for nothing, and a round could
go on from a state that nothing pays for.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.ledger import Payment, Verified
from shared.errors import LedgerError

_REMEDY = (
    "Put back the newest ledger.db, from a time after that release; without it these records must "
    "take no part in any run."
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A release that must be in the ledger.

    Attributes:
        source: where it is written.
        entry: number of the entry that paid for it.
        run_id: its run.
        sha256: of the bytes that left; None where they may never have left.
    """

    source: str
    entry: int
    run_id: str
    sha256: str | None


def claims(journal: Path, outbox: Path, store: Path) -> list[Claim]:
    """Every release that journal, outbox and local state tell of, oldest line first."""
    return [*_journal_claims(journal), *_outbox_claims(outbox), *_store_claims(store)]


def read_journal(journal: Path) -> list[Mapping[str, Any]]:
    """The lines of the release journal; empty objects for those that a crash cut short."""
    if not journal.exists():
        return []
    # Not splitlines, which also ends a line inside of a text.
    return [_object(line) for line in journal.read_text("utf-8", "replace").split("\n")]


def expect_ledger(ledger: Path, found: list[Claim]) -> None:
    """Refuse a home that has released something and has no ledger.

    Raises:
        LedgerError: naming the file, the first release and what to do.
    """
    if found and not ledger.exists():
        raise LedgerError(
            f"Expected the privacy ledger {ledger} beside {len(found)} releases that "
            f"{found[0].source} and others tell of, got none. {_REMEDY}"
        )


def reconcile(ledger: Path, verified: Verified, found: list[Claim]) -> None:
    """Refuse a ledger that does not hold, as released, everything that left.

    Args:
        ledger: its file, for the error.
        verified: what it holds, read after ``found``.
        found: what ``claims`` gave.

    Raises:
        LedgerError: naming the first release that is missing and what to do.
    """
    for claim in found:
        payment = verified.payments.get(claim.entry)
        problem = _problem(claim, payment)
        if problem is not None:
            raise LedgerError(
                f"Expected the ledger {ledger} to hold entry {claim.entry} of run "
                f"{claim.run_id!r}, which {claim.source} tells of, got {problem}: an older copy "
                f"of the ledger was put back. {_REMEDY}",
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
    for number, facts in enumerate(read_journal(journal), 1):
        entry = facts.get("entry")
        if isinstance(entry, int):
            yield Claim(
                source=f"line {number} of {journal}",
                entry=entry,
                run_id=str(facts.get("run")),
                sha256=str(facts.get("sha256")),
            )


def _outbox_claims(outbox: Path) -> Iterator[Claim]:
    for path in sorted(outbox.glob("*/*.bin")):
        # A payload is stored before its entry is marked; a crash between the two is no loss.
        number = path.stem.rsplit("-", 1)[-1]
        if number.isdecimal():
            yield Claim(source=str(path), entry=int(number), run_id=path.parent.name, sha256=None)


def _store_claims(store: Path) -> Iterator[Claim]:
    # What an attempt left is drawn, too, and later rounds go on from it once its entry is released.
    for path in sorted(store.glob("*/round-*.safetensors")):
        number = path.stem.rsplit("-", 1)[-1]
        if number.isdecimal():
            yield Claim(source=str(path), entry=int(number), run_id=path.parent.name, sha256=None)


def _object(line: str) -> Mapping[str, Any]:
    """The object of one line; nothing of one that a crash cut short."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
