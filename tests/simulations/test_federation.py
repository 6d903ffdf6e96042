"""A federation in one process: what leaves, what it costs, and that seeds decide everything."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from fedlatent.client.approvals import Approvals
from fedlatent.client.home import ClientHome
from fedlatent.client.ledger import Ledger
from fedlatent.server.driver import drive
from fedlatent.server.exchange import Pace
from fedlatent.server.home import ServerHome
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import QuorumLost
from fedlatent.shared.models import build_model
from fedlatent.shared.privacy.accounting import GaussianEvent, epsilon_of
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import HISTOGRAMS_KEY, MOMENTS_KEY
from fedlatent.shared.records import read_reply, reply_of
from fedlatent.shared.wire import UNSIGNED
from fedlatent.simulations.federation import datasets, handler, make_node, open_policy, simulate
from fedlatent.simulations.grid import Handler, InProcessGrid, by_handlers
from fedlatent.simulations.study.evaluation import global_detector, rate, site_detector
from tests.simulations.support import simulated_ledger, tiny_federation, tiny_run


def encoder_keys(run: RunConfig) -> set[str]:
    """The state-dict names that may leave in training."""
    model = build_model(run)
    return {key for key in model.state_dict() if key.startswith("encoder.")}


def test_two_runs_with_one_seed_agree(tmp_path: Path) -> None:
    """Equal seeds give equal encoders, densities and thresholds; another seed gives others."""
    federation = tiny_federation()
    run = tiny_run(federation)
    first = simulate(run, datasets(federation), tmp_path / "a").result
    second = simulate(run, datasets(federation), tmp_path / "b").result
    other = simulate(tiny_run(federation, seed=4), datasets(federation), tmp_path / "c").result
    for key, value in first.arrays.items():
        assert np.array_equal(value, second.arrays[key])
    assert np.array_equal(first.released.density.within, second.released.density.within)
    assert first.released.thresholds == second.released.thresholds
    assert any(not np.array_equal(first.arrays[k], other.arrays[k]) for k in first.arrays)


def test_captured_traffic_holds_encoder_keys_and_permitted_records_only(tmp_path: Path) -> None:
    """Every reply of a whole run is the header, one metric, and exactly the arrays of its kind."""
    federation = tiny_federation()
    run = tiny_run(federation, summaries={"moments": "full"})
    captured: list[RecordDict] = []

    def tapped(inner: Handler) -> Handler:
        def answer(message: Message) -> Message:
            reply = inner(message)
            captured.append(reply.content)
            return reply

        return answer

    handlers = {
        100 + i: tapped(
            handler(make_node(name, data, run, ClientHome(tmp_path / name), open_policy(run)))
        )
        for i, (name, data) in enumerate(datasets(federation).items())
    }
    home = ServerHome(tmp_path / "server")
    home.create()
    drive(
        InProcessGrid(handlers, by_handlers(handlers)),
        run,
        home,
        run_id="tapped",
        pace=Pace(poll_s=0.01),
    )
    allowed = {
        "train": encoder_keys(run),
        "moments": {MOMENTS_KEY},
        "threshold": {HISTOGRAMS_KEY},
    }
    assert len(captured) == 3 * 4
    for content in captured:
        assert set(content) == {"header", "arrays"}
        assert read_reply(content)[0] == UNSIGNED
        header, arrays = reply_of(content)
        assert set(arrays) == allowed[header.kind]
        assert header.status == "ok"


def test_each_client_pays_the_whole_run_and_no_more(tmp_path: Path) -> None:
    """The ledger's epsilon equals the composition of its own recorded entries and the plan's."""
    federation = tiny_federation()
    run = tiny_run(federation)
    simulation = simulate(run, datasets(federation), tmp_path)
    plan = PrivacyPlan.from_config(run)
    for home in simulation.homes.values():
        ledger = simulated_ledger(home, run.privacy.epsilon, run.privacy.delta)
        events = [
            GaussianEvent(
                noise_multiplier=entry.noise_multiplier,
                sample_rate=entry.sample_rate,
                steps=entry.steps,
            )
            for entry in ledger.entries()
        ]
        assert ledger.epsilon() == pytest.approx(epsilon_of(events, run.privacy.delta), abs=1e-9)
        assert ledger.epsilon() == pytest.approx(plan.epsilon(), abs=1e-6)
        assert ledger.epsilon() <= run.privacy.epsilon


def test_a_second_run_that_does_not_fit_the_budget_is_refused_before_training(
    tmp_path: Path,
) -> None:
    """When all nodes have spent their epsilon, a new run ends without a release."""
    federation = tiny_federation()
    run = tiny_run(federation)
    first = simulate(run, datasets(federation), tmp_path)
    before = {name: home.release_journal.read_text() for name, home in first.homes.items()}
    with pytest.raises(QuorumLost, match="budget"):
        simulate(run, datasets(federation), tmp_path, run_id="again")
    for name, home in first.homes.items():
        new = home.release_journal.read_text().removeprefix(before[name]).splitlines()
        told = [(line["status"], line["code"]) for line in map(json.loads, new)]
        assert set(told) == {("refused", "budget")}


def test_a_lost_node_does_not_stop_the_others(tmp_path: Path) -> None:
    """With one of three nodes offline the quorum of two finishes the run without it."""
    federation = tiny_federation()
    run = tiny_run(federation, federation={"nodes": 2, "quorum": 2})
    nodes = {
        name: make_node(name, data, run, ClientHome(tmp_path / name), open_policy(run))
        for name, data in datasets(federation).items()
    }
    handlers = {100 + i: handler(node) for i, node in enumerate(nodes.values())}
    grid = InProcessGrid(handlers, by_handlers(handlers))
    grid.online.remove(101)
    home = ServerHome(tmp_path / "server")
    home.create()
    result = drive(grid, run, home, run_id="lost", pace=Pace(poll_s=0.01))
    sites = result.facts["sites"]
    assert isinstance(sites, dict)
    assert len(sites) == 2


def test_detectors_from_a_run_beat_chance(tmp_path: Path) -> None:
    """Site and re-centred global detectors of a tiny non-private run find most ectopic beats."""
    federation = tiny_federation()
    run = tiny_run(
        federation,
        privacy={"mechanism": "none", "sample_rate": 0.5},
        training={"rounds": 4, "steps_per_round": 25, "learning_rate": 5e-3},
    )
    simulation = simulate(run, datasets(federation), tmp_path)
    seen = [(s, site_detector(simulation.material(s.name), s)) for s in federation.sites]
    new = [(site, global_detector(simulation.result, site.train[:10])) for site in federation.sites]
    assert rate(seen).site_mean > 0.9
    assert rate(new).site_mean > 0.8


def test_a_run_waits_for_every_site_and_goes_on_when_approved(tmp_path: Path) -> None:
    """The server is told that sites wait for a person; resumed after that, the run completes."""
    federation = tiny_federation()
    run, sites = tiny_run(federation), datasets(federation)
    policy = open_policy(run).model_copy(update={"approval": "each-run"})
    with pytest.raises(QuorumLost, match="policy"):
        simulate(run, sites, tmp_path, policy=policy)
    for site in sites:
        home = ClientHome(tmp_path / "nodes" / site)
        assert Ledger(home.ledger, "records", 4.0, 1e-5).entries() == []
        Approvals(home.approvals).decide("simulated", "approved")
    done = simulate(run, sites, tmp_path, policy=policy, resume=True)
    assert len(done.history) == 4
