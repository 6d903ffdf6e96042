"""``fedlatent schema``: JSON Schemas of our TOML files, for editors."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedlatent.cli.console import out

if TYPE_CHECKING:
    from pydantic import BaseModel

EXAMPLES = (
    "Examples: fedlatent schema run --out run.schema.json | "
    "fedlatent schema node --out node.schema.json"
)

Name = Literal["run", "node", "server"]


def schema(
    name: Annotated[Name, typer.Argument(help="Which file: run, node or server.")],
    target: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write it to this file, not to the screen.")
    ] = None,
) -> None:
    """Print the JSON Schema of a run, node or server file: every key, its range and meaning."""
    from fedlatent.shared.editor import json_schema
    from fedlatent.shared.files import write_json

    found = json_schema(_kind(name))
    if target is None:
        import json

        print(json.dumps(found, indent=2))
        return
    write_json(target, found)
    out.print(f"schema {target}; a TOML file beside it begins with '#:schema ./{target.name}'")


def _kind(name: Name) -> "type[BaseModel]":
    if name == "node":
        from fedlatent.client.policy import NodeConfig

        return NodeConfig
    if name == "server":
        from fedlatent.server.settings import ServerSettings

        return ServerSettings
    from fedlatent.shared.config import RunConfig

    return RunConfig
