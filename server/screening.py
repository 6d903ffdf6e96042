"""The check every reply passes before any aggregation; it never raises for bad remote data.

A reply comes as the bytes that the site's release door packed. They are weighed first, so that a
hostile reply cannot make the server allocate memory; then the signature is held against their hash;
then they are unpacked, once. A dropped reply becomes a failure with a code and a sentence, which
are counted and named in the registry.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from flwr.app import ConfigRecord, Error, RecordDict

from fedlatent.server.outcome import SiteStatus
from fedlatent.server.quota import ReplyQuota
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.files import sha256_hex
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import SummarySpec
from fedlatent.shared.records import HEADER, LocalRecords, read_reply
from fedlatent.shared.schedule import Phase
from fedlatent.shared.summaries import SUMMARIES
from fedlatent.shared.wire import (
    MAX_REPLY_HEADER_BYTES,
    PROTOCOL,
    STORED_PROTOCOLS,
    Delivery,
    ReplyHeader,
    unpack,
)

#: Gaussian noise stays within this many deviations but with probability 1e-23 for each entry.
_NOISE_REACH = 10.0
_SENTENCE_LIMIT = 500
_VERSIONS = 10**6
_BLOCK = 2**14
_FLOWER_ERRORS = {
    1: "the node could not load the client app; compare the software versions",
    2: "the client app raised an error; see the log of the node",
    3: "the message or its reply is no longer available; the node was too late",
    4: "the reply is no longer available; the node was too late",
    5: "the node is not connected; check that its service runs",
    6: "the node refused the message before its client app",
    7: "the node refused the app that it was sent; compare the software versions",
    8: "the client app process died; see the log of the node",
}


#: Says what is wrong with the signature of a reply of that SHA-256; None when it holds.
SignatureCheck = Callable[[Delivery, str], str | None]


class Opened(NamedTuple):
    """A reply that passed.

    Attributes:
        header: of the reply.
        arrays: by name.
        sha256: of the reply's bytes, as the site logged it; empty where it never was bytes.
    """

    header: ReplyHeader
    arrays: Arrays
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class ScreeningFailure:
    """Why a reply does not count.

    Attributes:
        status: "refused" when the node said no by itself, "failed" for everything else.
        code: stable short name of the reason.
        sentence: what was expected and what came; free of line breaks.
        sha256: of the reply's bytes, where there are any.
    """

    status: SiteStatus
    code: str
    sentence: str
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class ReplySpec:
    """What a reply to one message must be.

    Attributes:
        run_id: the run of the request.
        phase: the phase of the request.
        shapes: name and shape of every array of a good reply.
        plan: the privacy plan whose numbers a reply must repeat.
        max_records: cap on the weight one node may claim.
        reference: arrays that were sent, for the norm of the update; None for summaries.
        summary: what the summary is; None for training.
        max_update_norm: greatest L2 norm of (reply - reference).
    """

    run_id: str
    phase: Phase
    shapes: Mapping[str, tuple[int, ...]]
    plan: PrivacyPlan
    max_records: int
    reference: Mapping[str, np.ndarray] | None
    summary: SummarySpec | None
    max_update_norm: float

    @classmethod
    def of(
        cls,
        run_id: str,
        config: RunConfig,
        plan: PrivacyPlan,
        phase: Phase,
        asked: Mapping[str, np.ndarray] | SummarySpec,
    ) -> "ReplySpec":
        """The check for one phase: the weights that nodes were sent, or the summary asked for."""
        summary = asked if isinstance(asked, SummarySpec) else None
        sent = None if isinstance(asked, SummarySpec) else asked
        shapes = {summary.key: summary.shape} if summary else {}
        return cls(
            run_id=run_id,
            phase=phase,
            shapes=shapes if sent is None else {key: value.shape for key, value in sent.items()},
            plan=plan,
            max_records=config.federation.max_records,
            reference=sent,
            summary=summary,
            max_update_norm=config.federation.max_update_norm,
        )

    @property
    def noise_multiplier(self) -> float:
        """The noise multiplier that the plan sets for this phase."""
        return self.plan.multiplier(self.phase.kind)


def open_reply(
    content: RecordDict, spec: ReplySpec, check: SignatureCheck | None = None
) -> Opened | ScreeningFailure:
    """Screen one reply: its size, then the signature of its bytes, then what they hold."""
    if isinstance(content, LocalRecords):
        opened = Opened(content.header, content.arrays)
        return screen(opened.header, opened.arrays, spec) or opened
    version = _protocol_of(content)
    if version is None:
        return _failed("unreadable", "Expected a reply with a readable header, got none.")
    if version != PROTOCOL:
        return _failed(
            "protocol",
            f"the node speaks protocol {version}, this server {PROTOCOL}; "
            "update the older side so that both run the same fedlatent release",
        )
    try:
        delivery, payload = read_reply(content)
    except ProtocolError as error:
        return _failed("unreadable", str(error))
    most = ReplyQuota.of(spec.shapes.values()).bytes
    if len(payload) > most:
        return _failed("size", f"Expected a reply of at most {most} bytes, got {len(payload)}.")
    digest = sha256_hex(payload)
    reason = check(delivery, digest) if check else None
    if reason is not None and delivery.signature:
        return replace(_failed("signature", reason), sha256=digest)
    try:
        header, arrays = unpack(ReplyHeader, payload, STORED_PROTOCOLS)
    except ProtocolError as error:
        return replace(_failed("unreadable", str(error)), sha256=digest)
    problem = _screen_unsigned(header, reason) or screen(header, arrays, spec)
    return replace(problem, sha256=digest) if problem else Opened(header, arrays, digest)


def screen(
    header: ReplyHeader, arrays: Mapping[str, np.ndarray], spec: ReplySpec
) -> ScreeningFailure | None:
    """Check one decoded reply; None means that it may be aggregated."""
    return (
        _screen_refusal(header)
        or _screen_identity(header, spec)
        or _screen_numbers(header, spec)
        or _screen_shapes(arrays, spec)
        or _screen_values(header, arrays, spec)
    )


def screen_error(error: Error) -> ScreeningFailure:
    """Name a failure that Flower reports in place of a reply; its free text is not kept."""
    known = _FLOWER_ERRORS.get(error.code, "the node failed for a reason Flower does not name")
    return _failed(f"flower-{error.code}", known)


def _failed(code: str, sentence: str) -> ScreeningFailure:
    return ScreeningFailure(status="failed", code=code, sentence=_one_line(sentence))


def _one_line(text: str) -> str:
    """Printable text without line breaks, so that a node cannot forge log lines."""
    return "".join(c if c.isprintable() else " " for c in text[:_SENTENCE_LIMIT])


def _protocol_of(content: RecordDict) -> int | None:
    """The protocol version that a reply claims; None when it has none that can be read."""
    header = content.get(HEADER)
    text = header.get("json") if isinstance(header, ConfigRecord) else None
    if not isinstance(text, str) or len(text) > MAX_REPLY_HEADER_BYTES:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, deep nesting
        return None
    version = value.get("protocol") if isinstance(value, dict) else None
    return version if type(version) is int and abs(version) < _VERSIONS else None


def _screen_keys(arrays: Mapping[str, object], spec: ReplySpec) -> ScreeningFailure | None:
    if arrays.keys() == spec.shapes.keys():
        return None
    missing = sorted(spec.shapes.keys() - arrays.keys())
    surplus = sorted(arrays.keys() - spec.shapes.keys())
    return _failed(
        "keys",
        f"Expected exactly the {len(spec.shapes)} arrays asked for, "
        f"got {len(missing)} missing {missing[:3]} and {len(surplus)} unknown {surplus[:3]}.",
    )


def _screen_identity(header: ReplyHeader, spec: ReplySpec) -> ScreeningFailure | None:
    got = (header.run_id, header.round, header.kind)
    expected = (spec.run_id, spec.phase.number, spec.phase.kind)
    if got != expected:
        return _failed("round", f"Expected a reply to {expected}, got one to {got}.")
    return None


def _screen_unsigned(header: ReplyHeader, reason: str | None) -> ScreeningFailure | None:
    """A refusal without a signature can do no more than silence does; nothing else counts."""
    if reason is None:
        return None
    refusal = _screen_refusal(header)
    if refusal is None:
        return _failed("signature", reason)
    return replace(refusal, sentence=_one_line(f"(not signed) {refusal.sentence}"))


def _screen_refusal(header: ReplyHeader) -> ScreeningFailure | None:
    if header.status == "ok":
        return None
    return ScreeningFailure(
        status="refused",
        code=_one_line(header.code) or "refused",
        sentence=_one_line(header.text) or "the node refused without a reason",
    )


def _screen_numbers(header: ReplyHeader, spec: ReplySpec) -> ScreeningFailure | None:
    """The weight within its cap, and at least the noise that the plan sets."""
    if not 0 < header.records <= spec.max_records:
        return _failed(
            "records",
            f"Expected 1 to {spec.max_records} records as weight, got {header.records}.",
        )
    if header.noise_multiplier < spec.noise_multiplier - 1e-9:
        return _failed(
            "plan",
            f"Expected a noise multiplier of {spec.noise_multiplier}, "
            f"got {header.noise_multiplier}.",
        )
    if spec.plan.private and spec.plan.rng == "secure" and header.rng != "secure":
        return _failed(
            "plan",
            "Expected secure noise in all that the node's epsilon adds up, got seeded noise in it.",
        )
    return None


def _screen_shapes(arrays: Mapping[str, np.ndarray], spec: ReplySpec) -> ScreeningFailure | None:
    problem = _screen_keys(arrays, spec)
    if problem is not None:
        return problem
    for key, value in arrays.items():
        if value.shape != spec.shapes[key] or value.dtype not in (np.float32, np.float64):
            return _failed(
                "shape",
                f"Expected {key} as a float array of shape {spec.shapes[key]}, "
                f"got {value.dtype} {value.shape}.",
            )
        if not np.isfinite(value).all():
            return _failed("finite", f"Expected finite values in {key}, got NaN or infinity.")
    return None


def _screen_values(
    header: ReplyHeader, arrays: Mapping[str, np.ndarray], spec: ReplySpec
) -> ScreeningFailure | None:
    """Bound the influence of one reply: the norm of an update, the entries of a summary.

    A count that is public must be that of the header.
    """
    if spec.reference is not None:
        norm = update_norm(arrays, spec.reference)
        if not norm <= spec.max_update_norm:
            return _failed(
                "norm",
                f"Expected an update of norm {spec.max_update_norm:g} at most, got {norm:g}.",
            )
        return None
    if spec.summary is None:
        return None
    sensitivity, symmetric = spec.summary.sensitivity, spec.summary.symmetric
    # Each entry of the exact summary is at most the number of records.
    reach = _NOISE_REACH * sensitivity * spec.noise_multiplier
    bound = header.records + reach
    for key, value in arrays.items():
        count = spec.summary.count
        if count is not None and float(value[count]) != header.records:
            return _failed(
                "count",
                f"Expected the {header.records} records of the header as the count in {key}, "
                f"got {float(value[count]):g}.",
            )
        largest = float(np.abs(value).max())
        if largest > bound:
            return _failed(
                "range",
                f"Expected entries of {key} within {bound:g} for {header.records} records, "
                f"got {largest:g}.",
            )
        if symmetric and not np.allclose(value, value.swapaxes(-1, -2), atol=1e-6 * bound):
            return _failed("range", f"Expected a symmetric matrix {key}, got one that is not.")
        fault = SUMMARIES[spec.phase.kind].fault(value, header.records, reach)
        if fault is not None:
            return _failed("counts", fault)
    return None


def update_norm(arrays: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> float:
    """L2 norm of the difference of two sets of arrays with equal keys."""
    square = 0.0
    for key, value in reference.items():
        ours, theirs = value.reshape(-1), arrays[key].reshape(-1)
        for start in range(0, len(ours), _BLOCK):
            part = theirs[start : start + _BLOCK] - ours[start : start + _BLOCK]
            square += float(part @ part)
    return math.sqrt(square)
