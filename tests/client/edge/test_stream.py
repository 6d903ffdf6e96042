"""The loop of a device, in this process and as the command that an operator starts."""

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlatent.client.edge import slots
from fedlatent.client.edge.commands.common import confirmation
from fedlatent.client.edge.decoders import Layout
from fedlatent.client.edge.drift import DriftMonitor
from fedlatent.client.edge.events import Debounce
from fedlatent.client.edge.formats import CsvDecoder, DoubleDecoder
from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.edge.sources import DescriptorSource, Signal, Source
from fedlatent.client.edge.stream import (
    CONFIRM_AFTER,
    END_S,
    CalibrationPlan,
    Notifier,
    Stop,
    Stream,
)
from fedlatent.client.edge.windows import Windows, row_schema
from fedlatent.shared.bundle.manifest import Thresholds
from fedlatent.shared.data.series import Window
from fedlatent.shared.errors import (
    BundleError,
    ConfigError,
    DataError,
    RecordsRefused,
    ServiceError,
)
from fedlatent.shared.files import sha256_hex, utc_text
from fedlatent.shared.keys import SigningKey
from tests.client.edge.conftest import Load
from tests.shared.bundle import tiny

RAW = tiny.raw_records(700, seed=5)
MAIN = [sys.executable, "-m", "fedlatent.client.edge.main"]
ROOT = Path(__file__).parents[3]


class Lines:
    """A sink that keeps events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def write(self, lines: Iterable[str]) -> None:
        """Keep them, parsed."""
        self.events += [json.loads(line) for line in lines]

    def of(self, *names: str) -> list[dict[str, Any]]:
        """Events of these names."""
        return [event for event in self.events if event["event"] in names]


class Script(Source):
    """A source that plays a list, then ends or fails."""

    def __init__(self, items: Iterable[bytes | Signal | Exception]) -> None:
        super().__init__("script")
        self._items = iter(items)

    def read(self, timeout: float) -> bytes | Signal:
        """The next item."""
        item = next(self._items, Signal.END)
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Nothing."""


def _csv(rows: np.ndarray) -> bytes:
    return "".join(",".join(map(str, row)) + "\n" for row in rows.tolist()).encode()


def _run(
    model: EdgeModel, items: Iterable[bytes | Signal | Exception], **changes: object
) -> tuple[Stream, Lines]:
    sink = Lines()
    options: dict[str, Any] = {"decoder": CsvDecoder(tiny.SCHEMA), "output": "all", "beat": 0.0}
    stream = Stream(model=model, source=Script(items), write=sink.write, **{**options, **changes})
    stream.run()
    return stream, sink


def test_scores_are_those_of_the_model(load: Load) -> None:
    """A backlog and single records get the scores, flags and numbers of one call."""
    model = load()
    expected = model.score(RAW)
    pieces = [_csv(RAW[:500]), *(_csv(RAW[i : i + 1]) for i in range(500, 700))]
    stream, sink = _run(model, pieces)
    scores = sink.of("score")
    assert [event["record"] for event in scores] == list(range(1, 701))
    np.testing.assert_allclose([event["score"] for event in scores], expected.score, rtol=1e-5)
    assert [event["flag"] for event in scores] == expected.flag.tolist()
    assert stream.flagged == expected.flag.sum() > 0
    assert sink.events[0]["event"] == "start"
    assert (sink.events[0]["threshold"], sink.events[0]["version"]) == (1.0, 3)
    end = sink.events[-1]
    assert (end["event"], end["reason"], end["record"]) == ("end", "end of stream", 700)


def test_outputs_hold_back_what_was_not_asked_for(load: Load) -> None:
    """The output "alarms" has no scores, and "flags" those of flagged records only."""
    model = load()
    flagged = (np.flatnonzero(model.score(RAW).flag) + 1).tolist()
    _, few = _run(model, [_csv(RAW)], output="flags")
    assert [event["record"] for event in few.of("score")] == flagged
    _, none = _run(model, [_csv(RAW)], output="alarms")
    names = {"start", "alarm", "clear", "outside", "drift", "end"}
    assert {event["event"] for event in none.events} <= names


def test_alarm_starts_peaks_and_ends(load: Load) -> None:
    """Two flagged of three start an alarm, four calm ones end it, across batches, with its peak."""
    calm, wild = np.zeros((1, tiny.DIM)), np.zeros((1, tiny.DIM))
    calm[0, :2] = 500, -250  # the center
    wild[0, :2] = 2000, 0
    strong = wild * 1.1
    rows = [calm] * 3 + [wild, calm, wild, strong] + [calm] * 6
    for pieces in ([_csv(np.concatenate(rows))], [_csv(row) for row in rows]):
        stream, sink = _run(load(), pieces, debounce=Debounce(2, 3, 4))
        alarm, clear = sink.of("alarm", "clear")
        assert (alarm["record"], clear["record"], clear["since"]) == (6, 11, 6)
        top = max(event["score"] for event in sink.of("score"))
        assert clear["peak"] == pytest.approx(top, rel=1e-6)
        assert (stream.alarms, sink.events[-1]["alarm"]) == (1, False)


def test_slow_stream_is_answered_record_by_record(load: Load) -> None:
    """Each record is answered before the next is sent."""
    model, sink, stop = load(), Lines(), Stop()
    reader, writer = os.pipe()
    source = DescriptorSource(reader, "pipe")
    stream = Stream(
        model=model,
        source=source,
        decoder=CsvDecoder(tiny.SCHEMA),
        write=sink.write,
        output="all",
        beat=0.05,
        stop=stop,
    )
    thread = threading.Thread(target=stream.run)
    thread.start()
    for number in range(1, 6):
        os.write(writer, _csv(RAW[number : number + 1]))
        _wait(lambda number=number: len(sink.of("score")) == number)
    _wait(lambda: bool(sink.of("beat")))
    stop.set()
    thread.join(2)
    assert not thread.is_alive()
    beat = sink.of("beat")[-1]
    assert beat["rss"] > 1e6
    assert sink.events[-1]["reason"] == "signal"
    os.close(writer)
    source.close()


def _wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_windows_of_time_steps(load: Load, signing_key: SigningKey, tmp_path: Path) -> None:
    """With windows, rows are time steps; a gap in the source starts them anew."""
    schema = replace(tiny.SCHEMA, shape=(1, tiny.DIM))
    model = load(replace(tiny.manifest(), schema=tiny.SCHEMA))
    series = tiny.raw_records(20, seed=1).reshape(-1)[:60].astype(float)
    steps = [f"{value}\n".encode() for value in series.tolist()]
    items: list[bytes | Signal | Exception] = [
        *steps[:40],
        Signal.CUT,
        *steps[40:50],
        Signal.GAP,
        *steps[50:],
    ]
    windows = Windows(Window(length=tiny.DIM, step=2))
    _, sink = _run(model, items, decoder=CsvDecoder(row_schema(schema)), windows=windows)
    starts = [*range(0, 50 - 6 + 1, 2), *range(50, 60 - 6 + 1, 2)]
    expected = model.score(np.stack([series[s : s + 6] for s in starts])).score
    np.testing.assert_allclose([e["score"] for e in sink.of("score")], expected, rtol=1e-5)
    assert sink.events[-1]["gaps"] == 1


def test_alarm_before_a_bad_row_is_reported(load: Load) -> None:
    """Of 200 good rows and a NaN in one piece all are scored, with their alarm, before it ends."""
    rows = np.tile([500.0, -250, 0, 0, 0, 0], (201, 1))
    rows[1:4, 0] = 2000
    rows[200, 3] = np.nan
    for decoder in (CsvDecoder(tiny.SCHEMA), DoubleDecoder(tiny.SCHEMA)):
        data = rows.tobytes() if decoder.item_bytes else _csv(rows)
        sink = Lines()
        stream = Stream(
            model=load(),
            source=Script([data]),
            decoder=decoder,
            write=sink.write,
            debounce=Debounce(3, 5, 10),
        )
        with pytest.raises(DataError, match="record 201"):
            stream.run()
        (alarm,) = sink.of("alarm")
        assert (alarm["record"], alarm["row"], alarm["source"]) == (4, 4, "script")
        assert alarm.get("line") == (None if decoder.item_bytes else 4)
        end = sink.events[-1]
        assert (end["event"], end["record"], end["reason"]) == ("end", 200, "error")
        assert (end["row"], end.get("line")) == (200, alarm.get("line") and 200)


def test_records_outside_the_public_bounds_are_said(load: Load) -> None:
    """Rows in another unit are counted and said apart from their score, when calibrated on, too."""
    wild = RAW.astype(float) * 100
    rows = np.concatenate([RAW[:50], wild[50:60], RAW[60:100]])
    model = load()
    clipped = tiny.SCHEMA.outside(rows)
    rule = {"bounds": Debounce(3, 5, 10), "output": "all"}
    stream, sink = _run(model, [_csv(rows)], **rule)
    assert (stream.clipped, stream.outside) == (clipped.sum(), (clipped > 0).sum())
    assert [event["clipped"] for event in sink.of("score")] == clipped.tolist()
    begin, end = sink.of("outside")
    assert (begin["begun"], begin["row"], begin["line"], end["begun"]) == (True, 53, 53, False)
    assert begin["clipped"] == clipped[52] > 0
    assert sink.events[-1]["outside"] == stream.outside >= 10
    plan = CalibrationPlan(records=150, quantile=0.9)
    with pytest.raises(RecordsRefused, match=r"times too large.*say --accept"):
        _run(model, [_csv(wild[:150])], calibration=plan, **rule)
    plan = replace(plan, accept=True)
    rule["bounds"] = Debounce(3, 5, 10)
    stream, sink = _run(model, [_csv(wild[:150])], calibration=plan, **rule)
    assert stream.outside == 150
    assert [event["begun"] for event in sink.of("outside")] == [True]


@pytest.mark.parametrize("portion", [50, 1 << 20])
def test_a_refused_row_parts_windows(load: Load, portion: int) -> None:
    """Rows on both sides of a skipped one never share a window; the break counts as a gap."""
    series = tiny.raw_records(20, seed=1).reshape(-1)[:40].astype(float)
    lines = [f"{at},{value}\n" for at, value in enumerate(series.tolist())]
    lines[20] = "20,oops\n"
    data = ("when,value\n" + "".join(lines)).encode()
    model, window = load(), Window(length=tiny.DIM, step=2, time="when")
    decoder = CsvDecoder(
        row_schema(replace(tiny.SCHEMA, shape=(1, tiny.DIM))), Layout(time="when", skip_bad=True)
    )
    pieces = [data[at : at + portion] for at in range(0, len(data), portion)]
    _, sink = _run(model, pieces, decoder=decoder, windows=Windows(window))
    starts = [*range(0, 15, 2), *range(21, 35, 2)]
    expected = model.score(np.stack([series[s : s + 6] for s in starts])).score
    scores = sink.of("score")
    np.testing.assert_allclose([event["score"] for event in scores], expected, rtol=1e-5)
    assert [event["row"] for event in scores] == [start + 6 for start in starts]
    assert [event["line"] for event in scores] == [start + 7 for start in starts]
    assert [event["row_time"] for event in scores] == [str(start + 5) for start in starts]
    end = sink.events[-1]
    assert (end["gaps"], end["skipped"]) == (1, 1)


@pytest.mark.parametrize("broken", [Signal.GAP, b"1,2", b"1" * 200_000, Signal.CUT])
def test_whatever_is_lost_parts_windows(load: Load, broken: bytes | Signal) -> None:
    """A break in the source, an incomplete row and an endless one each begin windows anew."""
    items = [b"5\n" * 5, broken, Signal.CUT, b"5\n" * 5]
    decoder = CsvDecoder(row_schema(replace(tiny.SCHEMA, shape=(tiny.DIM,))), Layout(skip_bad=True))
    windows = Windows(Window(length=tiny.DIM))
    _, sink = _run(load(), items, decoder=decoder, windows=windows)
    whole = broken is Signal.CUT  # another file goes on where the last one ended
    assert len(sink.of("score")) == (5 if whole else 0)
    assert sink.events[-1]["gaps"] == (0 if whole else 1)


def test_calibration_comes_first(load: Load, tmp_path: Path) -> None:
    """The first N records set the threshold unflagged; a restart takes the saved one."""
    model, path = load(), tmp_path / "own.json"
    plan = CalibrationPlan(records=300, quantile=0.9, save=path)
    expected = model.calibrate(RAW[:300], 0.9)
    stream, sink = _run(model, [_csv(RAW[:290]), _csv(RAW[290:])], calibration=plan)
    assert stream.model.threshold == expected.threshold != model.threshold
    assert len(sink.of("score")) == 400
    assert sink.of("start")[0]["threshold"] is None
    assert sink.of("calibrated")[0]["threshold"] == expected.threshold
    again, sink = _run(model, [_csv(RAW[:5])], calibration=plan)
    assert (again.model.threshold, len(sink.of("score"))) == (expected.threshold, 5)
    newer = load(replace(tiny.manifest(), version=4))
    _, sink = _run(newer, [_csv(RAW[:300])], calibration=plan)
    assert len(sink.of("calibrated")) == 1  # the saved one was of another bundle
    plan = CalibrationPlan(records=300, quantile=0.9, recentre=True)
    moved, sink = _run(model, [_csv(RAW // 8 + 2 * RAW[0])], calibration=plan)
    assert moved.model.center is not None
    assert sink.of("calibrated")[0]["doubt"] is None
    kept, sink = _run(model, [_csv(RAW)], calibration=plan)
    assert kept.model.center is None
    assert "scatter wider" in sink.of("calibrated")[0]["doubt"]


@pytest.mark.parametrize(
    "plan",
    [
        CalibrationPlan(records=50),
        CalibrationPlan(records=0),
        CalibrationPlan(records=1 << 40),
        CalibrationPlan(records=100, quantile=1.5),
        CalibrationPlan(records=100, recentre=True),
    ],
    ids=str,
)
def test_hopeless_calibration_is_refused_at_once(load: Load, plan: CalibrationPlan) -> None:
    """Too few records for the quantile, or too many for memory, are refused before the first."""
    with pytest.raises(ConfigError, match="to calibrate on"):
        _run(load(), [ServiceError("read")], calibration=plan)


def test_model_without_threshold_is_refused_at_once(load: Load) -> None:
    """A bundle that must be re-centred first is refused, unless the calibration does that."""
    model = load(tiny.manifest(thresholds=Thresholds(quantile=0.9, absolute=None, recentred=1.0)))
    with pytest.raises(BundleError, match="re-centre"):
        _run(model, [])
    stream, _ = _run(model, [_csv(RAW)], calibration=CalibrationPlan(records=100, recentre=True))
    assert stream.records == 600


def test_errors_end_with_an_event(load: Load) -> None:
    """Bad data and a lost source end the run with their error, after an "end" event."""
    model = load()
    for item, error in ((b"1,2\n", DataError), (ServiceError("gone"), ServiceError)):
        sink = Lines()
        source = Script([_csv(RAW[:20]), item])
        decoder = CsvDecoder(tiny.SCHEMA)
        stream = Stream(model=model, source=source, decoder=decoder, write=sink.write)
        with pytest.raises(error):
            stream.run()
        end = sink.events[-1]
        assert (end["event"], end["reason"], end["record"]) == ("end", "error", 20)


def test_confirmation_comes_once_after_good_scores(load: Load) -> None:
    """The bundle is confirmed once, after enough records that were scored without an error."""
    calls: list[int] = []
    pieces = [_csv(RAW[i : i + 1]) for i in range(30)]
    _run(load(), pieces[: CONFIRM_AFTER - 1], confirm=lambda: calls.append(1))
    assert calls == []
    _run(load(), pieces, confirm=lambda: calls.append(1))
    assert calls == [1]
    assert confirmation(None, "") is None


def _provision(state: Path, key: SigningKey) -> Path:
    """A state folder with the tiny bundle on trial."""
    data = tiny.write(state.parent / "tiny.fedlatent", key).read_bytes()
    digest = sha256_hex(data)
    device = slots.Device(device="d1", model="tiny-hearts", cohorts=(), provisioned=utc_text())
    slots.write_device(state, device)
    slots.install(
        state,
        data,
        slots.Installed(
            slot="a",
            digest=digest,
            bundle=digest,
            bytes=len(data),
            key=key.public.key.public_bytes_raw().hex(),
            name="tiny-hearts",
            version=3,
            kind="global",
            recipient=None,
            installed=utc_text(),
        ),
    )
    return state


@pytest.mark.parametrize(("records", "status"), [(9, "trial"), (10, "confirmed")])
def test_command_ends_the_trial_of_an_installed_bundle(
    tmp_path: Path, signing_key: SigningKey, records: int, status: str
) -> None:
    """A stream from a state folder confirms its bundle after ten good records, not before."""
    state = _provision(tmp_path / "state", signing_key)
    done = subprocess.run(
        [*MAIN, "stream", str(state)], input=_csv(RAW[:records]), capture_output=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, b"")
    current = slots.read_record(state).current
    assert current is not None
    assert current.status == status


def test_broken_state_is_a_warning(
    tmp_path: Path, signing_key: SigningKey, capsys: pytest.CaptureFixture[str]
) -> None:
    """When the state folder breaks while a stream runs, scoring goes on after a warning."""
    state = _provision(tmp_path / "state", signing_key)
    model = slots.boot(state)
    (state / "current.json").write_text("{")
    stream, _ = _run(model, [_csv(RAW[:20])], confirm=confirmation(state, model.bundle.digest))
    assert stream.records == 20
    assert "warning" in capsys.readouterr().err


def test_drift_is_an_event(load: Load) -> None:
    """Latents that move from where the stream began give a drift event with its figures."""
    model, rows = load(), tiny.raw_records(128 * 24, seed=2).astype(float)
    rows[128 * 20 :, 0] += 1500.0
    _, sink = _run(model, [_csv(rows)], output="alarms", drift=DriftMonitor(model.density))
    first = sink.of("drift")[0]
    assert (first["kind"], first["begun"]) == ("mean", True)
    assert 20 < first["blocks"] <= 24
    assert (first["row"], first["line"]) == (first["record"], first["record"])
    assert first["shift"] >= 1.0
    assert sink.events[-1]["drift"]["drifted"] is True
    _, sink = _run(model, [_csv(rows)], output="alarms")
    assert sink.of("drift") == []
    assert sink.events[-1]["drift"] is None


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY, WATCHDOG and STOPPING go to the socket; the watchdog no more often than needed."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(path))
        channel.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        notifier = Notifier()
        notifier.send("READY=1")
        notifier.alive()
        notifier.alive()
        time.sleep(0.11)
        notifier.alive()
        notifier.send("STOPPING=1")
        got = [channel.recv(100) for _ in range(4)]
    assert got == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"STOPPING=1"]
    notifier.send("READY=1")  # a socket that is gone is no error


@contextlib.contextmanager
def _started(tmp_path: Path, key: SigningKey, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command on the tiny bundle; killed at the end if it still runs."""
    bundle = tiny.write(tmp_path / "tiny.fedlatent", key)
    public = tmp_path / "publisher.pub"
    public.write_bytes(key.public.to_pem())
    command = [*MAIN, "stream", str(bundle), *arguments, "--key", str(public)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for channel in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):
                if channel is not None:
                    channel.close()


def _events(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_command_on_a_pipe(tmp_path: Path, signing_key: SigningKey) -> None:
    """Records through a pipe give events on standard output, and the exit code 0 at its end."""
    with _started(tmp_path, signing_key, "--report", "all") as process:
        out, err = process.communicate(_csv(RAW[:50]), timeout=240)
    events = _events(out)
    assert (process.returncode, err) == (0, b"")
    assert [event["event"] for event in events].count("score") == 50
    assert (events[0]["event"], events[-1]["event"]) == ("start", "end")


def test_command_reads_packed_bytes_and_says_where(tmp_path: Path, signing_key: SigningKey) -> None:
    """A .gz file and packed standard input give events with row, time, file and line, to the end.

    A hole in time is a gap; a file that breaks off is refused after all its rows.
    """
    wild = "2000,0,0,0,0,0"
    times = [f"2026-01-31T12:{minute:02}:00Z" for minute in (0, 1, 2, 5, 6)]
    text = "when,a,b,c,d,e,f\n" + "".join(f"{time},{wild}\n" for time in times)
    path = tmp_path / "Beats.CSV.GZ"
    path.write_bytes(gzip.compress(text.encode()))
    options = ["--time", "when", "--step", "1min"]
    for arguments, data in (([str(path)], b""), ([], path.read_bytes()), ([], text.encode())):
        with _started(tmp_path, signing_key, *arguments, *options) as process:
            out, err = process.communicate(data, timeout=240)
        assert (process.returncode, err) == (0, b"")
        _, alarm, end = _events(out)
        place = {key: alarm[key] for key in ("row", "line", "row_time", "source")}
        source = str(path) if arguments else "standard input"
        assert place == {"row": 3, "line": 4, "row_time": times[2], "source": source}
        assert (end["record"], end["gaps"]) == (5, 1)
    path.write_bytes(path.read_bytes()[:-8])
    with _started(tmp_path, signing_key, str(path), *options) as process:
        out, err = process.communicate(timeout=240)
    assert (process.returncode, _events(out)[-1]["record"]) == (3, 5)
    assert b"packed by gzip" in err


def test_command_ends_on_sigterm(tmp_path: Path, signing_key: SigningKey) -> None:
    """SIGTERM ends the run within a second, with an "end" event and exit code 0."""
    with _started(tmp_path, signing_key, "--report", "all") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(_csv(RAW[:1]))
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(2)]
        assert json.loads(lines[1])["record"] == 1
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(120)  # with its input still open
        assert time.monotonic() - start < 20
        out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, b"")
    assert _events(out)[-1]["reason"] == "signal"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_command_on_a_pipe_that_has_no_writer_ends_on_a_signal(
    tmp_path: Path, signing_key: SigningKey, sent: signal.Signals
) -> None:
    """A followed named pipe is scored from, and a signal ends the wait for more, as does a hangup.

    What was calibrated by then is kept.
    """
    path, own = tmp_path / "fifo", tmp_path / "own.json"
    os.mkfifo(path)
    calibrate = ["--calibrate", "150", "--save-calibration", str(own)]
    arguments = [str(path), "--follow", "--report", "all", *calibrate]
    with _started(tmp_path, signing_key, *arguments) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "start"
        path.write_bytes(_csv(RAW[:151]))
        assert json.loads(process.stdout.readline())["event"] == "calibrated"
        assert json.loads(process.stdout.readline())["record"] == 1
        process.send_signal(sent)
        out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, b"")
    assert _events(out)[-1]["reason"] == "signal"
    assert own.exists()


def _catches_sigterm(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has a handler of its own for SIGTERM."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def test_signal_ends_a_command_that_nobody_listens_to(
    tmp_path: Path, signing_key: SigningKey
) -> None:
    """A signal ends a command within seconds even while it waits for a reader of its events."""
    os.mkfifo(tmp_path / "events")
    with _started(tmp_path, signing_key, "--log", str(tmp_path / "events")) as process:
        _wait(lambda: _catches_sigterm(process), 120)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == -signal.SIGALRM
        assert time.monotonic() - start < END_S + 20


def test_command_follows_a_rotated_file(tmp_path: Path, signing_key: SigningKey) -> None:
    """A followed CSV goes on through rotation: its header is read though it starts at the end."""
    path = tmp_path / "beats.csv"
    header = "f,e,d,c,b,a\n"
    path.write_text(header + "6,5,4,3,2,1\n")
    log = tmp_path / "events.jsonl"
    arguments = [
        str(path),
        "--follow",
        "--column",
        "a",
        "--column",
        "b",
        "--column",
        "c",
        "--column",
        "d",
        "--column",
        "e",
        "--column",
        "f",
        "--report",
        "all",
    ]
    with _started(tmp_path, signing_key, *arguments, "--log", str(log)) as process:
        _wait(lambda: log.exists() and b"start" in log.read_bytes(), 120)
        with path.open("a") as writer:
            writer.write("6,5,4,3,2,1\n")
        path.rename(tmp_path / "beats.csv.1")
        path.write_text(header + "16,15,14,13,12,11\n16,15,14,13,12,11\n")
        _wait(lambda: log.read_bytes().count(b'"score"') >= 3, 120)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, b"")
    events = _events(log.read_bytes())
    assert [event["event"] for event in events] == ["start", "score", "score", "score", "end"]
    assert (events[-1]["record"], events[-1]["reconnects"]) == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "data", "code", "said"),
    [
        (["--format", "jsonl"], b"[1,2]\n", 3, b"got 2 in record 1"),
        ([], b"1" * 200_000, 3, b"at most"),
        (["--alarm", "five"], b"", 2, b"K/N"),
        (["--recentre"], b"", 2, b"--calibrate"),
        (["--log", "/proc/no/log"], b"", 75, b"Expected to write"),
        (["/dev/null/x"], b"", 3, b"readable file"),
        (["--step", "1min"], b"", 2, b"--time with --step"),
        (["--time", "when", "--step", "soon"], b"", 2, b"such as 500ms"),
        ([__file__, "--follow", "--encoding", "utf-16"], b"", 2, b"whose line ends are one byte"),
        (["--delimiter", "tab"], b"1\t2\n", 3, b"got 2 in record 1"),
        (["--time", "when", "--format", "f32"], b"", 2, b"'when' in a raw format"),
    ],
)
def test_exit_codes(
    tmp_path: Path,
    signing_key: SigningKey,
    arguments: list[str],
    data: bytes,
    code: int,
    said: bytes,
) -> None:
    """Bad data, bad options and a log that cannot be written have their own exit codes."""
    with _started(tmp_path, signing_key, *arguments) as process:
        _, err = process.communicate(data, timeout=240)
    assert process.returncode == code
    assert said in err
    assert err.count(b"\n") == 1


def test_command_survives_a_reader_that_leaves(tmp_path: Path, signing_key: SigningKey) -> None:
    """When the reader of the events goes away, the command ends quietly."""
    with _started(tmp_path, signing_key, "--report", "all") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        for _ in range(200):
            try:
                process.stdin.write(_csv(RAW[:10]))
                process.stdin.flush()
            except BrokenPipeError:
                break
            time.sleep(0.005)
        assert process.wait(120) == 0
        assert process.stderr.read() == b""


def test_memory_does_not_grow(tmp_path: Path, signing_key: SigningKey) -> None:
    """The resident memory after 200,000 records is that after 20,000, within 5 MB."""
    arguments = ["--format", "f32", "--beat", "0.001", "--skip-bad"]
    rng = np.random.default_rng(0)
    with _started(tmp_path, signing_key, *arguments) as process:
        data = rng.normal(0, 500, (200_000, tiny.DIM)).astype("<f4")
        out, err = process.communicate(data.tobytes(), timeout=240)
    assert (process.returncode, err) == (0, b"")
    beats = [event for event in _events(out) if event["event"] == "beat"]
    early = next(beat["rss"] for beat in beats if beat["record"] >= 20_000)
    assert beats[-1]["record"] > 150_000
    assert beats[-1]["rss"] - early < 5e6
