"""The node file and the policy."""

from typing import Any

import pytest

from fedlatent.client.policy import Caps, NodeConfig
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError, PolicyRefusal
from tests.client.support import tiny_config, tiny_run

NODE_FILE = """
site = "north"
[data]
path = "beats.npz"
label_key = "y"
normal_label = "N"
[data.schema]
name = "beat"
shape = [128]
unit = "mV"
center = "median"
[server]
address = "aggregator.example:8443"
[policy]
max_epsilon = 8.0
"""


def test_node_file_is_read() -> None:
    """A node file gives the site, the data with its schema, the server and a closed policy."""
    config = NodeConfig.from_toml(NODE_FILE)
    assert config.site == "north"
    assert config.data.record_schema.shape == (128,)
    assert config.server is not None
    assert config.server.address == "aggregator.example:8443"
    assert config.policy.allowed_sharing == ("encoder", "summary", "encoder+summary")
    assert not config.policy.allow_simulation_rng
    assert not config.policy.allow_non_private


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("max_epsilon = 8.0", "max_epsilon = 8.0\nmax_epsilom = 9.0", "max_epsilom"),
        ("max_epsilon = 8.0", "max_epsilon = inf", "max_epsilon"),
        ("max_epsilon = 8.0", "delta = 1e-5", "max_epsilon"),
        ('site = "north"', 'site = "../north"', "site"),
        ('site = "north"', "site = ", "TOML"),
    ],
)
def test_bad_node_file_names_the_field(old: str, new: str, named: str) -> None:
    """A wrong or unknown field of the node file is an error that names it."""
    with pytest.raises(ConfigError, match=named):
        NodeConfig.from_toml(NODE_FILE.replace(old, new))


@pytest.mark.parametrize(
    ("sections", "policy", "named"),
    [
        ({"sharing": "full"}, {}, "sharing"),
        ({"privacy": {"mechanism": "none"}}, {}, "mechanism"),
        ({}, {"allow_simulation_rng": False}, "rng"),
        ({"privacy": {"epsilon": 5.5}}, {}, "epsilon"),
        ({"privacy": {"delta": 2e-5}}, {}, "delta"),
        ({"data": {"upper": 4.0}}, {}, "upper"),
        ({"data": {"name": "other"}}, {}, "name"),
        ({"data": {"shape": [13]}}, {}, "shape"),
        ({"training": {"rounds": 1000, "steps_per_round": 1001}}, {}, "steps"),
    ],
)
def test_policy_refuses_in_words(
    sections: dict[str, Any], policy: dict[str, Any], named: str
) -> None:
    """A run beyond the policy is refused with a sentence that names the point."""
    own = tiny_run()
    with pytest.raises(PolicyRefusal, match=named):
        tiny_config(own, **policy).policy.check(tiny_run(**sections), own.data, 200)


def test_policy_accepts_a_run_at_its_limits() -> None:
    """A run that asks for exactly what the policy gives is accepted."""
    run = tiny_run(privacy={"epsilon": 5.0, "delta": 1e-5, "rng": "secure"})
    tiny_config(run, allow_simulation_rng=False).policy.check(run, run.data, 200)


def test_delta_shrinks_with_the_number_of_records() -> None:
    """With 50,000 records delta may be at most 1/(10 N) = 2e-6, whatever the policy says."""
    run = tiny_run(privacy={"delta": 1e-5})
    policy = tiny_config(run).policy
    assert policy.effective_delta(50_000) == pytest.approx(2e-6)
    with pytest.raises(PolicyRefusal, match="delta of at most 2e-06 for 50000 records"):
        policy.check(run, run.data, 50_000)


@pytest.mark.parametrize("what", ["clip", "radius", "deviation", "eigenvalue"])
def test_bounds_that_leave_nothing_between_them_are_an_error(what: str) -> None:
    """A node that would refuse every run says so when its file is read."""
    with pytest.raises(ValueError, match=f"smallest_{what} of at most largest_{what}"):
        Caps.model_validate({f"smallest_{what}": 10.0, f"largest_{what}": 1.0})


@pytest.mark.parametrize(
    ("own", "asked", "named"),
    [
        ({}, {"upper": 100.0}, "data.columns.age.upper"),
        ({}, {"unit": "months"}, "data.columns.age.unit"),
        ({}, {"name": "weight"}, "data.columns"),
        ({"window": {"length": 4}}, {}, "data.window.length"),
        ({"window": {"length": 4}}, {"window": {"length": 4, "step": 2}}, "data.window.step"),
    ],
)
def test_another_description_of_a_column_is_refused_by_name(
    own: dict[str, Any], asked: dict[str, Any], named: str
) -> None:
    """A run whose column has another range, unit or name, or another window, is refused."""

    def described(changes: dict[str, Any]) -> RunConfig:
        column = {"name": "age", "lower": 0, "upper": 90, "unit": "years"} | changes
        window = {"window": column.pop("window")} if "window" in column else {}
        return tiny_run().model_copy(
            update={
                "data": RunConfig.parse(
                    {"name": "t", "data": {"name": "tiny", "columns": [column], **window}}, "test"
                ).data
            }
        )

    node, run = described(own), described(asked)
    with pytest.raises(PolicyRefusal) as told:
        tiny_config(node).policy.check(run, node.data, 1000)
    assert told.value.field == named
