"""``fedlatent release page``: bundles and records on a static page that verifies and scores."""

from pathlib import Path
from typing import Annotated

import typer

from fedlatent.cli.console import err, out, print_json, size
from fedlatent.cli.options import KEY, JsonOption

EXAMPLES = (
    "Examples: fedlatent release page site hearts-1.fedlatent --stream beats=beats.npz | then, "
    "to look at it: python -m http.server --directory site --bind 127.0.0.1"
)


def page(
    folder: Annotated[Path, typer.Argument(help="New folder for the page.", show_default=False)],
    bundles: Annotated[list[Path], typer.Argument(help="The bundles to show.", show_default=False)],
    key: Annotated[list[Path] | None, KEY] = None,
    stream: Annotated[
        list[str] | None,
        typer.Option(
            "--stream",
            help="NAME=FILE of raw records to show (.csv, .npy, .npz); they become public.",
            show_default=False,
        ),
    ] = None,
    package: Annotated[
        Path | None,
        typer.Option(
            help="Tarball or folder of onnxruntime-web; by default npm fetches it once.",
            show_default=False,
        ),
    ] = None,
    within_site: Annotated[
        bool,
        typer.Option("--within-site", help="Place site bundles too; keep the page in the site."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make a static page that verifies and scores bundles in the browser, without a network."""
    from dataclasses import asdict

    from fedlatent.server.home import ServerHome
    from fedlatent.server.page.build import build_page
    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.keys import VerifyKey

    keys = key or [Path(f"{ServerHome.find(None).signing_key}.pub")]
    streams = dict(text.partition("=")[::2] for text in stream or [])
    if not all(name and path for name, path in streams.items()):
        raise ConfigError("Expected --stream NAME=FILE, got another form; write it so.")
    with err.status("verifying bundles and collecting the page"):
        report = build_page(
            folder,
            bundles,
            [VerifyKey.load(path) for path in keys],
            {name: Path(path) for name, path in streams.items()},
            package=package,
            within_site=within_site,
        )
    if json:
        print_json(
            {name: str(v) if isinstance(v, Path) else v for name, v in asdict(report).items()}
        )
    else:
        out.print(
            f"page in {folder} ({size(report.size)}); look at it with: python -m http.server "
            f"--directory {folder} --bind 127.0.0.1",
        )
