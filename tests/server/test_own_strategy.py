"""Strategies that plug into a run: Flower's as they are, and one of one's own in one file."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    Strategy,
)

from fedlatent.server.checkpoint import CheckpointStore
from fedlatent.server.driver import drive
from fedlatent.server.registry import Registry
from fedlatent.server.results import RunFolder
from fedlatent.server.strategies.weighting import bounded, weight_of
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import DataError, QuorumLost
from fedlatent.shared.models import build_model, encoder_state
from fedlatent.shared.wire import ReplyHeader
from tests.server.federation import Clock, Site, grid_of, home_at, three_sites, tiny_config

ALL = {"min_available_nodes": 1, "min_train_nodes": 1}


class Largest(FedAvg):
    """A strategy of one's own: in each coordinate the largest value."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The largest of all replies' weights."""
        found = [one.content.array_records["arrays"] for one in replies]
        largest = {key: np.max([one[key].numpy() for one in found], axis=0) for key in found[0]}
        return ArrayRecord({key: Array(value) for key, value in largest.items()}), None


class Nothing(FedAvg):
    """A strategy that gives no weights."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """No weights."""
        return None, None


def first_of(config: RunConfig) -> Arrays:
    """The weights that a run sends first."""
    model = build_model(config)
    return {key: value.numpy() for key, value in encoder_state(model).items()}


def shifted(result: Mapping[str, np.ndarray], config: RunConfig) -> float:
    """How far a run of equal steps moved every weight."""
    steps = [result[key] - value for key, value in first_of(config).items()]
    found = float(np.mean([step.mean() for step in steps]))
    assert all(np.allclose(step, found, atol=1e-5) for step in steps)
    return found


def driven(path: Path, strategy: Strategy | None, config: RunConfig | None = None) -> RunFolder:
    """The result of two rounds by sites that move weights by 0.1, -0.2 and 0.3."""
    return drive(
        grid_of(three_sites()),
        config or tiny_config(),
        home_at(path),
        run_id="own-1",
        strategy=strategy,
        pace=Clock().pace(),
    )


def in_flower(strategy: Strategy, config: RunConfig) -> Arrays:
    """What Flower's own objects give in two rounds of the same replies, each of equal weight."""
    before = first_of(config)
    for number in (1, 2):
        sent = ArrayRecord({k: Array(v.astype(np.float64)) for k, v in before.items()})
        list(strategy.configure_train(number, sent, ConfigRecord(), grid_of(three_sites())))
        replies = []
        for shift in (0.1, -0.2, 0.3):
            moved = {k: v + np.float32(shift) for k, v in before.items()}
            record = ArrayRecord({k: Array(v.astype(np.float64)) for k, v in moved.items()})
            content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1.0})})
            replies.append(Message(content, dst_node_id=1, message_type="train"))
        record, _ = strategy.aggregate_train(number, replies)
        assert record is not None
        before = {k: record[k].numpy().astype(v.dtype) for k, v in before.items()}
    return before


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (FedAvg, {}),
        (FedMedian, {}),
        (FedTrimmedAvg, {"beta": 0.34}),
        (Krum, {"num_malicious_nodes": 0}),
        (MultiKrum, {"num_malicious_nodes": 0, "num_nodes_to_select": 2}),
        (Bulyan, {"num_malicious_nodes": 0}),
        (FedAvgM, {"server_momentum": 0.9}),
        (FedAdam, {"eta": 0.1}),
        (FedYogi, {"eta": 0.1}),
        (FedAdagrad, {"eta": 0.1}),
    ],
)
def test_flowers_strategies_work_as_they_are(
    tmp_path: Path, kind: type[Strategy], options: dict[str, float]
) -> None:
    """Each of Flower's strategies gives in a run what it gives by itself in the same rounds."""
    config = tiny_config(strategy={"weighting": "uniform"})
    found = driven(tmp_path, kind(**ALL, **options), config).arrays
    expected = in_flower(kind(**ALL, **options), tiny_config())
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6)


def test_a_strategy_of_ones_own_is_one_class(tmp_path: Path) -> None:
    """Two rounds of the largest step of three are twice that; the plain run's are not."""
    config = tiny_config()
    own = shifted(driven(tmp_path / "own", Largest(**ALL)).arrays, config)
    assert own == pytest.approx(0.6, abs=1e-5)
    assert shifted(driven(tmp_path / "plain", None).arrays, config) < 0.5


def test_a_strategy_says_who_is_asked(tmp_path: Path) -> None:
    """With a fraction of two thirds, two of the three sites train in each round; all release."""
    sites = three_sites()
    strategy = FedAvg(**ALL, fraction_train=0.7)
    pace = Clock().pace()
    drive(
        grid_of(sites),
        tiny_config(),
        home_at(tmp_path),
        run_id="own-1",
        strategy=strategy,
        pace=pace,
    )
    kinds = [request.kind for site in sites.values() for request in site.requests]
    assert kinds.count("train") == 4
    assert kinds.count("moments") == kinds.count("threshold") == 3


def test_a_strategy_that_waits_for_more_nodes_ends_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's would wait for ever; here the quorum is lost and the run can be resumed."""
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", lambda seconds: None)
    with pytest.raises(QuorumLost, match="the strategy waits for, got 3"):
        driven(tmp_path, FedAvg(min_available_nodes=4))
    assert _status(tmp_path) == "paused"


def test_a_strategy_without_a_result_ends_the_run_in_words(tmp_path: Path) -> None:
    """What the strategy did is named, and the run is failed."""
    with pytest.raises(DataError, match="Expected of Nothing the weights that were sent, got none"):
        driven(tmp_path, Nothing(**ALL))
    assert _status(tmp_path) == "failed"


def test_what_flowers_optimisers_hold_survives_a_resume(tmp_path: Path) -> None:
    """A run that is cut after its first round and resumed by a new object ends as the whole one."""
    whole = driven(tmp_path / "whole", FedAdam(**ALL, eta=0.1)).arrays
    home, sites, config = home_at(tmp_path / "cut"), three_sites(), tiny_config()

    def dies(site: Site) -> None:
        answer = site.answer

        def until_two(message: Message) -> Message:
            if len(site.requests) > 0:
                raise KeyboardInterrupt
            return answer(message)

        site.answer = until_two  # type: ignore[method-assign]

    dies(sites[11])
    with pytest.raises(KeyboardInterrupt):
        drive(
            grid_of(sites),
            config,
            home,
            run_id="own-1",
            strategy=FedAdam(**ALL, eta=0.1),
            pace=Clock().pace(),
        )
    state = CheckpointStore(home.run("own-1") / "checkpoints", config).load()
    assert state is not None
    assert state.done == 1
    assert any(key.startswith("strategy/m/") for key in state.optimizer)
    resumed = drive(
        grid_of(three_sites()),
        config,
        home,
        run_id="own-1",
        strategy=FedAdam(**ALL, eta=0.1),
        resume=True,
        pace=Clock().pace(),
    )
    for key, value in whole.items():
        np.testing.assert_array_equal(resumed.arrays[key], value)


@pytest.mark.parametrize("rule", ["records", "noise-aware", "uniform"])
def test_a_run_weighs_by_its_rule(tmp_path: Path, rule: str) -> None:
    """The mean uses the weighting that the run names, of no site more than twice the median."""
    config = tiny_config(strategy={"weighting": rule, "robust": "none"})
    sites, weights = three_sites(), []

    def stated(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
        if header.kind == "train":
            header = header.model_copy(update={"sample_rate": 0.1, "steps": 2})
            weights.append(weight_of(rule, header))
        return header, arrays

    for site in sites.values():
        site.edit = stated
    pace = Clock().pace()
    found = drive(grid_of(sites), config, home_at(tmp_path), run_id="own-1", pace=pace).arrays
    mean = np.average([0.1, -0.2, 0.3], weights=bounded(weights[:3]))
    assert shifted(found, config) == pytest.approx(2 * float(mean), abs=1e-5)


def _status(path: Path) -> str:
    with Registry(home_at(path).registry) as registry:
        run = registry.run("own-1")
    assert run is not None
    return run.status
