"""``fedlatent edge``: the command line of a device, as `fedlatent-edge` has it."""

import sys

import typer

EXAMPLES = "Example: fedlatent edge verify hearts-1.fedlatent --key publisher.pub"
#: Typer reads none of the options, not even --help: the device's own parser does.
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def edge(context: typer.Context) -> None:
    """Verify, calibrate, score, stream, serve and update a signed bundle."""
    from fedlatent.client.edge.main import main

    sys.exit(main(context.args, "fedlatent edge"))
