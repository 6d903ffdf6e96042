"""What the project ships passes the bounds that nodes have by default."""

import pytest

from fedlatent.client.policy import Policy
from fedlatent.server.example import RUN_EXAMPLE
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import HEARTS_SCHEMA, hearts
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.simulations.demo import demo_run
from fedlatent.simulations.study.shipped import shipped
from fedlatent.simulations.study.spec import bind


def _runs() -> dict[str, RunConfig]:
    """The example of ``server init``, the demo, and the first and last of each experiment."""
    federation = hearts(2, seed=0, beats=20)
    found = {"example": RunConfig.from_toml(RUN_EXAMPLE)}
    for epsilon in (1.0, 8.0):
        found[f"demo-{epsilon:g}"] = demo_run(federation, nodes=2, epsilon=epsilon, rounds=10)
    for experiment in shipped():
        runs = [bind(experiment, cell, HEARTS_SCHEMA, 6) for cell in experiment.cells]
        private = [run for run in runs if run.privacy.mechanism != "none"]
        for run in (min(private, key=_epsilon), max(private, key=_epsilon)):
            found[f"{experiment.name}-{run.privacy.epsilon:g}"] = run
    return found


def _epsilon(run: RunConfig) -> float:
    return run.privacy.epsilon


RUNS = _runs()


@pytest.mark.parametrize("name", RUNS)
def test_shipped_runs_pass_the_default_caps(name: str) -> None:
    """No shipped run asks a node for a number outside of its default bounds."""
    policy = Policy(max_epsilon=8.0)
    policy.caps.check(RUNS[name])
    policy.check_plan(PrivacyPlan.from_config(RUNS[name]))
