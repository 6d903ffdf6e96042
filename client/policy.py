"""What a node is and what it allows: ``node.toml``, and the check of a run against it.

The policy is the data holder's word, not the server's. A refusal says which public number of the
run does not fit which public number of the policy; nothing about the records beyond their count.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedlatent.shared.config import Data, RunConfig, Sharing, invalid
from fedlatent.shared.data.dialect import Dialect
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import ConfigError, DataError, PolicyRefusal
from fedlatent.shared.privacy.delta import largest_delta
from fedlatent.shared.schedule import count_phases, training_rounds
from fedlatent.shared.toml import parse_toml

if TYPE_CHECKING:
    from fedlatent.shared.privacy.plan import PrivacyPlan  # its accountants load slowly

#: What a node shares unless its owner says otherwise: never a decoder.
DEFAULT_SHARING: tuple[Sharing, ...] = ("encoder", "summary", "encoder+summary")

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Least = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # 0 bounds nothing
Most = Annotated[int, Field(ge=1)]

#: Whether each run waits for a person at the site before anything is charged for it.
Approval = Literal["none", "each-run"]


class _Table(BaseModel):
    """A table of the node file: frozen, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class NodeData(_Table):
    """The private records: one file, how to read it, and the schema they fit.

    ``name`` is the key of the privacy budget. It stays the same when the file moves, grows or is
    corrected, since the same people are still in it; a new name means records of other people.
    """

    path: Path
    """The records; a relative path starts at the node's home."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = "records"
    """Key of the privacy budget; keep it when the file moves, grows or is corrected."""
    record_schema: Data = Field(alias="schema")
    """What each record is, as table [data] of a run file."""
    records_key: str = "X"
    """Array of an NPZ that holds the records."""
    columns: tuple[str, ...] | None = None
    """Columns of a table, in order, for a schema without [[data.columns]]; by default all but
    label and person."""
    names: dict[str, str] = Field(default_factory=dict, alias="map")
    """What columns are called here: own name = the schema's name."""
    delimiter: str = ","
    """Between the cells of a CSV file: a comma, semicolon, tab or bar."""
    decimal: str = "."
    """Before the decimals of a CSV file: a point or a comma."""
    encoding: str = "utf-8"
    """Of a CSV file."""
    header: bool | None = None
    """Whether a CSV file's first line is names; by default it shows."""
    label_key: str | None = None
    """Column or array of labels; records whose label is not normal are never trained on."""
    normal_label: bool | int | float | str | None = None
    """Which label is normal; by default labels are 0 (normal) and 1."""
    person_key: str | None = None
    """Column or array that says whose record it is; it stays here and is part of no record."""
    max_records_per_person: Annotated[int, Field(ge=1)] | None = None
    """Most records of one person that are used, by a public rule."""
    accept: tuple[str, ...] = ()
    """Findings of the check of the records that do not stop this node, as it names them."""

    @model_validator(mode="after")
    def _persons(self) -> Self:
        """A column of persons bounds nothing without a cap, and a cap needs to know persons."""
        if (self.person_key is None) != (self.max_records_per_person is None):
            raise ValueError(
                "expected person_key and max_records_per_person together, got only one of them"
            )
        return self

    @model_validator(mode="after")
    def _dialect(self) -> Self:
        """What cannot be read is refused with the file."""
        try:
            _ = self.dialect
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def dialect(self) -> Dialect:
        """How a CSV file is written."""
        return Dialect(
            delimiter=self.delimiter,
            decimal=self.decimal,
            encoding=self.encoding,
            header=self.header,
        )


class NodeServer(_Table):
    """Where the federation's gateway listens, as ``host:port``."""

    address: str
    """The federation's gateway, host:port."""


class NodeLimits(_Table):
    """What one request may use."""

    max_request_s: Positive = 3600.0
    """Seconds; a longer deadline of a request is cut to this."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Threads of PyTorch."""
    answer_step_s: Annotated[float, Field(ge=0, le=60)] = 1.0
    """Every answer leaves a whole number of such steps (seconds) after its request, so that its
    time shows little of how long the work took; 0 sends it at once."""


class Caps(_Table):
    """The range of everything that the other side may choose and the node computes with.

    An epsilon is a statement about arithmetic. Sensible runs lie far inside these bounds; outside
    of them floating point no longer does what was proved.
    """

    largest_weight: Positive = 1e4
    """Of any weight or mean that is sent, without its sign."""
    largest_model: Most = 50_000_000
    """Parameters of the model; numbers of a summary."""
    largest_learning_rate: Positive = 1.0
    """Of training.learning_rate."""
    largest_beta: Positive = 100.0
    """Of training.beta."""
    largest_nats: Positive = 1e3
    """Of training.capacity and training.free_bits."""
    largest_multiplicity: Most = 64
    """Of training.multiplicity."""
    largest_phases: Most = 10_000
    """Exchanges of one run."""
    smallest_clip: Positive = 1e-6
    """Of privacy.clip."""
    largest_clip: Positive = 1e6
    """Of privacy.clip."""
    smallest_radius: Positive = 1e-3
    """Of a clipping radius that a run names."""
    largest_radius: Positive = 1e6
    """Of a clipping radius that a run names."""
    smallest_sigma: Least = 0.5
    """Noise multiplier of training and of each summary."""
    smallest_batch: Least = 16.0
    """Expected records of a training step: sample rate times N."""
    smallest_deviation: Positive = 1e-3
    """Of a scaling that is sent, in half ranges of the schema."""
    largest_deviation: Positive = 1e3
    """Of a scaling that is sent, in half ranges of the schema."""
    smallest_eigenvalue: Positive = 1e-6
    """Of each covariance that is sent."""
    largest_eigenvalue: Positive = 1e6
    """Of each covariance that is sent."""

    @model_validator(mode="after")
    def _ranges(self) -> "Caps":
        for what in ("clip", "radius", "deviation", "eigenvalue"):
            least, most = getattr(self, f"smallest_{what}"), getattr(self, f"largest_{what}")
            if least > most:
                raise ValueError(
                    f"expected smallest_{what} of at most largest_{what}, got {least:g} above "
                    f"{most:g}, which refuses every run"
                )
        return self

    def check(self, run: RunConfig) -> None:
        """Refuse a run file whose numbers lie outside.

        Raises:
            PolicyRefusal: naming the first.
        """
        training, privacy, summaries = run.training, run.privacy, run.summaries
        for name, value, most in (
            ("training.learning_rate", training.learning_rate, self.largest_learning_rate),
            ("training.multiplicity", training.multiplicity, self.largest_multiplicity),
            ("training.beta", training.beta, self.largest_beta),
            ("training.capacity", training.capacity, self.largest_nats),
            ("training.free_bits", training.free_bits, self.largest_nats),
        ):
            within(name, value, 0.0, most)
        if privacy.mechanism != "none":
            within("privacy.clip", privacy.clip, self.smallest_clip, self.largest_clip)
        for name, radius in (
            ("scoring.radius", run.scoring.radius),
            ("summaries.data_radius", summaries.data_radius),
        ):
            if radius:  # 0 stands for a default
                within(name, radius, self.smallest_radius, self.largest_radius)
        within("phases of the run", count_phases(run), 0, self.largest_phases)


def within(name: str, value: float, least: float, most: float) -> None:
    """Refuse a number that the other side chose outside of this node's range.

    Raises:
        PolicyRefusal: it lies outside, or is not a number.
    """
    if not least <= value <= most:
        shown = f"{value:g}" if isinstance(value, float) else str(value)[:20]
        raise PolicyRefusal(
            f"Expected {name} between {least:g} and {most:g}, got {shown}; this node's owner "
            "bounds it, so choose another value."
        )


def _check_schema(asked: Schema, own: Schema) -> None:
    """Refuse a run that describes its records in another way than this node.

    Raises:
        PolicyRefusal: naming the first field that differs.
    """
    wanted, known = _fields_of(asked), _fields_of(own)
    for key in [*known, *wanted]:
        if wanted.get(key) != known.get(key):
            raise PolicyRefusal(
                f"Expected records of schema {own.name!r} with {key} {known.get(key)!r:.200}, got "
                f"{wanted.get(key)!r:.200} in the run; use this node's schema or leave it out.",
                field=f"data.{key}",
            )


def _fields_of(schema: Schema) -> dict[str, object]:
    """The fields of a schema by name, those of each column and of the window by themselves."""
    found: dict[str, object] = {"columns": [column.name for column in schema.columns]}
    for column in schema.columns:
        found |= {f"columns.{column.name}.{key}": one for key, one in column.to_dict().items()}
    if schema.window is not None:
        found |= {f"window.{key}": one for key, one in schema.window.to_dict().items()}
    rest = schema.to_dict()
    return found | {key: rest[key] for key in rest if key not in {"columns", "window"}}


class Policy(_Table):
    """What the data holder allows any run to do with the records."""

    max_epsilon: Positive
    """Largest epsilon over the life of the data, all runs together."""
    max_person_epsilon: Positive | None = None
    """The same for a person with the most records; needs data.person_key."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Of these epsilons; the smaller of this and 1/(10 N) is used."""
    allowed_sharing: tuple[Sharing, ...] = DEFAULT_SHARING
    """What runs may share; 'full' lets the decoder leave."""
    allow_simulation_rng: bool = False
    """Whether noise may be seeded, which protects nobody."""
    allow_non_private: bool = False
    """Whether runs without privacy are allowed; one makes the epsilon infinite for ever."""
    max_steps: Most = 1_000_000
    """Steps of training and warm start in one run."""
    approval: Approval = "none"
    """'each-run': each run waits until a person at the site approves it."""
    caps: Caps = Caps()
    """Bounds of what a server may choose."""

    @property
    def least_records(self) -> int:
        """Normal records that init, runs and export need: two, and those of a training step."""
        return max(2, math.ceil(self.caps.smallest_batch))

    def check_least(self, records: int) -> None:
        """Refuse to work with fewer normal records than `least_records`.

        Raises:
            DataError: there are fewer.
        """
        if records < self.least_records:
            raise DataError(
                f"Expected at least {self.least_records} normal records for init, runs and export "
                f"(two, and policy.caps.smallest_batch), got {records}; check the file, the label "
                "and which label is normal.",
                reason="few",
            )

    def check(self, run: RunConfig, schema: Schema, records: int) -> None:
        """Refuse a run that asks for more than this policy gives.

        Args:
            run: what the server asks for.
            schema: of the node's records.
            records: how many there are; a public number.

        Raises:
            PolicyRefusal: naming the first point that does not fit.
        """
        _check_schema(run.data, schema)
        training = run.training
        steps = training_rounds(run) * training.steps_per_round + training.warm_start_steps
        if steps > self.max_steps:
            raise PolicyRefusal(
                f"Expected at most {self.max_steps} training steps in a run, got {steps}; "
                "plan fewer rounds or steps."
            )
        self.caps.check(run)
        if run.sharing not in self.allowed_sharing:
            raise PolicyRefusal(
                f"Expected sharing to be one of {list(self.allowed_sharing)}, got "
                f"{run.sharing!r}; this node shares nothing else."
            )
        if run.privacy.mechanism == "none":
            if not self.allow_non_private:
                raise PolicyRefusal(
                    "Expected a run with differential privacy, got mechanism 'none'; "
                    "set privacy.mechanism to 'dp-sgd'."
                )
            return
        self._check_privacy(run, records)

    def _check_privacy(self, run: RunConfig, records: int) -> None:
        privacy = run.privacy
        if privacy.rng == "simulation" and not self.allow_simulation_rng:
            raise PolicyRefusal(
                "Expected noise from the secure generator, got rng 'simulation'; "
                "set privacy.rng to 'secure'."
            )
        if privacy.epsilon > self.max_epsilon:
            raise PolicyRefusal(
                f"Expected epsilon of at most {self.max_epsilon:g}, got {privacy.epsilon:g}; "
                "lower privacy.epsilon."
            )
        limit = self.effective_delta(records)
        if privacy.delta > limit:
            raise PolicyRefusal(
                f"Expected delta of at most {limit:.3g} for {records} records, got "
                f"{privacy.delta:.3g}; lower privacy.delta."
            )
        least, batch = self.caps.smallest_batch, privacy.sample_rate * records
        if training_rounds(run) and batch < least:
            raise PolicyRefusal(
                f"Expected at least {least:g} records in a training step, got {batch:.3g} of "
                f"{records} records; raise privacy.sample_rate or leave this node out."
            )

    def check_plan(self, plan: "PrivacyPlan") -> None:
        """Refuse a run one of whose releases carries less noise than this policy wants.

        Raises:
            PolicyRefusal: naming the first such release.
        """
        if not plan.private:
            return
        found = [("train", plan.noise_multiplier)] if plan.rounds else []
        found += [(kind, sigma) for kind, _, sigma in plan.summaries]
        for kind, sigma in found:
            if sigma < self.caps.smallest_sigma:
                raise PolicyRefusal(
                    f"Expected a noise multiplier of at least {self.caps.smallest_sigma:g} for "
                    f"{kind}, got {sigma:.3g}; lower privacy.epsilon or its share of the budget."
                )

    def effective_delta(self, records: int) -> float:
        """The delta all epsilons of this node are stated at: the policy's, or 1/(10 N) if less."""
        return min(self.delta, largest_delta(records))


class NodeConfig(_Table):
    """All that ``node.toml`` says: site, data, server, and the owner's policy and limits."""

    site: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name that the site is admitted under."""
    data: NodeData
    """The private records."""
    server: NodeServer | None = None
    """Where the gateway is."""
    policy: Policy
    """What any run may do with the records."""
    limits: NodeLimits = NodeLimits()
    """What one request may use."""

    @model_validator(mode="after")
    def _persons(self) -> Self:
        """A limit for persons holds only where the node knows them."""
        if self.policy.max_person_epsilon is not None and self.data.person_key is None:
            raise ValueError(
                "expected data.person_key with policy.max_person_epsilon, got no person_key"
            )
        return self

    @classmethod
    def from_toml(cls, text: str, source: str = "node configuration") -> Self:
        """Read the TOML text of a node file.

        Raises:
            ConfigError: naming the first wrong field, what was expected and what came.
        """
        try:
            return cls.model_validate(parse_toml(text, source))
        except ValidationError as error:
            raise invalid(source, error) from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a node file.

        Raises:
            ConfigError: the file is not readable or does not hold a node configuration.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(
                f"Expected a node at {path}, found none; run 'fedlatent client init' first."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Expected a readable node file at {path}, got: {error}.") from None
        return cls.from_toml(text, str(path))
