"""``fedlatent-edge``: the command line of a device; needs no PyTorch.

``fedlatent edge`` passes its arguments on to here, so both have the same commands.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from fedlatent.client.edge.commands.common import Commands, print_error, take_any_text
from fedlatent.client.edge.commands.renamed import EDGE, renewed
from fedlatent.shared.errors import FedlatentError, StorageError

PROG = "fedlatent-edge"
#: In the order of the help; each has `register`.
MODULES = ("score", "stream", "serve", "update")
EXTRAS = {"tuf": "update", "securesystemslib": "update", "paho": "mqtt"}


def build_parser(prog: str = PROG) -> tuple[argparse.ArgumentParser, Commands]:
    """The parser with all commands."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Verify, calibrate, score, stream, serve and update a signed bundle.",
        epilog=f"first step: {prog} verify hearts-1.fedlatent --key publisher.pub",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print it and exit")
    commands = Commands(parser)
    for name in MODULES:
        importlib.import_module(f"fedlatent.client.edge.commands.{name}").register(commands)
    return parser, commands


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: that import takes memory and time."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it and exit."""
        from fedlatent.client.edge.versions import program

        found = program() or "not installed; run from a checkout"
        parser.exit(message=f"{found}\n")


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Run one command.

    Args:
        arguments: of the command line; None takes the process's own.
        prog: the name that is shown.

    Returns:
        The exit code: 0, or that of the kind of error (docs/guide.md lists them).
    """
    take_any_text()
    given = renewed(sys.argv[1:] if arguments is None else arguments, EDGE)
    try:
        args = build_parser(prog)[0].parse_args(given)
        status: int = args.run(args)
        sys.stdout.flush()
    except FedlatentError as error:
        return _said(error, as_json="--json" in given)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        extra = EXTRAS.get(package)
        install = f"fedlatent-edge[{extra}]" if extra else package
        sys.stderr.write(f"error: this command needs the package {package!r}; install {install}.\n")
        return 1
    except BrokenPipeError:
        _drop_output()
        return 0
    except OSError as error:
        return _said(StorageError.of(error), as_json="--json" in given)
    except KeyboardInterrupt:
        return 130
    return status


def _said(error: FedlatentError, *, as_json: bool) -> int:
    """Say what went wrong; the exit code."""
    try:
        print_error(error, as_json=as_json)
        sys.stdout.flush()
    except OSError:  # the output is what failed
        _drop_output()
        print_error(error, as_json=False)
    return error.exit_code


def _drop_output() -> None:
    """Let what cannot be written go, so that there is no traceback at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
