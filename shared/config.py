"""The run configuration: one TOML file that says what a federation trains and at what privacy.

It is validated here, hashed, stored by the server, sent with every request and checked again by
every node against its own policy. Unknown keys are errors.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails

from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import ConfigError, FedlatentError
from fedlatent.shared.files import canonical_json, sha256_hex
from fedlatent.shared.toml import dumps, parse_toml

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]

#: What of a model clients send. "encoder": its encoder after each round, and the summaries that
#: score and threshold need at the end. "encoder+summary": moments in between, too, for the prior.
#: "summary": no weights at all, summaries of an encoder they are given. "full": the decoder, too.
Sharing = Literal["encoder", "summary", "encoder+summary", "full"]

#: How the updates of a round are brought together beside the weighted mean (docs/threat-model.md).
Robust = Literal["none", "trimmed-mean", "median", "centred-clipping", "krum", "multi-krum"]


def _told(value: object, check: Callable[[object], Schema]) -> Schema:
    """Pydantic goes on from a ValueError alone."""
    try:
        return check(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error


#: The schema every node's records must fit; the bounds are public, never taken from data. What it
#: does not use stays out of its JSON, so that digests of configurations outlive new fields.
Data = Annotated[
    Schema, WrapValidator(_told), PlainSerializer(Schema.to_dict, return_type=dict[str, Any])
]


class _Section(BaseModel):
    """A table of the run file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(_Section):
    """Which model: a family of ``fedlatent.shared.models.FAMILIES`` and its options."""

    family: str = "gaussian"
    options: dict[str, str | int | float | bool | list[int] | list[str]] = Field(
        default_factory=dict
    )
    start: str = ""  # a finished run of the same server whose shared weights come first


class Privacy(_Section):
    """The record-level guarantee of the whole run, for each client by itself.

    Examples:
        >>> fl.Privacy(epsilon=2.0).sample_rate
        0.1
        >>> result = fl.simulate({"privacy": fl.Privacy(epsilon=2.0)}, clients, progress=False)
        >>> result.run.privacy.epsilon
        2.0
    """

    mechanism: Literal["dp-sgd", "none"] = "dp-sgd"
    epsilon: Positive = 4.0  # of the whole run: training and all summaries together
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    clip: Positive = 1.0  # L2 norm of one record's gradient
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.1  # Poisson, per step
    rng: Literal["secure", "simulation"] = "secure"
    # Shares of the budget in sum of 1/sigma^2, of all releases of a kind together; training gets
    # what the kinds that take place leave. Without training they are proportions.
    data_share: Share = 0.05
    moments_share: Share = 0.10
    mixture_share: Share = 0.10
    scores_share: Share = 0.05
    threshold_share: Share = 0.05


class Training(_Section):
    """Local training between two exchanges.

    Examples:
        >>> training = fl.Training(rounds=2, steps_per_round=5)
        >>> result = fl.simulate({"training": training}, clients, progress=False)
        >>> int((result.rounds["kind"] == "train").sum())
        2
    """

    rounds: Count = 10
    steps_per_round: Count = 20
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Positive = 2e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of sgd
    multiplicity: Count = 1  # latent draws of a record, averaged before its gradient is clipped
    objective: Literal["elbo", "iwae"] = "elbo"  # iwae: the bound of all draws of a record
    beta: Annotated[float, Field(ge=0)] = 1.0  # weight of the rate (KL) term
    beta_warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the run in which beta rises
    capacity: Annotated[float, Field(ge=0)] = 0.0  # nats; the rate is led from 0 to it; 0 = off
    free_bits: Annotated[float, Field(ge=0)] = 0.0  # nats per record
    schedule: Literal["constant", "cosine"] = "constant"  # of the learning rate, over the whole run
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay a round of averaged weights; 0 = off
    warm_start_steps: Annotated[int, Field(ge=0)] = (
        0  # of the server, on draws of the released data
    )

    @model_validator(mode="after")
    def _one_objective(self) -> Self:
        weighed = self.beta != 1.0 or self.beta_warmup or self.capacity or self.free_bits
        if self.objective == "iwae" and weighed:
            raise ValueError(
                "expected objective 'iwae' with beta 1 and neither beta_warmup, capacity nor "
                "free_bits, got one of them"
            )
        return self


class SummariesSection(_Section):
    """What clients release about their latents, and what the server makes of it."""

    moments: Literal["auto", "full", "diagonal"] = "auto"
    every: Annotated[int, Field(ge=0)] = 0  # rounds between moments in training; 0 = 5
    prior: Literal["none", "gaussian", "mixture"] = "none"  # broadcast for the next round's KL
    components: Annotated[int, Field(ge=0, le=64)] = 0  # of the mixture; 0 = none
    em_rounds: Count = 3
    data: Literal["none", "scaling", "gaussian"] = "none"  # of the records themselves: mean and
    # deviation of each feature, or a Gaussian of their lowest frequencies
    features: Annotated[int, Field(ge=1, le=512)] = 32  # of that Gaussian
    data_radius: Annotated[float, Field(ge=0)] = 0.0  # their clipping; 0 = a quarter of the bounds
    robust: bool = True  # pool so that one site of five cannot move the result far


class StrategySection(_Section):
    """How clients and server bring their weights together."""

    name: Literal["fedavg", "fedprox", "mr-mtl"] = "fedavg"
    proximal: Annotated[float, Field(ge=0)] = 0.1  # lambda of fedprox and mr-mtl
    weighting: Literal["records", "noise-aware", "uniform"] = "records"
    server_optimizer: Literal["none", "momentum", "adam", "yogi", "adagrad"] = "none"
    server_learning_rate: Positive = 1.0
    robust: Robust = "multi-krum"  # rule that brings weights together; "none": the weighted mean
    # sites it is to withstand; 0 = a fifth of those asked, as far as the replies bear that
    hostile: Annotated[int, Field(ge=0)] = 0

    def sites_needed(self, hostile: int) -> int:
        """Least number of sites among which the rule withstands so many hostile ones."""
        return 2 * hostile + (3 if self.robust in ("krum", "multi-krum") else 1)


class FederationSection(_Section):
    """Who must answer and how long they may take; nothing waits without bound."""

    quorum: Count = 2  # least number of good replies for a round to count
    nodes: Count = 2  # how many nodes the first round waits for, up to join_timeout_s
    join_timeout_s: Positive = 120.0
    round_deadline_s: Positive = 120.0
    max_records: Count = 10_000_000  # cap on the weight one node may claim
    max_update_norm: Positive = 1_000.0  # L2 of (reply - sent encoder)
    norm_factor: Positive = 3.0  # updates are scaled down to so many times the phase's median norm


class ScoringSection(_Section):
    """The released latent density and threshold."""

    radius: Annotated[float, Field(ge=0)] = 0.0  # latent clipping; 0 = 1.3 * sqrt(latent_dim)
    quantile: Annotated[float, Field(gt=0.5, lt=1)] = 0.99  # of normal scores
    combined: bool = False  # release a small density of the score's parts, too
    per_client: bool = False  # a threshold for each client from its own histogram, too


class RunConfig(_Section):
    """Everything that defines a run. Two runs with equal configurations have equal digests.

    Examples:
        >>> run = fl.RunConfig(name="hearts", data=clients.schema, privacy=fl.Privacy(epsilon=2.0))
        >>> run.training.rounds
        10
        >>> fl.RunConfig.parse({"name": "hearts"}, "run.toml")
        Traceback (most recent call last):
        ...
        fedlatent.shared.errors.ConfigError: run.toml: expected a value for 'data', got none...
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    sharing: Sharing = "encoder"
    data: Data
    model: ModelSection = ModelSection()
    privacy: Privacy = Privacy()
    training: Training = Training()
    summaries: SummariesSection = SummariesSection()
    strategy: StrategySection = StrategySection()
    federation: FederationSection = FederationSection()
    scoring: ScoringSection = ScoringSection()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        summaries, personal = self.summaries, self.strategy.name == "mr-mtl"
        if summaries.prior == "mixture" and not summaries.components:
            raise ValueError("expected summaries.components of 1 or more for a mixture, got 0")
        if summaries.prior != "none" and self.sharing != "encoder+summary":
            raise ValueError(
                f"expected sharing 'encoder+summary' for a broadcast prior, got {self.sharing!r}"
            )
        if self.training.warm_start_steps and summaries.data != "gaussian":
            raise ValueError(
                "expected summaries.data 'gaussian' for a warm start on released data, got "
                f"{summaries.data!r}"
            )
        strategy, nodes = self.strategy, self.federation.nodes
        if strategy.hostile and strategy.robust == "none":
            raise ValueError("expected strategy.hostile of 0 without a robust rule, got another")
        if strategy.hostile and nodes < (needed := strategy.sites_needed(strategy.hostile)):
            raise ValueError(
                f"expected federation.nodes of {needed} or more for strategy.robust "
                f"{strategy.robust!r} against {strategy.hostile} hostile sites, got {nodes}"
            )
        if personal and self.sharing in ("summary", "full"):
            raise ValueError(
                f"expected sharing of the encoder for strategy 'mr-mtl', got {self.sharing!r}"
            )
        return self

    def __hash__(self) -> int:
        """Of the canonical JSON, since the options of a model are a table."""
        return hash(self.to_json())

    @property
    def shares_decoder(self) -> bool:
        """Whether whole models leave the clients."""
        return self.sharing == "full"

    @classmethod
    def parse(cls, value: object, source: str) -> Self:
        """Validate a decoded TOML or JSON value.

        Raises:
            ConfigError: naming the first wrong field, what was expected and what came.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise invalid(source, error) from None

    @classmethod
    def from_toml(cls, text: str, source: str = "run configuration") -> Self:
        """Read the TOML text of a run file."""
        return cls.parse(parse_toml(text, source), source)

    @classmethod
    def from_json(cls, text: str, source: str = "run configuration") -> Self:
        """Read the JSON text that ``to_json`` wrote."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise invalid(source, error) from None

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

    def to_toml(self) -> str:
        """A run file with every key, from which ``load`` gives an equal configuration."""
        return dumps(self.model_dump(mode="json"))

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return sha256_hex(self.to_json().encode())


def invalid(
    source: str, error: ValidationError, kind: type[FedlatentError] = ConfigError
) -> FedlatentError:
    """The error of a ``kind`` about the first problem that pydantic found in ``source``.

    Its field is the path of the key, such as "training.rounds", and its reason pydantic's name of
    the problem, such as "missing" or "extra_forbidden".
    """
    problem = error.errors(include_url=False)[0]
    said = problem.get("ctx", {}).get("error")
    told = said.__cause__ if isinstance(said, Exception) else None
    blamed = told.field if isinstance(told, ConfigError) else None
    where = ".".join(str(part) for part in (*problem["loc"], blamed) if part is not None)
    reason = _SAME.get(problem["type"], problem["type"])
    sentence = str(told) if isinstance(told, ConfigError) else _sentence(reason, problem, where)
    return kind(f"{source}: {sentence}", field=where or None, reason=reason)


#: A dataclass's name for what a table calls otherwise.
_SAME = {"unexpected_keyword_argument": "extra_forbidden"}


def _sentence(kind: str, problem: ErrorDetails, where: str) -> str:
    """What pydantic found at a field, what was expected and what came."""
    if kind == "extra_forbidden":
        return f"expected only known keys, got {where!r}; remove it or fix its spelling."
    if kind == "missing":
        return f"expected a value for {where!r}, got none; add it."
    place = f"{where}: " if where else ""
    if kind == "value_error":  # a sentence of our own about several fields
        return f"{place}{problem['ctx']['error']}; change one of them."
    shown = repr(problem["input"])[:80]
    return f"{place or 'the whole text: '}{problem['msg']}, got {shown}."
