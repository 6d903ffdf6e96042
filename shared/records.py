"""Wire messages inside Flower records: a request in two records, a reply as its packed bytes."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedlatent.shared.arrays import Arrays
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.wire import (
    STORED_PROTOCOLS,
    Delivery,
    ReplyHeader,
    RequestHeader,
    parse_header,
    split,
    unpack,
)

HEADER = "header"
ARRAYS = "arrays"
#: Name and type of the one array of a reply's record, which is no array but a packed reply. Flower
#: cuts an array's bytes into pieces; those of any other record it moves as one object.
REPLY = "reply"
PACKED = "fedlatent.reply"


class LocalRecords(RecordDict):
    """A reply that stays in its process: the two parts as they are, without serialisation.

    Flower makes plain ``RecordDict`` objects of whatever a network brings, so no remote party can
    send one.

    Attributes:
        header: of the reply.
        arrays: by name.
    """

    def __init__(self, header: ReplyHeader, arrays: Mapping[str, np.ndarray]) -> None:
        """Hold both parts."""
        super().__init__()
        self.header = header
        self.arrays = dict(arrays)


def header_record(header: RequestHeader) -> ConfigRecord:
    """The record that holds a header."""
    return ConfigRecord({"json": header.model_dump_json()})


def to_records(header: RequestHeader, arrays: Mapping[str, np.ndarray]) -> RecordDict:
    """Put a request into Flower records."""
    record = ArrayRecord({key: Array(np.asarray(value)) for key, value in arrays.items()})
    return RecordDict({HEADER: header_record(header), ARRAYS: record})


def from_records(content: RecordDict) -> tuple[RequestHeader, Arrays]:
    """Read a request out of Flower records.

    Raises:
        ProtocolError: a record is missing or surplus, of the wrong type, or holds bad bytes.
    """
    text, record = _parts(content)
    header = parse_header(RequestHeader, text)
    try:
        arrays = {key: value.numpy() for key, value in record.items()}
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise ProtocolError(f"Expected numpy arrays, got: {type(error).__name__}.") from None
    return header, arrays


def reply_records(frame: bytes) -> RecordDict:
    """Put a delivered reply into Flower records; its bytes are not looked at.

    Args:
        frame: delivery and packed reply, see ``fedlatent.shared.wire.deliver``.

    Raises:
        ProtocolError: it is no such frame.
    """
    text, payload = split(frame)
    array = Array(dtype="uint8", shape=(len(payload),), stype=PACKED, data=payload)
    header = ConfigRecord({"json": text.decode("utf-8", "replace")})
    return RecordDict({HEADER: header, ARRAYS: ArrayRecord({REPLY: array})})


def read_reply(content: RecordDict) -> tuple[Delivery, bytes]:
    """The delivery of a reply and the reply's own bytes, still packed.

    Raises:
        ProtocolError: a record is missing or surplus, or of the wrong type.
    """
    text, record = _parts(content)
    delivery = parse_header(Delivery, text)
    if list(record) != [REPLY] or record[REPLY].stype != PACKED:
        raise ProtocolError("Expected one packed reply, got other arrays.")
    return delivery, record[REPLY].data


def reply_of(content: RecordDict) -> tuple[ReplyHeader, Arrays]:
    """Header and arrays of a reply whose sender is trusted, as in simulations.

    Raises:
        ProtocolError: it is no reply.
    """
    if isinstance(content, LocalRecords):
        return content.header, content.arrays
    return unpack(ReplyHeader, read_reply(content)[1], STORED_PROTOCOLS)


def _parts(content: RecordDict) -> tuple[str, ArrayRecord]:
    """The text of the header and the record of arrays, which are all that a message holds."""
    if set(content) != {HEADER, ARRAYS}:
        raise ProtocolError(f"Expected records {[ARRAYS, HEADER]}, got {sorted(content)}.")
    header, record = content[HEADER], content[ARRAYS]
    if not isinstance(header, ConfigRecord) or not isinstance(record, ArrayRecord):
        raise ProtocolError("Expected a config record and an array record, got other types.")
    text = header.get("json")
    if not isinstance(text, str) or len(header) != 1:
        raise ProtocolError("Expected one JSON text in the header record, got something else.")
    return text, record
