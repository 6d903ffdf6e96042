"""The round logic of a node: one request in, one ``Outgoing`` out; no I/O but through its parts.

The order of every kind is the same: check the request against protocol, policy and budget; charge
the ledger; compute; keep local state; release. Whatever fails becomes a refusal made by the door.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from fedlatent.client.approvals import Approvals
from fedlatent.client.basis import basis_of
from fedlatent.client.compute import (
    Arrays,
    Request,
    expected_arrays,
    first_model,
    latents_of,
    load_weights,
    make_noise,
    out_of_turn,
    parse_request,
    prior_of,
    run_model,
    run_plan,
    scaled,
    set_prior,
    site_density,
    site_weights,
    tensors_of,
    view_of,
    without_encoder,
)
from fedlatent.client.door import Outgoing, ReleaseDoor
from fedlatent.client.ledger import Ledger, Reservation
from fedlatent.client.policy import NodeConfig, within
from fedlatent.client.store import RoundState, SiteMaterial, Store
from fedlatent.client.trainer import Pull, train_round
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.files import sha256_hex
from fedlatent.shared.models import VAE, load_state
from fedlatent.shared.models.base import ENCODER_PREFIX
from fedlatent.shared.privacy import summaries
from fedlatent.shared.privacy.noise import NoiseSource
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.schedule import Kind, Phase, phase_of
from fedlatent.shared.summaries import SUMMARIES, Summary
from fedlatent.shared.wire import (
    MEANING,
    PROTOCOL,
    SENDING,
    STORED_PROTOCOLS,
    ReplyHeader,
    RequestHeader,
    pack,
    unpack,
)

#: Weights, and an optimiser's two moments of each, kept beside the ones that leave.
_STATES = 4

NoiseFactory = Callable[[RunConfig, str, int, Kind, bytes | None], NoiseSource]


def request_digest(header: RequestHeader, arrays: Arrays) -> str:
    """SHA-256 of what a request asks for: not its deadline, nor for whom and how it was signed.

    It is the same in all versions of the protocol that mean the same by a request, so that one
    that is repeated after an update is no new charge.
    """
    fixed = header.model_copy(update={"protocol": MEANING, "deadline_s": 1.0})
    return sha256_hex(pack(fixed, {key: arrays[key] for key in sorted(arrays)}, without=SENDING))


class Node:
    """A data holder's side of a federation."""

    def __init__(
        self,
        config: NodeConfig,
        dataset: Dataset,
        ledger: Ledger,
        store: Store,
        door: ReleaseDoor,
        approvals: Approvals,
        noise_factory: NoiseFactory = make_noise,
        *,
        salt: bytes,
    ) -> None:
        """Put a node together.

        Args:
            config: name and policy.
            dataset: the private records; those labelled as anomalies are left out.
            ledger: the budget.
            store: local state.
            door: the only way out.
            approvals: what a person said about runs, where the policy asks for that.
            noise_factory: gives the random numbers of one request.
            salt: random key of the digests of the records.
        """
        normals = dataset.normals()
        self.config = config
        self.schema = dataset.schema
        self.records = torch.from_numpy(np.ascontiguousarray(normals.records))
        self.ledger = ledger
        self.store = store
        self.door = door
        self._approvals = approvals
        self._noise_factory = noise_factory
        self._salt = salt

    def handle(self, header: RequestHeader, arrays: Arrays) -> Outgoing:
        """Answer one request, with a release or with a refusal."""
        try:
            with self.ledger.exclusive(header.deadline_s):
                return self._handle(header, arrays)
        except Exception as error:  # the door decides which text may travel
            return self.door.refusal(header, error)

    def _handle(self, header: RequestHeader, arrays: Arrays) -> Outgoing:
        run = header.config
        if header.protocol != PROTOCOL:
            raise ProtocolError(
                f"Expected protocol version {PROTOCOL}, got {header.protocol}; "
                "run the same fedlatent release on both sides."
            )
        self.config.policy.check(run, self.schema, len(self.records))
        plan = run_plan(run)
        self.config.policy.check_plan(plan)
        phase = phase_of(run, header.round)
        if phase is None or phase.kind != header.kind:
            raise ProtocolError(
                f"Expected {phase.kind if phase else 'nothing'} as phase {header.round} of this "
                f"run, got {header.kind}; run the same fedlatent release on both sides."
            )
        if self.config.policy.approval == "each-run":
            self._approvals.check(header.run_id, run, plan)
        if header.kind == "train":
            return self._train(header, arrays, plan, phase)
        return self._summary(header, arrays, plan)

    def _reserve(
        self,
        header: RequestHeader,
        arrays: Arrays,
        plan: PrivacyPlan,
        before: int | None,
        nbytes: int,
    ) -> Reservation:
        """Charge a request, once there is room for what it will write.

        Args:
            header: of the request.
            arrays: of the request.
            plan: of the run.
            before: the entry whose release the answer builds on, if any.
            nbytes: of all that will be written.
        """
        run = header.config
        self.door.check_room(nbytes)
        self.ledger.open_run(header.run_id, run.digest(), plan.events())
        return self.ledger.reserve(
            header.run_id,
            header.round,
            header.kind,
            request_digest(header, arrays),
            plan.event(header.kind),
            plan.rng,
            basis_of(self._salt, self.records.numpy(), before),
            once=self.config.policy.approval == "each-run",
        )

    def _noise(self, header: RequestHeader, reservation: Reservation) -> NoiseSource:
        """The one stream of random numbers that a reserved entry pays for."""
        run, site = header.config, self.config.site
        sealed = self.ledger.sealed(reservation)
        return self._noise_factory(run, site, header.round, header.kind, sealed)

    def _train(
        self, header: RequestHeader, arrays: Arrays, plan: PrivacyPlan, phase: Phase
    ) -> Outgoing:
        run = header.config
        whole, personal = run.shares_decoder, run.strategy.name == "mr-mtl"
        previous = self._state(header.run_id, header.round)
        caps = self.config.policy.caps
        model = run_model(run, caps.largest_model)
        asked = parse_request(run, header.kind, arrays, model.latent_dim, caps)
        if previous is None and not whole:
            model = first_model(run, asked.state.gaussian)
        load_weights(model, asked.weights, whole=whole)
        set_prior(model, prior_of(run, asked.state))
        before = previous.entry if previous else None
        reservation = self._reserve(header, arrays, plan, before, _STATES * _size(model))
        if reservation.state == "released":
            return self.door.replay(reservation)
        received = {k: v.clone() for k, v in tensors_of(model, ENCODER_PREFIX).items()}
        if whole:
            received = {key: v.clone() for key, v in tensors_of(model, "").items()}
        elif previous is not None:
            # A personal model goes on from the client's own encoder, which lies with its decoder.
            load_state(model, {**received, **previous.decoder})
        result = train_round(
            model,
            scaled(self.records, asked.state.scaling),
            plan,
            run.training,
            self._noise(header, reservation),
            previous.optimizer if previous else {},
            trained=phase.trained,
            pull=Pull.of(run, received),
        )
        kept = result.state if personal else without_encoder(result.state)
        self.store.save(
            header.run_id,
            header.round,
            reservation.id,
            RoundState(decoder=kept, optimizer=result.optimizer).finite(),
        )
        expected = expected_arrays(model, "" if whole else ENCODER_PREFIX)
        leaving = {key: result.state[key].numpy() for key in expected}
        release = self.door.whole_model if whole else self.door.encoder
        return release(reservation, leaving, expected)

    def _summary(self, header: RequestHeader, arrays: Arrays, plan: PrivacyPlan) -> Outgoing:
        run, kind = header.config, header.kind
        summary = SUMMARIES[kind]
        caps = self.config.policy.caps
        model = run_model(run, caps.largest_model)
        asked = parse_request(run, kind, arrays, model.latent_dim, caps, header.form)
        spec = summary.spec(run, model.latent_dim, asked.state)
        # A wide latent costs few parameters, and the square of its width in the answer.
        within("numbers of an answer", math.prod(spec.shape), 1, caps.largest_model)
        if summary.sees_model:
            load_weights(model, asked.weights, whole=run.shares_decoder and summary.whole_model)
        before, own = self._own(header.run_id, summary)
        nbytes = 8 * math.prod(spec.shape) + _STATES * _size(model)
        reservation = self._reserve(header, arrays, plan, before, nbytes)
        if summary.closes:
            self._keep_site(header, model, asked, reservation)
        if reservation.state == "released":
            return self.door.replay(reservation)
        latents = np.zeros((len(self.records), 0))
        if summary.sees_model:
            latents = latents_of(model, scaled(self.records, asked.state.scaling))
        view = view_of(run, model, self.records, asked, latents)
        exact = summary.exact(run, asked.state, replace(view, own=own))
        noise = self._noise(header, reservation)
        released = summaries.noisy_sum(exact, spec, plan.multiplier(kind), noise)
        return self.door.summary(reservation, released, spec)

    def _own(self, run_id: str, summary: Summary) -> tuple[int | None, np.ndarray | None]:
        """The release of this node that a summary builds on, as it left, never the exact one.

        Before it the number of the entry that paid for it.
        """
        if summary.builds_on is None:
            return None, None
        released = [
            entry
            for entry in self.ledger.entries()
            if (entry.run_id, entry.kind, entry.state) == (run_id, summary.builds_on, "released")
        ]
        if not released:
            raise out_of_turn(summary)
        _, arrays = unpack(ReplyHeader, self.door.stored(released[-1]), STORED_PROTOCOLS)
        (own,) = arrays.values()
        return released[-1].id, own

    def _state(self, run_id: str, before: int) -> RoundState | None:
        released = {entry.id for entry in self.ledger.entries() if entry.state == "released"}
        return self.store.load(run_id, before, released.__contains__)

    def _keep_site(
        self,
        header: RequestHeader,
        model: VAE,
        asked: Request,
        reservation: Reservation,
    ) -> None:
        """Save what a bundle of this site needs; the newest decoder joins the final encoder."""
        run = header.config
        state = self._state(header.run_id, header.round)
        private = np.isfinite(reservation.epsilon_after)
        persons = self.ledger.person if private else None
        own = site_weights(run, model, state, asked)
        site = run_model(run)  # what is released afterwards is about the shared encoder
        load_state(site, own)
        latents = latents_of(site, scaled(self.records, asked.state.scaling))
        density, center = site_density(run, latents, asked.state.density)
        arrays = {key: value.numpy() for key, value in own.items()}
        self.store.save_site(
            SiteMaterial(
                run_id=header.run_id,
                config=run,
                encoder={k: v for k, v in arrays.items() if k.startswith(ENCODER_PREFIX)},
                decoder={k: v for k, v in arrays.items() if not k.startswith(ENCODER_PREFIX)},
                density=density,
                center=center,
                records=len(self.records),
                epsilon=reservation.epsilon_after if private else None,
                delta=self.ledger.delta,
                rng=self.ledger.rng(),
                scaling=asked.state.scaling,
                person_records=persons.records if persons else None,
                person_epsilon=self.ledger.person_epsilon() if persons else None,
            )
        )


def _size(model: VAE) -> int:
    """Bytes of all numbers of a model."""
    return sum(value.nbytes for value in model.state_dict().values())
