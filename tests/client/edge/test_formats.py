"""Formats: bytes in any cut give the same rows, and bad rows are named or counted."""

import io
import json
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.client.edge.decoders import BATCH, Decoder, Layout
from fedlatent.client.edge.formats import DECODERS
from fedlatent.client.edge.windows import Rows
from fedlatent.shared.data.dialect import DELIMITERS, Dialect
from fedlatent.shared.data.table import Table
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
    got = [rows.values for piece in pieces for rows in decoder.feed(piece)]
    got += [rows.values for rows in decoder.finish()]
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


@settings(deadline=None, max_examples=60)
@given(
    delimiter=st.sampled_from([*DELIMITERS]),
    decimal=st.sampled_from(".,"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252"]),
    names=st.sampled_from(["abcdef", "äöüß€x", ""]),
    ends=st.sampled_from(["\n", "\r\n", "\n\n"]),
    said=st.booleans(),
    size=st.integers(1, 400),
)
def test_any_dialect_gives_the_same_rows(
    delimiter: str, decimal: str, encoding: str, names: str, ends: str, said: bool, size: int
) -> None:
    """However a table is written and cut, a device and the rule of tables read the same rows."""
    if delimiter == decimal:
        delimiter = ";"
    rows = ROWS[:20].tolist()
    lines = [delimiter.join(repr(value).replace(".", decimal) for value in row) for row in rows]
    lines[:0] = [delimiter.join(names)] if names else []
    data = "".join(line + ends for line in lines).encode(encoding)
    dialect = Dialect(
        delimiter=delimiter,
        decimal=decimal,
        encoding=encoding,
        header=bool(names) if said else None,
    )
    decoder = DECODERS["csv"](tiny.SCHEMA, Layout(dialect=dialect))
    np.testing.assert_array_equal(_all(decoder, _cut(data, size)), ROWS[:20])
    table = Table(dialect=dialect)
    kept = [*dialect.lines(io.BytesIO(data), "x")]
    table.begin(kept[0])
    np.testing.assert_array_equal(table.numbers(kept[bool(names) :], 1), ROWS[:20])


def test_times_are_numbers_of_the_dialect_and_said_as_written() -> None:
    """A time with a decimal comma is so many seconds; a point there is no number."""
    layout = Layout(time="t", dialect=Dialect(delimiter=";", decimal=","))
    decoder = DECODERS["csv"](tiny.SCHEMA, layout)
    (rows,) = decoder.feed(b"t;a;b;c;d;e;f\n0,5;1;2;3;4;5;6\n")
    assert rows.seconds is not None
    assert rows.stamp is not None
    assert (rows.seconds.tolist(), rows.stamp.tolist()) == ([0.5], ["0,5"])
    with pytest.raises(DataError, match="a time in seconds"):
        list(decoder.feed(b"1.5;1;2;3;4;5;6\n"))


def test_bytes_in_another_encoding_are_refused() -> None:
    """What is not in the encoding that was said is refused, at its end at the latest."""
    decoder = DECODERS["csv"](tiny.SCHEMA, Layout(dialect=Dialect(encoding="utf-16"), name="x"))
    assert len(_all(decoder, ["1,2,3,4,5,6\n".encode("utf-16")])) == 1
    decoder.drop()
    other = b"\xfe\xff" + "1,2,3,4,5,6\n".encode("utf-16-be")
    assert len(_all(decoder, [other])) == 1
    with pytest.raises(DataError, match="Expected x in utf-16, got something else") as caught:
        _all(decoder, [b"1"])
    assert caught.value.reason == "encoding"


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
    decoder = DECODERS["csv"](tiny.SCHEMA, Layout(columns=list("abcdef")))
    got = _all(decoder, [text + b'"tue, late",6,5,4,3,2,1\r\n'])
    np.testing.assert_array_equal(got, [[1, 2, 3, 4, 5, 6]] * 2)
    plain = DECODERS["csv"](tiny.SCHEMA)
    np.testing.assert_array_equal(_all(plain, [b"\xef\xbb\xbf1,2,3,4,5,6\n"]), [[1, 2, 3, 4, 5, 6]])
    with pytest.raises(DataError, match="columns z"):
        _all(DECODERS["csv"](tiny.SCHEMA, Layout(columns=["z"])), [HEADER])


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
    decoder = DECODERS[kind](tiny.SCHEMA, Layout(skip_bad=True))
    got = _all(decoder, _cut(good + bad + good, 1000))
    np.testing.assert_array_equal(got, [[1, 2, 3, 4, 5, 6]] * 2)
    assert (decoder.bad, decoder.rows) == (1, 4 - 1)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_endless_line_is_refused_early(kind: str) -> None:
    """A line without end is refused once it is too long, and with skip_bad it is passed over."""
    with pytest.raises(DataError, match="longer one"):
        _all(DECODERS[kind](tiny.SCHEMA), [b"1" * 10_000] * 8)
    decoder = DECODERS[kind](tiny.SCHEMA, Layout(skip_bad=True))
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
    decoder = DECODERS["f32"](tiny.SCHEMA, Layout(skip_bad=True))
    np.testing.assert_array_equal(_all(decoder, [data.tobytes() + b"12345"]), data[[0, 2]])
    assert decoder.bad == 2


@pytest.mark.parametrize("kind", BYTES)
def test_dropped_rest_is_not_continued(kind: str) -> None:
    """After a break, bytes before it are forgotten and counted."""
    decoder = DECODERS[kind](tiny.SCHEMA)
    start = 0 if kind != "csv" else len(HEADER)
    size = tiny.DIM * decoder.item_bytes
    cut = start + size + 3 if size else -5
    before = sum(map(len, decoder.feed(BYTES[kind][:cut])))
    decoder.drop()
    after = sum(map(len, decoder.feed(BYTES[kind][start:])))
    assert (before, after) == (1 if cut > 0 else 599, 600)
    assert decoder.cut == 1
    decoder.drop()
    assert decoder.cut == 1


def test_lengths_are_known_for_raw_formats_only() -> None:
    """A raw value has a length in bytes, a line has none."""
    assert [DECODERS[kind].item_bytes for kind in ("csv", "jsonl", "f32", "f64")] == [0, 0, 4, 8]


def _given(decoder: Decoder, pieces: Iterable[bytes]) -> tuple[list[Rows], DataError | None]:
    """What comes, and the error that ends it."""
    got: list[Rows] = []
    try:
        for piece in pieces:
            got += decoder.feed(piece)
        got += decoder.finish()
    except DataError as error:
        return got, error
    return got, None


@pytest.mark.parametrize("size", [7, 1 << 20])
@pytest.mark.parametrize(("kind", "bad"), [*BAD, ("f32", b""), ("f64", b"")], ids=repr)
def test_what_precedes_a_bad_row_is_given(kind: str, bad: bytes, size: int) -> None:
    """All rows before a bad one come before its error, though they come in one piece with it."""
    form = {"f32": "<f4", "f64": "<f8"}.get(kind)
    good = ROWS[0].astype(form).tobytes() if form else GOOD[kind]
    bad = bad or np.full(tiny.DIM, np.nan, form).tobytes()
    data = good * 200 + bad + good * 100
    got, error = _given(DECODERS[kind](tiny.SCHEMA), _cut(data, size))
    assert sum(map(len, got)) == 200
    assert error is not None
    assert "record 201" in str(error)
    decoder = DECODERS[kind](tiny.SCHEMA, Layout(skip_bad=True))
    got, error = _given(decoder, _cut(data, size))
    rows = Rows.joined(got)
    assert error is None
    assert rows.number.tolist() == [*range(1, 201), *range(202, 302)]
    assert np.flatnonzero(rows.fresh).tolist() == [200]
    assert (decoder.rows, decoder.bad, decoder.missing) == (301, 1, False)


@pytest.mark.parametrize("pieces", [7, 1 << 20])
def test_rows_know_their_lines(pieces: int) -> None:
    """A row has the number of its line, whatever else stands between; a new file counts anew."""
    text = b"\n" + HEADER + GOOD["csv"] + b"\n" + HEADER + b"1,2\n" + GOOD["csv"] * 2
    decoder = DECODERS["csv"](tiny.SCHEMA, Layout(skip_bad=True))
    rows = Rows.joined([rows for piece in _cut(text, pieces) for rows in decoder.feed(piece)])
    assert rows.line is not None
    assert rows.line.tolist() == [3, 7, 8]
    assert rows.number.tolist() == [1, 3, 4]
    decoder.drop()
    (row,) = decoder.feed(GOOD["csv"])
    assert row.place(0) == {"row": 5, "line": 1}
    assert not row.fresh.any()


LINES = [
    GOOD["csv"],
    GOOD["csv"],
    HEADER,
    b"\n",
    b"1,2,secret,4,5,6\n",
    b"1,2\n",
    b"nan,2,3,4,5,6\r\n",
    b'"1",2,3,4,5,6\n',
]


@settings(max_examples=200, deadline=None)
@given(lines=st.lists(st.sampled_from(LINES), max_size=40), portion=st.integers(1, 300))
def test_every_good_row_comes_with_its_place(lines: list[bytes], portion: int) -> None:
    """However bytes are cut, good rows come once, in order, marked where one before is missing."""
    expected, number, missing = [], 0, False
    for line, text in enumerate(lines, 2):
        if text in (HEADER, b"\n"):
            continue
        number += 1
        good = text in (LINES[0], LINES[-1])
        if good:
            expected.append((number, line, missing))
        missing = not good
    decoder = DECODERS["csv"](tiny.SCHEMA, Layout(skip_bad=True))
    got, error = _given(decoder, _cut(HEADER + b"".join(lines), portion))
    assert error is None
    found = [
        (row.number[0], row.line[0], row.fresh[0])
        for rows in got
        for row in (rows.take(slice(at, at + 1)) for at in range(len(rows)))
        if row.line is not None
    ]
    assert found == expected
    assert decoder.bad == number - len(expected)


def test_a_further_file_may_have_another_header() -> None:
    """After a rotation columns are found by the new header; without one they stay as they were."""
    decoder = DECODERS["csv"](tiny.SCHEMA, Layout(columns=list("abcdef"), skip_bad=True))
    texts = (
        b"a,b,c,d,e,f\n1,2,3,4,5,6\n",
        b"\nf,e,d,x,c,b,a\n6,5,4,0,3,2,1\n",
        b"6,5,4,0,3,2,1\n",
        b"f,e,d,x,c,b,a\n6,5,4,0,3,2,1\n",
    )
    for text in texts:
        rows = Rows.joined([*decoder.feed(text)])
        np.testing.assert_array_equal(rows.values, [[1, 2, 3, 4, 5, 6]])
        decoder.drop()
    with pytest.raises(DataError, match="columns c once each"):
        _all(decoder, [b"a,b,d,e,f\n1,2,4,5,6\n"])


TIMES = [
    ("60", 60.0),
    ("2026-01-31T12:00:00Z", 1769860800.0),
    ("2026-01-31 13:00+01:00", 1769860800),
]


@pytest.mark.parametrize(("text", "seconds"), TIMES)
def test_rows_have_times_and_series(text: str, seconds: float) -> None:
    """A column of times, as seconds or dates, and one of series are no values of a record."""
    layout = Layout(time="when", group="host")
    head = b"host,a,b,when,c,d,e,f\n"
    row = f"web,1,2,{text},3,4,5,6\n".encode()
    quoted = f'"w, b",1,2,"{text}",3,4,5,6\n'.encode()
    value = {
        "host": "web",
        "when": float(text) if text == "60" else text,
        "values": [1, 2, 3, 4, 5, 6],
    }
    cases = [
        ("csv", head + row, "web"),
        ("csv", head + quoted, "w, b"),
        ("jsonl", json.dumps(value).encode(), "web"),
    ]
    for kind, data, series in cases:
        (got,), error = _given(DECODERS[kind](tiny.SCHEMA, layout), [data])
        assert error is None
        np.testing.assert_array_equal(got.values, [[1, 2, 3, 4, 5, 6]])
        assert (got.seconds, got.group) == ([seconds], [series])
        assert str(got.place(0)["row_time"]).startswith(text)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("csv", b"when,a,b,c,d,e,f\nsoon,1,2,3,4,5,6\n"),
        ("csv", b"when,a,b,c,d,e,f\n,1,2,3,4,5,6\n"),
        ("csv", b"when,a,b,c,d,e,f\nnan,1,2,3,4,5,6\n"),
        ("csv", b"a,b,c,d,e,f\n1,2,3,4,5,6\n"),
        ("csv", b"1,2,3,4,5,6\n"),
        ("jsonl", b'{"values": [1,2,3,4,5,6]}\n'),
        ("jsonl", b"[1,2,3,4,5,6]\n"),
        ("jsonl", b'{"values": [1,2,3,4,5,6], "when": "secret"}\n'),
    ],
)
def test_rows_without_their_time_are_refused(kind: str, data: bytes) -> None:
    """A row that has no time, or one that cannot be read, is refused by the name of the column."""
    got, error = _given(DECODERS[kind](tiny.SCHEMA, Layout(time="when", name="beats")), [data])
    assert not got
    assert error is not None
    assert (error.field, "of beats" in str(error)) == ("when", True)
    assert "secret" not in str(error)


def test_raw_formats_have_no_times() -> None:
    """A column of times is refused at once where rows hold values alone."""
    with pytest.raises(ConfigError, match="'when'"):
        DECODERS["f32"](tiny.SCHEMA, Layout(time="when"))
