"""Taking turns, in this process and across processes, and what is said of missing peers."""

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from fedlatent.cli.bench import EXAMPLES, bench, show
from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.simulations.bench import gpu
from fedlatent.simulations.bench.measure import Gemm, Local, Measured, compare, ratios, take_turns
from fedlatent.simulations.bench.peers import PEERS, PFL_PYTHON, choose, missing
from fedlatent.simulations.bench.plain import CONV, MLP
from fedlatent.simulations.bench.remote import Command, Remote
from fedlatent.simulations.bench.report import Choice, measure_all
from fedlatent.simulations.bench.turns import Lap, Work

TINY = replace(MLP, shape=(12,), hidden=(6,), latent=2, clients=3, records=8, batch=4)
WORK = Work(parameters=10, clients=2, records=4, steps=1)


COMMAND = typer.Typer()
COMMAND.command(epilog=EXAMPLES)(bench)


def silent(sentence: str, share: float) -> None:
    """Watch nothing."""


def test_systems_take_turns() -> None:
    """Every system warms up once, then they alternate, and each has one cost a turn."""
    order: list[str] = []
    systems = [Local(name, WORK, lambda name=name: order.append(name)) for name in "ab"]  # type: ignore[misc]
    found = take_turns(systems, 2)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert [len(measured.laps) for measured in found.values()] == [2, 2]


def test_time_limit_leaves_one_turn_of_each() -> None:
    """When the time is over before the first turn, every system still has that one."""
    found = take_turns([Local(name, WORK, lambda: None) for name in "ab"], 9, until=0.0)
    assert [len(measured.laps) for measured in found.values()] == [1, 1]


def test_costs_are_medians_a_client_with_start_up_apart() -> None:
    """Milliseconds are medians over turns, divided by clients; start-up is no part of them."""
    laps = tuple(Lap(cpu_s=s, wall_s=2 * s, peak_mb=1e3 * s) for s in (0.2, 0.4, 0.9))
    start = Lap(cpu_s=3.0, wall_s=5.0, peak_mb=1.0)
    told = Measured(work=WORK, start=start, laps=laps).to_json()
    assert told["cpu_ms"] == pytest.approx(200.0)
    assert told["clients_per_s"] == pytest.approx(2.5)
    assert told["start_cpu_s"] == pytest.approx(3.0)
    assert told["start_wall_s"] == pytest.approx(5.0)
    assert told["peak_mb"] == pytest.approx(900.0)


def test_ratios_are_of_measured_systems_only() -> None:
    """A ratio is there when both of its systems are; a missing peer has none."""
    found = ratios({"opacus_hooks": 90.0, "stacked_dp": 6.0, "stacked": 4.0})
    assert found == {"opacus_hooks_over_stacked_dp": 15.0}


def test_gemm_limit_follows_the_rate() -> None:
    """Six operations for each record and parameter at the best rate seen."""
    gemm = Gemm()
    gemm()
    assert gemm.limit_ms(WORK) == pytest.approx(1e3 * 6 * 4 * 10 / gemm.rate)


def test_a_missing_peer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an environment for pfl, or with a wrong one, words say so and how to get it."""
    monkeypatch.delenv(PFL_PYTHON, raising=False)
    assert "not installed" in missing(["pfl"])["pfl"]
    assert PFL_PYTHON in missing(["pfl"])["pfl"]
    monkeypatch.setenv(PFL_PYTHON, "/nowhere/python")
    assert "/nowhere/python" in missing(["pfl"])["pfl"]
    monkeypatch.setenv(PFL_PYTHON, sys.executable)  # has no pfl
    assert "cannot import" in missing(["pfl"])["pfl"]
    assert missing(["plain_loop", "opacus_hooks"]) == {}


def test_unknown_peers_are_refused() -> None:
    """Names come from a list; all and none are words for the whole and nothing."""
    assert choose("all") == PEERS
    assert choose("none") == ()
    assert choose("pfl, flower") == ("pfl", "flower")
    with pytest.raises(ConfigError, match="tff"):
        choose("tff")


def test_a_failed_process_says_its_last_words() -> None:
    """A system that ends before its first round is an error with what it printed last."""
    argv = (sys.executable, "-c", "raise SystemExit('no such thing')")
    with (
        Remote("broken", Command(argv=argv)) as remote,
        pytest.raises(ServiceError, match="no such thing"),
    ):
        remote.ready()


def test_all_systems_do_the_same_work_in_processes_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comparison has costs of every system, equal work, ratios, and says what is missing."""
    monkeypatch.delenv(PFL_PYTHON, raising=False)
    monkeypatch.setattr("fedlatent.simulations.bench.report.MLP", TINY)
    peers, ours = ("plain_loop", "pfl"), ("stacked",)
    choice = Choice(clients=3, turns=1, peers=peers, conv=False, grow=False, ours=ours)
    report = measure_all(choice, silent)
    systems = report["systems"]
    assert isinstance(systems, dict)
    assert set(systems) == {*peers, *ours} - {"pfl"}
    works = [facts["work"] for facts in systems.values()]
    expected = {"parameters": 12 * 6 + 6 + 6 * 4 + 4 + 2 * 6 + 6 + 6 * 12 + 12}
    assert all(work == expected | {"clients": 3, "records": 8, "steps": 2} for work in works)
    assert all(facts["cpu_ms"] > 0 and facts["peak_mb"] > 50 for facts in systems.values())
    assert isinstance(report["ratio"], dict)
    assert "plain_loop_over_stacked" in report["ratio"]
    assert "stacked_over_pfl" not in report["ratio"]
    assert isinstance(report["missing"], dict)
    assert "not installed" in report["missing"]["pfl"]
    assert isinstance(report["circumstances"], dict)
    assert {"cpu", "commit", "command", "load"} <= report["circumstances"].keys()
    json.dumps(report, allow_nan=False)
    show(report)
    told = capsys.readouterr().out
    assert "plain loop over stacked" in told
    assert "not installed" in told


def test_quick_mode_has_the_promised_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command prints four ratios, a cost for each system and a note; a file has more."""
    for name, value in {"MLP": TINY, "FEW": 2, "MANY": 3}.items():
        monkeypatch.setattr(f"fedlatent.simulations.bench.quick.{name}", value)
    arguments = ["--quick", "--json", "--clients", "2", "--repeats", "1"]
    done = CliRunner().invoke(COMMAND, [*arguments, "--out", str(tmp_path / "bench.json")])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert {
        "opacus_hooks_over_stacked_dp",
        "opacus_ghost_over_stacked_dp",
        "plain_loop_over_stacked",
        "flat_10000_over_100",
    } <= report["ratio"].keys()
    assert min(report["cpu_ms"].values()) > 0
    assert "small model" in report["note"]
    written = json.loads((tmp_path / "bench.json").read_text())
    assert {"circumstances", "cpu_ms", "ratio", "note"} <= written.keys()


def test_quick_mode_refuses_what_takes_minutes() -> None:
    """--quick with --conv is an error in words."""
    done = CliRunner().invoke(COMMAND, ["--quick", "--conv"])
    assert isinstance(done.exception, ConfigError)
    assert "--conv takes minutes" in str(done.exception)


def test_the_gpu_script_says_when_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine without CUDA the exit status is 3 and one sentence says why."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert gpu.gpu(device="cuda") == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "CUDA" in said.err


def test_the_gpu_script_runs_on_any_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With tiny numbers on the CPU it prints and writes throughput and ratios."""
    monkeypatch.delenv(PFL_PYTHON, raising=False)
    monkeypatch.setattr(gpu, "MLP", TINY)
    words = ["device=cpu", "clients=2", "repeats=1", f"out={tmp_path / 'gpu.json'}"]
    arguments = [word for value in words for word in ("--set", value)]
    done = CliRunner().invoke(COMMAND, ["gpu", *arguments])
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "gpu.json").read_text())
    assert set(report["clients_per_s"]) == {"plain_loop", "simulated", "simulated_dp"}
    assert set(report["ratio"]) == {
        "simulated_over_plain_loop",
        "simulated_dp_over_plain_loop",
    }
    assert "not installed" in report["missing"]["pfl"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gpuu"], "did you mean 'gpu'"),
        (["gpu", "--set", "client=2"], "client: expected a known key.*mean 'clients'"),
        (["gpu", "--set", "clients=x"], "clients: expected an integer"),
    ],
)
def test_a_named_benchmark_refuses_what_it_does_not_know(words: list[str], sentence: str) -> None:
    """Names and keys are those of the table and of the function."""
    with pytest.raises(ConfigError, match=sentence):
        CliRunner().invoke(COMMAND, words, catch_exceptions=False)


@pytest.mark.slow
def test_the_whole_report_has_a_convolutional_model_and_growth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With both options there are costs of the second model and of every number of clients."""
    tiny_conv = replace(CONV, shape=(1, 8, 8), hidden=(2, 3), latent=2, records=4, batch=2)
    for name, value in {"MLP": TINY, "CONV": tiny_conv, "SIZES": (2, 3)}.items():
        monkeypatch.setattr(f"fedlatent.simulations.bench.report.{name}", value)
    choice = Choice(
        clients=2, turns=1, peers=("plain_loop",), conv=True, grow=True, ours=("simulated",)
    )
    report = measure_all(choice, silent)
    assert isinstance(report["conv"], dict)
    assert set(report["conv"]["cpu_ms"]) == {"plain_loop"}
    assert isinstance(report["growth"], dict)
    assert set(report["growth"]) == {"simulated"}
    assert set(report["growth"]["simulated"]["sizes"]) == {"2", "3"}
    assert report["growth"]["simulated"]["flat_10000_over_100"] > 0
    show(report)
    assert "10,000 over 100" in capsys.readouterr().out


@pytest.mark.slow
def test_flower_does_the_same_work() -> None:
    """Flower's engine, by ``flwr run``, trains the stated clients, records and steps."""
    pytest.importorskip("ray", reason="Flower's simulation engine needs Ray")
    found = compare(["flower"], TINY, 1, watch=silent, gemm=Gemm())["flower"]
    assert asdict(found.work) == {"parameters": 208, "clients": 3, "records": 8, "steps": 2}
    assert found.cpu_ms > 0


def test_pfl_does_the_same_work() -> None:
    """pfl-research in its own environment trains the stated clients, records and steps."""
    if not os.environ.get(PFL_PYTHON):
        pytest.skip(f"no environment with pfl; set {PFL_PYTHON} to its python")
    found = compare(["pfl"], TINY, 1, watch=silent, gemm=Gemm())["pfl"]
    assert asdict(found.work) == {"parameters": 208, "clients": 3, "records": 8, "steps": 2}
    assert found.cpu_ms > 0
