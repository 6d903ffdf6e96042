"""The command line: help, exit codes, JSON, and the edge commands on a real bundle."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import typer.main

from fedlatent.cli import main as cli_main
from fedlatent.cli.reference import commands
from fedlatent.client.approvals import Approvals
from fedlatent.client.edge.main import build_parser
from fedlatent.client.home import ClientHome
from fedlatent.server.authority import issue_client_certificate
from fedlatent.server.home import ServerHome
from fedlatent.server.outcome import SiteOutcome
from fedlatent.server.registry import Registry
from fedlatent.server.settings import load_settings
from fedlatent.server.strikes import Strikes
from fedlatent.shared.errors import PolicyRefusal, ServiceError
from fedlatent.shared.keys import generate_node_key
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.schedule import Phase
from fedlatent.shared.toml import dumps
from fedlatent.simulations.federation import Simulation
from tests.cli.conftest import Run
from tests.simulations.support import tiny_federation, tiny_run

FROZEN = Path(__file__).parent / "frozen_options.txt"


def edge_commands() -> dict[str, argparse.ArgumentParser]:
    """The commands of a device by name; they have a parser of their own."""
    return build_parser("fedlatent edge")[1].parsers


def tree() -> click.Command:
    """The root command."""
    return typer.main.get_command(cli_main.app)


def test_every_command_has_help_and_an_example() -> None:
    """Each command says what it does, each option what it means, and shows how to call it."""
    for name, command in commands(tree()):
        assert command.help, name
        assert "fedlatent" in (command.epilog or ""), name
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name != "help":
                assert parameter.help, f"{name} {parameter.name}"
    for name, parser in edge_commands().items():
        assert parser.description, name
        assert f"fedlatent edge {name}" in (parser.epilog or ""), name
        for action in parser._actions:
            assert action.help, f"{name} {action.dest}"


def test_commands_and_options_are_frozen() -> None:
    """The outward surface equals the reviewed file; a change there is the review."""
    lines = [
        f"edge {name}: "
        + " ".join(
            sorted(
                option
                for action in parser._actions
                for option in (action.option_strings or [action.dest])
                if option not in ("-h", "--help")
            )
        )
        for name, parser in edge_commands().items()
    ]
    for name, command in commands(tree()):
        names = [
            option
            for parameter in command.params
            for option in (
                parameter.opts if isinstance(parameter, click.Option) else [str(parameter.name)]
            )
        ]
        lines.append(f"{name}: {' '.join(sorted(names))}")
    assert FROZEN.read_text().splitlines() == sorted(lines)


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "words"),
    [
        (("edge", "info", "absent.fedlatent", "--key", "absent.pub"), 2, "config", "absent.pub"),
        (("client", "ledger", "--home", "nowhere"), 2, "config", "client init"),
        (("server", "run", "nowhere.toml", "--home", "nowhere"), 2, "config", "server init"),
        (("demo", "--data", "hart"), 2, "config", "hearts"),
        (("keys", "show", "nowhere.pem"), 2, "config", "nowhere.pem"),
    ],
)
def test_errors_are_one_sentence_with_an_exit_code(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    kind: str,
    words: str,
) -> None:
    """Bad input ends with the code of its kind, in words, and as JSON for scripts."""
    monkeypatch.chdir(tmp_path)
    status, _, text = run(*arguments)
    assert status == code
    assert f"error ({kind})" in text
    assert words in text.replace("\n", " ")
    assert "Traceback" not in text
    status, out, _ = run(*arguments, "--json")
    if arguments[0] != "server" or "error" in out:
        assert status == code
        assert json.loads(out)["error"]["code"] == kind


def test_a_bad_node_is_refused_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    """``client init`` with a wrong name or budget says which, and leaves no home behind."""
    server = tmp_path / "server"
    assert run("server", "init", "--home", server, "--port", 0)[0] == 0
    np.savez(tmp_path / "beats.npz", X=tiny_federation(1).sites[0].train)
    common = [
        "--server",
        "127.0.0.1:9",
        "--ca",
        server / "tls" / "ca.crt",
        "--data",
        tmp_path / "beats.npz",
        "--schema",
        server / "run.toml",
        "--home",
        tmp_path / "node",
    ]
    for site, extra, words in (
        ("ward 1", (), "site"),
        ("ward-1", ("--max-epsilon", 0), "max_epsilon"),
        ("ward-1", ("--array", "Y"), "Y"),
    ):
        status, _, text = run("client", "init", site, *common, *extra)
        assert status in (2, 3)
        assert words in text
        assert not (tmp_path / "node").exists()
    status, out, _ = run("client", "init", "ward-1", *common, "--json")
    assert status == 0
    assert json.loads(out)["records"] > 50
    status, out, _ = run("client", "ledger", "--home", tmp_path / "node", "--json")
    assert json.loads(out)["epsilon"] == 0.0


def test_nodes_need_a_certificate_where_the_operator_says_so(run: Run, tmp_path: Path) -> None:
    """``init --client-certificates`` is kept, ``client certificate`` takes the node's own alone."""
    server, node = ServerHome(tmp_path / "server"), ClientHome(tmp_path / "node")
    arguments = ("--home", server.root, "--port", 0, "--client-certificates")
    assert run("server", "init", *arguments)[0] == 0
    assert load_settings(server).client_certificates
    node.create()
    node.ca_certificate.write_bytes(server.ca_certificate.read_bytes())
    public = generate_node_key(node.node_key)
    pem = issue_client_certificate(server, "ward-1", public.read_text())
    (tmp_path / "ward-1.crt").write_bytes(pem)
    wrong = run("client", "certificate", server.ca_certificate, "--home", node.root)
    assert (wrong[0], "another key" in wrong[2].replace("\n", " ")) == (2, True)
    assert run("client", "certificate", tmp_path / "ward-1.crt", "--home", node.root)[0] == 0
    assert node.client_certificate.read_bytes() == pem


def test_ledger_and_releases_show_what_a_run_cost(
    run: Run, finished: tuple[Simulation, ServerHome, Path]
) -> None:
    """The release list of a node has one line per phase, with bytes and epsilon."""
    home: ClientHome = next(iter(finished[0].homes.values()))
    status, out, _ = run("client", "releases", "--home", home.root, "--json")
    lines = json.loads(out)
    assert status == 0
    assert [line["kind"] for line in lines] == ["train", "train", "moments", "threshold"]
    spent = [line["epsilon"] for line in lines]
    assert spent == sorted(spent)
    assert run("client", "releases", "--home", home.root)[0] == 0


@pytest.mark.parametrize(
    "command",
    [
        ("server", "status"),
        ("server", "status", "hearts-1", "--csv"),
        ("server", "sites", "hearts-1"),
        ("server", "readmit", "hearts-1", "ward-1"),
        ("server", "resume", "hearts-1"),
        ("server", "stop", "hearts-1"),
        ("server", "stop"),
        ("server", "remove", "ward-1"),
        ("client", "status"),
        ("client", "stop"),
        ("client", "ledger", "--verify"),
        ("client", "releases", "--json"),
        ("client", "runs"),
        ("client", "approve", "hearts-1"),
        ("export", "global"),
        ("export", "site"),
    ],
    ids=" ".join,
)
def test_a_home_where_nothing_is_is_said(
    run: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """A mistyped home is an error and not an empty table, and nothing is made there."""
    status, shown, text = run(*command, "--home", tmp_path / "none")
    assert status == 2
    assert str(tmp_path / "none") in shown + text
    assert not (tmp_path / "none").exists()


def test_site_that_was_left_out_is_shown_and_let_back(run: Run, tmp_path: Path) -> None:
    """Status names who is left out of a run and why; readmit undoes it, once, for that site."""
    home = ServerHome.find(tmp_path / "server")
    home.create()
    with Registry(home.registry) as registry:
        registry.start_run("hearts-1", name="hearts", digest="d", config="{}", phases=4)
    home.run("hearts-1").mkdir(parents=True)
    strikes, phase = Strikes(home.run("hearts-1")), Phase(number=1, kind="train", trained=0)
    outcome = SiteOutcome(site="north", node_id=1, status="failed", code="norm")
    for _ in range(3):
        strikes.note(outcome, phase)
    at = ("--home", home.root)
    page = json.loads(run("server", "status", "hearts-1", *at, "--json")[1])
    assert [one["site"] for one in page["left_out"]] == ["north"]
    shown = run("server", "status", "hearts-1", *at)[1]
    assert "left out: north not asked, since 3 of its replies misbehaved: norm in phase 1" in shown
    code, _, error = run("server", "readmit", "hearts-2", "north", *at)
    assert code == 2
    assert "Expected a known run" in error
    code, _, error = run("server", "readmit", "hearts-1", "south", *at)
    assert code == 2
    assert "left out are: north" in error
    assert run("server", "readmit", "hearts-1", "north", *at)[0] == 0
    assert json.loads(run("server", "status", "hearts-1", *at, "--json")[1])["left_out"] == []
    assert run("server", "readmit", "hearts-1", "north", *at)[0] == 2


def test_status_says_why_a_site_did_not_count(run: Run, tmp_path: Path) -> None:
    """The words of a refusal stand in both tables' output, and not in JSON alone."""
    home = ServerHome.find(tmp_path / "server")
    home.create()
    sentence = "Expected at most epsilon 4, got 5; ask [for] less."
    outcome = SiteOutcome(
        site="north", node_id=1, status="refused", code="budget", sentence=sentence
    )
    with Registry(home.registry) as registry:
        registry.start_run("hearts-1", name="hearts", digest="d", config="{}", phases=4)
        registry.start_round("hearts-1", 1, "train", 1, 2)
        registry.finish_round("hearts-1", 1, "failed", [outcome])
    for arguments in ((), ("hearts-1",)):
        assert sentence in run("server", "status", *arguments, "--home", home.root)[1]


def test_server_status_tells_the_run(
    run: Run, finished: tuple[Simulation, ServerHome, Path]
) -> None:
    """The overview and the page of one run name phases, sites and artefacts."""
    _, home, _ = finished
    overview = json.loads(run("server", "status", "--home", home.root, "--json")[1])
    assert [one["status"] for one in overview["runs"]] == ["complete"]
    page = json.loads(run("server", "status", "simulated", "--home", home.root, "--json")[1])
    assert [one["good"] for one in page["phases"]] == [3, 3, 3, 3]
    assert {one["name"] for one in page["artefacts"]} >= {"model", "density", "bundle"}
    for arguments in ((), ("simulated",)):
        assert run("server", "status", *arguments, "--home", home.root)[0] == 0


def test_edge_commands_on_a_real_bundle(
    run: Run, finished: tuple[Simulation, ServerHome, Path], tmp_path: Path
) -> None:
    """Verify, look, score, re-centre and save; a flipped byte ends with exit code 8."""
    simulation, home, bundle = finished
    folder = simulation.result.folder.parents[3]
    key = home.signing_key.with_name("signing.pem.pub")
    assert json.loads(run("edge", "verify", bundle, "--key", key, "--json")[1])["ok"] is True
    facts = json.loads(run("edge", "info", bundle, "--key", key, "--json")[1])
    assert facts["kind"] == "global"
    assert facts["epsilon"] <= 4.0
    plain = ["edge", "score", bundle, folder / "beats.npz", "--key", key]
    table = tmp_path / "scores.csv"
    status, out, _ = run(*plain, "--out", table, "--json")
    scored = json.loads(out)
    assert status == 0
    assert len(scored["scores"]) == scored["records"] == len(table.read_text().splitlines()) - 1
    _, answer, said = run(*plain, "--normals", folder / "normals.npz", "--json")
    assert json.loads(answer)["recentred_on"] is None  # ten records of one of the clients
    assert "by chance" in said
    own = tmp_path / "calibration.json"
    options = ["--key", key, "--out", own, "--quantile", "0.8"]
    made = run("edge", "calibrate", bundle, folder / "normals.npz", *options, "--json")[1]
    again = json.loads(run(*plain, "--calibration", own, "--json")[1])
    assert again["calibrated_on"] == 10
    assert again["threshold"] == json.loads(made)["threshold"]
    latents = tmp_path / "latents.csv"
    assert run("edge", "encode", *plain[2:], "--out", latents)[0] == 0
    assert len(latents.read_text().splitlines()) == scored["records"] + 1
    assert run("edge", "verify", bundle, "--key", key, "--extract", tmp_path / "parts")[0] == 0
    assert (tmp_path / "parts" / "scorer.onnx").stat().st_size > 1000
    assert run(*plain)[0] == 0
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.fedlatent").write_bytes(bytes(data))
    status, _, text = run("edge", "verify", tmp_path / "bad.fedlatent", "--key", key)
    assert status == 8
    assert "bundle" in text


def test_five_commands_take_a_run_to_a_device(
    run: Run, finished: tuple[Simulation, ServerHome, Path], tmp_path: Path
) -> None:
    """Export, release, provision, update: then the state folder scores as the bundle does."""
    simulation, home, _ = finished
    beats = simulation.result.folder.parents[3] / "beats.npz"
    key = home.signing_key.with_name("signing.pem.pub")
    bundle, release, state = (tmp_path / name for name in ("b.fedlatent", "release", "state"))
    assert run("export", "global", "--home", home.root, "--out", bundle)[0] == 0
    made = json.loads(run("release", "init", release, "--json")[1])
    added = json.loads(run("release", "add", release, bundle, "--key", key, "--json")[1])
    options = ["--state", state, "--root", made["root"], "--model", added["model"]]
    assert run("edge", "provision", *options)[0] == 0
    assert run("edge", "update", release, "--state", state)[0] == 0
    installed = json.loads(run("edge", "score", state, beats, "--json")[1])
    direct = json.loads(run("edge", "score", bundle, beats, "--key", key, "--json")[1])
    assert installed["scores"] == direct["scores"]
    status = json.loads(run("edge", "status", "--state", state, "--json")[1])
    assert status["current"]["status"] == "confirmed"
    assert status["floor"] == added["version"]


def test_export_chooses_a_form(
    run: Run, finished: tuple[Simulation, ServerHome, Path], tmp_path: Path
) -> None:
    """``export --target`` shows every form with its figures, and wrong options are refused."""
    simulation, home, _ = finished
    public = simulation.result.folder.parents[3] / "beats.npz"
    export = ["export", "global", "--home", home.root, "--out", tmp_path / "small.fedlatent"]
    options = ["--target", "smallest", "--public", public, "--expires-days", 30]
    made = json.loads(run(*export, *options, "--json")[1])
    assert made["precision"] in ("fp16", "int8-weights")
    small, key = tmp_path / "small.fedlatent", home.signing_key.with_name("signing.pem.pub")
    facts = json.loads(run("edge", "verify", small, "--key", key, "--json")[1])
    assert (facts["expires"], facts["expired"]) == (made["expires"], False)
    names = {row["name"]: row for row in made["candidates"]}
    assert names["fp32"]["ratio"] == 1.0
    assert min(row["bytes"] for row in made["candidates"] if row["eligible"]) < made["bytes"]
    status, out, _ = run(*export, "--target", "auto")
    assert status == 0
    assert "chosen" in out
    for bad in (["--target", "tiny"], ["--public", public], ["--target", "web", "--label", "y"]):
        assert run(*export, *bad)[0] == 2


def test_the_edge_command_line_needs_no_pytorch(
    finished: tuple[Simulation, ServerHome, Path],
) -> None:
    """A process that scores through the command line has loaded none of the heavy packages."""
    simulation, home, bundle = finished
    folder = simulation.result.folder.parents[3]
    script = (
        "import sys\nfrom fedlatent.cli import main\n"
        "try:\n    main.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'flwr', 'opacus', 'pydantic', 'pandas', 'sklearn', 'sqlalchemy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    key = home.signing_key.with_name("signing.pem.pub")
    arguments = ["edge", "score", str(bundle), str(folder / "beats.npz"), "--key", str(key)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(cli_main.__file__).parents[2],
    )
    assert json.loads(done.stdout)["process"]["peak_rss_mb"] <= 100
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_keys_are_made_and_shown(run: Run, tmp_path: Path) -> None:
    """A new key's id is the same from its private and its public half."""
    made = json.loads(run("keys", "new", tmp_path / "k.pem", "--json")[1])
    for path in (made["private"], made["public"]):
        shown = json.loads(run("keys", "show", path, "--json")[1])
        assert shown["key_id"] == made["key_id"]
    assert run("keys", "new", tmp_path / "k.pem")[0] == 2


def test_runs_are_approved_by_hand(run: Run, tmp_path: Path) -> None:
    """``client runs`` shows who asked at what cost; ``approve`` and ``refuse`` decide by id."""
    config = tiny_run(tiny_federation())
    home, plan = ClientHome(tmp_path / "node"), PrivacyPlan.from_config(config)
    home.create()
    policy = {"max_epsilon": 5.0, "approval": "each-run"}
    data = {"path": "x.npz", "schema": config.data.to_dict()}
    home.config.write_text(dumps({"site": "north", "data": data, "policy": policy}))
    with pytest.raises(PolicyRefusal):
        Approvals(home.approvals).check("tiny-1", config, plan)
    where = ("--home", home.root)
    status, out, _ = run("client", "runs", *where, "--json")
    (asked,) = json.loads(out)
    assert (status, asked["run"], asked["state"]) == (0, "tiny-1", "pending")
    assert asked["epsilon"] == pytest.approx(plan.epsilon())
    status, out, _ = run("client", "approve", "tiny-1", *where)
    assert (status, "approved" in out) == (0, True)
    Approvals(home.approvals).check("tiny-1", config, plan)
    status, out, _ = run("client", "refuse", "tiny-1", *where, "--json")
    assert (status, json.loads(out)["state"]) == (0, "refused")
    assert "refused" in run("client", "runs", *where)[1]
    assert run("client", "approve", "unknown-1", *where)[0] == ServiceError.exit_code
