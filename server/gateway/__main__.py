"""Command line: ``python -m fedlatent.server.gateway --home DIR``."""

import argparse
import functools
import logging
import resource
import socket
import ssl
import threading
import time

import uvicorn

from fedlatent.server.gateway.app import create_app
from fedlatent.server.gateway.connections import Connections, Visitor, WatchedTLS
from fedlatent.server.gateway.issued import Book
from fedlatent.server.gateway.quiet import Quiet
from fedlatent.server.home import ServerHome
from fedlatent.server.settings import GatewayLimits, ServerSettings, load_settings
from fedlatent.shared.processes import hang_up_is_terminate

LOG = logging.getLogger("fedlatent.gateway")

_OWN_FILES = 64  # beside connections: logs, the database, libraries
_RELOAD_S = 2.0  # between two looks at the certificate's files


def serve(home: ServerHome) -> None:
    """Run the gateway in this process until SIGTERM."""
    settings = load_settings(home)
    handler = logging.StreamHandler()
    handler.addFilter(Quiet())
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[handler],
    )
    for name in ("httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    limits = _within_files(settings.limits)
    folder = home.services / "gateway"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    book = Book(folder / "issued.db")
    connections = Connections(limits, tls_context(home, settings))
    config = uvicorn.Config(
        create_app(home, book, limits),
        host=settings.host,
        port=settings.port,
        loop="asyncio",
        http=functools.partial(_visitor, connections),  # type: ignore[arg-type]
        ws="none",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
    )
    LOG.info("gateway on https://%s:%d", settings.host, settings.port)
    threading.Thread(
        target=keep_fresh, args=(connections, home, settings), name="certificate", daemon=True
    ).start()
    try:
        uvicorn.Server(config).run(_both_families(settings))
    finally:
        book.close()


def tls_context(home: ServerHome, settings: ServerSettings) -> ssl.SSLContext:
    """What nodes are met with: the server's certificate, and a demand for theirs where it is on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.certificate, home.certificate_key)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslobject_class = WatchedTLS
    if settings.client_certificates:
        context.load_verify_locations(home.ca_certificate)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def keep_fresh(connections: Connections, home: ServerHome, settings: ServerSettings) -> None:
    """Meet strangers with a certificate that was renewed meanwhile, for ever."""
    known = _stamps(home)
    while True:
        time.sleep(_RELOAD_S)
        found = _stamps(home)
        if found == known:
            continue
        try:
            connections.tls = tls_context(home, settings)
        except (OSError, ssl.SSLError) as error:  # half of a new pair, which is whole in a moment
            LOG.warning("the server's certificate cannot be read: %s", type(error).__name__)
        else:
            known = found
            LOG.info("the server's certificate was renewed")


def _stamps(home: ServerHome) -> list[int]:
    """When each file of TLS was last written; empty for one that is absent now."""
    files = (home.certificate, home.certificate_key, home.ca_certificate)
    return [path.stat().st_mtime_ns for path in files if path.exists()]


def _both_families(settings: ServerSettings) -> list[socket.socket] | None:
    """A socket for ``::`` that serves IPv4 too, as 0.0.0.0 does for its own; None for others."""
    if settings.host == settings.near or ":" not in settings.near:
        return None
    both = socket.has_dualstack_ipv6()
    place = (settings.host, settings.port)
    return [socket.create_server(place, family=socket.AF_INET6, dualstack_ipv6=both)]


def _visitor(connections: Connections, **arguments: object) -> Visitor:
    """What uvicorn calls for each accepted connection."""
    arguments.pop("_loop", None)
    return Visitor(connections, **arguments)  # type: ignore[arg-type]


def _within_files(limits: GatewayLimits) -> GatewayLimits:
    """Raise this process's own limit on open files; hold fewer connections where that is low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = limits.connections + limits.concurrent_requests + _OWN_FILES
    files = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    if files == needed:
        return limits
    connections = max(1, files - limits.concurrent_requests - _OWN_FILES)
    LOG.warning("only %d connections: this account may open %d files", connections, files)
    return limits.model_copy(update={"connections": connections})


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="Serve the fleet API of one federation.")
    parser.add_argument("--home", required=True)
    hang_up_is_terminate()
    serve(ServerHome.find(parser.parse_args().home))


if __name__ == "__main__":
    main()
