"""A real server and real nodes on loopback, below one folder."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedlatent.client.home import ClientHome
from fedlatent.client.service import ClientService, init_client
from fedlatent.server.service import ServerService
from fedlatent.shared.data.sources import HEARTS_SCHEMA, hearts

RUN = {
    "name": "hearts",
    "data": HEARTS_SCHEMA.to_dict(),
    "model": {"options": {"hidden": [16], "latent_dim": 4}},
    "privacy": {"epsilon": 2.0, "delta": 1e-4},
    "training": {"rounds": 1, "steps_per_round": 5},
    "federation": {"nodes": 1, "quorum": 1},
}


@dataclass
class Federation:
    """A running server, and how to add nodes to it."""

    folder: Path
    service: ServerService
    nodes: list[ClientService] = field(default_factory=list)

    def node(self, name: str, *, admit: bool = True) -> ClientService:
        """Set up a node with a synthetic patient's beats and start it."""
        home = ClientHome(self.folder / name)
        init_client(
            home,
            site=name,
            server=self.service.address,
            ca_certificate=self.service.home.ca_certificate.read_bytes(),
            data={"path": "beats.npz", "schema": HEARTS_SCHEMA.to_dict()},
            policy={"max_epsilon": 100.0, "delta": 1e-4},
        )
        source = hearts(1, seed=len(self.nodes)).sites[0]
        np.savez(home.root / "beats.npz", X=source.train)
        if admit:
            self.service.control.admit(name, home.node_public_key)
        service = ClientService(home)
        self.nodes.append(service)
        service.start()
        return service


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.2)
