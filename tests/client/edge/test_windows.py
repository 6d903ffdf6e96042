"""Formats and windows: bytes in any cut give the same rows, and bad rows are named or counted."""

import json
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from fedlatent.client.edge.windows import BATCH, DECODERS, Decoder, Windows, row_schema
from fedlatent.shared.errors import ConfigError, DataError
from tests.shared.bundle import tiny

ROWS = np.round(np.random.default_rng(3).normal(0, 800, (600, tiny.DIM)), 2)
HEADER = b"a,b,c,d,e,f\n"


def _csv(rows: np.ndarray) -> bytes:
    return "".join(",".join(map(repr, row)) + "\n" for row in rows.tolist()).encode()


def _jsonl(rows: np.ndarray) -> bytes:
    lines = [
        json.dumps(row if i % 2 else {"values": row, "at": "x"})
        for i, row in enumerate(rows.tolist())
    ]
    return ("\n".join(lines) + "\n").encode()


BYTES = {
    "csv": HEADER + _csv(ROWS),
    "jsonl": _jsonl(ROWS),
    "f32": ROWS.astype("<f4").tobytes(),
    "f64": ROWS.astype("<f8").tobytes(),
}


def _all(decoder: Decoder, pieces: Iterable[bytes]) -> np.ndarray:
    got = [rows for piece in pieces for rows in decoder.feed(piece)]
    got += list(decoder.finish())
    assert all(1 <= len(rows) <= BATCH for rows in got)
    return np.concatenate([np.zeros((0, decoder.schema.size)), *got])


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [7, 4096, 1 << 20])
@pytest.mark.parametrize("kind", BYTES)
def test_cuts_do_not_matter(kind: str, size: int) -> None:
    """Every format gives all rows in order, wherever the bytes are cut."""
    decoder = DECODERS[kind](tiny.SCHEMA)
    got = _all(decoder, _cut(BYTES[kind], size))
    np.testing.assert_allclose(got, ROWS, rtol=1e-6)
    assert (decoder.rows, decoder.bad, decoder.cut) == (600, 0, 0)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_come_with_their_line_end(kind: str) -> None:
    """A line is given as soon as its end has come, and a last line needs none."""
    decoder = DECODERS[kind](tiny.SCHEMA)
    first, second = BYTES[kind].removeprefix(HEADER).splitlines(keepends=True)[:2]
    assert not list(decoder.feed(first[:-1]))
    assert [len(rows) for rows in decoder.feed(b"\n" + second[:-1])] == [1]
    assert [len(rows) for rows in decoder.finish()] == [1]


def test_columns_header_and_marks() -> None:
    """Columns are chosen by name; a byte order mark, blank lines and a repeated header pass."""
    text = b"\xef\xbb\xbfwhen,f,e,d,c,b,a\r\nmon,6,5,4,3,2,1\r\n\r\nwhen,f,e,d,c,b,a\r\n"
    decoder = DECODERS["csv"](tiny.SCHEMA, columns=list("abcdef"))
    got = _all(decoder, [text + b'"tue, late",6,5,4,3,2,1\r\n'])
    np.testing.assert_array_equal(got, [[1, 2, 3, 4, 5, 6]] * 2)
    plain = DECODERS["csv"](tiny.SCHEMA)
    np.testing.assert_array_equal(_all(plain, [b"\xef\xbb\xbf1,2,3,4,5,6\n"]), [[1, 2, 3, 4, 5, 6]])
    with pytest.raises(DataError, match="columns z"):
        _all(DECODERS["csv"](tiny.SCHEMA, columns=["z"]), [HEADER])


GOOD = {"csv": b"1,2,3,4,5,6\n", "jsonl": b"[1,2,3,4,5,6]\n"}
BAD = [
    ("csv", b"1,2,3,4,5\n"),
    ("csv", b"1,2,secret,4,5,6\n"),
    ("csv", b"1,2,,4,5,6\n"),
    ("csv", b"1,2,nan,4,5,6\n"),
    ("csv", b"1,2,1e200,4,5,6\n"),
    ("csv", b"1,2,3\r4,5,6,7\n"),
    ("csv", b"1,2,\xff,4,5,6\n"),
    ("csv", b"1," * 40_000 + b"1\n"),
    ("jsonl", b"secret\n"),
    ("jsonl", b"[1,2,3,4,5]\n"),
    ("jsonl", b"[1,2,3,4,5,NaN]\n"),
    ("jsonl", b"[1,2,3,4,5,1e999]\n"),
    ("jsonl", b"[1,2,3,4,5,true]\n"),
    ("jsonl", b'[1,2,3,4,5,"6"]\n'),
    ("jsonl", b"[1,2,3,4,5," + b"9" * 400 + b"]\n"),
    ("jsonl", b'{"other":[1,2,3,4,5,6]}\n'),
    ("jsonl", b"[" * 60_000 + b"\n"),
    ("jsonl", b"[1,2,3],[4,5,6\n"),
]


@pytest.mark.parametrize(("kind", "bad"), BAD, ids=lambda value: str(value)[:24])
def test_bad_rows_stop_or_are_counted(kind: str, bad: bytes) -> None:
    """A bad row stops with its number and no value; with skip_bad it is counted, others stay."""
    good = GOOD[kind]
    with pytest.raises(DataError, match="Expected") as caught:
        _all(DECODERS[kind](tiny.SCHEMA), [good, bad])
    assert "secret" not in str(caught.value)
    assert "record 2" in str(caught.value)
    decoder = DECODERS[kind](tiny.SCHEMA, skip_bad=True)
    got = _all(decoder, _cut(good + bad + good, 1000))
    np.testing.assert_array_equal(got, [[1, 2, 3, 4, 5, 6]] * 2)
    assert (decoder.bad, decoder.rows) == (1, 4 - 1)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_endless_line_is_refused_early(kind: str) -> None:
    """A line without end is refused once it is too long, and with skip_bad it is passed over."""
    with pytest.raises(DataError, match="longer one"):
        _all(DECODERS[kind](tiny.SCHEMA), [b"1" * 10_000] * 8)
    decoder = DECODERS[kind](tiny.SCHEMA, skip_bad=True)
    assert not len(_all(decoder, [b"1" * 10_000] * 500))
    assert decoder.bad == 1
    assert len(_all(decoder, [b"1\n" + GOOD[kind]])) == 1


def test_raw_records_that_are_cut_or_not_finite() -> None:
    """Raw bytes that end in mid-record, or hold NaN, are errors, or are counted."""
    data = ROWS[:3].astype("<f4")
    data[1, 2] = np.nan
    with pytest.raises(DataError, match="record 2"):
        _all(DECODERS["f32"](tiny.SCHEMA), [data.tobytes()])
    with pytest.raises(DataError, match="got 5 bytes at the end"):
        _all(DECODERS["f32"](tiny.SCHEMA), [data[:1].tobytes() + b"12345"])
    decoder = DECODERS["f32"](tiny.SCHEMA, skip_bad=True)
    np.testing.assert_array_equal(_all(decoder, [data.tobytes() + b"12345"]), data[[0, 2]])
    assert decoder.bad == 2


@pytest.mark.parametrize("kind", BYTES)
def test_dropped_rest_is_not_continued(kind: str) -> None:
    """After a break, bytes before it are forgotten and counted."""
    decoder = DECODERS[kind](tiny.SCHEMA)
    start = 0 if kind != "csv" else len(HEADER)
    cut = start + decoder.record_bytes + 3 if decoder.record_bytes else -5
    before = sum(map(len, decoder.feed(BYTES[kind][:cut])))
    decoder.drop()
    after = sum(map(len, decoder.feed(BYTES[kind][start:])))
    assert (before, after) == (1 if cut > 0 else 599, 600)
    assert decoder.cut == 1
    decoder.drop()
    assert decoder.cut == 1


def test_lengths_are_known_for_raw_formats_only() -> None:
    """A raw record has a length in bytes, a line has none."""
    lengths = [DECODERS[kind](tiny.SCHEMA).record_bytes for kind in ("csv", "jsonl", "f32", "f64")]
    assert lengths == [0, 0, 24, 48]


@pytest.mark.parametrize("hop", [1, 3, 8, 20])
@pytest.mark.parametrize("shape", [(8,), (5, 8)])
def test_windows_are_those_of_the_whole_series(shape: tuple[int, ...], hop: int) -> None:
    """Windows of rows that come in any portions are the windows of the series, channels first."""
    schema = replace(tiny.SCHEMA, shape=shape)
    channels = row_schema(schema).size
    series = np.random.default_rng(0).normal(size=(700, channels))
    expected = [series[s : s + 8].T.ravel() for s in range(0, 700 - 8 + 1, hop)]
    windows = Windows(schema, hop)
    got, place = [], 0
    for portion in [1, 2, 100, 256, 3, 256, 82]:
        got.append(windows.push(series[place : place + portion]))
        place += portion
    np.testing.assert_array_equal(np.concatenate(got), expected)


def test_windows_start_anew() -> None:
    """After a reset no window holds steps from before it; a hop of zero is refused."""
    windows = Windows(replace(tiny.SCHEMA, shape=(2, 4)), 1)
    windows.push(np.zeros((3, 2)))
    windows.reset()
    assert not len(windows.push(np.ones((3, 2))))
    np.testing.assert_array_equal(windows.push(np.ones((1, 2))), np.ones((1, 8)))
    with pytest.raises(ConfigError, match="at least 1"):
        Windows(tiny.SCHEMA, 0)
