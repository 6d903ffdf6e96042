"""Strikes are counted in a file that driver and operator share."""

import threading
from pathlib import Path

import pytest

from fedlatent.server.outcome import SiteOutcome, SiteStatus
from fedlatent.server.strikes import MISBEHAVIOUR, STRIKES, Strikes
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.schedule import Phase

PHASE = Phase(number=2, kind="train", trained=1)


def outcome(site: str, code: str, status: SiteStatus = "failed") -> SiteOutcome:
    """A reply that was not taken."""
    return SiteOutcome(site=site, node_id=1, status=status, code=code)


def run_folder(tmp_path: Path) -> Path:
    """The folder of run hearts-1."""
    folder = tmp_path / "hearts-1"
    folder.mkdir()
    return folder


def test_the_third_strike_leaves_out(tmp_path: Path) -> None:
    """Two strikes are none; at the third the site is named with its reasons and the way back."""
    strikes = Strikes(run_folder(tmp_path))
    assert strikes.note(outcome("north", "norm"), PHASE) is None
    assert strikes.note(outcome("north", "size"), PHASE) is None
    assert strikes.note(outcome("south", "size"), PHASE) is None
    assert strikes.left_out() == {}
    last = strikes.note(outcome("north", "incomplete", "late"), PHASE)
    assert last is not None
    assert "norm in phase 2 (train), size in phase 2 (train), incomplete in" in last.sentence
    assert "'fedlatent server readmit hearts-1 north'" in last.sentence
    assert Strikes(tmp_path / "hearts-1").left_out() == {"north": last}


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("norm", "refused"),
        ("late", "late"),
        ("flower-2", "failed"),
        ("protocol", "failed"),
        ("not-sent", "failed"),
        ("link", "open"),
        ("not-awaited", "open"),
        ("left-out", "left out"),
        ("", "ok"),
    ],
)
def test_what_a_node_is_not_to_blame_for_is_no_strike(
    tmp_path: Path, code: str, status: SiteStatus
) -> None:
    """Refusals in words, lateness, Flower's errors and old versions are not counted."""
    strikes = Strikes(run_folder(tmp_path))
    for _ in range(STRIKES):
        assert strikes.note(outcome("north", code, status), PHASE) is None
    assert strikes.left_out() == {}
    assert not list((tmp_path / "hearts-1").iterdir())


def test_every_code_of_misbehaviour_counts(tmp_path: Path) -> None:
    """Each of the codes is a strike by itself."""
    strikes = Strikes(run_folder(tmp_path))
    for code in sorted(MISBEHAVIOUR):
        for _ in range(STRIKES):
            last = strikes.note(outcome(f"site-{code}", code), PHASE)
        assert last is not None
    assert len(strikes.left_out()) == len(MISBEHAVIOUR)


def test_readmission_begins_from_nothing(tmp_path: Path) -> None:
    """Who is let back has no strikes; whoever is not left out cannot be."""
    strikes = Strikes(run_folder(tmp_path))
    with pytest.raises(ConfigError, match="left out are: none"):
        strikes.readmit("north")
    for site in ("north", "south"):
        for _ in range(STRIKES):
            strikes.note(outcome(site, "norm"), PHASE)
    with pytest.raises(ConfigError, match="got 'east'; left out are: north, south"):
        strikes.readmit("east")
    strikes.readmit("north")
    assert list(strikes.left_out()) == ["south"]
    assert strikes.note(outcome("north", "norm"), PHASE) is None


def test_driver_and_operator_write_at_the_same_time(tmp_path: Path) -> None:
    """No strike is lost when many write at once."""
    folder = run_folder(tmp_path)

    def strike(site: str) -> None:
        for _ in range(STRIKES):
            Strikes(folder).note(outcome(site, "norm"), PHASE)

    threads = [threading.Thread(target=strike, args=(f"site-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Strikes(folder).left_out()) == 8


@pytest.mark.parametrize("text", ["[]", '{"north": [{"phase": 1}]}', "{", "9" * 5_000])
def test_damaged_file_is_said(tmp_path: Path, text: str) -> None:
    """A file that is not as it was written is an error in one sentence."""
    folder = run_folder(tmp_path)
    (folder / "strikes.json").write_text(text)
    with pytest.raises(DataError):
        Strikes(folder).left_out()
