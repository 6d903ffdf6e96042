"""JSON Schemas of run, node and server files: whole, told, current, and of use to an editor."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from fedlatent.client.home import ClientHome
from fedlatent.client.policy import NodeConfig
from fedlatent.client.service import init_client
from fedlatent.server.home import ServerHome
from fedlatent.server.settings import ServerSettings
from fedlatent.shared.config import RunConfig
from fedlatent.shared.editor import attributes, json_schema
from fedlatent.shared.models import FAMILIES
from tests.cli.conftest import Run

FOLDER = Path(__file__).resolve().parents[2] / "docs/schemas"
KINDS: dict[str, type[BaseModel]] = {
    "run": RunConfig,
    "node": NodeConfig,
    "server": ServerSettings,
}


def check(schema: dict[str, Any], value: object) -> None:
    """Raise where the value does not fit."""
    validator = jsonschema.Draft202012Validator
    validator.check_schema(schema)
    validator(schema).validate(value)


def keys(schema: dict[str, Any], node: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key at every level, with what the schema says of it, references followed."""
    if isinstance(node, dict):
        for name, value in node.get("properties", {}).items():
            if isinstance(value, dict) and "const" not in value:
                yield f"{path}.{name}", value
        for name, value in node.items():
            if name != "if":
                yield from keys(schema, value, f"{path}/{name}")
    elif isinstance(node, list):
        for at, value in enumerate(node):
            yield from keys(schema, value, f"{path}/{at}")


@pytest.mark.parametrize("name", KINDS)
def test_the_schema_is_current(name: str, run: Run) -> None:
    """docs/schemas has what the command prints; ``make docs`` writes it."""
    made = json_schema(KINDS[name])
    assert json.loads((FOLDER / f"{name}.schema.json").read_text()) == made, "run `make docs`"
    assert json.loads(run("schema", name)[1]) == made


@pytest.mark.parametrize("name", KINDS)
def test_every_key_is_told(name: str) -> None:
    """A description of every key, families' options among them, and it is a sentence."""
    schema = json_schema(KINDS[name])
    found = dict(keys(schema, schema))
    assert len(found) > 15
    for path, value in found.items():
        if path.endswith("then.options"):
            continue
        text = value.get("description", "")
        if not text and "$ref" in value:
            text = schema["$defs"][value["$ref"].removeprefix("#/$defs/")].get("description", "")
        assert len(text) > 8, path
        assert text[-1] in ".)", f"{path}: {text}"


def test_what_our_commands_write_fits(run: Run, tmp_path: Path) -> None:
    """Run, node and server files of `init` name the schema beside them, and fit it."""
    home, node = ServerHome(tmp_path / "server"), ClientHome(tmp_path / "node")
    assert run("server", "init", "--home", home.root, "--port", 0)[0] == 0
    example = RunConfig.load(home.root / "run.toml")
    init_client(
        node,
        site="ward-7",
        server="127.0.0.1:8443",
        ca_certificate=home.ca_certificate.read_bytes(),
        data={"path": "beats.npz", "schema": example.data.to_dict()},
        policy={"max_epsilon": 4.0},
    )
    for path in (home.root / "run.toml", home.config, node.config):
        first = path.read_text().splitlines()[0]
        assert first.startswith("#:schema ./")
        schema = path.parent / first.removeprefix("#:schema ")
        check(json.loads(schema.read_text()), tomllib.loads(path.read_text()))
    assert NodeConfig.load(node.config).site == "ward-7"


def test_shipped_schemas_of_data_fit() -> None:
    """The tables [data] of docs/schemas are those of run files."""
    schema = json_schema(RunConfig)
    files = sorted(FOLDER.glob("*.toml"))
    assert len(files) > 5
    for file in files:
        check(schema, {"name": "any", "data": tomllib.loads(file.read_text())["data"]})


def test_every_preset_fits() -> None:
    """Families with their presets, by the options of that family."""
    schema = json_schema(RunConfig)
    data = {"name": "any", "shape": [8]}
    for name, family in FAMILIES.items():
        for preset, options in family.presets.items():
            plain = json.loads(json.dumps(options))
            model = {"family": name, "options": {**plain, "preset": preset}}
            check(schema, {"name": "any", "data": data, "model": model})


@pytest.mark.parametrize(
    "wrong",
    [
        {"trainings": {}},
        {"training": {"round": 3}},
        {"training": {"rounds": "many"}},
        {"privacy": {"epsilon": -1}},
        {"model": {"family": "none"}},
        {"model": {"options": {"latent_dims": 3}}},
        {"model": {"family": "vq", "options": {"stochastic": True}}},
        {"model": {"options": {"activation": "sine"}}},
        {"data": {"name": "any"}, "extra": 1},
    ],
)
def test_mistakes_are_seen(wrong: dict[str, Any]) -> None:
    """Unknown keys, wrong types, ranges, families and options: as the program itself refuses."""
    schema = json_schema(RunConfig)
    good = {"name": "any", "data": {"name": "any", "shape": [8]}}
    check(schema, good)
    with pytest.raises(jsonschema.ValidationError):
        check(schema, {**good, **wrong})


def test_attributes_are_read_from_docstrings() -> None:
    """Several lines, several names of one sentence, and no section after it."""

    class Thing:
        """A thing.

        Attributes:
            first: One line
                and another.
            second, third: Both.

        Raises:
            ValueError: never.
        """

    told = attributes(Thing)
    assert told == {"first": "One line and another.", "second": "Both.", "third": "Both."}
