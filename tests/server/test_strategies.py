"""Weights of clients, and the server's optimisers against Flower's and against hand."""

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.server.strategies.optimizer import server_step
from fedlatent.server.strategies.weighting import weight_of
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import StrategySection
from fedlatent.shared.wire import PROTOCOL, ReplyHeader

TAU, BETA_1, BETA_2 = 1e-3, 0.9, 0.99  # Flower's defaults


def reply(records: int, sigma: float = 1.0, rate: float = 0.1, steps: int = 20) -> ReplyHeader:
    """The header of a good answer."""
    return ReplyHeader(
        protocol=PROTOCOL,
        run_id="run-1",
        round=1,
        kind="train",
        site="north",
        status="ok",
        records=records,
        noise_multiplier=sigma,
        sample_rate=rate,
        steps=steps,
    )


REPLIES = st.builds(
    reply,
    st.integers(1, 10**6),
    st.floats(1e-3, 1e3),
    st.floats(1e-4, 1.0),
    st.integers(1, 1000),
)


@settings(max_examples=80, deadline=None)
@given(REPLIES)
def test_every_rule_gives_a_positive_weight_of_the_records_at_most(header: ReplyHeader) -> None:
    """No rule counts a client more than its records, and none leaves it out."""
    assert weight_of("uniform", header) == 1.0
    assert weight_of("records", header) == header.records
    assert 0.0 < weight_of("noise-aware", header) <= header.records


@pytest.mark.parametrize("records", [1, 50, 10**6])
def test_without_noise_the_noise_aware_rule_is_that_of_records(records: int) -> None:
    """No noise, and the limit of little noise, count the records."""
    assert weight_of("noise-aware", reply(records, sigma=0.0)) == records
    assert weight_of("noise-aware", reply(records, sigma=1e-9)) == pytest.approx(records)


def test_much_noise_counts_less_than_in_proportion() -> None:
    """Where noise drowns the signal a client of a tenth of the records has a thousandth of weight.

    The signal grows with the records, so the weight grows with their third power.
    """
    small, large = (weight_of("noise-aware", reply(n, sigma=1e6)) for n in (100, 1000))
    assert large / small == pytest.approx(1000.0, rel=1e-4)
    small, large = (weight_of("noise-aware", reply(n, sigma=1e-3)) for n in (100, 1000))
    assert large / small == pytest.approx(10.0, rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(REPLIES)
def test_more_noise_never_counts_more(header: ReplyHeader) -> None:
    """The weight falls with noise and rises with rate, steps and records."""
    weight = weight_of("noise-aware", header)
    for change in (
        {"noise_multiplier": header.noise_multiplier * 2},
        {"sample_rate": header.sample_rate / 2},
        {"steps": max(header.steps // 2, 1)},
        {"records": max(header.records // 2, 1)},
    ):
        assert weight_of("noise-aware", header.model_copy(update=change)) <= weight * (1 + 1e-12)


def test_a_signal_as_large_as_the_noise_counts_half() -> None:
    """At q N sqrt(steps) = sigma the weight is half of the records."""
    header = reply(100, sigma=0.1 * 100 * math.sqrt(16), rate=0.1, steps=16)
    assert weight_of("noise-aware", header) == pytest.approx(50.0)


# Server optimisers.


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The identity that Flower gives a server's process, without which it makes no message."""
    for field in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, field, 1)


with_flower = pytest.mark.usefixtures("task")


def section(name: str, rate: float = 0.5) -> StrategySection:
    """The table of a run with one optimiser."""
    return StrategySection.model_validate({"server_optimizer": name, "server_learning_rate": rate})


def arrays_of(seed: int, dtype: type = np.float64) -> Arrays:
    """Two arrays, not in alphabetical order."""
    rng = np.random.default_rng(seed)
    return {
        "encoder.w": rng.normal(size=(3, 2)).astype(dtype),
        "encoder.b": rng.normal(size=3).astype(dtype),
    }


def shuffled(arrays: Arrays) -> Arrays:
    """The same in another order, as a message may bring them."""
    return {key: arrays[key] for key in sorted(arrays)}


BEFORE, MEAN, LATER = arrays_of(1), arrays_of(2), arrays_of(3)
OPTIMIZERS = ["momentum", "adam", "yogi", "adagrad"]


def test_no_optimiser_takes_the_mean() -> None:
    """Without an optimiser the mean is returned as it is, with no state."""
    arrays, state = server_step(section("none"), 1, BEFORE, MEAN, {})
    assert arrays.keys() == MEAN.keys()
    assert all(np.array_equal(arrays[key], MEAN[key]) for key in MEAN)
    assert state == {}


@with_flower
def test_momentum_by_hand() -> None:
    """Two steps: x1 = x0 - r g1; x2 = x1 - r (0.9 g1 + g2), with g = before - mean."""
    first, state = server_step(section("momentum"), 1, BEFORE, MEAN, {})
    second, _ = server_step(section("momentum"), 2, first, LATER, state)
    for key in BEFORE:
        g1 = BEFORE[key] - MEAN[key]
        x1 = BEFORE[key] - 0.5 * g1
        x2 = x1 - 0.5 * (0.9 * g1 + (x1 - LATER[key]))
        assert np.allclose(first[key], x1, rtol=1e-12)
        assert np.allclose(second[key], x2, rtol=1e-12)


@with_flower
def test_the_first_momentum_step_at_rate_one_is_the_mean() -> None:
    """Nothing has built up yet."""
    arrays, _ = server_step(section("momentum", 1.0), 1, BEFORE, MEAN, {})
    assert all(np.allclose(arrays[key], MEAN[key]) for key in MEAN)


@with_flower
@pytest.mark.parametrize("name", ["adam", "yogi", "adagrad"])
def test_the_first_adaptive_step_by_hand(name: str) -> None:
    """From zeros: m = (1 - b1) d; v = (1 - b2) d^2, or d^2 for adagrad; d = mean - before."""
    arrays, state = server_step(section(name), 1, BEFORE, MEAN, {})
    for key in BEFORE:
        d = MEAN[key] - BEFORE[key]
        m, v, rate = (1 - BETA_1) * d, (1 - BETA_2) * d**2, 0.5
        if name == "adagrad":
            m, v = d, d**2
        if name == "adam":  # Flower counts its rounds from 0 in the correction, plus 1
            rate *= math.sqrt(1 - BETA_2**2) / (1 - BETA_1**2)
        assert np.allclose(state[f"m/{key}"], m)
        assert np.allclose(state[f"v/{key}"], v)
        assert np.allclose(arrays[key], BEFORE[key] + rate * m / (np.sqrt(v) + TAU))


def _flower(name: str) -> FedAvgM | FedAdam:
    if name == "momentum":
        return FedAvgM(server_learning_rate=0.5, server_momentum=0.9)
    made: FedAdam = {"adam": FedAdam, "yogi": FedYogi, "adagrad": FedAdagrad}[name](eta=0.5)
    return made


def _message(mean: Arrays) -> Message:
    record = ArrayRecord({key: Array(value) for key, value in mean.items()})
    content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 7})})
    return Message(content, dst_node_id=1, message_type="train")


@with_flower
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_carried_state_equals_one_flower_object(name: str) -> None:
    """Four rounds with carried state give what one Flower strategy gives in four rounds."""
    rule, ours, theirs = _flower(name), BEFORE, BEFORE
    state: Arrays = {}
    for number in range(1, 5):
        mean = arrays_of(10 + number)
        ours, state = server_step(section(name), number, ours, shuffled(mean), state)
        if isinstance(rule, FedAvgM):
            rule.current_arrays = ArrayRecord({k: Array(v) for k, v in theirs.items()})
        else:
            rule.current_arrays = dict(theirs)
        record, _ = rule.aggregate_train(number, [_message(mean)])
        assert record is not None
        theirs = {key: record[key].numpy() for key in BEFORE}
        for key in BEFORE:
            assert np.allclose(ours[key], theirs[key], rtol=1e-12, atol=1e-14), (number, key)


@with_flower
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_and_arrays_do_not_mix(name: str) -> None:
    """State comes under m/ and v/ with the names of the arrays; inputs are left as they were."""
    before, mean = arrays_of(1), arrays_of(2)
    _, state = server_step(section(name), 1, before, mean, {})
    kept = {key: value.copy() for key, value in state.items()}
    server_step(section(name), 2, before, mean, state)
    prefixes = ("m/",) if name == "momentum" else ("m/", "v/")
    assert state.keys() == {prefix + key for prefix in prefixes for key in before}
    assert all(state[key].dtype == np.float64 for key in state)
    assert all(np.array_equal(state[key], kept[key]) for key in state)
    assert all(np.array_equal(before[key], BEFORE[key]) for key in before)
    assert all(np.array_equal(mean[key], MEAN[key]) for key in mean)


@with_flower
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_arrays_keep_their_dtype_order_and_shape(name: str) -> None:
    """Float32 weights stay float32, in the order in which they were sent."""
    before, mean = arrays_of(1, np.float32), arrays_of(2, np.float32)
    arrays, _ = server_step(section(name), 1, before, shuffled(mean), {})
    assert list(arrays) == list(before)
    for key, value in arrays.items():
        assert value.dtype == np.float32
        assert value.shape == before[key].shape
        assert np.isfinite(value).all()


@with_flower
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_repeated_steps_come_to_a_fixed_mean(name: str) -> None:
    """Where the clients always answer the same, the server ends there."""
    arrays = BEFORE
    state: Arrays = {}
    for number in range(1, 400):
        arrays, state = server_step(section(name, 0.1), number, arrays, MEAN, state)
    assert all(np.allclose(arrays[key], MEAN[key], atol=0.05) for key in MEAN)
