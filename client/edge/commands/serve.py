"""``serve``: answer records over HTTP on this device."""

import argparse
import ipaddress
import sys

from client.edge.commands.common import (
    Commands,
    add_json,
    add_model_options,
    load_model,
    print_json,
)

_HELP = "Score records over HTTP on this machine: POST /score, GET /health, /metrics, /info."
_EXAMPLES = [
    "serve hearts-1.fedlatent --key publisher.pub",
    "serve /var/lib/fedlatent-edge --port 8711 --threads 4",
]


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add("serve", _HELP, _run, _EXAMPLES)
    parser.epilog = (
        f"{parser.epilog}\n\nthen:\n"
        "  curl -s -H 'Content-Type: text/csv' --data-binary @beats.csv "
        "http://127.0.0.1:8711/score"
    )
    add_model_options(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (127.0.0.1); there is no password and no TLS, so leave it, or "
        "put a reverse proxy before it",
    )
    parser.add_argument(
        "--port", type=int, default=8711, help="port to listen on; 0 takes a free one (8711)"
    )
    parser.add_argument(
        "--max-bytes",
        type=int,
        default=1 << 22,
        metavar="N",
        help="longest body that is taken (4 MiB)",
    )
    parser.add_argument(
        "--threads", type=int, default=8, metavar="N", help="connections at a time (8)"
    )
    parser.add_argument(
        "--drift-block",
        type=int,
        default=128,
        metavar="N",
        help="records in a block of the drift tests; 0 for none (128)",
    )
    add_json(parser)


def _run(args: argparse.Namespace) -> int:
    from client.edge.serve import EdgeServer, ServeOptions, serve
    from client.edge.stream import Stop, confirmation

    with Stop() as stop:
        model = load_model(args)
        options = ServeOptions(
            host=args.host,
            port=args.port,
            max_bytes=args.max_bytes,
            threads=args.threads,
            drift_block=args.drift_block,
            confirm=confirmation(args.state, model.bundle.digest),
        )
        with EdgeServer(model, options) as server:
            host = f"[{args.host}]" if ":" in args.host else args.host
            address = f"http://{host}:{server.server_port}"
            if not _is_loopback(args.host):
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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
