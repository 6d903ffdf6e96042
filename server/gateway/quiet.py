"""A log that an attacker cannot fill: few equal lines a minute, then how many there were."""

import logging
import time
from dataclasses import dataclass, field

_LINES = 5
_WINDOW_S = 60.0
_KINDS = 4096  # remembered at once


@dataclass
class _Seen:
    since: float
    lines: int = 0
    dropped: int = 0


@dataclass
class Quiet(logging.Filter):
    """Lets through the first lines of one kind from one sender in each minute.

    Lines are of one kind when their format and first value are the same: who, and what about.
    """

    lines: int = _LINES
    window_s: float = _WINDOW_S
    _seen: dict[tuple[object, object], _Seen] = field(default_factory=dict)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written; it then says how many like it were not."""
        first = record.args[0] if isinstance(record.args, tuple) and record.args else None
        kind, now = (record.msg, str(first)), time.monotonic()
        seen = self._seen.get(kind)
        if seen is None or now - seen.since >= self.window_s:
            dropped = 0 if seen is None else seen.dropped
            self._seen.pop(kind, None)
            self._seen[kind] = seen = _Seen(now)
            if len(self._seen) > _KINDS:
                del self._seen[next(iter(self._seen))]
            if dropped:
                record.msg = f"{record.getMessage()} (and {dropped} such lines before)"
                record.args = ()
        seen.lines += 1
        seen.dropped += seen.lines > self.lines
        return seen.lines <= self.lines
