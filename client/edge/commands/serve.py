"""``serve``: answer records over HTTP on this device."""

import argparse
import sys

from fedlatent.client.edge.commands.common import (
    Commands,
    add_dialect,
    add_json,
    add_map,
    add_model_options,
    confirmation,
    dialect_of,
    load_model,
    names_of,
    print_json,
)
from fedlatent.client.edge.commands.stream import add_drift, drift_monitor

_HELP = "Score records over HTTP on this machine: POST /score, GET /health, /metrics, /info."
_EXAMPLES = [
    "serve hearts-1.fedlatent --key publisher.pub",
    "serve /var/lib/fedlatent-edge --host 0.0.0.0 --allow-host edge.ward7.example",
]


def register(commands: Commands) -> None:
    """Add ``serve`` to the command line."""
    parser = commands.add("serve", _HELP, _run, _EXAMPLES)
    parser.epilog = (
        f"{parser.epilog}\n\nthen:\n"
        "  curl -s -H 'Content-Type: text/csv' --data-binary @beats.csv "
        "http://127.0.0.1:8711/score"
    )
    add_model_options(parser)
    add = parser.add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on (%(default)s); there is no password and no TLS, so leave it, or "
        "put a reverse proxy before it",
    )
    add("--port", type=int, default=8711, help="port; 0 takes a free one (%(default)s)")
    add("--max-bytes", type=int, default=1 << 22, help="longest body (%(default)s)")
    add("--connections", type=int, default=64, help="connections at a time (%(default)s)")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name that requests may call this server by, beside its addresses and localhost, such "
        "as the one that a reverse proxy passes on; repeat for more",
    )
    add_map(add)
    add_dialect(add)
    add_drift(parser)
    add_json(parser)


def _run(args: argparse.Namespace) -> int:
    from fedlatent.client.edge.serve import EdgeServer, ServeOptions, serve
    from fedlatent.client.edge.stream import Stop

    with Stop() as stop:
        model = load_model(args)
        options = ServeOptions(
            host=args.host,
            port=args.port,
            max_bytes=args.max_bytes,
            connections=args.connections,
            names=args.allow_host,
            mapped=names_of(args),
            dialect=dialect_of(args),
            drift=drift_monitor(args, model),
            confirm=confirmation(args.state, model.bundle.digest),
        )
        with EdgeServer(model, options) as server:
            host = f"[{args.host}]" if ":" in args.host else args.host
            address = f"http://{host}:{server.server_port}"
            if args.host not in ("127.0.0.1", "::1", "localhost"):
                sys.stderr.write(
                    f"warning: anyone who reaches {address} can use it; there is no password and "
                    "no TLS.\n"
                )
            if args.json:
                print_json({"serving": address})
            else:
                sys.stdout.write(f"serving on {address}; Ctrl-C ends it\n")
            sys.stdout.flush()
            serve(server, stop)
    return 0
