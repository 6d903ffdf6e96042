"""What a request computes and answers, on values alone: no ledger, no store, no door.

::

    request --> check_protocol, permit, phase_asked --> Task.parse
            --> load --> [charge] --> train or summarise

``fedlatent.client.node`` puts its ledger, store and door around these steps, the stacked simulation
its rows of clients: answers to one request differ in the records and in the noise alone.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from fedlatent.client.compute import (
    Arrays,
    Request,
    expected_arrays,
    first_model,
    latents_of,
    load_weights,
    parse_request,
    prior_of,
    run_plan,
    scaled,
    set_prior,
    site_density,
    tensors_of,
    view_of,
    without_encoder,
)
from fedlatent.client.policy import Caps, Policy, within
from fedlatent.client.store import RoundState, SiteMaterial
from fedlatent.client.trainer import Pull, train_round
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.files import sha256_hex
from fedlatent.shared.models import VAE, load_state
from fedlatent.shared.models.base import ENCODER_PREFIX
from fedlatent.shared.privacy.noise import NoiseSource, RngName
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import SummarySpec, noisy_sum
from fedlatent.shared.schedule import Kind, Phase, phase_of
from fedlatent.shared.summaries import SUMMARIES, Summary, View
from fedlatent.shared.wire import MEANING, PROTOCOL, SENDING, RequestHeader, pack

#: Weights, and an optimiser's two moments of each, kept beside the ones that leave.
_STATES = 4


def permit(run: RunConfig, policy: Policy, schema: Schema, records: int) -> PrivacyPlan:
    """The plan of a run that a client's policy allows.

    Args:
        run: that a server asks for.
        policy: of the client.
        schema: of its records.
        records: how many it has; a public number.

    Raises:
        PolicyRefusal: naming the first point that does not fit.
        BudgetExceeded: the run's epsilon cannot be reached.
    """
    policy.check(run, schema, records)
    plan = run_plan(run)
    policy.check_plan(plan)
    return plan


def check_protocol(header: RequestHeader) -> None:
    """Refuse a request of another protocol, whatever else it says.

    Raises:
        ProtocolError: it is of one.
    """
    if header.protocol != PROTOCOL:
        raise ProtocolError(
            f"Expected protocol version {PROTOCOL}, got {header.protocol}; "
            "run the same fedlatent release on both sides."
        )


def phase_asked(header: RequestHeader) -> Phase:
    """The phase that a request is about; the policy has bounded how many there are.

    Raises:
        ProtocolError: the run has no such phase.
    """
    phase = phase_of(header.config, header.round)
    if phase is None or phase.kind != header.kind:
        raise ProtocolError(
            f"Expected {phase.kind if phase else 'nothing'} as phase {header.round} of this "
            f"run, got {header.kind}; run the same fedlatent release on both sides."
        )
    return phase


def request_digest(header: RequestHeader, arrays: Arrays) -> str:
    """SHA-256 of what a request asks for: not its deadline, nor for whom and how it was signed.

    It is the same in all versions of the protocol that mean the same by a request, so that one
    that is repeated after an update is no new charge.
    """
    fixed = header.model_copy(update={"protocol": MEANING, "deadline_s": 1.0})
    return sha256_hex(pack(fixed, {key: arrays[key] for key in sorted(arrays)}, without=SENDING))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training round made.

    Attributes:
        leaving: float32 weights for the server, by state-dict name.
        expected: name and shape of each weight that may leave.
        state: what stays for the next round.
    """

    leaving: dict[str, np.ndarray]
    expected: dict[str, tuple[int, ...]]
    state: RoundState


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One request, parsed; nobody's records have been looked at.

    Attributes:
        header: of the request.
        phase: of the run.
        plan: of the run.
        request: what it brings.
        model: of the run.
    """

    header: RequestHeader
    phase: Phase
    plan: PrivacyPlan
    request: Request
    model: VAE

    @classmethod
    def parse(
        cls,
        header: RequestHeader,
        arrays: Arrays,
        phase: Phase,
        plan: PrivacyPlan,
        model: VAE,
        caps: Caps,
    ) -> Self:
        """Check what a request brings.

        Raises:
            ProtocolError: an array is missing, unknown or not what its name says.
            PolicyRefusal: a number lies outside of ``caps``.
        """
        run, kind = header.config, header.kind
        request = parse_request(run, kind, arrays, model.latent_dim, caps, header.form)
        task = cls(header=header, phase=phase, plan=plan, request=request, model=model)
        if kind != "train":
            # A wide latent costs few parameters, and the square of its width in the answer.
            numbers = math.prod(task.spec.shape)
            within("numbers of an answer", numbers, 1, caps.largest_model)
        return task

    @property
    def run(self) -> RunConfig:
        """Configuration of the run that asks."""
        return self.header.config

    @property
    def summary(self) -> Summary:
        """What is asked for; KeyError in training."""
        return SUMMARIES[self.header.kind]

    @property
    def spec(self) -> SummarySpec:
        """Key, shape and sensitivity of the summary."""
        return self.summary.spec(self.run, self.model.latent_dim, self.request.state)

    @property
    def nbytes(self) -> int:
        """Of all that a client writes for its answer."""
        size: int = _STATES * sum(value.nbytes for value in self.model.state_dict().values())
        return size + (8 * math.prod(self.spec.shape) if self.header.kind != "train" else 0)

    def load(self) -> None:
        """Write the received weights into the model.

        Raises:
            ProtocolError: they are not the model's own.
        """
        kind, run = self.header.kind, self.run
        if kind == "train" or self.summary.sees_model:
            whole = run.shares_decoder and (kind == "train" or self.summary.whole_model)
            load_weights(self.model, self.request.weights, whole=whole)

    def begun(self, *, first: bool) -> Self:
        """The task of a client that trains, with its model made ready.

        Args:
            first: the client has nothing of its own yet, so it begins with the run's first weights.

        Raises:
            ProtocolError: the weights are not the model's own, or it cannot have the prior.
        """
        task = self
        if first and not self.run.shares_decoder:
            task = replace(self, model=first_model(self.run, self.request.state.gaussian))
        task.load()
        set_prior(task.model, prior_of(self.run, self.request.state))
        return task

    def train(
        self, records: torch.Tensor, noise: NoiseSource, previous: RoundState | None
    ) -> Trained:
        """One training round of one client.

        Args:
            records: preprocessed float32 [N, *shape].
            noise: the stream that was paid for.
            previous: what the client's last round left, if there was one.
        """
        run, model = self.run, self.model
        prefix = "" if run.shares_decoder else ENCODER_PREFIX
        received = {key: value.clone() for key, value in tensors_of(model, prefix).items()}
        if previous is not None and not run.shares_decoder:
            # A personal model goes on from the client's own encoder, which lies with its decoder.
            load_state(model, {**received, **previous.decoder})
        result = train_round(
            model,
            scaled(records, self.request.state.scaling),
            self.plan,
            run.training,
            noise,
            previous.optimizer if previous else {},
            trained=self.phase.trained,
            pull=Pull.of(run, received),
        )
        kept = result.state if run.strategy.name == "mr-mtl" else without_encoder(result.state)
        expected = expected_arrays(model, prefix)
        return Trained(
            leaving={key: result.state[key].numpy() for key in expected},
            expected=expected,
            state=RoundState(decoder=kept, optimizer=result.optimizer).finite(),
        )

    def latents(self, records: torch.Tensor) -> np.ndarray:
        """Latent means [N, k] of preprocessed records; [N, 0] where the summary sees no model."""
        if not self.summary.sees_model:
            return np.zeros((len(records), 0))
        return latents_of(self.model, scaled(records, self.request.state.scaling))

    def view(self, records: torch.Tensor, latents: np.ndarray) -> View:
        """Preprocessed records as the summary sees them, given their latents."""
        return view_of(self.run, self.model, records, self.request, latents)

    def summarise(self, view: View, noise: NoiseSource, kind: Kind | None = None) -> np.ndarray:
        """The noisy sum of one client; of another ``kind`` for what the summary builds on."""
        kind, state = kind or self.header.kind, self.request.state
        summary = SUMMARIES[kind]
        spec = summary.spec(self.run, self.model.latent_dim, state)
        exact = summary.exact(self.run, state, view)
        return noisy_sum(exact, spec, self.plan.multiplier(kind), noise)


def site_material(
    run_id: str,
    run: RunConfig,
    request: Request,
    own: dict[str, torch.Tensor],
    model: VAE,
    records: torch.Tensor,
    *,
    epsilon: float | None,
    delta: float,
    rng: RngName,
) -> SiteMaterial:
    """What the bundle of one site is made of.

    Args:
        run_id: the run.
        run: its configuration.
        request: the final state of the federation.
        own: all weights of the site's own model, see ``site_weights``.
        model: takes these weights.
        records: preprocessed float32 [N, *shape] of the site.
        epsilon: spent on them, or None without privacy.
        delta: of that epsilon.
        rng: of the worst release in it.
    """
    load_state(model, own)
    latents = latents_of(model, scaled(records, request.state.scaling))
    density, center = site_density(run, latents, request.state.density)
    arrays = {key: value.numpy() for key, value in own.items()}
    return SiteMaterial(
        run_id=run_id,
        config=run,
        encoder={k: v for k, v in arrays.items() if k.startswith(ENCODER_PREFIX)},
        decoder={k: v for k, v in arrays.items() if not k.startswith(ENCODER_PREFIX)},
        density=density,
        center=center,
        records=len(records),
        epsilon=epsilon,
        delta=delta,
        rng=rng,
        scaling=request.state.scaling,
    )
