"""The way to a server: its address, and the forward proxy that the environment names.

The proxy is taken as Flower's HTTP client takes it.

Our own processes meet on Unix sockets and on loopback, where no proxy has a place: only a node's
link to its server may need one, and gets these variables.
"""

import base64
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from fedlatent.shared.errors import ConfigError

_NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def split_address(address: str) -> tuple[str, int]:
    """Take ``host:port`` apart.

    Raises:
        ConfigError: It is not of that form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"Expected a server address as host:port, got {address!r}; correct it.")
    return host.strip("[]"), int(port)


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A forward proxy.

    Attributes:
        scheme: ``http`` for one that is asked to CONNECT.
        host: Its name or address.
        port: Its port.
        headers: What it is sent beside the address, such as a password.
    """

    scheme: str
    host: str
    port: int
    headers: Mapping[str, str]


def without_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment whose process goes through no proxy."""
    return {key: value for key, value in environment.items() if key.lower() not in _NAMES}


def proxy_environment(host: str) -> dict[str, str]:
    """What a child needs in its environment to reach one HTTPS server; nothing for a direct way.

    No more than that, since Flower's HTTP client fails at a proxy of another kind that it would not
    use, and at a range of IPv6 addresses among those that go past the proxy.
    """
    text = _text(host)
    return {"HTTPS_PROXY": text} if text else {}


def proxy_for(host: str) -> Proxy | None:
    """The proxy on the way to an HTTPS server; None where the way is direct.

    Raises:
        ConfigError: The environment names one that Flower's HTTP client does not take.
    """
    text = _text(host)
    if not text:
        return None
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port or 80
    except ValueError:
        parts, port = urlsplit(""), 0
    socks = parts.scheme in ("socks5", "socks5h") and importlib.util.find_spec("socksio")
    if not parts.hostname or (parts.scheme not in ("http", "https") and not socks):
        raise ConfigError(
            "Expected a proxy of the form http://host:port in HTTPS_PROXY, got "
            f"{parts.scheme or 'something else'}; correct it, or name the server in NO_PROXY."
        )
    headers = {}
    if parts.username is not None:
        words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(words.encode()).decode()
    return Proxy(scheme=parts.scheme, host=parts.hostname, port=port, headers=headers)


def _text(host: str) -> str:
    """The proxy on the way to a host as the environment has it; loopback has none."""
    found = getproxies_environment()
    exempt = [name.strip().strip("[]") for name in found.get("no", "").split(",")]
    exempt = [*filter(None, exempt), *LOOPBACK]
    if "*" in exempt or proxy_bypass(host, {"no": ",".join(exempt)}):
        return ""
    return found.get("https") or found.get("all") or ""
