"""The one file by which an operator invites a site: who the server is, and what a run asks for.

It holds nothing secret, and the site compares the fingerprint in it over another channel: whoever
could change the file could name another server.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cryptography.hazmat.primitives import hashes
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from fedlatent.shared.config import RunConfig, invalid
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.keys import sole_certificate
from fedlatent.shared.proxies import split_address
from fedlatent.shared.toml import dumps, parse_toml
from fedlatent.shared.wire import PROTOCOL

_MAX_BYTES = 4 << 20
_HEAD = """\
# Invitation of {site} to the federation at {server}.
# The operator tells you the fingerprint of the authority over another channel. Then:
#   fedlatent client join THIS-FILE --data RECORDS --fingerprint ...
# [run] is what the first run asks for; [run.data] says what a record is.
"""


class Invitation(BaseModel):
    """What an invitation file says.

    Attributes:
        version: of the file's form.
        site: name of the site that is invited.
        server: ``host:port`` by which sites reach the server.
        protocol: that the server speaks.
        fingerprint: SHA-256 of the authority's certificate, 64 hexadecimal digits.
        certificate: of the authority, in PEM.
        run: what a run of this federation asks for, and what a record is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    version: Literal[1] = 1
    site: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    server: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+:\d{1,5}$|^\[[0-9a-fA-F:.]+\]:\d{1,5}$")]
    protocol: int
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    certificate: Annotated[str, Field(max_length=65_536)]
    run: RunConfig

    @field_validator("server")
    @classmethod
    def _reachable(cls, value: str) -> str:
        """The port is one."""
        try:
            split_address(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("certificate")
    @classmethod
    def _alone(cls, value: str) -> str:
        """It is one, without another that the fingerprint does not speak of."""
        try:
            sole_certificate(value.encode())
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """The fingerprint is that of the certificate, and this program speaks the protocol."""
        if fingerprint_of(self.certificate.encode()) != self.fingerprint:
            raise ValueError("expected the fingerprint of the certificate, got another")
        if self.protocol != PROTOCOL:
            raise ValueError(
                f"expected protocol {PROTOCOL} of this program, got {self.protocol}; install the "
                "version that the server runs"
            )
        return self

    @property
    def text(self) -> str:
        """The file, TOML."""
        tables: dict[str, Any] = self.model_dump(mode="json")
        return _HEAD.format(site=self.site, server=self.server) + dumps(tables)

    @classmethod
    def parse(cls, value: object, source: str) -> Self:
        """Check what an invitation is made of.

        Raises:
            ConfigError: Naming the first wrong field.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise invalid(source, error) from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an invitation.

        Raises:
            ConfigError: The file cannot be read or is none, naming the field that is wrong.
        """
        try:
            with path.open("rb") as stream:
                data = stream.read(_MAX_BYTES + 1)
            if len(data) > _MAX_BYTES:
                raise ConfigError(
                    f"Expected an invitation of at most {_MAX_BYTES} bytes at {path}, got more; "
                    "ask the operator for the file of 'server invite'."
                )
            text = data.decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"Expected a readable invitation at {path}, got a {type(error).__name__}; check "
                "the path."
            ) from None
        return cls.parse(parse_toml(text, str(path)), str(path))


def fingerprint_of(certificate: bytes) -> str:
    """SHA-256 of the one certificate of a PEM text, 64 hexadecimal digits.

    Raises:
        ConfigError: There is none, or more than one.
    """
    return sole_certificate(certificate).fingerprint(hashes.SHA256()).hex()


def same_fingerprint(told: str, fingerprint: str) -> bool:
    """Whether a fingerprint as people write it, with colons, spaces or capitals, is this one."""
    return "".join(told.replace(":", "").split()).lower() == fingerprint
