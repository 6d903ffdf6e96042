"""The way from a node to its server, tried before Flower takes it: what is wrong, in one sentence.

It goes through the forward proxy that the environment names, as Flower's client does.
"""

import datetime
import email.utils
import http.client
import ssl
from pathlib import Path

from fedlatent.client.tls import Identity, context_for
from fedlatent.shared.errors import ServiceError
from fedlatent.shared.files import utc_text
from fedlatent.shared.proxies import Proxy, proxy_for, split_address

NO_CERTIFICATE = (
    "Expected the server to take this node's certificate, got a refusal; ask the operator for a "
    "certificate of this site's key and run 'fedlatent client certificate FILE'."
)

_CONNECT_S = 10.0
_ALERT_S = 2.0
_AHEAD_S = 4.0  # the server accepts signatures from up to 5 s in its future
_BEHIND_S = 280.0  # and from up to 305 s in its past
_TUNNEL = "Tunnel connection failed: "  # so begins Python's word on what a proxy answered


class ServerAway(ServiceError):
    """Nobody answers at the server's address, at least not now."""


def preflight(address: str, ca_certificate: Path, identity: Identity | None = None) -> None:
    """Try the way to the server: reachable, the right certificate, clocks that agree.

    Args:
        address: ``host:port`` of the gateway.
        ca_certificate: PEM file of the federation's authority.
        identity: This node's own certificate and key, where it has one.

    Raises:
        ServerAway: No answer.
        ConfigError: The environment names a proxy that Flower does not take.
        ServiceError: Saying what else is wrong and what to do.
    """
    host, port = split_address(address)
    context = context_for(ca_certificate, identity)
    proxy = proxy_for(host)
    if proxy is not None and proxy.scheme != "http":
        return  # a way that Flower's own client alone can go
    connection = _connection(host, port, context, proxy, _CONNECT_S)
    try:
        connection.request("GET", "/")
        date = connection.getresponse().headers.get("date")
    except ssl.SSLCertVerificationError as error:
        raise ServiceError(certificate_problem(str(error), address, ca_certificate)) from None
    except (OSError, http.client.HTTPException) as error:
        if _lacks_certificate(_connection(host, port, context, proxy, _ALERT_S)):
            raise ServiceError(NO_CERTIFICATE) from None
        raise _away(error, address, proxy) from None
    finally:
        connection.close()
    _check_clock(date)


def _connection(
    host: str, port: int, context: ssl.SSLContext, proxy: Proxy | None, timeout_s: float
) -> http.client.HTTPSConnection:
    """A way to the server that is not gone yet."""
    first = (host, port) if proxy is None else (proxy.host, proxy.port)
    made = http.client.HTTPSConnection(*first, timeout=timeout_s, context=context)
    if proxy is not None:
        made.set_tunnel(host, port, dict(proxy.headers))
    return made


def _away(error: Exception, address: str, proxy: Proxy | None) -> ServiceError:
    """What to say of a server that did not answer."""
    if proxy is None:
        return ServerAway(
            f"Expected the server at {address} to answer, got {type(error).__name__}; "
            "check the address and the network, and whether the server runs."
        )
    way = f"the proxy {proxy.host}:{proxy.port} to lead to the server at {address}"
    advice = "check HTTPS_PROXY, or name the server in NO_PROXY"
    words = str(error)
    if not words.startswith(_TUNNEL):
        return ServerAway(f"Expected {way}, got {type(error).__name__}; {advice}.")
    answer = words.removeprefix(_TUNNEL)
    if answer.startswith("5"):
        return ServerAway(f"Expected {way}, got {answer}; check whether the server runs.")
    return ServiceError(f"Expected {way}, got {answer}; have it allowed there, {advice}.")


def _lacks_certificate(connection: http.client.HTTPSConnection) -> bool:
    """Whether the server refuses this node's certificate, or the lack of one.

    It says so after the handshake, or ends the line there without a word, as asyncio's TLS does; a
    server that takes the node waits for its request, which is not sent here.
    """
    try:
        connection.connect()
        return isinstance(connection.sock, ssl.SSLSocket) and _ended(connection.sock)
    except ssl.SSLError as error:
        return "CERTIFICATE" in (error.reason or "")
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _ended(line: ssl.SSLSocket) -> bool:
    """Whether the other side ends the line before it was asked for anything."""
    try:
        return line.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def certificate_problem(words: str, address: str, ca_certificate: Path) -> str:
    """Say what is wrong with a server's certificate, from OpenSSL's words about it.

    Args:
        words: text that holds them.
        address: ``host:port`` of the server.
        ca_certificate: PEM file of the authority that the certificate should be from.
    """
    if "has expired" in words:
        return (
            f"Expected a certificate of the server at {address} that is valid now, got one that "
            f"has ended by this machine's clock, which says {utc_text()}; set the clock if it is "
            "wrong, else have the operator restart the server, which then renews it."
        )
    if "not yet valid" in words:
        return (
            f"Expected a certificate of the server at {address} that is valid now, got one that "
            f"begins later by this machine's clock, which says {utc_text()}; set the clock, or "
            "have the operator set the server's."
        )
    if "mismatch" in words.lower():
        return (
            f"Expected a certificate that names {address}, got one for other names; use a name "
            "that the server was set up with, or have the operator add this one to 'names' in "
            "server.toml."
        )
    return (
        f"Expected the server at {address} to have a certificate from the authority in "
        f"{ca_certificate}, got another; it is the wrong server or the wrong ca.crt, so ask the "
        "operator and compare fingerprints."
    )


def _check_clock(date: str | None) -> None:
    if date is None:
        return
    there = email.utils.parsedate_to_datetime(date)
    ahead = (datetime.datetime.now(datetime.UTC) - there).total_seconds() - 1.0  # whole seconds
    if not -_BEHIND_S < ahead < _AHEAD_S:
        raise ServiceError(
            f"Expected this machine's clock to agree with the server's, got {ahead:+.0f} s; "
            "set it, since the server refuses requests from another time."
        )
