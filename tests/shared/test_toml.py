"""TOML is written without what is absent, and read with a line in each error."""

import tomllib

import pytest

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.toml import dumps, parse_toml


def test_none_is_left_out() -> None:
    """An absent value has no line."""
    assert dumps({"a": None, "b": 1}) == "b = 1\n"
    table = {"a": {"b": [1, 2], "c": {"d": 'quoted "text"\n', "e": -0.0}}, "f": True}
    assert tomllib.loads(dumps(table | {"g": {"h": None}})) == table | {"g": {}}
    assert tomllib.loads(dumps({"a": [{"b": 1, "c": None}]})) == {"a": [{"b": 1}]}


def test_other_values_are_refused() -> None:
    """A value that TOML has no form for is an error, not a wrong file."""
    with pytest.raises(TypeError, match="bytes"):
        dumps({"a": b"x"})


@pytest.mark.parametrize(("text", "line"), [("a = 1\nb =\n", 2), ("a = 1\n[x", 2), ("a = '", 1)])
def test_a_syntax_error_names_file_and_line(text: str, line: int) -> None:
    """The error says where, and why by its reason."""
    with pytest.raises(ConfigError, match=rf"^run.toml, line {line}: expected TOML") as caught:
        parse_toml(text, "run.toml")
    assert caught.value.reason == "syntax"
