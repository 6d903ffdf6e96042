"""How a round's updates are brought together: the bound on their norms, weights, robust rules."""

import itertools
from collections.abc import Mapping
from typing import get_args

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity

from fedlatent.server.strategies import robust
from fedlatent.server.strategies.flower import aggregate
from fedlatent.server.strategies.robust import HELD, Pool, clipping_centre
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import Robust, RunConfig
from fedlatent.shared.errors import ConfigError
from tests.server.federation import tiny_config

SIZE = 200
RULES: tuple[Robust, ...] = tuple(rule for rule in get_args(Robust) if rule != "none")
SENT: Arrays = {
    "encoder.a": np.linspace(-1, 1, 150, dtype=np.float32).reshape(15, 10),
    "encoder.b": np.full(50, 0.5, np.float32),
}


@pytest.fixture(autouse=True)
def in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages name the run that they belong to."""
    for field in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, field, 1)


def config_of(rule: str = "none", **strategy: object) -> RunConfig:
    """A run with a rule."""
    return tiny_config(
        strategy={"robust": rule, **strategy},
        federation={"quorum": 2, "nodes": 9, "join_timeout_s": 5},
    )


def flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """All entries in one row."""
    return np.concatenate([value.reshape(-1) for value in arrays.values()])


def reply(step: np.ndarray) -> Arrays:
    """What a site answers whose update is ``step``."""
    row = flat(SENT) + step.astype(np.float32)
    return {"encoder.a": row[:150].reshape(15, 10), "encoder.b": row[150:]}


def update_of(pool: Pool) -> np.ndarray:
    """The round's update."""
    result = pool.result()
    assert {key: value.dtype for key, value in result.items()} == {
        key: value.dtype for key, value in SENT.items()
    }
    return flat(result).astype(np.float64) - flat(SENT)


def pooled(
    steps: list[np.ndarray], rule: str = "none", weights: list[float] | None = None, **more: object
) -> np.ndarray:
    """The update that comes of these, by sites 1, 2, ... of equal weight."""
    pool = Pool(config_of(rule, **more), SENT, len(steps))
    for node, step in enumerate(steps, 1):
        pool.add(node, reply(step), 1.0 if weights is None else weights[node - 1], fixed=True)
    return update_of(pool)


def honest(count: int, spread: float = 0.5, seed: int = 0) -> list[np.ndarray]:
    """Updates about a common one of length 1, each off by noise of length ``spread``."""
    draw = np.random.default_rng(seed)
    common = draw.normal(size=SIZE)
    common /= np.linalg.norm(common)
    noise = draw.normal(size=(count, SIZE)) * spread / np.sqrt(SIZE)
    return list(common + noise)


ATTACKS = {
    "flipped": lambda steps: -3.0 * np.mean(steps, axis=0),
    "hundredfold": lambda steps: 100.0 * steps[0],
    "random": lambda steps: np.random.default_rng(9).normal(size=SIZE),
    "zero": lambda steps: np.zeros(SIZE),
    "huge": lambda steps: np.full(SIZE, 60.0),
}


def test_the_mean_of_updates_of_like_norms_is_the_weighted_mean() -> None:
    """Nothing is scaled where no update stands out, and the weights are those given."""
    steps, weights = honest(5), [100.0, 200.0, 700.0, 10.0, 9_000.0]
    found = pooled(steps, weights=weights)
    np.testing.assert_allclose(found, np.average(steps, axis=0, weights=weights), atol=1e-6)


def test_a_long_update_counts_three_median_norms() -> None:
    """A hundredfold update is scaled down, named with both norms, and moves the mean no further."""
    steps = [*honest(4, spread=0.0), 100.0 * honest(1, spread=0.0)[0]]
    pool = Pool(config_of(), SENT, 5)
    for node, step in enumerate(steps, 1):
        pool.add(node, reply(step), 1.0)
    assert np.linalg.norm(update_of(pool)) == pytest.approx((4 * 1.0 + 3.0) / 5, rel=1e-5)
    assert pool.scaled.keys() == {5}
    assert pool.scaled[5].norm == pytest.approx(100.0, rel=1e-5)
    assert pool.scaled[5].bound == pytest.approx(3.0, rel=1e-5)
    assert "update of norm 100 scaled down to 3" in pool.scaled[5].sentence


def test_the_bound_of_equal_words_is_public() -> None:
    """``federation.norm_factor`` is the factor of the median."""
    config = tiny_config(federation={"norm_factor": 1.0, "nodes": 3})
    pool = Pool(config, SENT, 3)
    for node, factor in enumerate((1.0, 2.0, 50.0), 1):
        pool.add(node, reply(factor * honest(1)[0]), 1.0)
    pool.result()
    assert pool.scaled.keys() == {3}
    assert pool.scaled[3].bound == pytest.approx(2 * np.linalg.norm(honest(1)[0]), rel=1e-5)


def test_a_weight_that_nobody_fixed_is_twice_the_median_at_most() -> None:
    """Of five, a site that claims ten million records counts as two, unless the operator did."""
    for fixed, largest in ((False, 200.0), (True, 1e7)):
        steps, pool = honest(5), Pool(config_of(), SENT, 5)
        for node, step in enumerate(steps, 1):
            pool.add(node, reply(step), 1e7 if node == 5 else 100.0, fixed=fixed)
        expected = np.average(steps, axis=0, weights=[100.0] * 4 + [largest])
        np.testing.assert_allclose(update_of(pool), expected, atol=1e-6)
        assert pool.weight == 400 + largest


@pytest.mark.parametrize("rule", get_args(Robust))
def test_order_of_arrival_does_not_matter(rule: str) -> None:
    """All orders of five replies, one of them scaled, give the same bits under every rule."""
    steps = [*honest(4), 40.0 * honest(1, seed=4)[0]]
    replies = {node: (reply(step), float(node)) for node, step in enumerate(steps, 1)}
    results = set()
    for order in itertools.islice(itertools.permutations(replies), 0, None, 7):
        pool = Pool(config_of(rule), SENT, 5)
        for node in order:
            pool.add(node, *replies[node])
        results.add(flat(pool.result()).tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("rule", ["none", "centred-clipping", "multi-krum"])
def test_memory_does_not_grow_with_the_sites(rule: str) -> None:
    """Beyond the held ones replies are folded as they come, to much the same result."""
    steps = honest(3 * HELD)
    pool = Pool(config_of(rule), SENT, len(steps))
    for node, step in enumerate(steps, 1):
        pool.add(node, reply(step), 1.0)
        assert len(pool._held) <= HELD
    assert pool.count == len(steps)
    np.testing.assert_allclose(update_of(pool), np.mean(steps, axis=0), atol=0.01)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", RULES)
def test_one_of_five_does_not_move_a_robust_rule(rule: str, attack: str) -> None:
    """Under every rule the update stays within what one honest site is off by."""
    good = honest(4)
    hostile = ATTACKS[attack](good)
    off = np.linalg.norm(pooled([*good, hostile], rule) - np.mean(good, axis=0))
    assert off < 0.55
    if attack != "zero":
        plain = np.mean([*good, hostile], axis=0)
        assert off < np.linalg.norm(plain - np.mean(good, axis=0))


@pytest.mark.parametrize("rule", RULES)
def test_four_of_twenty_that_collude_do_not_move_a_robust_rule(rule: str) -> None:
    """Four equal flipped updates among twenty leave the result by the sixteen honest ones."""
    good = honest(16)
    found = pooled([*good, *[-np.mean(good, axis=0)] * 4], rule)
    assert np.linalg.norm(found - np.mean(good, axis=0)) < 0.55


@pytest.mark.parametrize("rule", ["trimmed-mean", "centred-clipping", "multi-krum"])
def test_a_robust_rule_costs_little_where_all_are_honest(rule: str) -> None:
    """Of twenty honest updates the result is nearer to their mean than any two of them are."""
    good = honest(20)
    off = np.linalg.norm(pooled(good, rule) - np.mean(good, axis=0))
    assert off < 0.1


@pytest.mark.parametrize("rule", get_args(Robust))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_replies_are_no_error(rule: str, count: int) -> None:
    """One, two or three replies give a result between them."""
    steps = honest(count)
    found = pooled(steps, rule)
    assert np.linalg.norm(found - np.mean(steps, axis=0)) < 0.55


def test_trimmed_mean_is_that_of_numpy() -> None:
    """Two hostile of nine: in each coordinate the mean of the middle five."""
    steps = honest(9)
    expected = np.sort(np.stack(steps), axis=0)[2:-2].mean(axis=0)
    found = pooled(steps, "trimmed-mean", hostile=2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_trimmed_mean_cuts_as_many_as_it_is_told() -> None:
    """For every number of hostile sites of twice as many and one, the median alone is left."""
    for hostile in range(1, 50):
        steps = np.random.default_rng(hostile).normal(size=(2 * hostile + 1, 3))
        strategy = robust.RULES["trimmed-mean"](hostile, len(steps))
        replies = [({"w": step}, 1.0) for step in steps]
        found = aggregate(strategy, 1, {"w": steps[0]}, replies, {}).arrays["w"]
        np.testing.assert_allclose(found, np.median(steps, axis=0))


def test_median_is_that_of_numpy() -> None:
    """In each coordinate the middle value."""
    steps = honest(5)
    np.testing.assert_allclose(pooled(steps, "median"), np.median(steps, axis=0), atol=1e-6)


def test_krum_takes_one_honest_update_and_multi_krum_the_mean_of_the_best() -> None:
    """Of five with one far off, krum gives one of the others, multi-krum the mean of all four."""
    steps = [*honest(4), 2.5 * honest(1, seed=7)[0]]
    found = pooled(steps, "krum")
    assert min(np.linalg.norm(found - step) for step in steps[:4]) < 1e-5
    weights = [100.0, 200.0, 150.0, 120.0, 100.0]
    expected = np.average(steps[:4], axis=0, weights=weights[:4])
    np.testing.assert_allclose(pooled(steps, "multi-krum", weights), expected, atol=1e-6)


@pytest.mark.parametrize(("rule", "passed_over"), [("multi-krum", 1), ("krum", 4), ("median", 0)])
def test_who_was_not_chosen_is_known(rule: str, passed_over: int) -> None:
    """Of five, the one far off; of krum all but one; a rule that chooses none passes none over."""
    pool = Pool(config_of(rule), SENT, 5)
    for node, step in enumerate([*honest(4), 2.5 * honest(1, seed=7)[0]], 1):
        pool.add(node, reply(step), 1.0)
    pool.result()
    assert len(pool.passed_over) == passed_over
    assert (5 in pool.passed_over) == (passed_over > 0)


def test_an_update_of_nothing_stops_krum_under_noise_and_costs_multi_krum_a_share() -> None:
    """It is the nearest to all where honest updates are mostly noise, each in its own direction."""
    steps = [*honest(4, spread=5.0), np.zeros_like(honest(1)[0])]
    assert np.linalg.norm(pooled(steps, "krum")) < 1e-5
    common, found = np.mean(steps[:4], axis=0), pooled(steps, "multi-krum")
    assert found @ common > 0.5 * common @ common


@pytest.mark.parametrize("count", [2, 3, 4])
def test_with_less_than_five_sites_the_default_is_the_mean_by_records(count: int) -> None:
    """Where it can withstand none, nothing differs from plain averaging, the weights included."""
    steps, weights = honest(count), [10.0, 1.0, 2.0, 3.0][:count]
    default = tiny_config().strategy.robust
    plain = pooled(steps, "none", weights)
    np.testing.assert_array_equal(pooled(steps, default, weights), plain)


def test_clipping_is_a_fixed_point_within_the_radius() -> None:
    """The centre has at least half of the updates within the radius, and does not follow a few."""
    good = honest(8)
    centre, radius = clipping_centre(np.stack([*good, *[np.full(SIZE, 50.0)] * 3]), [1.0] * 11)
    distances = np.linalg.norm(np.stack(good) - centre, axis=1)
    assert np.linalg.norm(centre - np.mean(good, axis=0)) < radius
    assert distances.max() < 2 * radius


def test_equal_updates_pass_every_rule_unchanged() -> None:
    """Five equal updates are the result, also where all distances are nothing."""
    step = honest(1)[0]
    for rule in get_args(Robust):
        np.testing.assert_allclose(pooled([step] * 5, rule), step, atol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "nodes", "words"),
    [
        ({"robust": "krum", "hostile": 1}, 4, "federation.nodes of 5 or more"),
        ({"robust": "trimmed-mean", "hostile": 2}, 4, "federation.nodes of 5 or more"),
        ({"robust": "none", "hostile": 1}, 9, "hostile of 0 without a robust rule"),
        ({"robust": "bulyan"}, 9, "strategy.robust"),
    ],
)
def test_rules_that_cannot_hold_are_refused_at_load(
    strategy: dict[str, object], nodes: int, words: str
) -> None:
    """A run that names more hostile sites than its rule bears is refused in one sentence."""
    with pytest.raises(ConfigError, match=words):
        tiny_config(strategy=strategy, federation={"nodes": nodes})


def test_too_few_good_replies_for_the_hostile_sites_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two of nine against whom four replies are too few: the rule does what four bear."""
    found = pooled(honest(4), "trimmed-mean", hostile=2)
    assert "4 good replies of 4 let strategy.robust 'trimmed-mean' withstand 1" in caplog.text
    expected = np.sort(np.stack(honest(4)), axis=0)[1:-1].mean(axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_default_that_absent_sites_take_away_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Four good replies of five are a plain mean, and the log says so; of four asked it is not."""
    assert tiny_config().strategy.hostile == 0
    pooled(honest(4), "multi-krum")
    assert not caplog.text
    pool = Pool(config_of("multi-krum"), SENT, 5)
    for node, step in enumerate(honest(4), 1):
        pool.add(node, reply(step), 1.0)
    pool.result()
    assert "4 good replies of 5 let strategy.robust 'multi-krum' withstand 0" in caplog.text


def test_misuse_is_an_error() -> None:
    """No update, a weight of nothing and other names are errors of the caller."""
    pool = Pool(config_of(), SENT, 2)
    with pytest.raises(ValueError, match="at least one"):
        pool.result()
    with pytest.raises(ValueError, match="positive weight"):
        pool.add(1, SENT, 0.0)
    with pytest.raises(ValueError, match=r"got \['encoder.a'\]"):
        pool.add(1, {"encoder.a": SENT["encoder.a"]}, 1.0)


def test_replies_may_be_changed_once_they_are_added() -> None:
    """What is held is a copy."""
    step = honest(1)[0]
    arrays, pool = reply(step), Pool(config_of(), SENT, 1)
    pool.add(1, arrays, 1.0)
    arrays["encoder.a"][:] = 9.0
    np.testing.assert_allclose(update_of(pool), step, atol=1e-6)
