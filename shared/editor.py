"""JSON Schemas of our TOML files, for editors that complete, explain and check.

Descriptions are the docstrings of the fields: of pydantic's tables below each attribute, of
dataclasses under "Attributes:" in their docstring.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel, PydanticUserError, TypeAdapter

from fedlatent.shared.data.column import Column
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import Window
from fedlatent.shared.files import write_json

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DATACLASSES = (Schema, Column, Window)


def directive(name: str) -> str:
    """First line of a TOML file that names its schema for Taplo, Even Better TOML and Zed."""
    return f"#:schema ./{name}.schema.json\n"


def write_schema(folder: Path, name: str, kind: type[BaseModel]) -> None:
    """Write ``NAME.schema.json`` of a kind of file, to lie beside such files."""
    write_json(folder / f"{name}.schema.json", json_schema(kind))


def json_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema of one kind of file, every key with a description.

    The options of a run's model are those of its family.
    """
    found = {"$schema": _DIALECT, **kind.model_json_schema()}
    defined = found.get("$defs", {})
    for one in _DATACLASSES:
        if one.__name__ in defined:
            _describe(defined[one.__name__], one)
    if "ModelSection" in defined:
        _take_families(defined["ModelSection"])
    told: dict[str, Any] = _in_one_line(found)
    return told


def _in_one_line(node: Any) -> Any:  # noqa: ANN401 - any part of a JSON Schema
    """The same with each description in one line, as editors show them."""
    if isinstance(node, list):
        return [_in_one_line(one) for one in node]
    if not isinstance(node, dict):
        return node
    return {
        key: " ".join(value.split())
        if key == "description" and isinstance(value, str)
        else _in_one_line(value)
        for key, value in node.items()
    }


def attributes(kind: type) -> dict[str, str]:
    """What a class's docstring says of each attribute, by name."""
    text = inspect.cleandoc(kind.__doc__ or "")
    _, _, section = text.partition("Attributes:\n")
    section = re.split(r"\n(?=\S)", section)[0]  # up to the next section
    found: dict[str, str] = {}
    for part in re.split(r"\n(?= {4}\w+(?:, \w+)*: )", "\n" + section):
        names, colon, words = part.strip("\n").partition(": ")
        if colon:
            meaning = " ".join(words.split())
            found |= dict.fromkeys((name.strip() for name in names.split(",")), meaning)
    return found


def _describe(schema: dict[str, Any], kind: type) -> None:
    """Put descriptions of a dataclass's fields into its schema."""
    told = {name: text for one in reversed(kind.__mro__) for name, text in attributes(one).items()}
    for name, value in schema.get("properties", {}).items():
        if name in told:  # a plugin need not say what its options mean
            value.setdefault("description", told[name])


def _take_families(section: dict[str, Any]) -> None:
    """Let the options of a model be those of its family, one case for each."""
    from fedlatent.shared.models import FAMILIES  # PyTorch, which no node file needs

    usual = section["properties"]["family"]["default"]
    section["properties"]["family"] |= {"enum": [*FAMILIES]}
    section["allOf"] = [
        {
            "if": _named(name, required=name != usual),
            "then": {"properties": {"options": _options(family.config, family.presets)}},
        }
        for name, family in FAMILIES.items()
    ]


def _named(family: str, *, required: bool) -> dict[str, Any]:
    """The table names that family; the usual one need not be named."""
    found: dict[str, Any] = {"properties": {"family": {"const": family}}}
    return found | {"required": ["family"]} if required else found


def _options(config: type[Any], presets: Mapping[str, object]) -> dict[str, Any]:
    try:
        schema = TypeAdapter(config).json_schema()
    except PydanticUserError:  # a plugin's, of types that JSON does not have: any options may do
        return {}
    _describe(schema, config)
    properties = schema.setdefault("properties", {})
    for one in fields(config):
        properties[one.name] |= one.metadata.get("limits", {})
    properties["preset"] = {
        "description": "A size of the family; other options change it.",
        "enum": [*presets],
    }
    return {"properties": properties, "additionalProperties": False}
