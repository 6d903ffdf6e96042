"""TOML text that we write is read back by the standard library."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlatent.shared.toml import dumps

SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3))
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
TABLES = st.recursive(
    st.dictionaries(KEYS, VALUES, max_size=3),
    lambda inner: st.dictionaries(KEYS, st.one_of(VALUES, inner), max_size=3),
    max_leaves=6,
)


@given(TABLES)
def test_round_trip(table: dict[str, object]) -> None:
    """Every nested table of plain values comes back as it was."""
    assert tomllib.loads(dumps(table)) == table


def test_none_is_left_out() -> None:
    """An absent value has no line."""
    assert dumps({"a": None, "b": 1}) == "b = 1\n"


def test_other_values_are_refused() -> None:
    """A value that TOML has no form for is an error, not a wrong file."""
    with pytest.raises(ValueError, match="got bytes"):
        dumps({"a": b"x"})
