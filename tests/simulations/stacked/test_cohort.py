"""Whole runs by the stacked engine: what real nodes give, pay and keep."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.compute import run_model
from fedlatent.client.home import ClientHome
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.errors import ConfigError, QuorumLost
from fedlatent.shared.models import encoder_state
from fedlatent.shared.records import reply_of, to_records
from fedlatent.shared.wire import PROTOCOL, RequestHeader
from fedlatent.simulations.availability import Availability
from fedlatent.simulations.federation import (
    OPEN_CAPS,
    Engine,
    Progress,
    Simulation,
    datasets,
    handler,
    make_node,
    open_policy,
    simulate,
)
from fedlatent.simulations.grid import Answers, InProcessGrid, by_handlers
from fedlatent.simulations.stacked import engine as stacked_engine
from fedlatent.simulations.stacked.cohort import Cohort
from tests.simulations.support import simulated_ledger, tiny_federation, tiny_run

FEDERATION = tiny_federation(5)
ENGINES: tuple[Engine, Engine] = ("nodes", "stacked")
UNRELIABLE = Availability(dropout=0.3, late=0.2)


def sites() -> dict[str, Dataset]:
    """Five sites of unequal size, one with a single record."""
    sizes = (70, 40, 11, 1, 60)
    return {
        name: data.select(np.arange(len(data)) < size)
        for (name, data), size in zip(datasets(FEDERATION).items(), sizes, strict=True)
    }


def run_of(**changes: object) -> RunConfig:
    """Three rounds on the five sites."""
    training = {"rounds": 3, "steps_per_round": 4}
    federation = {"nodes": 5, "quorum": 1}
    return tiny_run(FEDERATION, **{"training": training, "federation": federation, **changes})


def assert_equal(one: Simulation, other: Simulation) -> None:
    """Shared arrays, density, thresholds and every site's own material agree."""
    assert one.result.arrays.keys() == other.result.arrays.keys()
    for key, value in one.result.arrays.items():
        np.testing.assert_allclose(other.result.arrays[key], value, rtol=1e-4, atol=1e-6)
    for key, value in one.result.released.density.arrays().items():
        np.testing.assert_allclose(
            other.result.released.density.arrays()[key], value, rtol=1e-4, atol=1e-6
        )
    assert other.result.released.thresholds == pytest.approx(
        one.result.released.thresholds, rel=1e-4
    )
    assert one.result.facts["sites"] == other.result.facts["sites"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"privacy": {"mechanism": "none", "rng": "simulation", "sample_rate": 0.4}},
        {"sharing": "full"},
        {"model": {"options": {"network": "conv1d", "hidden": [4, 4], "latent_dim": 3}}},
        {
            "training": {
                "rounds": 3,
                "steps_per_round": 4,
                "optimizer": "sgd",
                "learning_rate": 0.05,
                "momentum": 0.7,
                "multiplicity": 2,
            }
        },
        {"sharing": "summary", "summaries": {"components": 2, "em_rounds": 2}},
        {
            "sharing": "encoder+summary",
            "summaries": {"prior": "mixture", "components": 2, "em_rounds": 1, "every": 1},
        },
        {
            "sharing": "encoder+summary",
            "summaries": {"prior": "gaussian", "every": 2, "moments": "full"},
        },
        {"summaries": {"data": "scaling"}},
        {
            "summaries": {"data": "gaussian", "features": 12},
            "training": {
                "rounds": 3,
                "steps_per_round": 4,
                "warm_start_steps": 5,
                "ema": 0.5,
                "schedule": "cosine",
            },
        },
        {
            "strategy": {"name": "mr-mtl", "proximal": 20.0},
            "training": {"rounds": 3, "steps_per_round": 4, "ema": 0.3},
        },
        {
            "strategy": {
                "name": "fedprox",
                "proximal": 5.0,
                "weighting": "noise-aware",
                "server_optimizer": "adam",
                "server_learning_rate": 0.01,
                "robust": "centred-clipping",
            }
        },
        {
            "sharing": "full",
            "strategy": {
                "server_optimizer": "momentum",
                "weighting": "uniform",
                "robust": "trimmed-mean",
            },
            "scoring": {"per_client": True},
        },
        {
            "sharing": "full",
            "scoring": {"combined": True},
            "summaries": {"data": "gaussian", "features": 6},
        },
    ],
    ids=[
        "private",
        "not private",
        "full",
        "conv",
        "momentum and draws",
        "summaries alone",
        "summaries in training, mixture prior",
        "gaussian prior, full moments",
        "scaling",
        "warm start, average, cosine",
        "mr-mtl, average",
        "fedprox, noise-aware, server adam, clipping",
        "full, trimmed mean, momentum of the server, thresholds of clients",
        "combined score",
    ],
)
def test_stacked_run_equals_real_nodes(tmp_path: Path, changes: dict[str, object]) -> None:
    """Encoder, density, thresholds, epsilons and decoders are those of nodes with their ledgers."""
    run = run_of(**changes)
    one, other = (simulate(run, sites(), tmp_path / e, engine=e) for e in ENGINES)
    assert_equal(one, other)
    for site in one.homes:
        expected, got = one.material(site), other.material(site)
        assert (got.epsilon is None) == (expected.epsilon is None)
        assert got.epsilon or pytest.approx(expected.epsilon or 0.0, rel=1e-9) == 0.0
        assert (got.records, got.delta) == (expected.records, expected.delta)
        np.testing.assert_allclose(got.center, expected.center, rtol=1e-4, atol=1e-6)
        for key, value in {**expected.encoder, **expected.decoder}.items():
            found = {**got.encoder, **got.decoder}[key]
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)


def test_unreliable_clients_are_the_same_in_both_engines(tmp_path: Path) -> None:
    """Away and late clients change the result alike, and each pays for what it has done."""
    run = run_of()
    one, other = (
        simulate(run, sites(), tmp_path / e, engine=e, availability=UNRELIABLE) for e in ENGINES
    )
    assert_equal(one, other)
    seen = [(facts.good, facts.late, facts.away) for facts in one.history]
    assert seen == [(facts.good, facts.late, facts.away) for facts in other.history]
    assert sum(late for _, late, _ in seen) > 0
    assert sum(away for _, _, away in seen) > 0
    for site, home in one.homes.items():
        spent = simulated_ledger(home, run.privacy.epsilon, run.privacy.delta)
        paid = {entry.round for entry in spent.entries()}
        present = {
            number
            for number in range(1, 6)
            if UNRELIABLE.presence(run.seed, site, number) != "away"
        }
        assert paid <= present
        assert present - paid <= {5}  # no threshold without moments


def test_chunks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one client, of some and of all give the same run."""
    run = run_of()
    whole = simulate(run, sites(), tmp_path / "all", engine="stacked")
    for memory in (1, 30_000):
        monkeypatch.setattr(stacked_engine, "CPU_MEMORY", memory)
        part = simulate(run, sites(), tmp_path / str(memory), engine="stacked")
        assert_equal(whole, part)


def test_records_are_looked_up_chunk_by_chunk_and_not_kept(tmp_path: Path) -> None:
    """A mapping that makes records when asked is never asked for all of them at once."""
    real = sites()

    class Lazy(Mapping[str, Dataset]):
        def __getitem__(self, name: str) -> Dataset:
            return real[name].select(np.arange(len(real[name])))

        def __iter__(self) -> Iterator[str]:
            return iter(real)

        def __len__(self) -> int:
            return len(real)

    lazy = simulate(run_of(), Lazy(), tmp_path / "lazy", engine="stacked")
    assert_equal(simulate(run_of(), real, tmp_path / "real", engine="stacked"), lazy)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("after", [3, 7, 12, 18])
def test_a_run_cut_off_anywhere_resumes_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine, after: int
) -> None:
    """Cut off after some answers, in any phase, the resumed run gives the calm one's bits."""
    run = run_of()
    calm = simulate(run, sites(), tmp_path / "calm", engine=engine, availability=UNRELIABLE)

    def cut(progress: Progress) -> None:
        if (progress.phase - 1) * 5 + progress.answered >= after:
            raise Killed

    options = {"engine": engine, "availability": UNRELIABLE}
    monkeypatch.setattr("fedlatent.simulations.federation._WATCH_S", -1.0)
    with pytest.raises(Killed):
        simulate(run, sites(), tmp_path / "cut", watch=cut, **options)  # type: ignore[arg-type]
    again = simulate(run, sites(), tmp_path / "cut", resume=True, **options)  # type: ignore[arg-type]
    for key, value in calm.result.arrays.items():
        assert np.array_equal(again.result.arrays[key], value)
    assert again.result.released.thresholds == calm.result.released.thresholds
    assert again.result.facts["sites"] == calm.result.facts["sites"]
    for before, now in zip(calm.history, again.history, strict=True):
        assert (before.number, before.good, before.loss) == (now.number, now.good, now.loss)


def test_progress_and_facts_tell_what_happened(tmp_path: Path) -> None:
    """Every phase ends in a report; losses fall in training; bytes are those of the arrays."""
    reports: list[Progress] = []
    encoders: dict[int, Arrays] = {}
    simulation = simulate(
        run_of(
            privacy={"mechanism": "none", "rng": "simulation", "sample_rate": 0.5},
            training={"rounds": 3, "steps_per_round": 20, "learning_rate": 1e-2},
        ),
        sites(),
        tmp_path,
        engine="stacked",
        watch=reports.append,
        after_round=encoders.__setitem__,
    )
    last = {report.phase: report for report in reports}
    assert [(p.kind, p.asked, p.answered, p.phases) for p in last.values()] == [
        (kind, 5, 5, 5) for kind in ("train", "train", "train", "moments", "threshold")
    ]
    losses = [facts.loss for facts in simulation.history]
    assert losses[3:] == [None, None]
    assert losses[0] is not None
    assert losses[2] is not None
    assert losses[2] < losses[0]
    size = sum(value.nbytes for value in simulation.result.arrays.values())
    assert [facts.bytes_up for facts in simulation.history[:3]] == [5 * size] * 3
    assert [facts.bytes_down for facts in simulation.history[:3]] == [5 * size] * 3
    assert sorted(encoders) == [1, 2, 3]
    for key, value in simulation.result.arrays.items():
        assert np.array_equal(encoders[3][key], value)


def test_an_error_of_the_caller_ends_the_run_and_can_be_mended(tmp_path: Path) -> None:
    """What ``after_round`` raises reaches the caller as it is; the run then goes on."""

    def broken(number: int, arrays: Arrays) -> None:
        raise ZeroDivisionError(f"round {number} of {len(arrays)} arrays")

    with pytest.raises(ZeroDivisionError, match="round 1"):
        simulate(run_of(), sites(), tmp_path / "a", engine="stacked", after_round=broken)
    mended = simulate(run_of(), sites(), tmp_path / "a", engine="stacked", resume=True)
    calm = simulate(run_of(), sites(), tmp_path / "b", engine="stacked")
    for key, value in calm.result.arrays.items():
        assert np.array_equal(mended.result.arrays[key], value)


def test_epsilon_in_the_facts_is_the_plans(tmp_path: Path) -> None:
    """The highest epsilon grows from phase to phase up to the run's, and never beyond."""
    run = run_of()
    simulation = simulate(run, sites(), tmp_path, engine="stacked")
    spent = [facts.epsilon or 0.0 for facts in simulation.history]
    assert spent == sorted(spent)
    assert 0.9 * run.privacy.epsilon < spent[-1] <= run.privacy.epsilon


@pytest.mark.parametrize(
    "limits",
    [
        {"max_epsilon": 0.5},
        {"caps": OPEN_CAPS.model_copy(update={"smallest_sigma": 1e3})},
        {"caps": OPEN_CAPS.model_copy(update={"smallest_batch": 1e3})},
        {"caps": OPEN_CAPS.model_copy(update={"largest_weight": 1e-3})},
    ],
    ids=["epsilon", "sigma", "batch", "weight"],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_all_refusing_loses_the_quorum(
    tmp_path: Path, engine: Engine, limits: dict[str, object]
) -> None:
    """A policy that forbids the run at every client ends it, naming the reason."""
    run = run_of()
    policy = open_policy(run).model_copy(update=limits)
    with pytest.raises(QuorumLost, match="policy"):
        simulate(run, sites(), tmp_path, policy=policy, engine=engine)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"options": {"depth": 3}}}, "depth"),
        ({"privacy": {"epsilon": 4.0, "rng": "secure"}}, "simulation"),
    ],
)
def test_what_cannot_be_stacked_is_said_first(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    """An unknown option, or noise without a seed, is named before anything runs."""
    with pytest.raises(ConfigError, match=words):
        simulate(run_of(**changes), sites(), tmp_path, engine="stacked")
    assert not (tmp_path / "server").exists()


def test_nobody_is_asked_for_approval_where_nobody_is(tmp_path: Path) -> None:
    """A policy that wants a person is named before anything runs."""
    policy = open_policy(run_of()).model_copy(update={"approval": "each-run"})
    with pytest.raises(ConfigError, match="approval"):
        simulate(run_of(), sites(), tmp_path, policy=policy, engine="stacked")


@pytest.mark.parametrize("values", [(-0.1, 0.0), (0.5, 0.5), (0.0, 1.0)])
def test_impossible_availability_is_refused(values: tuple[float, float]) -> None:
    """Probabilities out of range, or that leave nobody, are named."""
    with pytest.raises(ConfigError, match="dropout"):
        Availability(dropout=values[0], late=values[1])


def answers_to(run: RunConfig, folder: Path, engine: Engine) -> dict[str, Arrays]:
    """What each client answers when the first weights are sent twice, by site and round."""
    caps = OPEN_CAPS.model_copy(update={"largest_learning_rate": 1e39})
    policy = open_policy(run).model_copy(update={"caps": caps})
    names = dict(enumerate(sites()))
    if engine == "stacked":
        present = Availability()
        answers: Answers = Cohort(
            run, "diverged", sites(), names, folder, policy=policy, availability=present
        ).answers
    else:
        nodes = (make_node(n, d, run, ClientHome(folder / n), policy) for n, d in sites().items())
        answers = by_handlers(dict(enumerate(map(handler, nodes))))
    grid, found = InProcessGrid(names, answers), {}
    for round in (1, 2):
        header = RequestHeader(
            protocol=PROTOCOL,
            run_id="diverged",
            round=round,
            kind="train",
            config=run,
            deadline_s=60.0,
        )
        weights = {key: value.numpy() for key, value in encoder_state(run_model(run)).items()}
        content = to_records(header, weights)
        messages = [grid.create_message(content, "train", number, "") for number in names]
        for site, reply in zip(sites(), grid.send_and_receive(messages), strict=True):
            told, arrays = reply_of(reply.content)
            assert told.status == "ok", told.text
            found[f"{site}, round {round}"] = arrays
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_diverged_clients_are_the_same_in_both_engines(tmp_path: Path, optimizer: str) -> None:
    """Where the noise alone leaves the range of numbers, both release and keep clamped ones."""
    run = run_of(
        training={
            "rounds": 3,
            "steps_per_round": 12,
            "optimizer": optimizer,
            "momentum": 0.5,
            "learning_rate": 3e38 if optimizer == "sgd" else 3e37,
        },
        privacy={"rng": "simulation", "epsilon": 4.0, "clip": 100.0},
    )
    one, other = (answers_to(run, tmp_path / engine, engine) for engine in ENGINES)
    assert one.keys() == other.keys()
    most = np.finfo(np.float32).max
    for place, arrays in one.items():
        for key, value in arrays.items():
            assert np.isfinite(value).all()
            got, wanted = other[place][key] / most, value / most
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6, err_msg=place)
    assert max(np.abs(v).max() for arrays in one.values() for v in arrays.values()) == most


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_takes_no_diverged_update(tmp_path: Path, engine: Engine) -> None:
    """Clamped weights are numbers, and far too large an update: the server's screening says so."""
    run = run_of(
        training={"rounds": 1, "steps_per_round": 3, "learning_rate": 1e6},
        privacy={"rng": "simulation", "epsilon": 4.0, "clip": 100.0},
    )
    with pytest.raises(QuorumLost, match="norm"):
        simulate(run, sites(), tmp_path, engine=engine)
