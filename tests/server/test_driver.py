"""Whole runs over an in-process grid: what counts, who is named, how a run stops and goes on."""

import json
import logging
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from typer.testing import CliRunner

from fedlatent.cli.main import app
from fedlatent.server.driver import drive, new_run_id
from fedlatent.server.exchange import LAST_LOOK_S
from fedlatent.server.home import ServerHome
from fedlatent.server.outcome import SiteOutcome
from fedlatent.server.quota import ReplyQuota
from fedlatent.server.registry import Registry, SiteRound
from fedlatent.server.results import RunFolder
from fedlatent.server.strikes import STRIKES, Strikes
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.errors import ConfigError, DataError, QuorumLost, ServiceError
from fedlatent.shared.models import build, encoder_state
from fedlatent.shared.privacy.summaries import HISTOGRAMS_KEY
from fedlatent.shared.schedule import Phase
from fedlatent.shared.wire import PROTOCOL, ReplyHeader
from fedlatent.simulations.grid import InProcessGrid
from tests.server.federation import (
    LATENT,
    Clock,
    SilentGrid,
    Site,
    grid_of,
    home_at,
    refuse,
    three_sites,
    tiny_config,
)
from tests.server.link import Announced, LinkGrid

RUN = "tiny-1"

Edit = Callable[[ReplyHeader, Arrays], tuple[ReplyHeader, Arrays]]


def outcomes(home: ServerHome, number: int) -> dict[str, SiteRound]:
    """What each site did in one phase."""
    with Registry(home.registry) as registry:
        return {row.site: row for row in registry.site_rounds(RUN, number)}


def status_of(home: ServerHome) -> tuple[str, str]:
    """Status and sentence of the run."""
    with Registry(home.registry) as registry:
        run = registry.run(RUN)
    assert run is not None
    return run.status, run.sentence


def test_run_gives_the_weighted_average_and_the_summaries(tmp_path: Path) -> None:
    """After R rounds each value has moved by R times the weighted mean of the sites' shifts."""
    config, home = tiny_config(), home_at(tmp_path)
    counts = {"node-11": 100, "node-12": 200, "node-13": 700}
    result = drive(
        grid_of(three_sites()),
        config,
        home,
        run_id=RUN,
        counts=lambda: counts,
        pace=Clock().pace(),
    )
    model = build("gaussian", config.model.options, config.data.shape, config.seed)
    shift = 2 * (100 * 0.1 - 200 * 0.2 + 700 * 0.3) / 1000
    assert result.arrays.keys() == encoder_state(model).keys()
    for key, first in encoder_state(model).items():
        np.testing.assert_allclose(result.arrays[key], first.numpy() + shift, rtol=1e-5)
        assert result.arrays[key].dtype == np.float32
    assert 600 < result.released.density.count <= 100 + 200 + 2 * 200  # none above twice the median
    assert np.abs(result.released.density.mean).max() < 0.5
    assert result.released.thresholds["absolute"] > 0
    assert status_of(home) == ("complete", "")


def test_a_site_whose_count_nobody_fixed_weighs_twice_the_median_at_most(tmp_path: Path) -> None:
    """Of 100, 200 and 700 records by the sites' own words, the largest counts as 400."""
    config = tiny_config()
    result = drive(grid_of(three_sites()), config, home_at(tmp_path), run_id=RUN)
    model = build("gaussian", config.model.options, config.data.shape, config.seed)
    shift = 2 * (100 * 0.1 - 200 * 0.2 + 400 * 0.3) / 700
    for key, first in encoder_state(model).items():
        np.testing.assert_allclose(result.arrays[key], first.numpy() + shift, rtol=1e-5)


def claims(*counts: int) -> Callable[[ReplyHeader, Arrays], tuple[ReplyHeader, Arrays]]:
    """An ``edit`` that states these numbers of records, one a reply, the last for ever."""
    left = list(counts)

    def edit(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
        count = left.pop(0) if len(left) > 1 else left[0]
        return header.model_copy(update={"records": count}), arrays

    return edit


def test_a_site_repeats_the_count_that_it_stated_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A later claim of more records is dropped with what to do, also once the run is resumed."""
    sites, home = three_sites(), home_at(tmp_path)
    sites[11].edit = claims(100, 100_000)
    sites[12].edit = sites[13].edit = refuse("busy", "not now")
    single = tiny_config(federation={"quorum": 1, "nodes": 3, "join_timeout_s": 5})
    with pytest.raises(QuorumLost):
        drive(grid_of(sites), single, home, run_id=RUN, pace=Clock().pace())
    assert outcomes(home, 1)["node-11"].records == 100
    row = outcomes(home, 2)["node-11"]
    assert (row.status, row.code) == ("failed", "records")
    assert "Expected the 100 records that the site stated first in this run" in row.sentence
    assert "admit node-11 KEY --records N" in row.sentence
    sites[11].edit = claims(99)
    with pytest.raises(QuorumLost):
        drive(grid_of(sites), single, home, run_id=RUN, resume=True, pace=Clock().pace())
    assert "Expected the 100 records that the site stated first in this run, got 99" in caplog.text


def test_an_admitted_count_is_the_only_one_that_counts(tmp_path: Path) -> None:
    """A site admitted with 100 records that claims a million is dropped; readmitted, it counts."""
    sites, home, counts = three_sites(), home_at(tmp_path), {"node-11": 100}
    sites[11].edit = claims(1_000_000)

    def admitted() -> dict[str, int]:
        if sites[11].requests:  # the operator admits it again after the first phase
            counts["node-11"] = 1_000_000
        return dict(counts)

    drive(grid_of(sites), tiny_config(), home, run_id=RUN, counts=admitted)
    row = outcomes(home, 1)["node-11"]
    assert (row.status, row.code) == ("failed", "records")
    assert "Expected the 100 records that the operator admitted the site with" in row.sentence
    assert outcomes(home, 2)["node-11"].status == "ok"


def test_a_scaled_update_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A hundredfold update counts three median norms; log (once) and registry say so, no strike."""
    sites, home, config = three_sites(), home_at(tmp_path), tiny_config()
    sites[13].shift = 20.0
    with caplog.at_level(logging.INFO, "fedlatent"):
        result = drive(grid_of(sites), config, home, run_id=RUN)
    row = outcomes(home, 1)["node-13"]
    assert (row.status, row.code) == ("ok", "scaled")
    assert "scaled down to" in row.sentence
    assert caplog.text.count("scaled down to") == 1
    assert not Strikes(home.run(RUN)).left_out()
    model = build("gaussian", config.model.options, config.data.shape, config.seed)
    shift = 2 * (100 * 0.1 - 200 * 0.2 + 400 * 0.6) / 700
    for key, first in encoder_state(model).items():
        np.testing.assert_allclose(result.arrays[key], first.numpy() + shift, rtol=1e-4)


def test_an_update_that_was_not_chosen_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The rule leaves an unusual site out of each round; log (once), registry and status say so."""
    sites, home = hostile_sites(lambda header, arrays: (header, arrays)), home_at(tmp_path)
    sites[14].shift = -0.1
    config = tiny_config(federation={"quorum": 2, "nodes": 5, "join_timeout_s": 5})
    with caplog.at_level(logging.INFO, "fedlatent"):
        drive(grid_of(sites), config, home, run_id=RUN)
    for number in (1, 2):
        row = outcomes(home, number)["node-14"]
        assert (row.status, row.code) == ("ok", "not-chosen")
    assert caplog.text.count("it did not count in this round") == 1
    shown = CliRunner().invoke(app, ["server", "status", RUN, "--home", str(home.root)]).output
    assert "node-14, 2 of 4 phases: update further from the others'" in " ".join(shown.split())


def test_too_few_sites_for_a_rule_pause_the_run(tmp_path: Path) -> None:
    """Krum against one hostile site asks nobody before five are there."""
    sites, home = three_sites(), home_at(tmp_path)
    config = tiny_config(
        strategy={"robust": "krum", "hostile": 1},
        federation={"quorum": 2, "nodes": 5, "join_timeout_s": 5},
    )
    with pytest.raises(QuorumLost, match="Expected 5 nodes for phase 1"):
        drive(grid_of(sites), config, home, run_id=RUN, pace=Clock().pace())
    assert not sites[11].requests


def test_a_site_that_is_left_out_cannot_pause_the_run_by_going_away(tmp_path: Path) -> None:
    """It is one of the hostile sites that the rule is to withstand, online or not."""
    sites, home = hostile_sites(nan), home_at(tmp_path)
    home.run(RUN).mkdir()
    strikes, bad = (
        Strikes(home.run(RUN)),
        SiteOutcome(site="node-14", node_id=14, status="failed", code="finite"),
    )
    for _ in range(STRIKES):
        strikes.note(bad, Phase(number=1, kind="train", trained=0))
    config = tiny_config(
        strategy={"robust": "krum", "hostile": 1},
        federation={"quorum": 2, "nodes": 5, "join_timeout_s": 5},
    )
    del sites[14]
    drive(grid_of(sites), config, home, run_id=RUN, pace=Clock().pace())
    assert status_of(home) == ("complete", "")


def test_result_folder_tells_all(tmp_path: Path) -> None:
    """The result names config, plan, sites and hashes, is loaded with checks, and is registered."""
    config, home = tiny_config(), home_at(tmp_path)
    result = drive(grid_of(three_sites()), config, home, run_id=RUN, pace=Clock().pace())
    again = RunFolder.load(home.run(RUN) / "result")
    assert again.facts == result.facts
    facts = again.facts
    assert again.config == config
    assert facts["digest"] == config.digest()
    assert facts["plan"]["epsilon"] <= 8.0  # type: ignore[index]
    assert facts["sites"]["node-13"] == {  # type: ignore[index]
        "node_id": "13",
        "records": 700,
        "epsilon": 2.0,
        "delta": 1e-5,
        "phases": 4,
    }
    with Registry(home.registry) as registry:
        digests = {row.name: row.sha256 for row in registry.artefacts(RUN)}
    assert digests["model"] == facts["model"]["sha256"]  # type: ignore[index]
    path = home.run(RUN) / "result" / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(DataError, match="fit its hash"):
        RunFolder.load(home.run(RUN) / "result")


def test_full_sharing_averages_all_but_sends_summaries_the_encoder(tmp_path: Path) -> None:
    """A run that shares everything averages the decoder too; summary phases get the encoder."""
    sites = three_sites()
    seen: list[set[str]] = []

    def edit(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
        seen.append({key.split(".")[0] for key in arrays})
        return header, arrays

    sites[11].edit = edit
    result = drive(grid_of(sites), tiny_config(sharing="full"), home_at(tmp_path), run_id=RUN)
    assert {key.split(".")[0] for key in result.arrays} == {"encoder", "decoder"}
    assert seen[0] == {"encoder", "decoder"}
    assert (result.folder / "model.safetensors").exists()


def test_run_without_privacy_has_no_epsilon(tmp_path: Path) -> None:
    """Mechanism "none" runs through, and its result states no epsilon."""
    config = tiny_config(privacy={"mechanism": "none", "rng": "simulation"})
    result = drive(grid_of(three_sites()), config, home_at(tmp_path), run_id=RUN)
    assert result.facts["plan"]["epsilon"] is None  # type: ignore[index]


def test_refusal_is_recorded_in_the_nodes_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that refuses is named in log and registry, and the others go on without it."""
    sites, home = three_sites(), home_at(tmp_path)
    sites[12].edit = refuse("budget", "Expected epsilon of at most 4, got 8.")
    with caplog.at_level(logging.WARNING, "fedlatent"):
        result = drive(grid_of(sites), tiny_config(), home, run_id=RUN)
    row = outcomes(home, 1)["node-12"]
    assert (row.status, row.code) == ("refused", "budget")
    assert row.sentence == "Expected epsilon of at most 4, got 8."
    assert "node node-12 refused (budget): Expected epsilon" in caplog.text
    assert result.facts["rounds"][0]["absent"] == ["node-12"]  # type: ignore[index]
    assert "node-12" not in result.facts["sites"]  # type: ignore[operator]


def test_other_protocol_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A node of another version is named with both versions."""
    sites, home = three_sites(), home_at(tmp_path)
    sites[11].resign = lambda d, payload: (d.model_copy(update={"protocol": 0}), payload)
    with caplog.at_level(logging.WARNING, "fedlatent"):
        drive(grid_of(sites), tiny_config(), home, run_id=RUN)
    sentence = f"the node speaks protocol 0, this server {PROTOCOL}"
    assert f"node node-11 failed (protocol): {sentence}" in caplog.text
    assert outcomes(home, 4)["node-11"].code == "protocol"


def test_bad_update_does_not_move_the_average(tmp_path: Path) -> None:
    """A node that sends NaN, too much or a forged weight leaves the run as if it were absent."""
    edits = (
        lambda h, a: (h, {k: v * np.float32("nan") for k, v in a.items()}),
        lambda h, a: (h, {k: v + np.float32(1e9) for k, v in a.items()}),
        lambda h, a: (h.model_copy(update={"records": 10**9}), a),
    )
    sites = three_sites()
    del sites[12]
    clean = drive(
        grid_of(sites), tiny_config(), home_at(tmp_path / "0"), run_id=RUN, pace=Clock().pace()
    )
    for number, edit in enumerate(edits, start=1):
        sites = three_sites()
        sites[12].edit = edit
        home = home_at(tmp_path / str(number))
        result = drive(grid_of(sites), tiny_config(), home, run_id=RUN)
        for key, value in clean.arrays.items():
            np.testing.assert_array_equal(result.arrays[key], value)


def test_exception_text_of_a_client_is_not_stored(tmp_path: Path) -> None:
    """A client app that raises is a failed node; the text of its error is kept nowhere."""
    sites, home = three_sites(), home_at(tmp_path)

    def edit(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
        raise ValueError("patient 17")

    sites[12].edit = edit
    drive(grid_of(sites), tiny_config(), home, run_id=RUN)
    assert outcomes(home, 1)["node-12"].code == "flower-2"
    assert all("patient 17" not in row.sentence for row in outcomes(home, 1).values())


def test_late_node_is_not_waited_for_past_the_deadline(tmp_path: Path) -> None:
    """A silent node costs each phase its deadline and no more, and is recorded as late."""
    sites, home, clock = three_sites(), home_at(tmp_path), Clock()
    grid = grid_of(sites, SilentGrid)
    grid.online = {11, 13}
    drive(grid, tiny_config(), home, run_id=RUN, pace=clock.pace())
    assert clock.now == pytest.approx(4 * 5)
    row = outcomes(home, 1)["node-12"]
    assert (row.status, row.code, row.seconds) == ("late", "late", pytest.approx(5))


def test_wait_for_nodes_is_bounded_and_pauses_the_run(tmp_path: Path) -> None:
    """Without nodes a run pauses after its join timeout and a second attempt, with a sentence."""
    home, clock = home_at(tmp_path), Clock()
    sites = three_sites()
    with pytest.raises(QuorumLost, match="Expected 2 nodes for phase 1"):
        drive(grid_of({11: sites[11]}), tiny_config(), home, run_id=RUN, pace=clock.pace())
    assert clock.now == pytest.approx(5 + 10 + 5)
    assert status_of(home)[0] == "paused"


def test_node_that_joins_late_takes_part(tmp_path: Path) -> None:
    """The first phase waits for the wanted number of nodes and takes those that come in time."""
    sites, clock = three_sites(), Clock()

    class Joining(InProcessGrid):
        def get_node_ids(self) -> Iterable[int]:
            return [11, 12, 13] if clock.now >= 3 else [11, 12]

    grid = grid_of(sites, Joining)
    result = drive(grid, tiny_config(), home_at(tmp_path), run_id=RUN, pace=clock.pace())
    assert len(result.facts["sites"]) == 3  # type: ignore[arg-type]
    assert clock.now == pytest.approx(3)


def test_lost_quorum_is_retried_once(tmp_path: Path) -> None:
    """A phase that fails once is done again, as attempt 2 of the same row."""
    sites, home = three_sites(), home_at(tmp_path)

    def edit_of(site: Site) -> None:
        def edit(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
            if header.round == 2 and len(site.requests) == 2:
                return refuse("unavailable", "Expected an answer.")(header, arrays)
            return header, arrays

        site.edit = edit

    edit_of(sites[11])
    edit_of(sites[13])
    drive(grid_of(sites), tiny_config(), home, run_id=RUN, pace=Clock().pace())
    with Registry(home.registry) as registry:
        rows = [(row.number, row.attempt, row.status) for row in registry.rounds(RUN)]
    assert rows == [(1, 1, "complete"), (2, 2, "complete"), (3, 1, "complete"), (4, 1, "complete")]
    first, second = (request for request in sites[11].requests if request.round == 2)
    assert first == second


def test_paused_run_goes_on_to_the_same_result(tmp_path: Path) -> None:
    """A run that lost its quorum names who was missing; resumed, it ends as if undisturbed."""
    home = home_at(tmp_path / "paused")
    sites = three_sites()

    def edit(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
        if header.round == 2:
            return refuse("unavailable", "Expected an answer.")(header, arrays)
        return header, arrays

    sites[11].edit = sites[12].edit = edit
    with pytest.raises(QuorumLost, match=r"node-11 refused \(unavailable\): .*; node-12 refused"):
        drive(grid_of(sites), tiny_config(), home, run_id=RUN, pace=Clock().pace())
    assert status_of(home)[0] == "paused"
    sites[11].edit = sites[12].edit = None
    asked = len(sites[13].requests)
    result = drive(
        grid_of(sites), tiny_config(), home, run_id=RUN, resume=True, pace=Clock().pace()
    )
    assert [request.round for request in sites[13].requests[asked:]] == [2, 3, 4]
    calm = drive(grid_of(three_sites()), tiny_config(), home_at(tmp_path / "calm"), run_id=RUN)
    assert result.facts["model"] == calm.facts["model"]
    assert status_of(home) == ("complete", "")


def test_complete_run_can_be_resumed_without_asking_anyone(tmp_path: Path) -> None:
    """Resuming a complete run writes the same result bytes and sends nothing."""
    home, sites = home_at(tmp_path), three_sites()
    first = drive(grid_of(sites), tiny_config(), home, run_id=RUN)
    asked = len(sites[11].requests)
    before = (first.folder / "result.json").read_bytes()
    (first.folder / "result.json").unlink()
    drive(grid_of(sites), tiny_config(), home, run_id=RUN, resume=True)
    assert len(sites[11].requests) == asked
    assert (first.folder / "result.json").read_bytes() == before


def test_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    """Starting a run twice, resuming another configuration and a bad name are refused."""
    home = home_at(tmp_path)
    drive(grid_of(three_sites()), tiny_config(), home, run_id=RUN)
    with pytest.raises(ConfigError, match="Expected a new run"):
        drive(grid_of(three_sites()), tiny_config(), home, run_id=RUN)
    with pytest.raises(ConfigError, match="got another one"):
        drive(grid_of(three_sites()), tiny_config(seed=3), home, run_id=RUN, resume=True)
    with pytest.raises(ConfigError, match="lower-case"):
        drive(grid_of(three_sites()), tiny_config(), home, run_id="../x")
    assert status_of(home)[0] == "complete"


def test_two_drivers_of_one_run_are_refused(tmp_path: Path) -> None:
    """While one process drives a run, a second one is turned away."""
    home, sites = home_at(tmp_path), three_sites()

    def edit(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
        with pytest.raises(ServiceError, match="another process drives"):
            drive(grid_of(three_sites()), tiny_config(), home, run_id=RUN, resume=True)
        return header, arrays

    sites[11].edit = edit
    assert drive(grid_of(sites), tiny_config(), home, run_id=RUN).facts["rounds"]
    assert outcomes(home, 1)["node-11"].status == "ok"


def test_only_admitted_sites_are_asked_and_must_say_their_name(tmp_path: Path) -> None:
    """With a table of sites, strangers are left out and a reply under another name is dropped."""
    sites, home = three_sites(), home_at(tmp_path)
    sites[14] = Site("stranger", 50, 9.0)
    sites[12].name = "south"
    table = {11: "north", 12: "east", 13: "south"}
    result = drive(grid_of(sites), tiny_config(), home, run_id=RUN, sites=lambda: table)
    assert not sites[14].requests
    assert sorted(result.facts["sites"]) == ["north", "south"]  # type: ignore[arg-type, call-overload]
    row = outcomes(home, 1)["east"]
    assert (row.status, row.code) == ("failed", "identity")
    assert "'south'" in row.sentence


def test_unreadable_reply_fails_its_node_alone(tmp_path: Path) -> None:
    """A reply on which the grid itself fails is one failed node; a broken link is an error."""
    home = home_at(tmp_path)

    class Breaking(InProcessGrid):
        error: Exception = KeyError("x")

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            if any(reply.metadata.src_node_id == 12 for reply in replies):
                raise self.error
            return replies

    drive(grid_of(three_sites(), Breaking), tiny_config(), home, run_id=RUN)
    assert outcomes(home, 1)["node-12"].code == "unreadable"
    Breaking.error = ConnectionError()
    other = home_at(tmp_path / "other")
    with pytest.raises(ConnectionError):
        drive(grid_of(three_sites(), Breaking), tiny_config(), other, run_id=RUN)
    assert status_of(other) == ("interrupted", "unexpected ConnectionError")


def test_messages_that_are_not_taken_are_failures(tmp_path: Path) -> None:
    """A grid that takes no message loses the quorum with a reason, without waiting."""
    clock = Clock()

    class Full(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            return []

    with pytest.raises(QuorumLost, match="not-sent"):
        drive(
            grid_of(three_sites(), Full),
            tiny_config(),
            home_at(tmp_path),
            run_id=RUN,
            pace=clock.pace(),
        )
    assert clock.now == 10  # the pause before the second attempt


def test_a_node_cannot_sum_more_records_than_it_declares(tmp_path: Path) -> None:
    """Moments whose public count is not that of the header do not count, and the node is named."""
    sites, home = three_sites(), home_at(tmp_path)
    sites[11].edit = lambda h, a: (h, {k: 2.0 * v for k, v in a.items()} if len(a) == 1 else a)
    drive(grid_of(sites), tiny_config(), home, run_id=RUN)
    found = outcomes(home, 3)
    assert found["node-11"].code == "count"
    assert {found[name].status for name in ("node-12", "node-13")} == {"ok"}


def test_few_replies_are_in_memory_at_once(tmp_path: Path) -> None:
    """Replies are folded as they come: of twenty, at most two exist at the same time."""
    alive: list[weakref.ref[Message]] = []
    peaks: list[int] = []

    class Counting(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            alive.extend(weakref.ref(reply) for reply in replies)
            peaks.append(sum(reference() is not None for reference in alive))
            return replies

    sites = {number: Site(f"site-{number}", 100, 0.1) for number in range(1, 21)}
    drive(grid_of(sites, Counting), tiny_config(), home_at(tmp_path), run_id=RUN)
    assert len(peaks) == 20 * 4
    assert max(peaks) <= 2


def test_stopped_process_leaves_an_interrupted_run(tmp_path: Path) -> None:
    """A driver that is asked to exit leaves its run as interrupted, to be resumed."""
    home = home_at(tmp_path)

    class Leaving(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            raise SystemExit(0)

    with pytest.raises(SystemExit):
        drive(grid_of(three_sites(), Leaving), tiny_config(), home, run_id=RUN)
    assert status_of(home) == ("interrupted", "unexpected SystemExit")


def test_damaged_result_is_said(tmp_path: Path) -> None:
    """A result file that lacks a part is an error in one sentence."""
    home = home_at(tmp_path)
    result = drive(grid_of(three_sites()), tiny_config(), home, run_id=RUN)
    facts = dict(result.facts)
    del facts["density"]
    (result.folder / "result.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="without 'density'"):
        RunFolder.load(result.folder)
    (result.folder / "result.json").write_text("[]")
    with pytest.raises(DataError, match="result of format 2"):
        RunFolder.load(result.folder)


def nan(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
    """An ``edit`` that no honest node makes."""
    return header, {key: value * np.float32("nan") for key, value in arrays.items()}


def test_reply_that_breaks_the_fold_fails_its_node_alone(tmp_path: Path) -> None:
    """A reply on which aggregation itself raises is one failed node, and the run goes on."""
    config = tiny_config(strategy={"weighting": "noise-aware"})
    sites, home = three_sites(), home_at(tmp_path)
    for number in (11, 13):
        sites[number].edit = lambda h, a: (h.model_copy(update={"steps": 2}), a)
    result = drive(grid_of(sites), config, home, run_id=RUN)
    assert outcomes(home, 1)["node-12"].code == "unreadable"
    assert result.facts["rounds"][0]["good"] == 2  # type: ignore[index]


@pytest.mark.parametrize(
    "text", ['{"protocol":' + "9" * 5_000 + "}", "[" * 60_000, '{"protocol": NaN}', "\ud800"]
)
def test_hostile_header_fails_its_node_alone(tmp_path: Path, text: str) -> None:
    """Five thousand digits in a header name their sender and stop nothing."""
    home, grid = home_at(tmp_path), LocalEdit.of(three_sites())
    content = {"header": ConfigRecord({"json": text}), "arrays": ArrayRecord({})}
    grid.contents = {12: RecordDict(content)}
    result = drive(grid, tiny_config(), home, run_id=RUN)
    assert outcomes(home, 1)["node-12"].code == "unreadable"
    assert sorted(result.facts["sites"]) == ["node-11", "node-13"]  # type: ignore[arg-type, call-overload]


class LocalEdit(InProcessGrid):
    """A grid on which some nodes answer with records of the test.

    Attributes:
        contents: by node.
    """

    contents: dict[int, RecordDict]

    @classmethod
    def of(cls, sites: dict[int, Site]) -> "LocalEdit":
        """The grid of ``sites``."""
        grid = grid_of(sites, cls)
        assert isinstance(grid, cls)
        return grid

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies, some with other contents."""
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            reply.content = self.contents.get(reply.metadata.src_node_id, reply.content)
        return replies


def test_node_that_was_not_waited_for_is_not_called_late(tmp_path: Path) -> None:
    """When refusals end a phase at once, a silent node is named as what it is: not awaited."""
    sites, home, clock = three_sites(), home_at(tmp_path), Clock()
    sites[11].edit = sites[12].edit = refuse("budget", "Expected less.")
    grid = grid_of(sites, SilentGrid)
    grid.online = {11, 12}
    with pytest.raises(QuorumLost, match=r"node-13 open \(not-awaited\)") as paused:
        drive(grid, tiny_config(), home, run_id=RUN, pace=clock.pace())
    assert "node-11 refused (budget): Expected less;" in str(paused.value)  # the node's own words
    assert clock.now == 10  # the pause before the second attempt
    assert outcomes(home, 1)["node-13"].status == "open"


def test_replies_that_lie_ready_at_the_deadline_count(tmp_path: Path) -> None:
    """When one look lasts past the deadline, what the others have sent is still taken."""
    clock = Clock()

    class Slow(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            if any(reply.metadata.src_node_id == 11 for reply in replies):
                clock.sleep(6)
            return replies

    home = home_at(tmp_path)
    drive(grid_of(three_sites(), Slow), tiny_config(), home, run_id=RUN, pace=clock.pace())
    for number in (1, 2, 3, 4):
        assert {row.status for row in outcomes(home, number).values()} == {"ok"}


def test_announced_reply_that_never_comes_stops_nothing(tmp_path: Path) -> None:
    """Each phase ends at its deadline with the honest replies; three times, and the site is out."""
    home, clock = home_at(tmp_path), Clock()
    grid = LinkGrid(grid_of(three_sites()))
    quotas: list[ReplyQuota] = []

    def edit(node: int, announced: Announced) -> None:
        if node == 12:
            grid.link.hidden.add(announced.tree.object_id)

    grid.edit = edit
    result = drive(grid, tiny_config(), home, run_id=RUN, pace=clock.pace(), announce=quotas.append)
    for number in (1, 2, 3):
        row = outcomes(home, number)["node-12"]
        assert (row.status, row.code) == ("late", "incomplete")
        assert "objects" in row.sentence
    assert outcomes(home, 4)["node-12"].status == "left out"
    assert [entry["good"] for entry in result.facts["rounds"]] == [2, 2, 2, 2]  # type: ignore[union-attr, attr-defined]
    assert clock.now <= 3 * (5 + LAST_LOOK_S)
    assert len(quotas) == 4
    assert quotas[0].bytes > quotas[3].bytes > 0


def test_deployed_run_equals_that_of_one_process(tmp_path: Path) -> None:
    """Piece by piece, the same replies give the same model."""
    near = drive(grid_of(three_sites()), tiny_config(), home_at(tmp_path / "1"), run_id=RUN)
    grid = LinkGrid(grid_of(three_sites()))
    far = drive(grid, tiny_config(), home_at(tmp_path / "2"), run_id=RUN)
    assert far.facts["model"] == near.facts["model"]
    assert far.facts["thresholds"] == near.facts["thresholds"]


def test_three_strikes_and_the_way_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A site is left out after three bad replies, across a resume, until the operator says so."""
    sites, home = three_sites(), home_at(tmp_path)
    sites[12].edit = nan
    sites[13].edit = lambda h, a: (
        refuse("unavailable", "Expected an answer.")(h, a) if h.round == 2 else (h, a)
    )
    with pytest.raises(QuorumLost, match="got 1 of 3"):
        drive(grid_of(sites), tiny_config(), home, run_id=RUN, pace=Clock().pace())
    strikes = Strikes(home.run(RUN))
    assert list(strikes.left_out()) == ["node-12"]
    asked = len(sites[12].requests)
    with caplog.at_level(logging.WARNING), pytest.raises(QuorumLost) as lost:
        drive(grid_of(sites), tiny_config(), home, run_id=RUN, resume=True, pace=Clock().pace())
    assert len(sites[12].requests) == asked
    assert f"'fedlatent server readmit {RUN} node-12' lets it back" in str(lost.value)
    assert "finite in phase 2 (train)" in str(lost.value)
    row = outcomes(home, 2)["node-12"]
    assert (row.status, row.code) == ("left out", "left-out")
    assert "node node-12 left out (left-out)" in caplog.text
    strikes.readmit("node-12")
    sites[12].edit = sites[13].edit = None
    result = drive(
        grid_of(sites), tiny_config(), home, run_id=RUN, resume=True, pace=Clock().pace()
    )
    assert [entry["good"] for entry in result.facts["rounds"]] == [2, 3, 3, 3]  # type: ignore[union-attr, attr-defined]


def test_run_that_lacks_nodes_names_who_is_left_out(tmp_path: Path) -> None:
    """Two sites of which one is left out cannot make a quorum of two; the sentence says so."""
    sites, home = three_sites(), home_at(tmp_path)
    del sites[11]
    sites[12].edit = nan
    for resume in (False, True):
        with pytest.raises(QuorumLost) as lost:
            drive(
                grid_of(sites),
                tiny_config(),
                home,
                run_id=RUN,
                resume=resume,
                pace=Clock().pace(),
            )
    assert "Expected 2 nodes for phase 1 (train), got 1" in str(lost.value)
    assert "Site node-12 is not asked, since 3 of its replies misbehaved" in str(lost.value)


def test_refusals_and_lateness_are_no_strikes(tmp_path: Path) -> None:
    """A node that refuses under any code, fails in Flower or is late is asked every time."""
    sites, home = three_sites(), home_at(tmp_path)
    sites[12].edit = refuse("norm", "Expected less.")
    sites[14] = Site("late", 10, 0.1)
    grid = grid_of(sites, SilentGrid)
    grid.online = {11, 12, 13}
    drive(grid, tiny_config(), home, run_id=RUN, pace=Clock().pace())
    assert len(sites[12].requests) == 4
    assert outcomes(home, 4)["node-14"].status == "late"
    assert not (home.run(RUN) / "strikes.json").exists()


def test_new_names_fit_the_wire() -> None:
    """A fresh run name is unique and accepted by the message header, whatever the run's name."""
    config = tiny_config(name="a" * 63)
    first, second = new_run_id(config), new_run_id(config)
    assert first != second
    assert len(first) <= 81


def hostile_sites(edit: Edit) -> dict[int, Site]:
    """Five sites of one size, the last of which changes its answers."""
    sites = {10 + i: Site(f"site-{i}", 300 + i, 0.1) for i in range(5)}
    sites[14].edit = edit
    return sites


def false_histogram(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
    """All records in the last bin, and the count of as many as one may claim."""
    if header.kind == "threshold":
        counts = np.zeros_like(arrays[HISTOGRAMS_KEY])
        counts[:, -1] = header.records
        return header, {HISTOGRAMS_KEY: counts}
    return header, arrays


def false_moments(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
    """Latents far and wide; the public count is right."""
    if header.kind == "moments":
        (key,) = arrays
        corner = np.outer(*[np.append(np.zeros(LATENT - 1), [1.0, 1.0])] * 2)
        return header, {key: corner * header.records}
    return header, arrays


def no_scores(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
    """Histograms of nothing."""
    if header.kind == "threshold":
        return header, {key: np.zeros_like(value) for key, value in arrays.items()}
    return header, arrays


@pytest.mark.parametrize("edit", [false_histogram, false_moments, no_scores])
def test_one_of_five_moves_neither_density_nor_threshold(tmp_path: Path, edit: Edit) -> None:
    """A run with a lying site ends, scaled and with thresholds as without it."""
    run = {
        "summaries": {"moments": "full"},
        "privacy": {"rng": "simulation", "epsilon": 30.0},
        "federation": {"quorum": 2, "nodes": 4, "join_timeout_s": 5, "round_deadline_s": 5},
    }
    found = []
    for name, gone in (("with", []), ("without", [14])):
        sites = {node: site for node, site in hostile_sites(edit).items() if node not in gone}
        home = home_at(tmp_path / name)
        found.append(drive(grid_of(sites), tiny_config(**run), home, run_id=RUN))
    lied, clean = found
    within = clean.released.density.within, lied.released.density.within
    ratio = np.linalg.eigvals(np.linalg.solve(*within)).real
    assert 0.8 < ratio.min() <= ratio.max() < 1.25
    for name, value in clean.released.thresholds.items():
        assert lied.released.thresholds[name] == pytest.approx(value, rel=0.4)
    assert lied.facts["silent"] == []


def test_histograms_of_nothing_are_named(tmp_path: Path) -> None:
    """A site whose counts no records can have is a failed node of the threshold phase."""
    home = home_at(tmp_path)
    config = tiny_config(privacy={"mechanism": "none", "rng": "simulation"})
    drive(grid_of(hostile_sites(no_scores)), config, home, run_id=RUN)
    row = outcomes(home, 4)["node-14"]
    assert (row.status, row.code) == ("failed", "counts")
    assert "Expected histograms of 304 records" in row.sentence


def test_without_bounds_one_site_silences_the_threshold_and_the_result_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Plain pooling is at the mercy of each site; log and result name what flags nothing."""
    config = tiny_config(
        summaries={"robust": False}, privacy={"mechanism": "none", "rng": "simulation"}
    )
    sites = grid_of(hostile_sites(false_histogram))
    with caplog.at_level(logging.WARNING, "fedlatent"):
        result = drive(sites, config, home_at(tmp_path), run_id=RUN)
    assert result.facts["silent"] == ["absolute", "recentred"]
    assert "the absolute threshold lies in the last bin and flags nothing" in caplog.text
