"""The loop of a device: read what is there, score it, say what changes, keep the watchdog calm.

Memory is bounded by the batch, the window and the baseline of the drift monitor. Nothing is
written but the events, and what a calibration is told to save.
"""

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from fedlatent.client.edge.decoders import Decoder
from fedlatent.client.edge.drift import DriftMonitor
from fedlatent.client.edge.events import Debounce, event_line, utc_now
from fedlatent.client.edge.runtime import CENTER_RECORDS, EdgeModel, ScoreTable
from fedlatent.client.edge.sources import Signal, Source
from fedlatent.client.edge.windows import Rows, Windows
from fedlatent.shared.data.series import Window
from fedlatent.shared.errors import ConfigError, DataError, ServiceError

#: After so many records without an error, the installed bundle counts as good.
CONFIRM_AFTER = 10
#: Values that a calibration may hold in memory.
MAX_CALIBRATION_VALUES = 1 << 23
#: Columns that an event names.
MAX_NAMES = 20
#: Seconds that a signal gives to end in.
END_S = 5

_WAIT_S = 0.25


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """Taking the first records as normal.

    Attributes:
        records: so many, before anything is flagged.
        quantile: of the threshold; None takes the bundle's.
        recentre: also centre the latent space on them.
        save: file to write it to, or to take it from when it is there and fits the bundle.
    """

    records: int
    quantile: float | None = None
    recentre: bool = False
    save: Path | None = None

    def check(self, model: EdgeModel) -> None:
        """Whether it can work: better now than after that many records.

        Raises:
            ConfigError: too few records for the quantile, or too many for memory.
        """
        manifest = model.bundle.manifest
        most = MAX_CALIBRATION_VALUES // manifest.schema.size
        wanted = manifest.thresholds.quantile if self.quantile is None else self.quantile
        left = self.records - min(CENTER_RECORDS, self.records // 3) * self.recentre
        fits = 0 < wanted < 1 and math.ceil((left + 1) * wanted) <= left
        if not 1 <= self.records <= most or not fits:
            raise ConfigError(
                f"Expected enough records to calibrate on for quantile {wanted:g}, at most {most}, "
                f"got {self.records}; give another number or quantile."
            )


class Stop(threading.Event):
    """Set by SIGTERM, SIGINT or SIGHUP while this is entered in the main thread.

    A process that hangs even then, such as in a write to a pipe that nobody reads, is ended by
    SIGALRM after `END_S` seconds.
    """

    def __enter__(self) -> "Stop":
        """Take the signals over, but for those that are ignored, as under nohup."""
        taken = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        heard = [number for number in taken if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = [(number, signal.signal(number, self._hear)) for number in heard]
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        signal.alarm(0)
        for number, handler in self._before:
            signal.signal(number, handler)

    def _hear(self, *_: object) -> None:
        signal.alarm(END_S)
        self.set()


class Notifier:
    """Tells systemd how the service is (sd_notify); silent without systemd."""

    def __init__(self) -> None:
        """Read NOTIFY_SOCKET and WATCHDOG_USEC of the environment."""
        self._address = os.environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        usec = os.environ.get("WATCHDOG_USEC", "")
        meant = os.environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self._every = int(usec) / 2e6 if usec.isdecimal() and meant else math.inf
        self._last = -math.inf

    def send(self, text: str) -> None:
        """Send a state, such as READY=1 or STOPPING=1."""
        if self._address:
            with (
                contextlib.suppress(OSError),
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
            ):
                channel.settimeout(0.1)
                channel.sendto(text.encode(), self._address)

    def alive(self) -> None:
        """Keep the watchdog calm; sent twice in the time that systemd allows."""
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self.send("WATCHDOG=1")


@dataclass(kw_only=True)
class Stream:
    """One run over a source.

    Attributes:
        model: a verified bundle; a calibration replaces it.
        source: the caller closes it.
        decoder: of its format, for rows that ``windows`` make records of.
        write: takes lines of events.
        windows: makes records of rows.
        output: "alarms", "flags" (also flagged records) or "all" (every record).
        debounce: makes alarms of flags.
        bounds: makes events of records outside the public bounds.
        beat: seconds between two beats; 0 for none.
        calibration: None to flag from the first record on.
        drift: None for no monitor.
        confirm: called once, after `CONFIRM_AFTER` records without an error.
        stop: ends the run between two batches.
        records: scored ones.
        flagged: of them, those above the threshold.
        alarms: that have started.
        clipped: values beyond the public bounds, in records that were scored or calibrated on.
        outside: of these records, those with such values.
    """

    model: EdgeModel
    source: Source
    decoder: Decoder
    write: Callable[[list[str]], None]
    windows: Windows = field(default_factory=lambda: Windows(Window(length=1)))
    output: Literal["alarms", "flags", "all"] = "alarms"
    debounce: Debounce = field(default_factory=Debounce)
    bounds: Debounce = field(default_factory=Debounce)
    beat: float = 60.0
    calibration: CalibrationPlan | None = None
    drift: DriftMonitor | None = None
    confirm: Callable[[], None] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    records: int = field(default=0, init=False)
    flagged: int = field(default=0, init=False)
    alarms: int = field(default=0, init=False)
    clipped: int = field(default=0, init=False)
    outside: int = field(default=0, init=False)

    def run(self) -> None:
        """Score to the end of the source, or until told to stop.

        Raises:
            ConfigError: the calibration cannot work.
            DataError: a record is not as it must be.
            BundleError: the model has no threshold, or a score is not finite.
            ServiceError: the source is lost, or the events cannot be written.
        """
        self._notifier = Notifier()
        self._normals: list[np.ndarray] = []
        self.decoder.line, self._told = self.source.lines, False
        self._beat_at, self._beat_records = time.monotonic(), 0
        self._start()
        try:
            reason = self._loop()
        except BaseException:
            # A second failure, such as a full disk, must not hide the first.
            with contextlib.suppress(OSError, ServiceError):
                self._say("end", reason="error", **self._totals())
            raise
        finally:
            self._notifier.send("STOPPING=1")
        self._say("end", reason=reason, **self._totals())

    def _start(self) -> None:
        plan = self.calibration
        if plan is not None:
            plan.check(self.model)
            if plan.save is not None and plan.save.exists():
                with contextlib.suppress(DataError):  # of another bundle: calibrate again
                    self.model = self.model.load_calibration(plan.save)
                    self.calibration = None
        manifest = self.model.bundle.manifest
        self._say(
            "start",
            name=manifest.name,
            version=manifest.version,
            sha256=self.model.bundle.digest,
            source=self.source.name,
            threshold=None if self.calibration else self.model.threshold,
            calibrating=self.calibration.records if self.calibration else 0,
        )
        self._notifier.send("READY=1")

    def _loop(self) -> str:
        wait = min(_WAIT_S, self.beat or _WAIT_S)
        while not self.stop.is_set():
            try:
                got = self.source.read(wait)
            except OSError as error:
                raise ServiceError(
                    f"Expected to read on from {self.source.name}, got {type(error).__name__}; "
                    "check the device."
                ) from None
            if isinstance(got, bytes):
                self._take_all(self.decoder.feed(got))
            elif got is Signal.END:
                self._take_all(self.decoder.finish())
                return "signal" if self.stop.is_set() else "end of stream"
            elif got is not Signal.IDLE:
                self.decoder.drop(gap=got is Signal.GAP)
            self._notifier.alive()
            passed = time.monotonic() - self._beat_at
            if self.beat and passed >= self.beat:
                rate = round((self.records - self._beat_records) / passed, 3)
                self._beat_at, self._beat_records = time.monotonic(), self.records
                self._say("beat", rate=rate, rss=resident_bytes(), **self._totals())
        return "signal"

    def _take_all(self, batches: Iterator[Rows]) -> None:
        for rows in batches:
            if self.decoder.extra and not self._told:
                self._told = True
                self._say("columns", extra=self.decoder.extra[:MAX_NAMES])
            records = self.windows.push(rows)
            if self.calibration is not None:
                records = self._calibrate(self.calibration, records)
            if len(records):
                self._judge(records, self.model.score(records.values))
            self._notifier.alive()
            if self.stop.is_set():
                return

    def _calibrate(self, plan: CalibrationPlan, records: Rows) -> Rows:
        """Keep records until there are enough, then calibrate; what is left is scored."""
        left = plan.records - sum(map(len, self._normals))
        taken = records.take(slice(left))
        self._normals.append(np.array(taken.values))
        schema = self.model.bundle.manifest.schema
        if lines := self._outside(taken, schema.outside(taken.values), utc_now()):
            self.write(lines)
        if len(records) >= left:
            normals = np.concatenate(self._normals)
            self.model = self.model.calibrate(normals, plan.quantile, recentre=plan.recentre)
            if plan.save is not None:
                self.model.save_calibration(plan.save)
            self.calibration, self._normals = None, []
            self._say("calibrated", records=plan.records, threshold=self.model.threshold)
        return records.take(slice(left, None))

    def _judge(self, records: Rows, table: ScoreTable) -> None:
        now, first = utc_now(), self.records + 1
        scores, flags = table.score.tolist(), table.flag.tolist()

        def line(name: str, at: int, **more: object) -> str:
            values = {"record": first + at, **records.place(at), "score": scores[at], **more}
            clipped = int(table.clipped[at])
            return event_line(name, now, **values, threshold=table.threshold, clipped=clipped)

        flagged = np.flatnonzero(table.flag).tolist()
        self.records += len(scores)
        self.flagged += len(flagged)
        shown = {"all": range(len(scores)), "flags": flagged}.get(self.output, ())
        lines = [line("score", at, flag=flags[at]) for at in shown]
        lines += self._alarms(table, first, line)
        lines += self._outside(records, table.clipped, now)
        if self.drift is not None:
            changes = self.drift.update(table.mu)
            lines += [event_line("drift", now, record=self.records, **values) for values in changes]
        if lines:
            self.write(lines)
        if self.confirm is not None and self.records >= CONFIRM_AFTER:
            self.confirm()
            self.confirm = None

    def _alarms(self, table: ScoreTable, first: int, line: Callable[..., str]) -> list[str]:
        """Alarms that start or end, as ``line`` writes them; record ``first`` is the table's."""
        scores, lines, begin = table.score.tolist(), [], 0
        on = self.debounce.on
        for at in self.debounce.push(table.flag):
            on = not on
            if on:
                self.alarms += 1
                self._since, self._peak, begin = first + at, -math.inf, at
                lines.append(line("alarm", at, source=self.source.name))
            else:
                peak = max(self._peak, *scores[begin : at + 1])
                more = {"since": self._since, "peak": peak}
                lines.append(line("clear", at, source=self.source.name, **more))
        if on:
            self._peak = max(self._peak, *scores[begin:])
        return lines

    def _outside(self, records: Rows, clipped: np.ndarray, now: str) -> list[str]:
        """Count values beyond the public bounds, and say where records with any begin and end."""
        self.clipped += int(clipped.sum())
        self.outside += int(np.count_nonzero(clipped))
        lines, on = [], self.bounds.on
        for at in self.bounds.push(clipped > 0):
            on = not on
            values = {**records.place(at), "source": self.source.name, "begun": on}
            lines.append(event_line("outside", now, **values, clipped=int(clipped[at])))
        return lines

    def _totals(self) -> dict[str, object]:
        """Counts since the start."""
        return {
            "record": self.records,
            "flagged": self.flagged,
            "alarms": self.alarms,
            "alarm": self.debounce.on,
            "clipped": self.clipped,
            "outside": self.outside,
            "skipped": self.decoder.bad,
            "cut": self.decoder.cut,
            "dropped": self.source.dropped,
            "reconnects": self.source.reconnects,
            "gaps": self.windows.gaps + self.decoder.missing,
            "unused": self.windows.unused,
            "drift": None if self.drift is None else self.drift.report(),
        }

    def _say(self, event: str, **values: object) -> None:
        self.write([event_line(event, utc_now(), **values)])


def resident_bytes() -> int:
    """Memory of this process in RAM, in bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
