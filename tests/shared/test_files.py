"""Files are whole or absent."""

import contextlib
import errno
import fcntl
import json
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlatent.shared.errors import DataError, StorageError
from fedlatent.shared.files import (
    append_line,
    canonical_json,
    check_room,
    read_json,
    read_lines,
    telling,
    write_atomic,
    write_json,
)


@contextlib.contextmanager
def most_bytes(limit: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``limit`` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


def test_a_line_is_written_whole_by_however_many_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may take a part of a line without an error of its own; the rest follows."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:4]))
    append_line(tmp_path / "log", "one line")
    append_line(tmp_path / "log", "another")
    assert (tmp_path / "log").read_text() == "one line\nanother\n"


def test_a_line_that_the_disk_does_not_take_whole_is_taken_back(tmp_path: Path) -> None:
    """A limit within the line, as a full disk is one, leaves the file as it was, and is named."""
    path = tmp_path / "log"
    append_line(path, "first")
    with most_bytes(10), pytest.raises(OSError, match="log") as caught:
        append_line(path, "a second line")
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == "first\n"
    append_line(path, "third")
    assert path.read_text() == "first\nthird\n"


def test_lines_of_two_processes_never_mix(tmp_path: Path) -> None:
    """What one takes back is never a line that another one wrote meanwhile."""
    path = tmp_path / "log"
    with path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread = threading.Thread(target=append_line, args=(path, "waited"))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        other.write("before\n")
    thread.join()
    assert path.read_text() == "before\nwaited\n"


@pytest.mark.parametrize(
    "torn",
    [b'{"a": 1', b"{}", b'{"a": "x"}', b"[1]", b"7", b"\xff\xfe", b"\0" * 50, b"[" * 100_000],
    ids=["cut", "empty", "type", "list", "number", "letters", "zeros", "deep"],
)
def test_a_reader_of_lines_survives_a_torn_one_and_counts_it(tmp_path: Path, torn: bytes) -> None:
    """Whatever a line holds in place of what was written, the others are read."""
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n' + torn + b'\n\n{"a": 3}')
    found = read_lines(path, lambda value: 2 * int(value["a"]))
    assert found.rows == ((1, 2), (4, 6))
    assert (found.values, found.torn) == ([2, 6], 1)


def test_no_file_has_no_lines_and_an_unreadable_one_is_an_error(tmp_path: Path) -> None:
    """Absent is empty; a folder in the file's place is not."""
    assert read_lines(tmp_path / "absent", dict).rows == ()
    with pytest.raises(OSError, match=tmp_path.name):
        read_lines(tmp_path, dict)


def test_room_is_looked_for_without_leaving_anything(tmp_path: Path) -> None:
    """Enough room passes, too little is an error that names the folder; no file stays."""
    check_room(tmp_path / "made", 1000)
    with most_bytes(1000), pytest.raises(OSError, match="made"):
        check_room(tmp_path / "made", 1001)
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no room"),
        (errno.EDQUOT, "no room"),
        (errno.EFBIG, "no room"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "the disk"),
        (errno.ENOTDIR, "a file where a folder must be"),
    ],
)
def test_what_the_operating_system_refuses_is_a_sentence(number: int, words: str) -> None:
    """Room, permission, a read-only mount and a failing disk are told apart, with the file."""
    with pytest.raises(StorageError, match=words) as caught, telling():
        raise OSError(number, os.strerror(number), "/place/file")
    assert str(caught.value).startswith("Expected /place/file to be usable, got ")


def test_a_folder_is_no_json(tmp_path: Path) -> None:
    """A folder in the place of a file is a sentence of ours."""
    with pytest.raises(DataError, match="got a folder"):
        read_json(tmp_path)
