"""The run configuration: one TOML file that says what a federation trains and at what privacy.

It is validated here, hashed, stored by the server, sent with every request and checked again by
every node against its own policy. Unknown keys are errors.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import ConfigError
from shared.files import canonical_json, sha256_hex

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class _Section(BaseModel):
    """A table of the run file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(_Section):
    """Which model: a family of ``shared.models.FAMILIES`` and its options."""

    family: str = "gaussian"
    options: dict[str, str | int | float | bool | list[int]] = Field(default_factory=dict)


class DataSection(_Section):
    """The schema every node's records must fit; the bounds are public, never taken from data."""

    name: str
    shape: tuple[Count, ...] = Field(min_length=1, max_length=3)
    unit: str = ""
    scale: Positive = 1.0  # raw value * scale
    center: Literal["none", "median", "mean"] = "none"  # per record, over its own values
    lower: float = -1.0  # after scale and centre
    upper: float = 1.0

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if not self.lower < self.upper:
            raise ValueError(f"expected lower < upper, got {self.lower} and {self.upper}")
        return self


class PrivacySection(_Section):
    """The record-level guarantee of the whole run, for each client by itself."""

    mechanism: Literal["dp-sgd", "none"] = "dp-sgd"
    epsilon: Positive = 4.0  # of the whole run: training, moments and threshold together
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    clip: Positive = 1.0  # L2 norm of one record's gradient
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.1  # Poisson, per step
    rng: Literal["secure", "simulation"] = "secure"
    moments_share: Share = 0.10  # of the budget, in sum of 1/sigma^2
    threshold_share: Share = 0.05


class TrainingSection(_Section):
    """Local training between two exchanges."""

    rounds: Count = 10
    steps_per_round: Count = 20
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Positive = 2e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of sgd
    multiplicity: Count = 1  # latent draws of a record, averaged before its gradient is clipped
    beta: Annotated[float, Field(ge=0)] = 1.0  # weight of the rate (KL) term
    free_bits: Annotated[float, Field(ge=0)] = 0.0  # nats per record


class FederationSection(_Section):
    """Who must answer and how long they may take; nothing waits without bound."""

    quorum: Count = 2  # least number of good replies for a round to count
    nodes: Count = 2  # how many nodes the first round waits for, up to join_timeout_s
    join_timeout_s: Positive = 120.0
    round_deadline_s: Positive = 120.0
    max_records: Count = 10_000_000  # cap on the weight one node may claim
    max_update_norm: Positive = 1_000.0  # L2 of (reply - sent encoder)


class ScoringSection(_Section):
    """The released latent density and threshold."""

    radius: Annotated[float, Field(ge=0)] = 0.0  # latent clipping; 0 = 1.3 * sqrt(latent_dim)
    quantile: Annotated[float, Field(gt=0.5, lt=1)] = 0.99  # of normal scores


class RunConfig(_Section):
    """Everything that defines a run. Two runs with equal configurations have equal digests."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    sharing: Literal["encoder", "full"] = "encoder"
    data: DataSection
    model: ModelSection = ModelSection()
    privacy: PrivacySection = PrivacySection()
    training: TrainingSection = TrainingSection()
    federation: FederationSection = FederationSection()
    scoring: ScoringSection = ScoringSection()

    @classmethod
    def parse(cls, value: object, source: str) -> Self:
        """Validate a decoded TOML or JSON value.

        Raises:
            ConfigError: naming the first wrong field, what was expected and what came.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise ConfigError(f"{source}: {first_problem(error)}") from None

    @classmethod
    def from_toml(cls, text: str, source: str = "run configuration") -> Self:
        """Read the TOML text of a run file."""
        try:
            value = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{source}: expected TOML, got a syntax error: {error}.") from None
        return cls.parse(value, source)

    @classmethod
    def from_json(cls, text: str, source: str = "run configuration") -> Self:
        """Read the JSON text that ``to_json`` wrote."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(f"{source}: {first_problem(error)}") from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a run file."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(
                f"Expected a run file at {path}, found none; 'fedlatent server init' writes an "
                "example."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Expected a readable run file at {path}, got: {error}.") from None
        return cls.from_toml(text, str(path))

    def to_json(self) -> str:
        """Canonical JSON: equal configurations give equal text."""
        return canonical_json(self.model_dump(mode="json")).decode()

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return sha256_hex(self.to_json().encode())


def first_problem(error: ValidationError) -> str:
    """Say the first problem pydantic found in one sentence, with the field and the value."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the whole text"
    if problem["type"] == "extra_forbidden":
        return f"expected only known keys, got {where!r}; remove it or fix its spelling."
    if problem["type"] == "missing":
        return f"expected a value for {where!r}, got none; add it."
    shown = repr(problem["input"])[:80]
    return f"{where}: {problem['msg']}, got {shown}."
