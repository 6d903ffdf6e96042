"""The single door: everything that leaves a node passes here, is checked, paid for and logged.

``Outgoing`` is the only type the node sends, and only the door can make one. The door writes the
reply header itself, from the ledger's entry, so no caller can add a number to it. Releases are
total: numbers that are not finite are clamped, so that no answer is refused for what was drawn.
"""

import datetime
import logging
import math
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedlatent.client.journal import Sent
from fedlatent.client.ledger import Ledger, Reservation
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.errors import FedlatentError, ProtocolError, ReleaseRefused, StorageError
from fedlatent.shared.files import append_line, check_room, sha256_hex, write_atomic
from fedlatent.shared.models.base import ENCODER_PREFIX
from fedlatent.shared.privacy.summaries import SummarySpec
from fedlatent.shared.schedule import Kind
from fedlatent.shared.summaries import SUMMARIES
from fedlatent.shared.wire import STORED_PROTOCOLS, ReplyHeader, RequestHeader, pack, unpack

#: Names and shapes of arrays.
Shapes = Mapping[str, tuple[int, ...]]

#: Payloads of training rounds kept for repeated requests, newest rounds first.
KEEP_ROUNDS = 4

STORAGE_SENTENCE = (
    "Expected this site to have room and permission to write, got neither or one; ask its operator "
    "to see the node's log, then resume the run."
)
INTERNAL_SENTENCE = "The node could not do this; its operator finds the reason in the node's log."

_MAX_TEXT = 500
_ROOM = 1 << 20  # bytes for the ledger, the logs and whatever surrounds an answer
_KEY = object()
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outgoing:
    """Bytes that may leave the node; made by ``ReleaseDoor`` alone.

    Attributes:
        payload: the packed reply, exactly as stored.
        header: what the payload's header says.
    """

    payload: bytes
    header: ReplyHeader
    key: InitVar[object]

    def __post_init__(self, key: object) -> None:
        """Refuse a maker other than the door."""
        if key is not _KEY:
            raise ReleaseRefused(
                "Expected the release door to make what leaves, got another caller; "
                "use a method of ReleaseDoor."
            )


class ReleaseDoor:
    """Checks, stores, pays for and logs what leaves.

    The order makes a crash harmless: the payload is stored, the ledger marks it released, the log
    lines are written, and only then the caller gets the bytes. A crash before the mark leaves a
    reserved entry of which nothing left; a crash after it leaves a stored payload that a repeated
    request gets again, with its own log line.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        outbox: Path,
        log: Path,
        journal: Path,
        site: str,
        records: int,
        allow_full: bool = False,
    ) -> None:
        """Tie the door to one ledger.

        Args:
            ledger: where the releases are paid for.
            outbox: folder of stored payloads.
            log: text file, one line for people per release.
            journal: the same as JSON lines.
            site: the node's public name.
            records: public number of records.
            allow_full: whether the node's policy lets a whole model leave.
        """
        self._ledger = ledger
        self._outbox = outbox
        self._log = log
        self._journal = journal
        self._site = site
        self._records = records
        self._allow_full = allow_full

    def check_room(self, nbytes: int) -> None:
        """See that a release can be written before it is charged.

        Args:
            nbytes: of the answer, and of whatever else the node keeps of it.

        Raises:
            OSError: no room, no permission or a read-only disk.
        """
        check_room(self._outbox, nbytes + _ROOM)

    def encoder(self, reservation: Reservation, arrays: Arrays, expected: Shapes) -> Outgoing:
        """Release encoder weights.

        Args:
            reservation: the paid entry.
            arrays: float32 weights by state-dict name.
            expected: name and shape of each trained encoder parameter, and of nothing else.

        Raises:
            ReleaseRefused: a name, shape or type differs, a name is not the encoder's, or the
                entry does not pay for it. Nothing was written.
        """
        foreign = sorted(key for key in expected if not key.startswith(ENCODER_PREFIX))
        if foreign:
            raise ReleaseRefused(
                f"Expected names under {ENCODER_PREFIX!r} alone, got {foreign[:3]}; "
                "what is not the encoder stays here."
            )
        return self._release(reservation, "train", arrays, expected, np.float32)

    def whole_model(self, reservation: Reservation, arrays: Arrays, expected: Shapes) -> Outgoing:
        """Release all weights, for runs that share whole models; arguments as for ``encoder``.

        Raises:
            ReleaseRefused: the node's policy keeps the decoder, or a check fails as in ``encoder``.
        """
        if not self._allow_full:
            raise ReleaseRefused(
                "Expected encoder weights, got a whole model; this node's policy keeps the decoder."
            )
        return self._release(reservation, "train", arrays, expected, np.float32)

    def summary(self, reservation: Reservation, array: np.ndarray, spec: SummarySpec) -> Outgoing:
        """Release a noisy summary of the entry's kind, float64 of the shape that ``spec`` states.

        Raises:
            ReleaseRefused: as for ``encoder``, or the entry pays for training.
        """
        summary = SUMMARIES.get(reservation.kind)
        if summary is None or spec.key not in summary.keys:
            raise ReleaseRefused(
                f"Expected a reserved ledger entry that pays for {spec.key}, got one for "
                f"{reservation.kind}; nothing left."
            )
        arrays, expected = {spec.key: array}, {spec.key: spec.shape}
        return self._release(reservation, reservation.kind, arrays, expected, np.float64)

    def replay(self, entry: Reservation) -> Outgoing:
        """Send again what already left for the same request; costs nothing.

        Raises:
            ProtocolError: the payload is no longer kept.
            ReleaseRefused: the stored bytes are not those that left.
        """
        payload = self.stored(entry)
        header, _ = unpack(ReplyHeader, payload, STORED_PROTOCOLS)
        # The bytes stay as they left; the lines tell what has been spent by now.
        self._write_lines(header.model_copy(update=self._spent()), payload, entry, "sent again")
        return Outgoing(payload, header, key=_KEY)

    def stored(self, entry: Reservation) -> bytes:
        """The bytes that left for a released entry; errors as for ``replay``."""
        try:
            payload = self._path(entry).read_bytes()
        except FileNotFoundError:
            raise ProtocolError(
                f"Expected a request whose answer is still kept, got {entry.kind} of round "
                f"{entry.round}; go on with a later round."
            ) from None
        if sha256_hex(payload) != entry.sha256:
            raise ReleaseRefused(
                f"Expected the stored answer {self._path(entry).name} as it left, got other "
                "bytes; put that file back, or start a new run."
            )
        return payload

    def refusal(self, request: RequestHeader | None, error: Exception) -> Outgoing:
        """A reply that says no: an authored sentence, or a fixed one for everything else.

        Args:
            request: what was asked, or None when it could not be read.
            error: why not. Only the text of errors that are made to travel leaves.
        """
        code, text = "internal", INTERNAL_SENTENCE
        if isinstance(error, OSError):
            error = StorageError.of(error)
        if isinstance(error, StorageError):
            code, text = error.code, STORAGE_SENTENCE
            _LOG.error("%s", error)
        elif isinstance(error, FedlatentError):
            if error.travels:
                code, text = error.code, _one_line(str(error))
            else:
                _LOG.error("%s", error)
        else:
            _LOG.error("request failed inside the node", exc_info=error)
        header = ReplyHeader.to(request, self._site, status="refused", code=code, text=text)
        payload = pack(header, {})
        try:
            self._write_lines(header, payload, None, f"refused: {text}")
        except OSError as problem:  # nothing of the records leaves with a refusal
            _LOG.error("%s", StorageError.of(problem))
        return Outgoing(payload, header, key=_KEY)

    def _release(
        self,
        reservation: Reservation,
        kind: Kind,
        arrays: Arrays,
        expected: Shapes,
        dtype: type[np.floating],
    ) -> Outgoing:
        _check_arrays(arrays, expected, dtype)
        leaving = {key: clamped(arrays[key]) for key in sorted(arrays)}
        changed = sum(int((~np.isfinite(array)).sum()) for array in arrays.values())
        entry = self._ledger.entry(reservation.id)
        if entry is None or entry != reservation or entry.state != "reserved" or entry.kind != kind:
            raise ReleaseRefused(
                f"Expected a reserved ledger entry for {kind}, got none that matches; "
                "reserve before the computation."
            )
        header = self._header(entry)
        payload = pack(header, leaving)
        write_atomic(self._path(entry), payload, 0o600)
        self._ledger.released(entry.id, sha256_hex(payload), len(payload))
        what = f"released {len(arrays)} arrays"
        if changed:
            what += f", {changed} numbers clamped"
            _LOG.warning("%s of round %d diverged: %s", entry.kind, entry.round, what)
        self._write_lines(header, payload, entry, what)
        self._prune(entry)
        return Outgoing(payload, header, key=_KEY)

    def _spent(self) -> dict[str, Any]:
        """What a header says of the data set so far."""
        spent = self._ledger.epsilon()
        private = math.isfinite(spent)
        return {
            "epsilon": spent if private else None,
            "delta": self._ledger.delta if private else None,
            "rng": self._ledger.rng(),
        }

    def _header(self, entry: Reservation) -> ReplyHeader:
        return ReplyHeader.to(
            entry,
            self._site,
            status="ok",
            records=self._records,
            noise_multiplier=entry.noise_multiplier,
            sample_rate=entry.sample_rate,
            steps=entry.steps,
            **self._spent(),
        )

    def _path(self, entry: Reservation) -> Path:
        return self._outbox / entry.run_id / f"{entry.kind}-{entry.round:06d}-{entry.id}.bin"

    def _prune(self, entry: Reservation) -> None:
        """Drop old training payloads of the same run; summaries are small and stay."""
        rounds = sorted(self._path(entry).parent.glob("train-*.bin"))
        numbers = sorted({path.name.split("-")[1] for path in rounds})
        for path in rounds:
            if path.name.split("-")[1] in numbers[:-KEEP_ROUNDS]:
                path.unlink(missing_ok=True)

    def _write_lines(
        self, header: ReplyHeader, payload: bytes, entry: Reservation | None, what: str
    ) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        digest = sha256_hex(payload)
        private = header.epsilon is not None
        spent = (
            f"epsilon {header.epsilon:.4f} at delta {header.delta:g}"
            if private
            else "no finite epsilon"
        )
        line = (
            f"{now} {header.run_id} round {header.round} {header.kind}: {what}, "
            f"{len(payload)} bytes, sha256 {digest}"
            + (f", {spent} ({header.rng} random numbers)" if entry else "")
        )
        record = Sent(
            time=now,
            site=header.site,
            run=header.run_id,
            round=header.round,
            kind=header.kind,
            status=header.status,
            what=what,
            code=header.code,
            records=header.records,
            bytes=len(payload),
            sha256=digest,
            entry=entry.id if entry else None,
            epsilon=header.epsilon,
            delta=header.delta,
            noise_multiplier=header.noise_multiplier,
            sample_rate=header.sample_rate,
            steps=header.steps,
            rng=header.rng,
            receipt=self._ledger.receipt(entry) if entry else None,
        )
        append_line(self._log, line)
        append_line(self._journal, record.model_dump_json())


def clamped(array: np.ndarray) -> np.ndarray:
    """``array`` with finite numbers alone: NaN becomes 0, infinity the largest of its type.

    That looks at the noisy result alone, so it costs no privacy.
    """
    return np.asarray(np.nan_to_num(array))


def _one_line(text: str) -> str:
    """Printable text alone: a server chooses names in it, and people read it on a terminal."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean[:_MAX_TEXT]


def _check_arrays(
    arrays: Arrays,
    expected: Shapes,
    dtype: type[np.floating],
) -> None:
    """Raise ReleaseRefused unless ``arrays`` is exactly what ``expected`` says."""
    if arrays.keys() != expected.keys():
        surplus = sorted(arrays.keys() - expected.keys())
        missing = sorted(expected.keys() - arrays.keys())
        raise ReleaseRefused(
            f"Expected exactly {len(expected)} named arrays, got surplus {surplus[:3]} and "
            f"missing {missing[:3]}; nothing left."
        )
    for key, array in arrays.items():
        if type(array) is not np.ndarray or array.dtype != dtype or array.shape != expected[key]:
            raise ReleaseRefused(
                f"Expected {key} as {np.dtype(dtype)} of shape {expected[key]}, got another type "
                "or shape; nothing left."
            )
