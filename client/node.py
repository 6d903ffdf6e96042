"""The round logic of a node: one request in, one ``Outgoing`` out; no I/O but through its parts.

The order of every kind is the same: check the request against protocol, policy and budget; charge
the ledger; compute; keep local state; release. Whatever fails becomes a refusal made by the door.
"""

from collections.abc import Callable

import numpy as np
import torch

from client.compute import (
    Arrays,
    density_of,
    expected_arrays,
    latent_radius,
    latents_of,
    load_weights,
    make_noise,
    own_histograms,
    own_moments,
    run_model,
    run_plan,
    tensors_of,
    without_encoder,
)
from client.ledger import Ledger, Reservation
from client.policy import NodeConfig
from client.release import Outgoing, ReleaseDoor
from client.store import RoundState, SiteMaterial, Store
from client.trainer import train_round
from shared.config import RunConfig
from shared.data.dataset import Dataset
from shared.errors import ProtocolError
from shared.files import sha256_hex
from shared.models import VAE, load_state
from shared.models.base import ENCODER_PREFIX
from shared.privacy import summaries
from shared.privacy.accounting import GaussianEvent
from shared.privacy.noise import NoiseSource
from shared.privacy.plan import PrivacyPlan
from shared.wire import (
    DENSITY_PREFIX,
    MOMENTS_KEY,
    PROTOCOL,
    Kind,
    ReplyHeader,
    RequestHeader,
    pack,
    unpack,
)

NoiseFactory = Callable[[RunConfig, str, int, Kind], NoiseSource]

#: Phases after the training rounds, numbered on: moments and threshold.
SUMMARY_PHASES = 2

_ENCODE_CHUNK = 4096


def request_digest(header: RequestHeader, arrays: Arrays) -> str:
    """SHA-256 of a request without its deadline: equal digests ask for the same thing."""
    fixed = header.model_copy(update={"deadline_s": 1.0})
    return sha256_hex(pack(fixed, {key: arrays[key] for key in sorted(arrays)}))


class Node:
    """A data holder's side of a federation."""

    def __init__(
        self,
        config: NodeConfig,
        dataset: Dataset,
        ledger: Ledger,
        store: Store,
        door: ReleaseDoor,
        noise_factory: NoiseFactory = make_noise,
    ) -> None:
        """Put a node together.

        Args:
            config: name and policy.
            dataset: the private records; those labelled as anomalies are left out.
            ledger: the budget.
            store: local state.
            door: the only way out.
            noise_factory: gives the random numbers of one request.
        """
        normals = dataset.normals()
        self.config = config
        self.schema = dataset.schema
        self.records = torch.from_numpy(np.ascontiguousarray(normals.records))
        self.ledger = ledger
        self.store = store
        self.door = door
        self._noise = noise_factory

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
        plan = run_plan(run.to_json())
        last = plan.rounds + (0 if header.kind == "train" else SUMMARY_PHASES)
        if header.round > last:
            raise ProtocolError(
                f"Expected {header.kind} with a round of at most {last}, got {header.round}; "
                "start a new run."
            )
        kinds = {"train": self._train, "moments": self._moments, "threshold": self._threshold}
        return kinds[header.kind](header, arrays, plan)

    def _reserve(
        self, header: RequestHeader, arrays: Arrays, plan: PrivacyPlan, event: GaussianEvent | None
    ) -> Reservation:
        run = header.config
        self.ledger.open_run(header.run_id, run.digest(), plan.events())
        digest = request_digest(header, arrays)
        return self.ledger.reserve(
            header.run_id, header.round, header.kind, digest, event, plan.rng
        )

    def _train(self, header: RequestHeader, arrays: Arrays, plan: PrivacyPlan) -> Outgoing:
        run = header.config
        model, full = run_model(run), run.sharing == "full"
        load_weights(model, arrays, whole=full)
        reservation = self._reserve(
            header, arrays, plan, plan.round_event() if plan.private else None
        )
        if reservation.state == "released":
            return self.door.replay(reservation)
        previous = self._state(header.run_id, header.round)
        if previous is not None and not full:
            load_state(model, {**tensors_of(model, ENCODER_PREFIX), **previous.decoder})
        result = train_round(
            model,
            self.records,
            plan,
            run.training,
            self._noise(run, self.config.site, header.round, "train"),
            previous.optimizer if previous else {},
        )
        self.store.save(
            header.run_id,
            header.round,
            reservation.id,
            RoundState(decoder=without_encoder(result.state), optimizer=result.optimizer),
        )
        expected = expected_arrays(model, "" if full else ENCODER_PREFIX)
        leaving = {key: result.state[key].numpy() for key in expected}
        release = self.door.whole_model if full else self.door.encoder
        return release(reservation, leaving, expected)

    def _moments(self, header: RequestHeader, arrays: Arrays, plan: PrivacyPlan) -> Outgoing:
        run = header.config
        model = run_model(run)
        load_weights(model, arrays, whole=False)
        reservation = self._reserve(
            header, arrays, plan, plan.moments_event() if plan.private else None
        )
        if reservation.state == "released":
            return self.door.replay(reservation)
        matrix = own_moments(
            run,
            model,
            latents_of(model, self.records),
            plan,
            self._noise(run, self.config.site, header.round, "moments"),
        )
        return self.door.moments(reservation, matrix, model.latent_dim)

    def _threshold(self, header: RequestHeader, arrays: Arrays, plan: PrivacyPlan) -> Outgoing:
        run = header.config
        model = run_model(run)
        encoder = {k: v for k, v in arrays.items() if not k.startswith(DENSITY_PREFIX)}
        load_weights(model, encoder, whole=False)
        density = density_of(arrays, model.latent_dim)
        center = self._own_center(header.run_id, latent_radius(run, model))
        reservation = self._reserve(
            header, arrays, plan, plan.threshold_event() if plan.private else None
        )
        self._keep_site(header, model, density, center, reservation)
        if reservation.state == "released":
            return self.door.replay(reservation)
        counts = own_histograms(
            latents_of(model, self.records),
            density,
            center,
            plan,
            self._noise(run, self.config.site, header.round, "threshold"),
        )
        return self.door.threshold(reservation, counts, len(summaries.SCORE_EDGES) + 1)

    def _own_center(self, run_id: str, radius: float) -> np.ndarray:
        """This node's latent mean as its released moments tell it, never the exact one."""
        released = [
            entry
            for entry in self.ledger.entries()
            if entry.run_id == run_id and entry.kind == "moments" and entry.state == "released"
        ]
        if not released:
            raise ProtocolError(
                "Expected moments of this node before its threshold, got none in this run; "
                "ask for moments first."
            )
        _, arrays = unpack(ReplyHeader, self.door.stored(released[-1]))
        return summaries.client_mean(arrays[MOMENTS_KEY], radius)

    def _state(self, run_id: str, before: int) -> RoundState | None:
        released = {entry.id for entry in self.ledger.entries() if entry.state == "released"}
        return self.store.load(run_id, before, released.__contains__)

    def _keep_site(
        self,
        header: RequestHeader,
        model: VAE,
        density: summaries.LatentDensity,
        center: np.ndarray,
        reservation: Reservation,
    ) -> None:
        """Save what a bundle of this site needs; the newest decoder joins the final encoder."""
        run = header.config
        state = self._state(header.run_id, run.training.rounds + 1)
        decoder = state.decoder if state else without_encoder(model.state_dict())
        private = np.isfinite(reservation.epsilon_after)
        self.store.save_site(
            SiteMaterial(
                run_id=header.run_id,
                config=run,
                encoder={k: v.numpy() for k, v in tensors_of(model, ENCODER_PREFIX).items()},
                decoder={k: v.detach().numpy() for k, v in decoder.items()},
                density=density,
                center=center,
                records=len(self.records),
                epsilon=reservation.epsilon_after if private else None,
                delta=self.ledger.delta,
            )
        )
