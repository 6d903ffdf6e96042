"""Wire messages inside Flower records, both ways."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.wire import Arrays, HeaderT, ReplyHeader, RequestHeader, parse_header

HEADER = "header"
ARRAYS = "arrays"
METRICS = "metrics"


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


def header_record(header: RequestHeader | ReplyHeader) -> ConfigRecord:
    """The record that holds a header."""
    return ConfigRecord({"json": header.model_dump_json()})


def to_records(header: RequestHeader | ReplyHeader, arrays: Mapping[str, np.ndarray]) -> RecordDict:
    """Put a wire message into Flower records; a reply also names its weight for Flower's rules."""
    content = RecordDict(
        {
            HEADER: header_record(header),
            ARRAYS: ArrayRecord({key: Array(np.asarray(value)) for key, value in arrays.items()}),
        }
    )
    if isinstance(header, ReplyHeader):
        content[METRICS] = MetricRecord({"num-examples": header.records})
    return content


def from_records(kind: type[HeaderT], content: RecordDict) -> tuple[HeaderT, Arrays]:
    """Read a wire message out of Flower records.

    Raises:
        ProtocolError: a record is missing or surplus, of the wrong type, or holds bad bytes.
    """
    expected = {HEADER, ARRAYS} | ({METRICS} if kind is ReplyHeader else set())
    if set(content) != expected:
        raise ProtocolError(f"Expected records {sorted(expected)}, got {sorted(content)}.")
    header_record, array_record = content[HEADER], content[ARRAYS]
    if not isinstance(header_record, ConfigRecord) or not isinstance(array_record, ArrayRecord):
        raise ProtocolError("Expected a config record and an array record, got other types.")
    text = header_record.get("json")
    if not isinstance(text, str) or len(header_record) != 1:
        raise ProtocolError("Expected one JSON text in the header record, got something else.")
    header = parse_header(kind, text)
    if isinstance(header, ReplyHeader):
        metrics = content[METRICS]
        if not isinstance(metrics, MetricRecord) or dict(metrics) != {
            "num-examples": header.records
        }:
            raise ProtocolError("Expected the one metric num-examples, got others.")
    try:
        arrays = {key: value.numpy() for key, value in array_record.items()}
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise ProtocolError(f"Expected numpy arrays, got: {type(error).__name__}.") from None
    return header, arrays
