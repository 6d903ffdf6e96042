"""The message contract: what a round asks of a node, and what a node may answer; versioned.

A message is a header (validated JSON) and named float arrays. A reply is packed once, by the
release door, which stores and logs the bytes. They travel unopened, beside a ``Delivery`` with
their signature, over the node's local socket and in Flower's records
(``fedlatent.shared.records``); the server unpacks them. Nothing here ever reaches pickle.
"""

import re
import struct
from collections.abc import Collection, Mapping, Set
from typing import Annotated, Literal, Protocol, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig, invalid
from fedlatent.shared.errors import ConfigError, ProtocolError
from fedlatent.shared.privacy.summaries import Form
from fedlatent.shared.schedule import Kind

PROTOCOL = 7
#: The last version that changed what a request or a reply means: those since added how it is sent.
MEANING = 3
#: Versions of the replies in a node's own store that are read.
STORED_PROTOCOLS = range(MEANING, PROTOCOL + 1)
MAX_HEADER_BYTES = 256 * 1024  # of a request: a table has a description of every column
MAX_REPLY_HEADER_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024 * 1024
MAX_COUNT = 2**53  # whole numbers up to here are exact in a float

#: What a run may be called; it names a folder on both sides.
RUN_ID_PATTERN = r"^[a-z0-9][a-z0-9-]{0,80}$"

#: Fields of a request that say how it was sent, not what it asks for.
SENDING = frozenset({"receiver", "expires", "certificate", "signature"})

_LENGTH = struct.Struct("<II")
#: Fields that a reply's header had in protocol 4, empty in what a node kept.
_MOVED = ("request", "signature")


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    protocol: int
    run_id: Annotated[str, Field(pattern=RUN_ID_PATTERN)]
    round: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    kind: Kind


#: Base64 of a signature, and of a certificate in DER.
SignatureText = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]*$", max_length=256)]
CertificateText = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]*$", max_length=4096)]


class RequestHeader(_Header):
    """What the server asks of a node; the fields of the signature are empty in simulations."""

    config: RunConfig
    form: Form = "full"  # of moments
    deadline_s: Annotated[float, Field(gt=0)]
    receiver: Annotated[str, Field(max_length=64)] = ""  # the one site that is asked
    expires: Annotated[float, Field(ge=0)] = 0.0  # seconds since 1970
    certificate: CertificateText = ""  # of the key that signed, from the federation's authority
    signature: SignatureText = ""  # see fedlatent.shared.signing


class ReplyHeader(_Header):
    """What a node answers: released arrays, or a refusal with an authored sentence.

    Every number is public: a function of the run configuration, of the public number of records
    and of the noise parameters. Losses and scores of private records have no field here.
    """

    site: Annotated[str, Field(min_length=1, max_length=64)]
    status: Literal["ok", "refused"]
    code: Annotated[str, Field(max_length=32)] = ""
    text: Annotated[str, Field(max_length=500)] = ""
    records: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    epsilon: Annotated[float, Field(ge=0)] | None = None  # spent on the data set so far
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    noise_multiplier: Annotated[float, Field(ge=0)] = 0.0
    sample_rate: Annotated[float, Field(ge=0, le=1)] = 1.0
    steps: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    rng: Literal["secure", "simulation"] = "secure"  # of the worst release in epsilon

    @classmethod
    def to(cls, asked: "Asked | None", site: str, **stated: object) -> Self:
        """The header of a site's answer.

        Args:
            asked: what is answered; None where it could not be read.
            site: name of the site.
            stated: the fields that an answer states besides.
        """
        run_id, round, kind = (
            (asked.run_id, asked.round, asked.kind) if asked else ("unknown", 1, "train")
        )
        place = {"protocol": PROTOCOL, "run_id": run_id, "round": round, "kind": kind}
        return cls.model_validate({**place, "site": site, **stated})

    @model_validator(mode="before")
    @classmethod
    def _of_protocol_4(cls, value: object) -> object:
        """Take what a node kept before the signature moved into the delivery."""
        if isinstance(value, dict) and value.get("protocol") == 4:
            return {key: one for key, one in value.items() if key not in _MOVED or one != ""}
        return value


class Asked(Protocol):
    """Names what a reply answers: a request's header, or the ledger's entry that pays for it."""

    @property
    def run_id(self) -> str:
        """Name of the run that asks or has paid."""

    @property
    def round(self) -> int:
        """The phase of the run, from 1."""

    @property
    def kind(self) -> Kind:
        """Kind of the phase, which says what was asked."""


class Delivery(BaseModel):
    """What travels beside the bytes of a reply; the fields are empty in simulations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: int = PROTOCOL
    request: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""  # name of what is answered
    signature: SignatureText = ""  # of the node's own key; see fedlatent.shared.signing


#: As in simulations, and of what was asked by nobody.
UNSIGNED = Delivery()

HeaderT = TypeVar("HeaderT", RequestHeader, ReplyHeader, Delivery)


def check_run_id(run_id: str) -> str:
    """Return ``run_id`` when a run may be called so.

    Raises:
        ConfigError: it holds anything but lower-case letters, digits and dashes, or is too long.
    """
    if not re.fullmatch(RUN_ID_PATTERN, run_id) or run_id.endswith("\n"):
        raise ConfigError(
            f"Expected a run name of lower-case letters, digits and dashes, got {run_id[:90]!r}."
        )
    return run_id


def parse_header(
    kind: type[HeaderT], text: str | bytes, versions: Collection[int] = (PROTOCOL,)
) -> HeaderT:
    """Validate the JSON text of a header of one of the protocol ``versions``.

    Raises:
        ProtocolError: not JSON, an unknown key, a value out of range, or another protocol version.
    """
    if len(text) > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"Expected a header of at most {MAX_HEADER_BYTES} bytes, got {len(text)}."
        )
    version = _VersionOnly.read(text)
    if version not in versions:
        raise ProtocolError(
            f"Expected protocol version {PROTOCOL}, got {version}; "
            "update the older side so that both run the same fedlatent release."
        )
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise invalid(f"Expected a valid {kind.__name__}", error, ProtocolError) from None


class _VersionOnly(BaseModel):
    """The one field every version of the protocol has."""

    model_config = ConfigDict(extra="ignore")

    protocol: int

    @classmethod
    def read(cls, text: str | bytes) -> int:
        try:
            return cls.model_validate_json(text).protocol
        except ValidationError as error:
            raise invalid("Expected a message header", error, ProtocolError) from None


def pack(
    header: RequestHeader | ReplyHeader,
    arrays: Mapping[str, np.ndarray],
    without: Set[str] = frozenset(),
) -> bytes:
    """Encode a message: two lengths, the header's JSON, the arrays as safetensors.

    Fields ``without`` are left out of the header.
    """
    text = header.model_dump_json(exclude=set(without)).encode()
    body = save_arrays({key: np.ascontiguousarray(value) for key, value in arrays.items()})
    return _joined(text, body)


def unpack(
    kind: type[HeaderT], data: bytes, versions: Collection[int] = (PROTOCOL,)
) -> tuple[HeaderT, Arrays]:
    """Decode what ``pack`` wrote, in one of the protocol ``versions``.

    Raises:
        ProtocolError: the bytes are not one whole message of that kind.
    """
    text, body = split(data)
    header = parse_header(kind, text, versions)
    try:
        arrays = load_arrays(body)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ProtocolError(f"Expected safetensors arrays, got: {error}.") from None
    return header, arrays


def deliver(payload: bytes, delivery: Delivery = UNSIGNED) -> bytes:
    """A packed reply and its delivery as one frame for the node's socket; ``split`` reads it."""
    return _joined(delivery.model_dump_json().encode(), payload)


def split(data: bytes) -> tuple[bytes, bytes]:
    """The header's text and the rest of what ``pack`` or ``deliver`` wrote, neither looked at.

    Raises:
        ProtocolError: the bytes are not one whole message.
    """
    if not _LENGTH.size <= len(data) <= MAX_MESSAGE_BYTES:
        raise ProtocolError(f"Expected a packed message, got {len(data)} bytes.")
    header_length, body_length = _LENGTH.unpack_from(data)
    if _LENGTH.size + header_length + body_length != len(data):
        raise ProtocolError("Expected a whole packed message, got a truncated or padded one.")
    end = _LENGTH.size + header_length
    return data[_LENGTH.size : end], data[end:]


def _joined(text: bytes, body: bytes) -> bytes:
    return _LENGTH.pack(len(text), len(body)) + text + body
