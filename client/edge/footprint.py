"""What this process costs the device: memory and start-up time, read from the kernel."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from fedlatent.shared.errors import ServiceError

_START_TIME_FIELD = 22  # of /proc/self/stat, counted from 1; see proc(5)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Figures of the running process.

    Attributes:
        peak_mb: largest resident memory so far, in MB (10^6 bytes).
        seconds: since the kernel started the process; resolution 0.01 s.
    """

    peak_mb: float
    seconds: float


def edge_footprint() -> Footprint:
    """Measure this process.

    Raises:
        ServiceError: this system has no Linux /proc.
    """
    try:
        status = Path("/proc/self/status").read_text()
        stat = Path("/proc/self/stat").read_text()
    except OSError:
        raise ServiceError(
            "Expected Linux's /proc to measure memory and start-up, got none; measure elsewhere."
        ) from None
    fields = dict(line.split(":", 1) for line in status.splitlines())
    peak_kib = int(fields["VmHWM"].split()[0])
    after_name = stat.rsplit(")", 1)[1].split()  # the name before may hold spaces
    ticks = int(after_name[_START_TIME_FIELD - 3])
    started = ticks / os.sysconf("SC_CLK_TCK")
    return Footprint(
        peak_mb=peak_kib * 1024 / 1e6,
        seconds=time.clock_gettime(time.CLOCK_BOOTTIME) - started,
    )
