"""``server.toml``: where the server listens and what one peer may use."""

import ipaddress
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedlatent.server.home import ServerHome
from fedlatent.shared.config import invalid
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.files import write_atomic
from fedlatent.shared.toml import dumps, parse_toml

Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GatewayLimits(_Table):
    """Caps of the public port."""

    max_body_bytes: Count = 16 * 1024 * 1024  # Flower cuts arrays into objects of 5 MB
    requests_per_second: Annotated[float, Field(gt=0)] = 100.0  # of one site's key, on average
    burst: Count = 1000  # requests one site may send at once
    messages_per_minute: Count = 60  # replies of one site
    bodies_per_site: Count = 8  # requests of one site that are held in memory at once
    request_seconds: Seconds = 60.0  # whole request and head of the answer
    answer_seconds: Seconds = 60.0  # for a peer to read its answer
    head_seconds: Seconds = 10.0  # for the whole head of a request
    first_request_seconds: Seconds = 10.0  # from a connection's begin to a site's first request
    concurrent_requests: Count = 256
    connections: Count = 2048
    connections_per_site: Count = 32
    strangers_per_address: Count = 32  # connections that have not shown an admitted key


class ServerSettings(_Table):
    """All that ``server.toml`` says: address, names, certificates and the gateway's limits."""

    host: str = "127.0.0.1"  # address the gateway binds; 0.0.0.0 serves other machines
    port: Port = 8443
    names: tuple[str, ...] = ()  # DNS names and addresses that nodes use, beside loopback
    client_certificates: bool = False  # only nodes with a certificate of the authority connect
    limits: GatewayLimits = GatewayLimits()

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
    write_atomic(home.config, dumps(settings.model_dump(mode="json")).encode())
