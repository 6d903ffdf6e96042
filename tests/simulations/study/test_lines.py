"""Positions of keys in TOML text."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from fedlatent.shared.toml import dumps
from fedlatent.simulations.study.lines import key_lines, line_of

WHOLE = '''\
title = "x # y = z"   # comment = 1
a.b.c = 1
"quoted \\"key\\"" = 2
'literal.key' = """
d = not a key
""\\" e = no key either
"""
list = [
  1, # one = 1
  { x = 1, y.z = [2, { deep = 3 }] },
  ["]", "}"],
]

[table."with dot.s"]
f = 1979-05-27T07:32:00Z
g = { h = { i = 1 }, j = 2 }
q = [
]
k = \'\'\'
l = 1\'\'\'\'
m = 1

[[many]]
n = 1
[many.inner]
o = 1
[[many]]
n = 2
[[many.deep]]
p = 3
[last]
'''


def test_every_kind_of_key_has_its_line() -> None:
    """Tables, dotted, quoted and inline keys, and tables in arrays are found where they stand."""
    tomllib.loads(WHOLE)
    lines = key_lines(WHOLE)
    expected = {
        ("title",): 1,
        ("a",): 2,
        ("a", "b", "c"): 2,
        ('quoted "key"',): 3,
        ("literal.key",): 4,
        ("list",): 8,
        ("list", "1", "x"): 10,
        ("list", "1", "y", "z"): 10,
        ("list", "1", "y", "z", "1", "deep"): 10,
        ("table",): 14,
        ("table", "with dot.s", "f"): 15,
        ("table", "with dot.s", "g", "h", "i"): 16,
        ("table", "with dot.s", "g", "j"): 16,
        ("table", "with dot.s", "k"): 19,
        ("table", "with dot.s", "m"): 21,
        ("many", "0", "n"): 24,
        ("many", "0", "inner", "o"): 26,
        ("many", "1", "n"): 28,
        ("many", "1", "deep", "0", "p"): 30,
        ("last",): 31,
    }
    assert {path: lines.get(path) for path in expected} == expected
    assert ("d",) not in lines
    assert ("l",) not in lines


def test_the_line_of_what_is_absent_is_that_of_its_table() -> None:
    """A missing key is reported at the longest part of its path that stands in the text."""
    lines = key_lines("[a]\n[a.b]\nc = 1\n")
    assert line_of(lines, ("a", "b", "d")) == 2
    assert line_of(lines, ("a", "x", "d")) == 1
    assert line_of(lines, ("z",)) is None


@given(st.integers(0, 3), st.booleans())
def test_line_ends_of_windows_count_once(blank: int, comment: bool) -> None:
    """A file with CRLF has the same lines as one with LF."""
    text = "\n" * blank + ("# c\n" if comment else "") + "[a]\nb = '''\nx'''\nc = 1\n"
    tomllib.loads(text)
    assert key_lines(text.replace("\n", "\r\n")) == key_lines(text)


_KEYS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=6)
_VALUES = st.one_of(
    st.integers(-5, 5),
    st.booleans(),
    st.text("ab\"'#=[]{}.\n\\ ", max_size=8),
    st.lists(st.text("a]\"#,'", max_size=3), max_size=3),
)


@given(
    st.recursive(
        st.dictionaries(_KEYS, _VALUES, min_size=1, max_size=3),
        lambda inner: st.dictionaries(_KEYS, st.one_of(_VALUES, inner), min_size=1, max_size=3),
        max_leaves=8,
    )
)
def test_any_written_table_is_found_whole(value: dict[str, object]) -> None:
    """Every key that the reader finds has a line, and its name stands on that line."""
    text = dumps(value)
    lines = key_lines(text)

    def check(table: dict[str, object], path: tuple[str, ...]) -> None:
        for key, item in table.items():
            line = text.split("\n")[lines[(*path, key)] - 1]
            plain = key.replace("\\", "\\\\").replace('"', '\\"')
            assert plain in line
            if isinstance(item, dict):
                check(item, (*path, key))

    check(tomllib.loads(text), ())
