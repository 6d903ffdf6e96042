"""What the other side may choose is bounded by the node's owner, before anything is charged."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlatent.client.door import Outgoing
from fedlatent.client.node import Node
from fedlatent.client.policy import Caps
from fedlatent.shared.arrays import Arrays, add_prefix
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.gaussian import feature_basis
from fedlatent.shared.models import build_model
from fedlatent.shared.models.size import TooLarge, at_most
from fedlatent.shared.privacy.mixture import LatentMixture
from fedlatent.shared.privacy.summaries import LatentDensity
from fedlatent.shared.schedule import Kind, phases
from tests.client.support import request, tiny_node, tiny_run, weights_of

#: A run with every phase and every kind of array.
RICH: dict[str, Any] = {
    "sharing": "encoder+summary",
    "summaries": {
        "every": 1,
        "prior": "mixture",
        "components": 2,
        "em_rounds": 1,
        "data": "gaussian",
        "features": 3,
    },
    "scoring": {"combined": True},
    "privacy": {"epsilon": 5.0},
}


def nothing_happened(node: Node) -> None:
    """No entry, no run, no epsilon: the refusal came before the books were opened."""
    assert node.ledger.entries() == []
    assert node.ledger.epsilon() == 0.0
    with sqlite3.connect(node.ledger._path) as connection:
        assert connection.execute("SELECT run_id FROM runs").fetchall() == []


def refused(node: Node, out: Outgoing, *named: str) -> None:
    """A sentence of the policy that names the point, and an untouched ledger."""
    assert (out.header.status, out.header.code) == ("refused", "policy"), out.header.text
    assert out.header.text.startswith("Expected ")
    assert ", got " in out.header.text
    for word in named:
        assert word in out.header.text
    nothing_happened(node)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"training": {"learning_rate": 1.5}}, "learning_rate"),
        ({"training": {"learning_rate": 1e38}}, "learning_rate"),
        ({"training": {"beta": 1e3}}, "beta"),
        ({"training": {"capacity": 1e30}}, "capacity"),
        ({"training": {"free_bits": 1e30}}, "free_bits"),
        ({"training": {"multiplicity": 65}}, "multiplicity"),
        ({"training": {"warm_start_steps": 10**9}, "summaries": {"data": "gaussian"}}, "steps"),
        ({"privacy": {"clip": 1e-7}}, "clip"),
        ({"privacy": {"clip": 1e30}}, "clip"),
        ({"privacy": {"sample_rate": 0.05}}, "200 records"),
        ({"scoring": {"radius": 1e-300}}, "scoring.radius"),
        ({"scoring": {"radius": 1e300}}, "scoring.radius"),
        ({"summaries": {"data": "gaussian", "data_radius": 1e-30}}, "data_radius"),
        ({"summaries": {"components": 2, "em_rounds": 10**15}}, "phases"),
        ({"model": {"options": {"hidden": [8192, 8192]}}}, "parameters"),
    ],
)
def test_a_run_file_outside_the_caps_is_refused_before_any_charge(
    tmp_path: Path, sections: dict[str, Any], named: str
) -> None:
    """A number of the run file that a sensible run does not need opens no book."""
    run = tiny_run(**sections)
    node = tiny_node(tmp_path, tiny_run())
    kind: Kind = phases(tiny_run(summaries={"data": run.summaries.data}))[0].kind
    refused(node, node.handle(request(run, 1, kind), weights_of(tiny_run())), named)


FEW = {"rounds": 1, "steps_per_round": 1}


@pytest.mark.parametrize(
    ("named", "privacy", "sections"),
    [
        ("train", {}, {"training": FEW}),
        ("moments", {"moments_share": 0.98}, {"sharing": "summary"}),
        ("threshold", {"threshold_share": 0.98}, {"sharing": "summary"}),
    ],
)
def test_a_release_with_too_little_noise_is_refused_before_any_charge(
    tmp_path: Path, named: str, privacy: dict[str, float], sections: dict[str, Any]
) -> None:
    """A large budget, spent on one release, leaves it a noise multiplier below 0.5: refused."""
    run = tiny_run(privacy={"epsilon": 40.0, **privacy}, **sections)
    node = tiny_node(tmp_path, run, max_epsilon=50.0)
    first = phases(run)[0].kind
    refused(node, node.handle(request(run, 1, first), weights_of(run)), named, "at least 0.5")


@pytest.mark.parametrize("value", [1.1e4, -1.1e4, 2.0**20, 3e38, 1e300])
def test_weights_outside_the_caps_are_refused_before_any_charge(
    tmp_path: Path, value: float
) -> None:
    """One large weight anywhere is refused in training and in summaries."""
    run = tiny_run()
    node = tiny_node(tmp_path, run)
    weights: Arrays = {key: each.astype(np.float64) for key, each in weights_of(run).items()}
    key = list(weights)[-1]
    weights[key].flat[-1] = value
    places: list[tuple[int, Kind]] = [(1, "train"), (4, "moments")]
    for number, kind in places:
        refused(node, node.handle(request(run, number, kind), weights), key)


def test_a_whole_model_is_held_to_the_caps(tmp_path: Path) -> None:
    """Where whole models travel, a large decoder weight is refused like any other."""
    run = tiny_run(sharing="full")
    node = tiny_node(tmp_path, run, allowed_sharing=["full"])
    sent = {key: value.numpy().copy() for key, value in build_model(run).state_dict().items()}
    sent["decoder.0.weight"][0, 0] = 2e4
    refused(node, node.handle(request(run, 1), sent), "decoder.0.weight")


def density(k: int, **changes: Any) -> dict[str, np.ndarray]:  # noqa: ANN401
    """The arrays of a plain density of k dimensions, with some of them changed."""
    plain = LatentDensity(count=9.0, mean=np.zeros(k), covariance=np.eye(k), within=np.eye(k))
    return {**plain.arrays(), **changes}


def extra_arrays(run: RunConfig, prefix: str, **changes: Any) -> dict[str, np.ndarray]:  # noqa: ANN401
    """All that a request may bring beside weights, with one of its arrays changed."""
    plain = LatentMixture(
        weights=np.ones(2) / 2, means=np.zeros((2, 2)), covariances=np.stack([np.eye(2)] * 2)
    ).arrays()
    tables = {
        "density.": density(2),
        "data.": density(len(feature_basis(run))),
        "scores.": density(3),
        "mixture.": plain,
    }
    tables[prefix] = {**tables[prefix], **changes}
    return {key: v for name, table in tables.items() for key, v in add_prefix(name, table).items()}


@pytest.mark.parametrize("kind", ["train", "mixture", "threshold"])
@pytest.mark.parametrize(
    ("prefix", "changes", "named"),
    [
        ("density.", {"covariance": np.diag([1.0, 1e-9])}, "density.covariance"),
        ("density.", {"covariance": np.diag([1.0, 1e9])}, "density.covariance"),
        ("density.", {"within": np.diag([1.0, 1e-300])}, "density.within"),
        ("density.", {"mean": np.asarray([0.0, -1e5])}, "mean of density"),
        ("data.", {"covariance": np.diag([1.0, 1.0, 1e-9])}, "data.covariance"),
        ("data.", {"mean": np.full(3, 1e200)}, "mean of data"),
        ("scores.", {"within": np.diag([1.0, 1.0, 1e-9])}, "scores.within"),
        ("scores.", {"mean": np.full(3, -1e200)}, "mean of scores"),
        ("mixture.", {"means": np.full((2, 2), 1e200)}, "mean of mixture"),
        (
            "mixture.",
            {"covariances": np.stack([np.eye(2), 1e-8 * np.eye(2)])},
            "mixture.covariances",
        ),
    ],
)
def test_received_densities_outside_the_caps_are_refused_before_any_charge(
    tmp_path: Path, kind: Kind, prefix: str, changes: dict[str, np.ndarray], named: str
) -> None:
    """Means and eigenvalues of every density that is sent lie within the owner's range."""
    run = tiny_run(**RICH)
    node = tiny_node(tmp_path, run)
    number = next(phase.number for phase in phases(run) if phase.kind == kind)
    arrays = {**weights_of(run), **extra_arrays(run, prefix, **changes)}
    refused(node, node.handle(request(run, number, kind), arrays), named)


def test_a_covariance_that_only_rounding_makes_positive_is_refused_before_any_charge(
    tmp_path: Path,
) -> None:
    """What is checked is what is inverted: the half that is not looked at cannot be singular."""
    singular = np.asarray([[2.0**20, 2.0], [1.0, 2.0 / 2.0**20]])  # its lower half is positive
    run = tiny_run(sharing="summary", summaries={"components": 1, "em_rounds": 1})
    mixture = LatentMixture(
        weights=np.ones(1), means=np.zeros((1, 2)), covariances=singular[None]
    ).arrays()
    for prefix, arrays in (
        ("density.", density(2, covariance=singular, within=singular)),
        ("mixture.", mixture),
    ):
        node = tiny_node(tmp_path / prefix, run)
        sent = {**weights_of(run), **add_prefix(prefix, arrays)}
        out = node.handle(request(run, 2, "mixture"), sent)
        assert (out.header.status, out.header.code) == ("refused", "protocol")
        nothing_happened(node)


def test_a_prior_that_single_precision_cannot_invert_is_used(tmp_path: Path) -> None:
    """A covariance within the bounds never ends the training, however it rounds."""
    close = np.asarray([[4096.0, 4096.0], [4096.0, 4096.0 + 2.0**-13]])
    run = tiny_run(sharing="encoder+summary", summaries={"prior": "gaussian", "every": 1})
    node = tiny_node(tmp_path, run)
    arrays = add_prefix("density.", density(2, covariance=close))
    out = node.handle(request(run, 3), {**weights_of(run), **arrays})
    assert out.header.status == "ok", out.header.text


@pytest.mark.parametrize(
    ("mean", "deviation", "named"),
    [
        (0.0, 1e-9, "deviations of scaling"),
        (0.0, 1e300, "deviations of scaling"),
        (7.0, 1.0, "mean of scaling"),
        (-1e200, 1.0, "mean of scaling"),
    ],
)
def test_a_scaling_outside_the_caps_is_refused_before_any_charge(
    tmp_path: Path, mean: float, deviation: float, named: str
) -> None:
    """A scaling's deviations have a floor, and its means lie within the schema's bounds."""
    run = tiny_run(summaries={"data": "scaling"})
    node = tiny_node(tmp_path, run)
    scaling = {"mean": np.full(12, mean), "deviation": np.full(12, 1.0)}
    scaling["deviation"][3] = deviation
    arrays = {**weights_of(run), **add_prefix("scaling.", scaling)}
    refused(node, node.handle(request(run, 2), arrays), named)


def test_a_broadcast_prior_for_a_model_with_its_own_is_refused_before_any_charge(
    tmp_path: Path,
) -> None:
    """A model that trains a prior takes none from outside, and says so before it is paid for."""
    run = tiny_run(
        sharing="encoder+summary",
        summaries={"prior": "gaussian", "every": 1},
        model={"options": {"hidden": [6], "latent_dim": 2, "prior": "mixture"}},
    )
    node = tiny_node(tmp_path, run)
    arrays = {**weights_of(run), **add_prefix("density.", density(2))}
    out = node.handle(request(run, 3), arrays)
    assert (out.header.status, out.header.code) == ("refused", "protocol")
    nothing_happened(node)


def test_owner_may_move_the_caps(tmp_path: Path) -> None:
    """The same hostile weight is accepted where the owner's bound is wider."""
    run = tiny_run()
    node = tiny_node(tmp_path, run, caps={"largest_weight": 1e6})
    weights = weights_of(run)
    weights["encoder.1.weight"][0, 0] = 2e4
    assert node.handle(request(run, 1), weights).header.status == "ok"


def test_values_at_the_caps_are_accepted(tmp_path: Path) -> None:
    """A request at the edge of every bound is answered."""
    caps = Caps()
    run = tiny_run(
        training={
            "learning_rate": caps.largest_learning_rate,
            "beta": caps.largest_beta,
            "free_bits": caps.largest_nats,
            "multiplicity": 2,
        },
        privacy={"clip": caps.largest_clip, "sample_rate": 0.08},
        scoring={"radius": caps.largest_radius},
    )
    node = tiny_node(tmp_path, run)
    weights = {k: np.full_like(v, caps.largest_weight) for k, v in weights_of(run).items()}
    assert node.handle(request(run, 1), weights).header.status == "ok"


def test_a_giant_model_is_never_made() -> None:
    """The building stops at the bound, before memory is taken; within it all is as without."""
    with pytest.raises(TooLarge), at_most(1000):
        build_model(tiny_run(model={"options": {"hidden": [8192] * 16}}))
    run = tiny_run()
    size = sum(p.numel() for p in build_model(run).parameters())
    with at_most(size):
        build_model(run)
    with pytest.raises(TooLarge), at_most(size - 1):
        build_model(run)


def test_an_answer_is_no_larger_than_the_largest_model(tmp_path: Path) -> None:
    """A wide latent costs few parameters, but its moments grow with the square of its width."""
    run = tiny_run(model={"options": {"hidden": [2], "latent_dim": 40}})
    node = tiny_node(tmp_path, run, caps={"largest_model": 1000})
    full = request(run, 4, "moments")
    refused(node, node.handle(full, weights_of(run)), "numbers of an answer", "1681")
    small = full.model_copy(update={"form": "diagonal"})
    assert node.handle(small, weights_of(run)).header.status == "ok"
