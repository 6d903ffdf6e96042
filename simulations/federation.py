"""A federation in one process: real nodes, real server loop, no sockets.

Every node has its own home with ledger, store and release log; the server has its registry,
checkpoints and result, as in deployment. A test holds both paths equal for the same seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message

from client.home import ClientHome
from client.local import assemble
from client.node import Node
from client.policy import NodeConfig, NodeData, Policy
from client.store import SiteMaterial, Store
from server.driver import Pace, drive
from server.home import ServerHome
from server.results import RunResult
from shared.config import RunConfig
from shared.data.dataset import Dataset
from shared.data.sources import Federation
from shared.records import from_records, to_records
from shared.wire import ReplyHeader, RequestHeader, unpack
from simulations.grid import Handler, InProcessGrid

_FIRST_NODE_ID = 1000


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What a simulated federation leaves behind.

    Attributes:
        result: the server's result.
        homes: the nodes' homes by site name.
    """

    result: RunResult
    homes: dict[str, ClientHome]

    def material(self, site: str) -> SiteMaterial:
        """What the bundle of one site is made of."""
        run_id = str(self.result.facts["run_id"])
        return Store(self.homes[site].store).load_site(run_id)


def datasets(federation: Federation) -> dict[str, Dataset]:
    """The training records of every site, preprocessed."""
    schema = federation.schema
    return {
        site.name: Dataset(records=schema.preprocess(site.train), schema=schema)
        for site in federation.sites
    }


def open_policy(run: RunConfig) -> Policy:
    """A policy that allows ``run`` and nothing beyond its epsilon."""
    return Policy(
        max_epsilon=run.privacy.epsilon,
        delta=run.privacy.delta,
        allowed_sharing=("encoder", "full"),
        allow_simulation_rng=True,
        allow_non_private=True,
    )


def make_node(
    site: str, dataset: Dataset, run: RunConfig, home: ClientHome, policy: Policy
) -> Node:
    """One node in memory whose files lie in ``home``."""
    config = NodeConfig(
        site=site,
        data=NodeData(path=Path("in-memory"), name="records", schema=run.data),
        policy=policy,
    )
    return assemble(config, dataset, home)


def handler(node: Node) -> Handler:
    """Answer Flower messages with ``node``, as the ClientApp and the resident do together."""

    def answer(message: Message) -> Message:
        header, arrays = from_records(RequestHeader, message.content)
        reply, released = unpack(ReplyHeader, node.handle(header, arrays).payload)
        return Message(to_records(reply, released), reply_to=message)

    return answer


def simulate(
    run: RunConfig,
    sites: Mapping[str, Dataset],
    folder: Path,
    *,
    run_id: str = "simulated",
    policy: Policy | None = None,
    resume: bool = False,
) -> Simulation:
    """Train ``run`` over ``sites`` in this process.

    Args:
        run: the run configuration.
        sites: preprocessed records by site name; the order gives the node ids.
        folder: receives ``server/`` and ``nodes/<site>/``.
        run_id: name of the run.
        policy: of every node; by default one that just allows the run.
        resume: go on from the run's last checkpoint.

    Raises:
        QuorumLost: too few nodes answered well, for instance because all refused.
    """
    homes = {site: ClientHome(folder / "nodes" / site) for site in sites}
    nodes = {
        site: make_node(site, dataset, run, homes[site], policy or open_policy(run))
        for site, dataset in sites.items()
    }
    names = {_FIRST_NODE_ID + i: site for i, site in enumerate(sites)}
    grid = InProcessGrid({node_id: handler(nodes[site]) for node_id, site in names.items()})
    server = ServerHome(folder / "server")
    server.create()
    result = drive(
        grid,
        run,
        server,
        run_id=run_id,
        resume=resume,
        sites=lambda: names,
        pace=Pace(poll_s=0.01, retry_pause_s=0.01),
    )
    return Simulation(result=result, homes=homes)
