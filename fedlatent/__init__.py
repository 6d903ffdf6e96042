"""Federated and on-device learning of variational autoencoders under differential privacy.

    >>> import fedlatent as fl
    >>> clients = fl.read("patients.csv", client="hospital", label="disease", normal_label=0)
    >>> trained = fl.train(clients, "patients.fedlatent", progress=False)
    >>> model = fl.load("patients.fedlatent", key="publisher.pem.pub")
    >>> model.score(clients.sites[0].test).flag[:3]
    array([False, False, False])

Names are imported when they are used: `fedlatent.load` needs no PyTorch, and is all that a device
needs. The command line is `fedlatent`; each command's twin in here has its name.
"""

import importlib
from typing import TYPE_CHECKING

import fedlatent.shared  # noqa: F401 - keeps quiet what would phone home, whatever is imported

if TYPE_CHECKING:
    from fedlatent.api.data import read
    from fedlatent.api.detector import Detector
    from fedlatent.api.model import load
    from fedlatent.api.privacy import audit, privacy_plan
    from fedlatent.api.runs import RunResult, export, simulate
    from fedlatent.api.training import train
    from fedlatent.client.edge.runtime import EdgeModel
    from fedlatent.client.node import Node
    from fedlatent.shared.config import Privacy, RunConfig, Training
    from fedlatent.shared.data.dataset import Dataset
    from fedlatent.shared.data.schema import Schema
    from fedlatent.shared.data.sources import Federation
    from fedlatent.shared.errors import FedlatentError

__all__ = [
    "Dataset",
    "Detector",
    "EdgeModel",
    "Federation",
    "FedlatentError",
    "Node",
    "Privacy",
    "RunConfig",
    "RunResult",
    "Schema",
    "Training",
    "audit",
    "export",
    "load",
    "privacy_plan",
    "read",
    "simulate",
    "train",
]

#: Where each public name is at home.
_HOMES = {
    "Dataset": "shared.data.dataset",
    "Detector": "api.detector",
    "EdgeModel": "client.edge.runtime",
    "Federation": "shared.data.sources",
    "FedlatentError": "shared.errors",
    "Node": "client.node",
    "Privacy": "shared.config",
    "RunConfig": "shared.config",
    "RunResult": "api.runs",
    "Schema": "shared.data.schema",
    "Training": "shared.config",
    "audit": "api.privacy",
    "export": "api.runs",
    "load": "api.model",
    "privacy_plan": "api.privacy",
    "read": "api.data",
    "simulate": "api.runs",
    "train": "api.training",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = importlib.import_module(f"fedlatent.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Expected the package {error.name!r} for fedlatent.{name}, got none; install "
            "'fedlatent[all]'.",
            name=error.name,
        ) from error
    found = getattr(home, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names, for completion."""
    return [*__all__]
