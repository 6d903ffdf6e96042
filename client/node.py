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
    make_noise,
    out_of_turn,
    run_model,
    site_weights,
)
from fedlatent.client.core import (
    Task,
    check_protocol,
    permit,
    phase_asked,
    request_digest,
    site_material,
)
from fedlatent.client.door import Outgoing, ReleaseDoor
from fedlatent.client.ledger import Ledger, Reservation
from fedlatent.client.policy import NodeConfig
from fedlatent.client.store import RoundState, Store
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.privacy.noise import NoiseSource
from fedlatent.shared.schedule import Kind
from fedlatent.shared.summaries import Summary
from fedlatent.shared.wire import (
    STORED_PROTOCOLS,
    ReplyHeader,
    RequestHeader,
    unpack,
)

NoiseFactory = Callable[[RunConfig, str, int, Kind, bytes | None], NoiseSource]


class Node:
    """A data holder's side of a federation.

    ``fedlatent client start`` runs one as a service. Here it is by itself: what a request asks for
    is held against policy and budget, charged, computed, and let out by one door.

    Attributes:
        config: name of the site and policy.
        schema: what its records are.
        ledger: the budget.
        store: what it keeps between rounds.
        door: the only way out.

    Examples:
        >>> from pathlib import Path
        >>> from fedlatent.client.home import ClientHome
        >>> from fedlatent.client.local import open_node
        >>> node = open_node(ClientHome(Path("node")))  # made by 'fedlatent client init'
        >>> node.config.site, len(node.records)
        ('ward-7', 60)
        >>> node.ledger.epsilon()
        0.0
    """

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
        run, policy = header.config, self.config.policy
        check_protocol(header)
        plan = permit(run, policy, self.schema, len(self.records))
        phase = phase_asked(header)
        if policy.approval == "each-run":
            self._approvals.check(header.run_id, run, plan)
        model = run_model(run, policy.caps.largest_model)
        task = Task.parse(header, arrays, phase, plan, model, policy.caps)
        answer = self._train if header.kind == "train" else self._summary
        return answer(task, request_digest(header, arrays))

    def _reserve(self, task: Task, digest: str, before: int | None) -> Reservation:
        """Charge a request, once there is room for what it will write.

        Args:
            task: the request.
            digest: SHA-256 of what it asks for.
            before: the entry whose release the answer builds on, if any.
        """
        header, plan = task.header, task.plan
        self.door.check_room(task.nbytes)
        self.ledger.open_run(header.run_id, task.run.digest(), plan.events())
        return self.ledger.reserve(
            header.run_id,
            header.round,
            header.kind,
            digest,
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

    def _train(self, task: Task, digest: str) -> Outgoing:
        header = task.header
        previous = self._state(header.run_id, header.round)
        task = task.begun(first=previous is None)
        reservation = self._reserve(task, digest, previous.entry if previous else None)
        if reservation.state == "released":
            return self.door.replay(reservation)
        trained = task.train(self.records, self._noise(header, reservation), previous)
        self.store.save(header.run_id, header.round, reservation.id, trained.state)
        release = self.door.whole_model if task.run.shares_decoder else self.door.encoder
        return release(reservation, trained.leaving, trained.expected)

    def _summary(self, task: Task, digest: str) -> Outgoing:
        header = task.header
        task.load()
        before, own = self._own(header.run_id, task.summary)
        reservation = self._reserve(task, digest, before)
        if task.summary.closes:
            self._keep_site(task, reservation)
        if reservation.state == "released":
            return self.door.replay(reservation)
        view = task.view(self.records, task.latents(self.records))
        noise = self._noise(header, reservation)
        released = task.summarise(replace(view, own=own), noise)
        return self.door.summary(reservation, released, task.spec)

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

    def _keep_site(self, task: Task, reservation: Reservation) -> None:
        """Save what a bundle of this site needs; the newest decoder joins the final encoder."""
        run, run_id = task.run, task.header.run_id
        private = math.isfinite(reservation.epsilon_after)
        persons = self.ledger.person if private else None
        state = self._state(run_id, task.header.round)
        material = site_material(
            run_id,
            run,
            task.request,
            site_weights(run, task.model, state, task.request),
            run_model(run),  # what is released afterwards is about the shared encoder
            self.records,
            epsilon=reservation.epsilon_after if private else None,
            delta=self.ledger.delta,
            rng=self.ledger.rng(),
        )
        self.store.save_site(
            replace(
                material,
                person_records=persons.records if persons else None,
                person_epsilon=self.ledger.person_epsilon() if persons else None,
            )
        )
