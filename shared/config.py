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

#: The same by a package that the server has installed: "package/name". Nodes need not have it.
STRATEGY = r"^[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*$"
Plugged = Annotated[str, Field(pattern=STRATEGY)]

#: What a plugin's kind of summary may be called.
KIND = r"^[a-z][a-z0-9-]{0,31}$"


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

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSection(_Section):
    """Which model: a family of ``fedlatent.shared.models.FAMILIES`` and its options."""

    family: str = "gaussian"
    """Family of models; 'fedlatent model list' names all."""
    options: dict[str, str | int | float | bool | list[int] | list[str]] = Field(
        default_factory=dict
    )
    """Options of the family, such as latent_dim and hidden; 'preset' names a size."""
    start: str = ""
    """Name of a finished run of the same server whose shared weights come first; empty for none."""


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
    """How training is made private; 'none' trains without privacy, which nodes refuse by default.
    """
    epsilon: Positive = 4.0
    """Budget of the whole run, training and all summaries together, for each client by itself."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Of that epsilon; a node wants at most its own policy.delta and at most 1/(10 N)."""
    clip: Positive = 1.0
    """Bound on the L2 norm of one record's gradient."""
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Probability of a record to take part in one step (Poisson sampling)."""
    rng: Literal["secure", "simulation"] = "secure"
    """'secure' noise of the operating system, or 'simulation': seeded, and protects nobody."""
    data_share: Share = 0.05
    """Share of the budget, in sum of 1/sigma^2, of all releases of the data's scaling or Gaussian.
    """
    moments_share: Share = 0.10
    """The same of latent moments; without training the shares are proportions."""
    mixture_share: Share = 0.10
    """The same of the latent mixture."""
    scores_share: Share = 0.05
    """The same of the density of the score's parts."""
    threshold_share: Share = 0.05
    """The same of the histograms that thresholds come from."""


class Training(_Section):
    """Local training between two exchanges.

    Examples:
        >>> training = fl.Training(rounds=2, steps_per_round=5)
        >>> result = fl.simulate({"training": training}, clients, progress=False)
        >>> int((result.rounds["kind"] == "train").sum())
        2
    """

    rounds: Count = 10
    """Exchanges of the encoder."""
    steps_per_round: Count = 20
    """Steps of DP-SGD between two exchanges."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Of the clients; its state stays at the site."""
    learning_rate: Positive = 2e-3
    """Of that optimizer."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of 'sgd', below 1."""
    multiplicity: Count = 1
    """Latent draws of a record, one loss before its gradient is clipped."""
    objective: Literal["elbo", "iwae"] = "elbo"
    """'elbo', or 'iwae': the importance-weighted bound of all draws of a record; then beta is 1."""
    beta: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the rate (KL) term."""
    beta_warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the run in which beta rises from 0."""
    capacity: Annotated[float, Field(ge=0)] = 0.0
    """Nats a record: the rate is led from 0 to it over the run; 0 is off."""
    free_bits: Annotated[float, Field(ge=0)] = 0.0
    """Nats a record of the rate that cost nothing."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate over the whole run: 'cosine' falls to zero."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay a round of averaged weights, which summaries and bundles then use; 0 is off."""
    warm_start_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of the first weights on draws of the released Gaussian of the data; needs
    summaries.data 'gaussian'."""

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
    """Covariance of latents that is released: 'full', 'diagonal', or 'auto': by what the records
    bear."""
    every: Annotated[int, Field(ge=0)] = 0
    """Rounds between moments in training, with sharing 'encoder+summary'; 0 means 5."""
    prior: Literal["none", "gaussian", "mixture"] = "none"
    """Broadcast for the rate (KL) of the following rounds."""
    components: Annotated[int, Field(ge=0, le=64)] = 0
    """Of the latent mixture; 0 means none."""
    em_rounds: Count = 3
    """Rounds of expectation and maximisation of that mixture."""
    data: Literal["none", "scaling", "gaussian"] = "none"
    """Release about the records themselves: 'scaling' (mean and deviation of each feature) or
    'gaussian' (of their lowest frequencies)."""
    features: Annotated[int, Field(ge=1, le=512)] = 32
    """Of that Gaussian."""
    data_radius: Annotated[float, Field(ge=0)] = 0.0
    """Clipping of the records in that release; 0 means a quarter of the bounds at each place."""
    more: Annotated[
        tuple[Annotated[str, Field(pattern=KIND)], ...],
        Field(exclude_if=lambda value: not value, max_length=8),
    ] = ()
    """Kinds of summaries of plugins, which then server and nodes need; see docs/plugins.md."""
    robust: bool = True
    """Pool so that one hostile site of five cannot move the result far; false adds the summaries
    up."""


class StrategySection(_Section):
    """How clients and server bring their weights together."""

    name: Literal["fedavg", "fedprox", "mr-mtl"] = "fedavg"
    """'fedprox' draws each step to the received weights; with 'mr-mtl' each client keeps its own
    encoder, drawn to the mean."""
    proximal: Annotated[float, Field(ge=0)] = 0.1
    """Lambda of 'fedprox' and 'mr-mtl': a step goes learning rate times lambda of the way back."""
    weighting: Literal["records", "noise-aware", "uniform"] = "records"
    """What a site weighs in the mean: by records, alike, or less where its noise drowns them."""
    server_optimizer: Literal["none", "momentum", "adam", "yogi", "adagrad"] = "none"
    """Flower's, on the mean of a round."""
    server_learning_rate: Positive = 1.0
    """Of that optimizer."""
    robust: Robust | Plugged = "multi-krum"
    """Rule that brings the weights of a round together; 'none' is the weighted mean."""
    hostile: Annotated[int, Field(ge=0)] = 0
    """Sites that the rule is to withstand; 0 means a fifth of those asked, as far as the replies
    bear that."""

    def sites_needed(self, hostile: int) -> int:
        """Least number of sites among which the rule withstands so many hostile ones."""
        return 2 * hostile + (3 if self.robust in ("krum", "multi-krum") else 1)


class FederationSection(_Section):
    """Who must answer and how long they may take; nothing waits without bound."""

    quorum: Count = 2
    """Least number of good replies for a phase to count."""
    nodes: Count = 2
    """Nodes that the first phase waits for, up to join_timeout_s; later ones wait for the quorum.
    """
    join_timeout_s: Positive = 120.0
    """Seconds of the longest wait for nodes before a phase."""
    round_deadline_s: Positive = 120.0
    """Seconds from the last message sent to the last reply counted."""
    max_records: Count = 10_000_000
    """Most records that a node may state."""
    max_update_norm: Positive = 1_000.0
    """L2 norm of the change of the weights beyond which a reply is dropped."""
    norm_factor: Positive = 3.0
    """A change is scaled down to so many times the median norm of the phase's changes."""


class ScoringSection(_Section):
    """The released latent density and threshold."""

    radius: Annotated[float, Field(ge=0)] = 0.0
    """Clipping of latents; 0 means 1.3 times the root of latent_dim."""
    quantile: Annotated[float, Field(gt=0.5, lt=1)] = 0.99
    """Share of normal records that should stay below the threshold."""
    combined: bool = False
    """Release a small density of the score's parts, for one combined score with a threshold."""
    per_client: bool = False
    """A threshold for each client from its own noisy histogram, too."""


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
    """Of the run: lower-case letters, digits and dashes."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the first weights, and of the noise where privacy.rng is 'simulation'."""
    sharing: Sharing = "encoder"
    """What leaves the clients: encoder, summaries, both, or whole models ('full', which nodes must
    allow)."""
    data: Data
    """What each record is; must equal the nodes' own schema in every field."""
    model: ModelSection = ModelSection()
    """Which model."""
    privacy: Privacy = Privacy()
    """The guarantee of the whole run."""
    training: Training = Training()
    """Local training between two exchanges."""
    summaries: SummariesSection = SummariesSection()
    """What clients release about their latents."""
    strategy: StrategySection = StrategySection()
    """How weights come together."""
    federation: FederationSection = FederationSection()
    """Who must answer, and how long they may take."""
    scoring: ScoringSection = ScoringSection()
    """The released latent density and threshold."""

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
