"""The loop of a device: read what is there, score it, say what changes, keep the watchdog calm.

Memory is bounded by the batch, the window and the baseline of the drift monitor, whatever the
length of the stream. Nothing is written but the events, and what a calibration is told to save.
"""

import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np

from client.edge.drift import DriftEvent, DriftMonitor
from client.edge.events import Debounce, Rule, Sink, event_line, score_lines
from client.edge.runtime import CENTER_RECORDS, EdgeModel, ScoreTable
from client.edge.sources import Signal, Source
from client.edge.windows import Decoder, Windows
from shared.errors import ConfigError, DataError, FedlatentError, ServiceError

OUTPUTS = ("alarms", "flags", "all")
#: After so many records without an error, the installed bundle counts as good.
CONFIRM_AFTER = 10
#: Values that a calibration may hold in memory.
MAX_CALIBRATION_VALUES = 1 << 23

_WAIT_S = 0.25


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """Taking the first records as normal.

    Attributes:
        records: so many; nothing is flagged before they are complete.
        quantile: of the threshold; None takes the bundle's.
        recentre: also centre the latent space on them.
        save: file to write it to; one that is there and fits the bundle is used instead.
    """

    records: int
    quantile: float | None = None
    recentre: bool = False
    save: Path | None = None


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a stream is scored.

    Attributes:
        output: "alarms", "flags" (also flagged records) or "all" (also every record's score).
        rule: of alarms.
        beat: seconds between two beats; 0 for none.
        calibration: None to flag from the first record on.
        drift_block: records in a block of the drift monitor; 0 for no monitor.
        confirm: called once, after `CONFIRM_AFTER` records were scored without an error.
    """

    output: str = "alarms"
    rule: Rule = field(default_factory=Rule)
    beat: float = 60.0
    calibration: CalibrationPlan | None = None
    drift_block: int = 128
    confirm: Callable[[], None] | None = None


class Stop:
    """Whether SIGTERM or SIGINT has come, while this is entered in the main thread."""

    def __init__(self) -> None:
        """Not yet."""
        self._event = threading.Event()
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        """Take the signals over."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    def set(self) -> None:
        """Ask to stop."""
        self._event.set()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self._event.set()


class Notifier:
    """Tells systemd that the service is ready and alive (sd_notify); silent without systemd."""

    def __init__(self) -> None:
        """Read NOTIFY_SOCKET and WATCHDOG_USEC of the environment."""
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = self._address.replace("@", "\0", 1)
        owner = os.environ.get("WATCHDOG_PID", "")
        usec = os.environ.get("WATCHDOG_USEC", "")
        meant = not owner or owner == str(os.getpid())
        self._every = int(usec) / 2e6 if usec.isdecimal() and meant else None
        self._last = 0.0

    def ready(self) -> None:
        """The service has started."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The service ends."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """The service works; sent twice in the time that systemd allows."""
        now = time.monotonic()
        if self._every is not None and now - self._last >= self._every:
            self._last = now
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
        ):
            channel.settimeout(0.1)
            channel.connect(self._address)
            channel.send(text.encode())


class Stream:
    """One run over a source.

    Attributes:
        model: as it scores now; a calibration replaces it.
        records: scored records.
        flagged: of them, those above the threshold.
        alarms: that have started.
        gaps: breaks in the source after which windows started anew.
    """

    def __init__(
        self,
        model: EdgeModel,
        source: Source,
        decoder: Decoder,
        sink: Sink,
        options: StreamOptions,
        *,
        windows: Windows | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Check the options.

        Args:
            model: a verified bundle.
            source: gives bytes; the caller closes it.
            decoder: of the source's format, for records, or for time steps with ``windows``.
            sink: takes the events; the caller closes it.
            options: see `StreamOptions`.
            windows: makes records of time steps; None when a row is a record.
            stop: ends the run between two batches.

        Raises:
            ConfigError: an option is not permitted.
            BundleError: the model has no threshold and none is to be found.
        """
        if options.output not in OUTPUTS:
            raise ConfigError(f"Expected one of {', '.join(OUTPUTS)}, got {options.output!r}.")
        self.model = model
        self.records = self.flagged = self.alarms = self.gaps = 0
        self._source, self._decoder, self._windows, self._sink = source, decoder, windows, sink
        self._options = options
        self._stop = Stop() if stop is None else stop
        self._plan = _checked_plan(model, options.calibration)
        self._normals: list[np.ndarray] = []
        if self._plan is None:
            _ = model.threshold
        density = model.density
        self._drift = (
            DriftMonitor(
                density.mean, density.covariance, density.within, block=options.drift_block
            )
            if options.drift_block
            else None
        )
        self._debounce = Debounce(options.rule)
        self._peak = -np.inf
        self._alarm_at = 0
        self._confirm = options.confirm
        self._notifier = Notifier()
        self._beat_at = time.monotonic()
        self._beat_records = 0

    def run(self) -> None:
        """Score to the end of the source, or until told to stop.

        Raises:
            DataError: a record is not as it must be.
            BundleError: a score is not finite.
            ServiceError: the source is lost, or the events cannot be written.
        """
        self._start()
        try:
            reason = self._loop()
        except BaseException:
            # A second failure, such as a full disk, must not hide the first.
            with contextlib.suppress(OSError, ServiceError):
                self._say("end", reason="error", **self._totals())
            raise
        finally:
            self._notifier.stopping()
        self._say("end", reason=reason, **self._totals())

    def _start(self) -> None:
        plan = self._plan
        if plan is not None and plan.save is not None and plan.save.exists():
            with contextlib.suppress(DataError):  # of another bundle: calibrate again
                self.model = self.model.load_calibration(plan.save)
                self._plan = None
        manifest = self.model.bundle.manifest
        self._say(
            "start",
            name=manifest.name,
            version=manifest.version,
            sha256=self.model.bundle.digest,
            source=self._source.name,
            threshold=None if self._plan else self.model.threshold,
            calibrating=self._plan.records if self._plan else 0,
        )
        self._notifier.ready()

    def _loop(self) -> str:
        wait = min(_WAIT_S, self._options.beat) if self._options.beat else _WAIT_S
        while not self._stop:
            got = self._source.read(wait)
            if isinstance(got, bytes):
                rows = self._decoder.feed(got)
            elif got is Signal.END:
                rows = self._decoder.finish()
            else:
                rows = iter(())
                self._break_off(got)
            for batch in rows:
                self._take(batch if self._windows is None else self._windows.push(batch))
                self._notifier.alive()
                if self._stop:
                    return "signal"
            if got is Signal.END:
                return "end of stream"
            self._notifier.alive()
            self._beat()
        return "signal"

    def _break_off(self, what: Signal) -> None:
        if what in (Signal.CUT, Signal.GAP):
            self._decoder.drop()
        if what is Signal.GAP:
            self.gaps += 1
            if self._windows is not None:
                self._windows.reset()

    def _take(self, records: np.ndarray) -> None:
        """Score records [n, size], or keep them for the calibration."""
        if self._plan is not None:
            records = self._calibrate(self._plan, records)
        if len(records):
            self._judge(self.model.score(records))

    def _judge(self, table: ScoreTable) -> None:
        first = self.records + 1
        count = int(np.count_nonzero(table.flag))
        self.records += len(table.score)
        self.flagged += count
        lines: list[str] = []
        if self._options.output == "all":
            lines += score_lines(first, table.score, table.flag, table.threshold)
        elif self._options.output == "flags" and count:
            for index in np.flatnonzero(table.flag):
                one = slice(int(index), int(index) + 1)
                lines += score_lines(
                    first + int(index), table.score[one], table.flag[one], table.threshold
                )
        if count or self._debounce.on:
            lines += self._alarms(first, table)
        else:
            self._debounce.push(table.flag)
        if self._drift is not None:
            lines += [self._drift_line(event) for event in self._drift.update(table.mu)]
        if lines:
            self._sink.write(lines)
        if self._confirm is not None and self.records >= CONFIRM_AFTER:
            self._confirm()
            self._confirm = None

    def _alarms(self, first: int, table: ScoreTable) -> list[str]:
        """Events of the alarms that start or end in a batch."""
        lines = []
        place = 0
        on = self._debounce.on
        for index, change in self._debounce.push(table.flag):
            score = float(table.score[index])
            values: dict[str, object] = {"record": first + index, "score": score}
            if change == "alarm":
                self.alarms += 1
                self._alarm_at, self._peak = first + index, -np.inf
                place = index
            else:
                self._peak = max(self._peak, float(table.score[place : index + 1].max()))
                values |= {"since": self._alarm_at, "peak": self._peak}
            on = change == "alarm"
            lines.append(event_line(change, {**values, "threshold": table.threshold}))
        if on:
            self._peak = max(self._peak, float(table.score[place:].max()))
        return lines

    def _drift_line(self, event: DriftEvent) -> str:
        return event_line(
            "drift",
            {
                "kind": event.kind,
                "drifted": event.drifted,
                "record": self.records,
                "statistic": event.statistic,
                "limit": event.limit,
                "distance": event.distance,
            },
        )

    def _calibrate(self, plan: CalibrationPlan, records: np.ndarray) -> np.ndarray:
        """Keep records until there are enough, then calibrate; what is left is scored."""
        held = sum(map(len, self._normals))
        taken = records[: plan.records - held]
        self._normals.append(np.array(taken))
        if held + len(taken) < plan.records:
            return records[:0]
        normals = np.concatenate(self._normals)
        self.model = self.model.calibrate(normals, plan.quantile, recentre=plan.recentre)
        if plan.save is not None:
            self.model.save_calibration(plan.save)
        self._plan, self._normals = None, []
        self._say("calibrated", records=len(normals), threshold=self.model.threshold)
        return records[len(taken) :]

    def _beat(self) -> None:
        passed = time.monotonic() - self._beat_at
        if self._options.beat and passed >= self._options.beat:
            rate = (self.records - self._beat_records) / passed
            self._beat_at, self._beat_records = time.monotonic(), self.records
            self._say("beat", rate=round(rate, 3), rss=resident_bytes(), **self._totals())

    def _totals(self) -> dict[str, object]:
        """Counts since the start."""
        return {
            "record": self.records,
            "flagged": self.flagged,
            "alarms": self.alarms,
            "alarm": self._debounce.on,
            "skipped": self._decoder.bad,
            "cut": self._decoder.cut,
            "dropped": self._source.dropped,
            "reconnects": self._source.reconnects,
            "gaps": self.gaps,
            "drift": None if self._drift is None else self._drift.report(),
        }

    def _say(self, event: str, **values: object) -> None:
        self._sink.write([event_line(event, values)])


def confirmation(state: Path | None, digest: str) -> Callable[[], None] | None:
    """What tells a state folder that the bundle of ``digest`` works; None without a folder.

    A folder that cannot be read or written costs a warning, and scoring goes on; a trial then ends
    in the bundle before.
    """
    if state is None:
        return None

    def confirm() -> None:
        from client.edge.slots import confirm as confirm_slot

        try:
            confirm_slot(state, digest)
        except FedlatentError as error:
            sys.stderr.write(f"warning ({error.code}): {error}\n")

    return confirm


def resident_bytes() -> int:
    """Memory of this process in RAM, in bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _checked_plan(model: EdgeModel, plan: CalibrationPlan | None) -> CalibrationPlan | None:
    """``plan``, unless it cannot work: better now than after that many records."""
    if plan is None:
        return None
    size = model.bundle.manifest.schema.size
    if plan.records < 1 or plan.records * size > MAX_CALIBRATION_VALUES:
        raise ConfigError(
            f"Expected 1 to {MAX_CALIBRATION_VALUES // size} records to calibrate on, got "
            f"{plan.records}."
        )
    quantile = model.bundle.manifest.thresholds.quantile
    wanted = quantile if plan.quantile is None else plan.quantile
    left = plan.records - min(CENTER_RECORDS, plan.records // 3) * plan.recentre
    if not 0 < wanted < 1 or math.ceil((left + 1) * wanted) > left:
        raise ConfigError(
            f"Expected more records to calibrate on for quantile {wanted:g}, got {plan.records}; "
            "give more, or a lower quantile."
        )
    return plan
