"""``server.toml``: where the server listens and what one peer may use."""

import ipaddress
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedlatent.server.home import ServerHome
from fedlatent.shared.config import invalid
from fedlatent.shared.editor import directive, write_schema
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.files import write_atomic
from fedlatent.shared.toml import dumps, parse_toml

Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class _Table(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class GatewayLimits(_Table):
    """Caps of the public port."""

    max_body_bytes: Count = 16 * 1024 * 1024
    """Bytes of one request; Flower cuts arrays into objects of 5 MB."""
    requests_per_second: Annotated[float, Field(gt=0)] = 100.0
    """Requests of one site's key, on average."""
    burst: Count = 1000
    """Requests that one site may send at once."""
    messages_per_minute: Count = 60
    """Replies of one site."""
    bodies_per_site: Count = 8
    """Requests of one site that are held in memory at once."""
    request_seconds: Seconds = 60.0
    """Seconds for a whole request and the head of its answer."""
    answer_seconds: Seconds = 60.0
    """Seconds for a peer to read its answer."""
    head_seconds: Seconds = 10.0
    """Seconds for the whole head of a request."""
    first_request_seconds: Seconds = 10.0
    """Seconds from a connection's begin to a site's first request."""
    concurrent_requests: Count = 256
    """Requests of all at a time."""
    connections: Count = 2048
    """Connections of all at a time."""
    connections_per_site: Count = 32
    """Connections of one site's key at a time."""
    strangers_per_address: Count = 32
    """Connections of one address that have not shown an admitted key."""


class ServerSettings(_Table):
    """All that ``server.toml`` says: address, names, certificates and the gateway's limits."""

    host: str = "127.0.0.1"
    """Address that the gateway binds; 0.0.0.0 serves other machines."""
    port: Port = 8443
    """Public port of the gateway."""
    names: tuple[str, ...] = ()
    """DNS names and addresses that nodes use, beside loopback."""
    client_certificates: bool = False
    """Only nodes with a certificate of the authority can connect."""
    limits: GatewayLimits = GatewayLimits()
    """Caps of the public port."""

    @property
    def near(self) -> str:
        """Host by which this machine reaches the gateway."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return self.host
        if not address.is_unspecified:
            return self.host
        return "127.0.0.1" if address.version == 4 else "::1"

    @property
    def certified(self) -> tuple[str, ...]:
        """All names and addresses that the certificate is for."""
        return tuple(dict.fromkeys((*self.names, self.near)))


def load_settings(home: ServerHome) -> ServerSettings:
    """Read ``server.toml``.

    Raises:
        ConfigError: It is absent or does not hold settings.
    """
    try:
        value = parse_toml(home.config.read_text(encoding="utf-8"), str(home.config))
        value.pop("link_port", None)  # of a home from before Flower had no port
        return ServerSettings.model_validate(value)
    except FileNotFoundError:
        raise ConfigError(
            f"Expected server settings at {home.config}, found none; "
            "run 'fedlatent server init' first."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{home.config}: expected TOML, got: {error}.") from None
    except ValidationError as error:
        raise invalid(str(home.config), error) from None


def save_settings(home: ServerHome, settings: ServerSettings) -> None:
    """Write settings to a home's ``server.toml``, whole or not at all."""
    text = directive("server") + dumps(settings.model_dump(mode="json"))
    write_schema(home.root, "server", ServerSettings)
    write_atomic(home.config, text.encode())
