"""What the device's commands share: options, the model they name, tables and JSON."""

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedlatent.shared.errors import ConfigError, FedlatentError

if TYPE_CHECKING:
    from fedlatent.client.edge.runtime import EdgeModel
    from fedlatent.shared.data.dialect import Dialect

Run = Callable[[argparse.Namespace], int]


class Commands:
    """The subcommands of one parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        """Add a place for subcommands to ``parser``."""
        self._prog = parser.prog
        self._group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        self.parsers: dict[str, argparse.ArgumentParser] = {}

    def add(
        self, name: str, help: str, run: Run, examples: Sequence[str]
    ) -> argparse.ArgumentParser:
        """A subcommand.

        Args:
            name: as it is typed.
            help: one sentence.
            run: does the work and returns the exit code.
            examples: calls without the program's name.

        Returns:
            Its parser, for its options.
        """
        shown = "\n".join(f"  {self._prog} {line}" for line in examples)
        parser = self._group.add_parser(
            name,
            help=help,
            description=help,
            epilog=f"examples:\n{shown}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(run=run)
        self.parsers[name] = parser
        return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, which prints JSON for scripts."""
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def add_model_options(parser: argparse.ArgumentParser, *, calibration: bool = True) -> None:
    """Add what names a model: a bundle with trusted keys, or the state folder of a device.

    After `load_model` the attribute ``state`` holds the folder, or None for a bundle file.
    """
    parser.add_argument(
        "bundle", type=Path, help="the bundle file, or the folder that 'update' keeps it in"
    )
    parser.add_argument(
        "--key",
        "-k",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="public key whose signature is trusted; repeat for more; not needed with a folder",
    )
    parser.set_defaults(state=None)
    if calibration:
        parser.add_argument(
            "--calibration", type=Path, metavar="FILE", help="of this device, made by 'calibrate'"
        )


def add_accept(add: Callable[..., object]) -> None:
    """Add ``--accept``, which goes on where the check of normal records stops."""
    add(
        "--accept",
        action="store_true",
        help="go on although the check of the normal records stops",
    )


def add_columns(add: Callable[..., object]) -> None:
    """Add ``--column``, repeated: the columns of a record in order."""
    add(
        "--column",
        action="append",
        metavar="NAME",
        help="a CSV's column, in record order, for a bundle that names none; repeat for more",
    )


def add_map(add: Callable[..., object]) -> None:
    """Add ``--map``, whose values `names_of` takes."""
    add(
        "--map",
        action="append",
        default=[],
        metavar="OWN=NAME",
        help="a column of the bundle's by the name that it has here; repeat for more",
    )


def names_of(args: argparse.Namespace) -> dict[str, str]:
    """What columns are called in the bundle, by their own names.

    Raises:
        ConfigError: a value is not OWN=NAME, or a name is given twice.
    """
    pairs = [text.rpartition("=") for text in args.map]
    found = {own: name for own, _, name in pairs}
    if not all(own and name for own, name in found.items()) or len(
        {*found, *found.values()}
    ) < 2 * len(pairs):
        raise ConfigError(
            "Expected --map OWN=NAME, each name once, such as --map pulse=hr, got "
            f"{' '.join(args.map)}; correct it."
        )
    return found


def add_dialect(add: Callable[..., object]) -> None:
    """Add how a CSV is written, which `dialect_of` takes."""
    add("--delimiter", metavar="MARK", help="between the cells of a CSV: ',' ';' '|' or 'tab'")
    add("--decimal", metavar="MARK", help="before the decimals of a CSV: '.' or ','")
    add("--encoding", metavar="NAME", help="of a CSV; by default utf-8")
    add(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether a CSV's first line is names; by default it shows",
    )


def dialect_of(args: argparse.Namespace) -> "Dialect":
    """How a CSV is written, by the options of `add_dialect`.

    Raises:
        ConfigError: there is no such dialect.
    """
    from fedlatent.shared.data.dialect import Dialect

    said = {key: getattr(args, key) for key in ("delimiter", "decimal", "encoding", "header")}
    return Dialect(**{key: value for key, value in said.items() if value is not None})


def say_extra(extra: Sequence[str], name: str) -> None:
    """Warn of columns that were left out, since they are none of the bundle's."""
    if extra:
        more = f" and {len(extra) - 10} more" if len(extra) > 10 else ""
        sys.stderr.write(
            f"warning: columns {', '.join(extra[:10])}{more} of {name} are none of the bundle's "
            "and were left out.\n"
        )


def say_doubt(doubt: str | None) -> None:
    """Warn that a device keeps the absolute score, and why."""
    if doubt is not None:
        sys.stderr.write(
            f"warning: not re-centred, since {doubt}; records are scored as the bundle comes.\n"
        )


def load_model(args: argparse.Namespace) -> "EdgeModel":
    """The model that the options of `add_model_options` name, verified.

    Raises:
        ConfigError: a bundle file without a key.
        BundleError: the bundle is not accepted.
        DataError: the calibration is not of this bundle.
    """
    from fedlatent.client.edge.runtime import EdgeModel
    from fedlatent.shared.keys import VerifyKey

    if args.bundle.is_dir():
        from fedlatent.client.edge.slots import boot

        args.state = args.bundle
        model = boot(args.state)
    elif not args.key:
        raise ConfigError(
            "Expected --key with the publisher's public key, got none; a bundle is used only when "
            "a trusted key signed it."
        )
    else:
        model = EdgeModel.load(args.bundle, [VerifyKey.load(path) for path in args.key])
    calibration: Path | None = getattr(args, "calibration", None)
    return model if calibration is None else model.load_calibration(calibration)


def confirmation(state: Path | None, digest: str) -> Callable[[], None] | None:
    """What tells a state folder that the bundle of ``digest`` works; None without a folder.

    A folder that cannot be read or written costs a warning, and scoring goes on.
    """
    if state is None:
        return None

    def confirm() -> None:
        from fedlatent.client.edge.slots import confirm as confirm_slot

        try:
            confirm_slot(state, digest)
        except FedlatentError as error:
            sys.stderr.write(f"warning ({error.code}): {error}\n")

    return confirm


def take_any_text() -> None:
    """Let characters that the encoding of the output lacks be shown by their number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: object) -> None:
    """One JSON value on standard output, in ASCII, which every terminal and script takes."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table; columns whose name starts with ``#`` are numbers."""
    names = [column.lstrip("#") for column in columns]
    widths = [max(len(line[i]) for line in [names, *rows]) for i in range(len(columns))]

    def text(line: Sequence[str]) -> str:
        cells = (
            value.rjust(width) if column.startswith("#") else value.ljust(width)
            for value, width, column in zip(line, widths, columns, strict=True)
        )
        return "  ".join(cells).rstrip()

    made = [title, text(names), "  ".join("-" * width for width in widths), *map(text, rows)]
    sys.stdout.write("\n".join(made) + "\n")


def print_error(error: FedlatentError, *, as_json: bool) -> None:
    """Say what went wrong: a JSON object on standard output, or a sentence on standard error."""
    if as_json:
        print_json({"error": error.facts})
    else:
        sys.stderr.write(f"error ({error.code}): {error}\n")
