"""What one reply may weigh: the driver writes it for each phase, the gateway holds sites to it."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from fedlatent.server.home import ServerHome
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import read_json, write_json
from fedlatent.shared.wire import MAX_REPLY_HEADER_BYTES

_NUMBER = 8  # bytes of the widest number that a reply may hold
_HEAD = 4 * 1024  # bytes of names and shapes beside the numbers of one array
_CHUNK = 5 * 1024 * 1024  # Flower cuts the bytes of an array into objects of so many
_BASE_OBJECTS = 8  # message, records, and room for one more


@dataclass(frozen=True, kw_only=True)
class ReplyQuota:
    """Upper bounds of one honest reply to the phase under way.

    Attributes:
        bytes: Of all its objects together.
        objects: Flower's objects: the message, its records, arrays and pieces of arrays.
    """

    bytes: int
    objects: int

    @classmethod
    def of(cls, shapes: Iterable[tuple[int, ...]]) -> "ReplyQuota":
        """The bounds of a reply that brings arrays of these shapes."""
        sizes = [math.prod(shape) * _NUMBER for shape in shapes]
        return cls(
            bytes=sum(sizes) + _HEAD * (len(sizes) + 1) + MAX_REPLY_HEADER_BYTES,
            objects=_BASE_OBJECTS + sum(1 + max(1, math.ceil(s / _CHUNK)) for s in sizes),
        )


def save_quota(home: ServerHome, flower_run: int, quota: ReplyQuota) -> None:
    """Write the bounds of the phase that Flower's run ``flower_run`` is in."""
    write_json(home.quota(flower_run), asdict(quota), 0o600)


def load_quota(home: ServerHome, flower_run: int) -> ReplyQuota | None:
    """Read the bounds; None when that run has asked for nothing yet, or is none of ours."""
    try:
        value = read_json(home.quota(flower_run))
        return ReplyQuota(**value) if isinstance(value, dict) else None
    except (DataError, TypeError):
        return None
