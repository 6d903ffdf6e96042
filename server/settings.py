"""``server.toml``: where the server listens and what one peer may use."""

import tomllib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.home import ServerHome
from shared.config import first_problem
from shared.errors import ConfigError
from shared.files import write_atomic
from shared.toml import dumps

Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GatewayLimits(_Table):
    """Caps of the public port."""

    max_body_bytes: Count = 16 * 1024 * 1024  # Flower cuts arrays into objects of 5 MB
    requests_per_second: Annotated[float, Field(gt=0)] = 100.0  # of one peer address, on average
    burst: Count = 1000  # requests one peer may send at once
    request_seconds: Annotated[float, Field(gt=0)] = 60.0  # whole request and head of the answer
    concurrent_requests: Count = 256
    connections: Count = 2048


class ServerSettings(_Table):
    """Everything in ``server.toml``."""

    host: str = "127.0.0.1"  # address the gateway binds; 0.0.0.0 serves other machines
    port: Port = 8443
    names: tuple[str, ...] = ()  # DNS names and addresses that nodes use, beside loopback
    limits: GatewayLimits = GatewayLimits()


def load_settings(home: ServerHome) -> ServerSettings:
    """Read ``server.toml``.

    Raises:
        ConfigError: It is absent or does not hold settings.
    """
    try:
        value = tomllib.loads(home.config.read_text(encoding="utf-8"))
        value.pop("link_port", None)  # of a home from before Flower had no port
        return ServerSettings.model_validate(value)
    except FileNotFoundError:
        raise ConfigError(
            f"Expected server settings at {home.config}, found none; "
            "run 'fedlatent server init' first."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{home.config}: expected TOML, got: {error}.") from None
    except ValidationError as error:
        raise ConfigError(f"{home.config}: {first_problem(error)}") from None


def save_settings(home: ServerHome, settings: ServerSettings) -> None:
    """Write ``server.toml``."""
    write_atomic(home.config, dumps(settings.model_dump(mode="json")).encode())
