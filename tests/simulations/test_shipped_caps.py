"""What the project ships passes the bounds that nodes have by default."""

import pytest

from fedlatent.client.policy import Policy
from fedlatent.server.example import RUN_EXAMPLE
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import HEARTS_SCHEMA, hearts
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.simulations.demo import demo_run
from fedlatent.simulations.study.shipped import shipped
from fedlatent.simulations.study.spec import Cell, bind


def _runs() -> dict[str, RunConfig]:
    """The example of ``server init``, the demo, and each method with least and most privacy."""
    federation = hearts(2, seed=0, beats=20)
    found = {"example": RunConfig.from_toml(RUN_EXAMPLE)}
    for epsilon in (1.0, 8.0):
        found[f"demo-{epsilon:g}"] = demo_run(federation, nodes=2, epsilon=epsilon, rounds=10)
    for study in shipped():
        groups: dict[object, list[Cell]] = {}
        for cell in study.cells:
            if cell.work in ("federated", "attacked") and "epsilon" in cell.run["privacy"]:
                groups.setdefault(cell.setting.get("method"), []).append(cell)
        for cells in groups.values():
            for cell in (min(cells, key=_epsilon), max(cells, key=_epsilon)):
                found[f"{study.name}-{cell.label}"] = bind(study, cell, HEARTS_SCHEMA, 6)
    return found


def _epsilon(cell: Cell) -> float:
    epsilon: float = cell.run["privacy"]["epsilon"]
    return epsilon


RUNS = _runs()


@pytest.mark.parametrize("name", RUNS)
def test_shipped_runs_pass_the_default_caps(name: str) -> None:
    """No shipped run asks a node for a number outside of its default bounds."""
    policy = Policy(max_epsilon=8.0)
    policy.caps.check(RUNS[name])
    policy.check_plan(PrivacyPlan.from_config(RUNS[name]))
