"""``fedlatent data``: what data is before it is used, and the data sets that studies name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlatent.cli import convert, describe
from fedlatent.cli.console import out, print_json, progress, size, table
from fedlatent.cli.options import DATA_HELP, JsonOption

if TYPE_CHECKING:
    from fedlatent.simulations.catalog.bringing import Held

app = typer.Typer(
    help="Look at data before it is used; real data sets: what there is, how to get it, whether a "
    "copy is right.",
    epilog="Start: fedlatent data describe FILE | fedlatent data list",
    no_args_is_help=True,
)

app.command("describe", epilog=describe.EXAMPLES)(describe.describe)
app.command("convert", epilog=convert.EXAMPLES)(convert.convert)

FolderOption = Annotated[Path | None, typer.Option("--data-sets", help=DATA_HELP)]


@app.command("list", epilog="Examples: fedlatent data list | fedlatent data list --json")
def list_(folder: FolderOption = None, json: JsonOption = False) -> None:
    """Name the data sets: size, terms, origin, and which are in the data folder."""
    from fedlatent.shared.data.catalog import CATALOG, absent, data_folder
    from fedlatent.simulations.study.shipped import readers

    place = data_folder(folder)
    missing = absent(place, CATALOG)
    if json:
        studies = readers()
        print_json(
            {
                "folder": str(place),
                "datasets": [
                    {
                        "name": name,
                        "about": one.about,
                        "origin": one.origin,
                        "licence": one.licence,
                        "remark": one.remark,
                        "studies": studies[name],
                        "here": name not in missing,
                        "files": [
                            {"name": file.name, "bytes": file.size, "sha256": file.sha256}
                            for file in one.files
                        ],
                    }
                    for name, one in CATALOG.items()
                ],
            }
        )
        return
    rows = table(f"data sets in {place}", "name", "here", "#size", "licence", "what", "origin")
    for name, one in CATALOG.items():
        here = "no" if name in missing else "yes"
        rows.add_row(name, here, size(one.size), one.licence, one.about, one.origin)
    out.print(rows)


@app.command(
    "get",
    epilog="Examples: fedlatent data get mnist | "
    "fedlatent data get mitbih smd --from ../shared/data | fedlatent data get --from ~/copies | "
    "fedlatent data get smd --from https://mirror.example/data",
)
def get(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Data sets; without any, all that --from has in prepared form."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Folder or web address of a copy: the prepared files, or the originals. Without "
            "it, the originals are downloaded from where they are published.",
        ),
    ] = None,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Bring data sets into the data folder, verified; nothing else here ever downloads."""
    from fedlatent.shared.data.catalog import data_folder
    from fedlatent.shared.errors import ConfigError
    from fedlatent.simulations.catalog.bringing import bring, known, whole_in
    from fedlatent.simulations.catalog.places import place_of

    place = data_folder(folder)
    found: list[Held] = []
    with progress(quiet=json) as stages:
        origin = place_of(source, stages) if source else None
        if names:
            chosen = known(names)
        elif origin is not None:
            chosen = whole_in(origin)
        else:
            raise ConfigError(
                "Expected names of data sets or --from, got neither; 'fedlatent data list' tells "
                "the names."
            )
        for name in chosen:
            found += bring(name, place, origin, stages)
    _print(place, found, json=json)


@app.command("check", epilog="Examples: fedlatent data check | fedlatent data check mnist --json")
def check(
    names: Annotated[
        list[str] | None, typer.Argument(help="Data sets; without any, all that are there.")
    ] = None,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Compare the data folder with the catalogue, by SHA-256 of files and of what is in them."""
    from fedlatent.shared.data.catalog import CATALOG, data_folder
    from fedlatent.shared.errors import DataError
    from fedlatent.simulations.catalog import bringing

    place = data_folder(folder)
    found = bringing.check(place, bringing.known(names or CATALOG))
    if not names:
        found = [one for one in found if one.state != "absent"]
    wrong = [one for one in found if one.state not in bringing.GOOD]
    if not (json and wrong):  # one JSON object: the error, which names them
        _print(place, found, json=json)
    if wrong:
        again = " ".join(dict.fromkeys(one.dataset for one in wrong))
        named = ", ".join(f"{one.file.name} ({one.state})" for one in wrong)
        raise DataError(
            f"Expected the files of the catalogue in {place}, got {named}; run 'fedlatent data get "
            f"{again}', with --from FOLDER for a copy at hand.",
            field=wrong[0].file.name,
            reason=wrong[0].state,
        )


def _print(place: Path, found: "list[Held]", *, json: bool) -> None:
    if json:
        files = [
            {"dataset": one.dataset, "file": one.file.name, "state": one.state} for one in found
        ]
        print_json({"folder": str(place), "files": files})
        return
    rows = table(f"files in {place}", "data set", "file", "state", "SHA-256 of the catalogue")
    for one in found:
        rows.add_row(one.dataset, one.file.name, one.state, one.file.sha256)
    out.print(rows if found else f"no data sets in {place}")
