"""What is looked at on a server's side before a run is blamed."""

import socket
from collections.abc import Iterator
from functools import partial

from fedlatent.server.control import Control
from fedlatent.server.home import ServerHome
from fedlatent.server.service import answers
from fedlatent.server.settings import ServerSettings, load_settings
from fedlatent.shared.doctor import Finding, machine, proxies, sqlite_whole, tried
from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.shared.proxies import LOOPBACK
from fedlatent.shared.supervisor import running_pid


def examine(home: ServerHome) -> Iterator[Finding]:
    """Look at one server, running or not."""
    yield from machine(home.root, [home.ca_key, home.certificate_key, home.superexec_secret])
    try:
        settings = load_settings(home)
    except ConfigError as error:
        yield Finding(name="settings", health="ill", text=str(error))
    else:
        yield from _service(home, settings)
    for path in (home.registry, home.link_database):
        yield tried(path.name, partial(sqlite_whole, path))
    yield tried("sites", lambda: _sites(home))


def _service(home: ServerHome, settings: ServerSettings) -> Iterator[Finding]:
    """Whether the gateway answers, or could, and where."""
    running = running_pid(home.services)
    if running is None:
        yield tried("port", lambda: _free(settings.host, settings.port))
        told = f"the server does not run; start it with 'fedlatent server start --home {home.root}'"
        yield Finding(name="server", health="warning", text=told)
    else:
        yield tried("server", lambda: _answers(home, settings, running))
    if settings.host in LOOPBACK:
        told = f"bound to {settings.host}: only nodes of this machine reach it"
        yield Finding(name="reach", health="warning", text=told)
    yield Finding(name="proxies", health="well", text=f"{proxies()}; the server uses none")


def _answers(home: ServerHome, settings: ServerSettings, pid: int) -> str:
    if not answers(home, settings.near, settings.port)(""):
        raise ServiceError(
            f"Expected the gateway of process {pid} to answer at port {settings.port}, got "
            f"nothing; read {home.services / 'gateway.log'}."
        )
    return f"process {pid} answers at {settings.near}:{settings.port}"


def _free(host: str, port: int) -> str:
    """See that a port may be taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ServiceError(
            f"Expected port {port} of {host} to be free for the server, got {error.strerror}; stop "
            "what holds it, or change 'port' in server.toml."
        ) from None
    return f"port {port} of {host} is free"


def _sites(home: ServerHome) -> str:
    sites = Control(home).sites()
    return f"{len(sites)} admitted: {', '.join(one.name for one in sites) or 'nobody yet'}"
