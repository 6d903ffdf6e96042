"""Alarms equal those of a plain loop over records; logs stay bounded; lines are JSON."""

import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.edge.events import Debounce, EventLog, OutputFailed, event_line, utc_now
from fedlatent.shared.errors import ConfigError


def _plain(flags: np.ndarray, flagged: int, of: int, calm: int) -> list[int]:
    """The rule, record by record."""
    changes: list[int] = []
    past: list[bool] = []
    on = False
    for index, flag in enumerate(flags.tolist()):
        past.append(flag)
        if not on and sum(past[-of:]) >= flagged:
            on = True
            changes.append(index)
        elif on and len(past) >= calm and not any(past[-calm:]):
            on, past = False, []
            changes.append(index)
    return changes


@pytest.mark.parametrize("rule", [(1, 1, 1), (3, 5, 10), (2, 40, 3), (5, 5, 1)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 1.0])
def test_alarms_are_those_of_the_rule(rule: tuple[int, int, int], share: float) -> None:
    """In batches of any size, alarms start and end at the very records that the rule names."""
    rng = np.random.default_rng(7)
    flags = rng.random(3000) < share
    flags[1000:1500] &= rng.random(500) < 0.1
    debounce, got, place = Debounce(*rule), [], 0
    while place < len(flags):
        batch = flags[place : place + int(rng.integers(0, 300))]
        got += [place + index for index in debounce.push(batch)]
        place += len(batch)
    assert got == _plain(flags, *rule)
    assert debounce.on == (len(got) % 2 == 1)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (3, 2, 1), (1, 1, 0), (1, 10_001, 1)])
def test_impossible_rules_are_refused(numbers: tuple[int, int, int]) -> None:
    """More flags than records, nothing at all and endless windows are ConfigErrors."""
    with pytest.raises(ConfigError, match="Expected 1 <= flagged"):
        Debounce(*numbers)


def test_lines_are_json() -> None:
    """An event is one JSON object a line; what JSON cannot carry is null."""
    now = utc_now()
    event = json.loads(event_line("beat", now, record=3, score=float("inf"), name="µ"))
    values = {"event": "beat", "time": now, "record": 3, "score": None, "name": "µ"}
    assert event == values
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", now)


def test_log_is_bounded_and_private(tmp_path: Path) -> None:
    """A log and the one before it keep the newest lines, whole, under twice the bound; 0600."""
    path = tmp_path / "events.jsonl"
    lines = [f"{number:06d} {'x' * 50}" for number in range(2000)]
    for start in range(0, 2000, 250):
        log = EventLog(path, 8192)  # opened anew: goes on in the same file
        log.write(lines[start : start + 250])
        log.close()
    kept = (tmp_path / "events.jsonl.1").read_text() + path.read_text()
    assert kept.splitlines() == lines[-len(kept.splitlines()) :]
    assert 8192 < len(kept) <= 2 * 8192
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events.jsonl", "events.jsonl.1"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that is not there, a link, a full disk and a tiny bound are clear errors."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "no" / "log", tmp_path / "link", tmp_path):
        with pytest.raises(OutputFailed, match="Expected to write to"):
            EventLog(path, 8192)
    with pytest.raises(ConfigError, match="4096"):
        EventLog(tmp_path / "log", 100)
    full = EventLog(Path("/dev/full"), 8192)
    with pytest.raises(OutputFailed, match="No space left") as caught:
        full.write(["a line"])
    full.close()
    assert caught.value.exit_code == 75


def test_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """Lines come out at once, each with its end."""
    sink = EventLog()
    sink.write(["one", "two"])
    assert capfd.readouterr().out == "one\ntwo\n"
    sink.close()
    assert os.fstat(1)
