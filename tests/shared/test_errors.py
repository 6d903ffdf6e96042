"""Errors: the tree, what each carries, and that no program reads their sentences."""

import ast
import errno
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fedlatent
from fedlatent.shared import errors
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import (
    ConfigError,
    FedlatentError,
    LedgerError,
    ProtocolError,
    SignatureError,
    StorageError,
    UpdateRefused,
)
from fedlatent.shared.models import build
from fedlatent.shared.wire import PROTOCOL, ReplyHeader, parse_header

ROOT = Path(fedlatent.__file__).resolve().parent.parent
SOURCES = ("client", "fedlatent", "server", "shared", "simulations")

RUN = {"name": "x", "data": {"name": "s", "shape": [8]}}

#: Sentences of other people's code that are read since nothing else tells: where, and whose.
FOREIGN = {
    ("client/preflight.py", "_away"): "http.client: how a proxy answered to CONNECT",
    ("shared/toml.py", "parse_toml"): "tomllib: the line of a syntax error, before Python 3.14",
}

_READS = {
    *("startswith", "endswith", "split", "rsplit", "partition", "rpartition", "find", "index"),
    *("removeprefix", "removesuffix", "count", "fullmatch", "match", "search", "findall"),
}


def test_the_tree_on_top_of_the_module_is_the_tree() -> None:
    """Each class stands in the drawing with its code, its exit code and a star if it travels."""
    drawn = {
        match[1]: (match[3], int(match[4]), bool(match[2]))
        for match in re.finditer(
            r"^[ │├└─]*(\w+) +(\* +)?([a-z-]+) +(\d+)", errors.__doc__ or "", re.MULTILINE
        )
    }
    classes = {
        name: (kind.code, kind.exit_code, kind.travels)
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, FedlatentError)
    }
    assert drawn == classes


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"training": {"rounds": 0}}, "training.rounds", "greater_than_equal"),
        ({"privcy": {}}, "privcy", "extra_forbidden"),
        ({"data": {"shape": [8]}}, "data.name", "missing"),
        ({"data": {"name": "s", "shape": [0]}}, "data.shape.0", "greater_than_equal"),
        ({"data": {"name": "s", "shape": [8], "sclae": 1}}, "data.sclae", "extra_forbidden"),
        ({"data": {"name": "a b", "shape": [8]}}, "data.name", "value_error"),
        ({"data": {"name": "s", "shape": [8], "lower": 2}}, "data", "value_error"),
        ({"training": {"objective": "iwae", "beta": 2}}, "training", "value_error"),
        ({"sharing": "full", "strategy": {"name": "mr-mtl"}}, None, "value_error"),
    ],
)
def test_a_wrong_run_file_names_its_field(
    change: dict[str, object], field: str | None, reason: str
) -> None:
    """The path of the key and the kind of problem are values of the error."""
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse(RUN | change, "run.toml")
    assert (caught.value.field, caught.value.reason) == (field, reason)


@pytest.mark.parametrize(
    ("family", "options", "shape", "field"),
    [
        ("gausian", {}, (8,), "model.family"),
        ("gaussian", {"latent": 3}, (8,), "model.options.latent"),
        ("gaussian", {"latent_dim": 0}, (8,), "model.options.latent_dim"),
        ("gaussian", {"hidden": [0]}, (8,), "model.options.hidden"),
        ("gaussian", {"stochastic": 1}, (8,), "model.options.stochastic"),
        ("gaussian", {"preset": "huge"}, (8,), "model.options.preset"),
        ("gaussian", {"network": "conv2d"}, (8,), "model.options.network"),
        ("gaussian", {}, (), "data.shape"),
        ("sparse", {"threshold": 2.0}, (8,), "model.options.threshold"),
        ("sequence", {"patch": 7}, (8,), "model.options.patch"),
        ("sequence", {"masked": "no"}, (8,), "model.options.masked"),
        ("molecule", {"first_atom": 900}, (8,), "model.options.first_atom"),
        ("mixed", {"columns": [1]}, (8,), "model.options.columns"),
        ("denoising", {"corruptions": ["x"]}, (8,), "model.options.corruptions"),
    ],
)
def test_a_wrong_option_of_a_model_names_its_field(
    family: str, options: dict[str, object], shape: tuple[int, ...], field: str
) -> None:
    """The field is the option's path in a run file, whichever family refuses it."""
    with pytest.raises(ConfigError) as caught:
        build(family, options, shape, 0)
    assert caught.value.field == field


def test_errors_say_themselves_to_scripts() -> None:
    """The facts of every error are code, message, field and reason; some have more."""
    assert ConfigError("Expected x.", field="a.b", reason="missing").facts == {
        "code": "config",
        "message": "Expected x.",
        "field": "a.b",
        "reason": "missing",
    }
    assert FedlatentError("x").details == {"field": None, "reason": None}
    assert LedgerError("x", entry=2).details == {
        "field": None,
        "reason": None,
        "event": None,
        "entry": 2,
    }
    assert SignatureError("expired", "x").details["reason"] == "expired"
    assert UpdateRefused("rollback", "x").details["reason"] == "rollback"
    full = StorageError.of(OSError(errno.ENOSPC, "no space", "/a/b"))
    assert (full.field, full.reason) == ("/a/b", "ENOSPC")
    with pytest.raises(ProtocolError) as caught:
        parse_header(ReplyHeader, f'{{"protocol": {PROTOCOL}, "loss": 1}}')
    assert caught.value.reason is not None


def test_no_program_reads_a_sentence() -> None:
    """Nothing in the source looks for words in the text of an error."""
    found = {
        (str(path.relative_to(ROOT)), function)
        for folder in SOURCES
        for path in sorted((ROOT / folder).rglob("*.py"))
        for function in readers(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set(FOREIGN)


@pytest.mark.parametrize(
    "line",
    [
        'x = "unknown key" in str(error)',
        'x = str(error).startswith("a")',
        'x = re.findall("a", str(error))',
        'words = str(error)\n        x = re.match("a", words)',
        'words = str(error)\n        x = words.partition(" ")',
        "x = error.args[0]",
        'x = "a" in f"{error}"',
    ],
)
def test_a_reader_of_sentences_is_found(line: str) -> None:
    """Each way of reading an error's text that once was, or could be, is seen by this test."""
    text = f"def f():\n    try:\n        g()\n    except ValueError as error:\n        {line}\n"
    assert list(readers(ast.parse(text))) == ["f"]
    assert not list(readers(ast.parse(text.replace(line, "h(str(error))"))))


def readers(tree: ast.Module) -> Iterator[str]:
    """Names of the functions that look into the text of an error."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and _reads(function):
            yield function.name


def _reads(function: ast.FunctionDef) -> bool:
    errors = {node.name for node in ast.walk(function) if isinstance(node, ast.ExceptHandler)}
    errors |= {
        one.arg
        for one in (*function.args.args, *function.args.kwonlyargs)
        if one.annotation and re.search(r"(Error|Exception)\b", ast.unparse(one.annotation))
    }
    if not errors:
        return False
    texts: set[str] = set()

    def is_text(node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in texts
        return any(_is_text_of(inner, errors) for inner in ast.walk(node))

    for node in ast.walk(function):  # breadth first: an assignment comes before what follows it
        if isinstance(node, ast.Assign) and _is_text_of(node.value, errors):
            texts |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return any(_looks_into(node, is_text, errors) for node in ast.walk(function))


def _is_text_of(node: ast.AST, errors: set[str | None]) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str":
        return any(isinstance(one, ast.Name) and one.id in errors for one in node.args)
    if isinstance(node, ast.FormattedValue):
        return isinstance(node.value, ast.Name) and node.value.id in errors
    return False


def _looks_into(node: ast.AST, is_text: Callable[[ast.AST], bool], errors: set[str | None]) -> bool:
    if isinstance(node, ast.Compare):
        contains = any(isinstance(operator, ast.In | ast.NotIn) for operator in node.ops)
        return contains and any(is_text(one) for one in node.comparators)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in _READS:
            return any(is_text(one) for one in (node.func.value, *node.args))
        return False
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute):
        owner = node.value.value
        return node.value.attr == "args" and isinstance(owner, ast.Name) and owner.id in errors
    return False
