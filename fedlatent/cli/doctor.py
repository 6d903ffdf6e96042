"""``fedlatent doctor``: what is wrong on this machine, before a run is blamed."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlatent.cli.console import out, print_json, styled
from fedlatent.cli.options import JsonOption

if TYPE_CHECKING:
    from fedlatent.shared.doctor import Finding

EXAMPLES = (
    "Examples: fedlatent doctor | fedlatent doctor --home /srv/federation | "
    "fedlatent doctor --home node --json"
)
_STYLES = {"well": "green", "warning": "yellow", "ill": "bold red"}


def doctor(
    home: Annotated[
        Path | None,
        typer.Option(help="Folder of a server or node; by default those at the usual places."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Look at clock, versions, disk, permissions, ports, proxies, records and ledger.

    Nothing is changed, and nobody is asked but the federation's own server. Ends with 1 where
    something is ill.
    """
    found = {str(place): list(findings) for place, findings in _examined(home)}
    if json:
        rows = [
            {"home": place, "name": one.name, "health": one.health, "text": one.text}
            for place, findings in found.items()
            for one in findings
        ]
        print_json({"findings": rows})
    else:
        for place, findings in found.items():
            out.print(styled("bold", place))
            for one in findings:
                told = f" {one.name}: {one.text}"
                out.print(styled(_STYLES[one.health], f"{one.health:<7}", told))
    if any(one.health == "ill" for findings in found.values() for one in findings):
        raise typer.Exit(1)


def _examined(home: Path | None) -> "Iterator[tuple[Path, Iterator[Finding]]]":
    """The findings of each home that is asked for, or that is there."""
    from fedlatent.client.doctor import examine as examine_node
    from fedlatent.client.home import ClientHome
    from fedlatent.server.doctor import examine as examine_server
    from fedlatent.server.home import ServerHome
    from fedlatent.shared.errors import ConfigError

    server, node = ServerHome.find(home), ClientHome.find(home)
    if server.config.exists():
        yield server.root, examine_server(server)
    if node.config.exists():
        yield node.root, examine_node(node)
    if not server.config.exists() and not node.config.exists():
        place = home or f"{server.root} or {node.root}"
        raise ConfigError(
            f"Expected a server or a node in {place}, got neither; give its home by --home.",
            field="home",
        )
