"""Files are whole or absent."""

import json
import os
from pathlib import Path

import pytest

from shared.errors import DataError
from shared.files import append_line, canonical_json, read_json, write_atomic, write_json


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    """When the target cannot be replaced the old content stays and the temporary file goes."""
    target = tmp_path / "folder"
    target.mkdir()
    (target / "inside").write_text("kept")
    with pytest.raises(OSError, match="folder"):
        write_atomic(target, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert (target / "inside").read_text() == "kept"


def test_secrets_get_their_mode_before_their_name(tmp_path: Path) -> None:
    """A file written with mode 0600 is never readable by others."""
    write_atomic(tmp_path / "key", b"secret", 0o600)
    assert os.stat(tmp_path / "key").st_mode & 0o777 == 0o600


def test_json_round_trip_and_refusal(tmp_path: Path) -> None:
    """Written JSON reads back; NaN is refused; a broken file is one clear sentence."""
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "ä": None})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5], "ä": None}
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": float("nan")})
    (tmp_path / "bad.json").write_bytes(b"{")
    with pytest.raises(DataError, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(DataError, match="got none"):
        read_json(tmp_path / "absent.json")
    assert (
        canonical_json({"b": 1, "a": 2}) == json.dumps({"a": 2, "b": 1}).replace(" ", "").encode()
    )


def test_a_line_that_is_not_whole_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up within a line may write a part of it without an error of its own."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:4]))
    with pytest.raises(OSError, match="4 written"):
        append_line(tmp_path / "log", "one line")
    monkeypatch.undo()
    append_line(tmp_path / "log", "another")
    assert (tmp_path / "log").read_text() == "one \nanother\n"
