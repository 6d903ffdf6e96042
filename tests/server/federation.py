"""A tiny real federation in one process: sites that answer every phase over the wire records.

A site "trains" by moving the received arrays by a fixed amount, which costs nothing and lets a
test compute the expected average; its summaries are true releases of fixed latents.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlatent.server.exchange import Pace
from fedlatent.server.home import ServerHome
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.privacy import summaries
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import HISTOGRAMS_KEY
from fedlatent.shared.records import from_records, reply_records
from fedlatent.shared.signing import ReplySigner, digest_of, request_name
from fedlatent.shared.wire import UNSIGNED, Delivery, ReplyHeader, RequestHeader, deliver, pack
from fedlatent.simulations.grid import InProcessGrid, by_handlers

LATENT = 3


def tiny_config(**changes: object) -> RunConfig:
    """A run of a 6-8-3 network on 2 training rounds; ``changes`` replace whole sections."""
    value: dict[str, object] = {
        "name": "tiny",
        "data": {"name": "six", "shape": [6]},
        "model": {"family": "gaussian", "options": {"latent_dim": LATENT, "hidden": [8]}},
        "privacy": {"rng": "simulation", "epsilon": 8.0},
        "training": {"rounds": 2, "steps_per_round": 2},
        "federation": {"quorum": 2, "nodes": 3, "join_timeout_s": 5, "round_deadline_s": 5},
    }
    return RunConfig.parse(value | changes, "test")


@functools.lru_cache
def plan_of(config_json: str) -> PrivacyPlan:
    """The plan of a run; solving for its noise is what costs time here."""
    return PrivacyPlan.from_config(RunConfig.from_json(config_json))


@dataclass
class Site:
    """One data holder of the test federation.

    Attributes:
        name: what it claims to be called.
        records: number of its records, its weight.
        shift: how far one training round moves every shared value.
        requests: headers of all requests so far.
        edit: changes a good answer before it is signed and sent.
        signer: its key, where the federation signs.
        resign: changes a packed and signed answer before it is sent.
    """

    name: str
    records: int
    shift: float
    requests: list[RequestHeader] = field(default_factory=list)
    edit: Callable[[ReplyHeader, Arrays], tuple[ReplyHeader, Arrays]] | None = None
    signer: ReplySigner | None = None
    resign: Callable[[Delivery, bytes], tuple[Delivery, bytes]] | None = None

    def answer(self, message: Message) -> Message:
        """Do what the request asks."""
        header, arrays = from_records(message.content)
        self.requests.append(header)
        plan = plan_of(header.config.to_json())
        noise = SimulationNoise(header.config.seed, self.records, header.round)
        latents = np.random.default_rng(self.records).normal(size=(self.records, LATENT))
        radius = summaries.default_radius(LATENT)
        released: Arrays
        if header.kind == "train":
            multiplier = plan.noise_multiplier
            released = {key: value + np.float32(self.shift) for key, value in arrays.items()}
        elif header.kind == "moments":
            multiplier = plan.multiplier("moments")
            full = header.form == "full"
            sums = summaries.moments if full else summaries.diagonal_moments
            spec = (summaries.moments_spec if full else summaries.diagonal_spec)(LATENT)
            released = {
                spec.key: summaries.noisy_sum(sums(latents, radius), spec, multiplier, noise)
            }
        else:
            multiplier = plan.multiplier("threshold")
            density = summaries.LatentDensity.from_arrays(
                {
                    key.removeprefix("density."): value
                    for key, value in arrays.items()
                    if key.startswith("density.")
                }
            )
            counts = summaries.noisy_sum(
                summaries.histograms(
                    summaries.squared_distance(
                        latents, density.mean, density.precision(recentred=False)
                    ),
                    summaries.squared_distance(
                        latents, latents.mean(axis=0), density.precision(recentred=True)
                    ),
                ),
                summaries.threshold_spec(),
                multiplier,
                noise,
            )
            released = {HISTOGRAMS_KEY: counts}
        reply = ReplyHeader.to(
            header,
            self.name,
            status="ok",
            records=self.records,
            epsilon=0.5 * header.round,
            delta=1e-5,
            noise_multiplier=multiplier,
            rng="simulation",
        )
        if self.edit is not None:
            reply, released = self.edit(reply, released)
        delivery, payload = UNSIGNED, pack(reply, released)
        if self.signer is not None:
            delivery = self.signer.sign(payload, request_name(header, digest_of(arrays)))
        if self.resign is not None:
            delivery, payload = self.resign(delivery, payload)
        return Message(reply_records(deliver(payload, delivery)), reply_to=message)


def packed(header: ReplyHeader, arrays: Mapping[str, np.ndarray]) -> RecordDict:
    """An unsigned reply as it arrives."""
    return reply_records(deliver(pack(header, arrays)))


def refuse(code: str, text: str) -> Callable[[ReplyHeader, Arrays], tuple[ReplyHeader, Arrays]]:
    """An ``edit`` that turns every answer into a refusal."""
    update = {"status": "refused", "code": code, "text": text, "records": 0, "epsilon": None}

    def edit(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
        return header.model_copy(update=update), {}

    return edit


def three_sites() -> dict[int, Site]:
    """Sites 11, 12 and 13 with 100, 200 and 700 records."""
    return {
        11: Site("north", 100, 0.1),
        12: Site("east", 200, -0.2),
        13: Site("south", 700, 0.3),
    }


def grid_of(sites: Mapping[int, Site], kind: type[InProcessGrid] = InProcessGrid) -> InProcessGrid:
    """A grid on which each site is a real Flower ClientApp."""
    handlers = {node: _client(node, site) for node, site in sites.items()}
    return kind(handlers, by_handlers(handlers))


class SilentGrid(InProcessGrid):
    """A grid on which nodes that are not in ``online`` still take messages and never answer."""

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, those that never answer too."""
        return sorted(self.nodes)


@dataclass
class Clock:
    """A clock that moves when somebody sleeps."""

    now: float = 0.0

    def pace(self) -> Pace:
        """Waits that take no time."""
        return Pace(clock=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


def home_at(path: Path) -> ServerHome:
    """A server home in ``path``."""
    home = ServerHome.find(path)
    home.create()
    return home


def _client(node: int, site: Site) -> Callable[[Message], Message]:
    client = ClientApp()
    client.train()(lambda message, context: site.answer(message))
    context = Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
    return lambda message: client(message=message, context=context)
