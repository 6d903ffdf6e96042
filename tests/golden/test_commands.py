"""The command line: what every cheap command says to scripts with ``--json`` stays what it was."""

import shutil
from pathlib import Path
from typing import Any

from tests.golden.conftest import Finished, fedlatent
from tests.golden.files import check, scrub

HERE = Path(__file__).parent
RUN = """\
name = "planned"
[data]
name = "curves"
shape = [16]
[model.options]
hidden = [8]
latent_dim = 3
[privacy]
epsilon = 2.0
[training]
rounds = 4
steps_per_round = 5
[summaries]
data = "gaussian"
features = 5
components = 2
em_rounds = 3
[scoring]
combined = true
"""
EXPERIMENT = """\
name = "tiny"
description = "Two patients"
grid = "stacked"
seeds = [0]

[data]
source = "hearts"
clients = 3
absent = 1

[run.model]
options = { hidden = [8], latent_dim = 3 }

[run.privacy]
epsilon = [4]

[run.training]
rounds = 2
steps_per_round = 3

[evaluate]
questions = ["seen", "absent"]
"""


def test_privacy_and_models_say_what_they_did(tmp_path: Path) -> None:
    """Plans of a run with every release, and the sizes of models."""
    run = tmp_path / "run.toml"
    run.write_text(RUN)
    shown = {
        "plain": ("gaussian", "--shape", "28,28"),
        "with options": ("gaussian", "--shape", "6", "--preset", "tiny", "--option", "hidden=[4]"),
        "images": ("gaussian", "--shape", "1,8,8", "--option", "network=conv2d"),
    }
    found = {
        "privacy plan": fedlatent("privacy", "plan", run),
        "privacy plan, records": fedlatent(
            "privacy", "plan", run, "--records", 500, "--person-cap", 3
        ),
        "model list": fedlatent("model", "list"),
        "model show": {name: fedlatent("model", "show", *words) for name, words in shown.items()},
    }
    check(HERE / "commands_plans.json", scrub(found, tmp_path))


def test_homes_say_what_they_did(finished: Finished) -> None:
    """Ledger, releases and state of a node, state and sites of a server, keys, and exports."""
    server, node = ("--home", finished.server), ("--home", finished.node)
    key = finished.folder / "own.pem"
    found = finished.said | {
        "server status": fedlatent("server", "status", *server),
        "server status RUN": fedlatent("server", "status", "simulated", *server),
        "server sites": fedlatent("server", "sites", "simulated", *server),
        "client status": fedlatent("client", "status", *node),
        "client ledger": fedlatent("client", "ledger", *node),
        "client ledger --verify": fedlatent("client", "ledger", "--verify", *node),
        "client releases": fedlatent("client", "releases", *node),
        "client runs": fedlatent("client", "runs", *node),
        "keys new": fedlatent("keys", "new", key),
        "keys show": fedlatent("keys", "show", key),
    }
    check(HERE / "commands_homes.json", scrub(found, finished.folder))


def test_devices_and_release_folders_say_what_they_did(finished: Finished, tmp_path: Path) -> None:
    """A bundle is looked at, scores, calibrates; is published, rolled out, fetched, withdrawn."""
    bundle, key = finished.bundle("global")
    beats, normals = finished.folder / "beats.npz", finished.folder / "normals.npz"
    keyed, folder, state = ("--key", key), tmp_path / "release", tmp_path / "state"
    own, latents = tmp_path / "own.json", tmp_path / "latents.csv"
    found: dict[str, Any] = {
        "edge info": fedlatent("edge", "info", bundle, *keyed),
        "edge verify": fedlatent("edge", "verify", bundle, *keyed),
        "edge score": fedlatent("edge", "score", bundle, beats, *keyed),
        "edge score --normals": fedlatent(
            "edge", "score", bundle, beats, *keyed, "--normals", normals
        ),
        "edge calibrate": fedlatent(
            *("edge", "calibrate", bundle, normals, *keyed, "--out", own, "--quantile", 0.8)
        ),
        "edge encode": fedlatent("edge", "encode", bundle, beats, *keyed, "--out", latents),
        "release init": fedlatent("release", "init", folder),
        "release add": fedlatent(
            *("release", "add", folder, bundle, *keyed, "--percent", 5, "--cohort", "pilot")
        ),
        "release rollout": fedlatent("release", "rollout", folder, "tiny", 1, "--percent", 100),
        "release status": fedlatent("release", "status", folder),
    }
    root = folder / "metadata" / "1.root.json"
    found["edge provision"] = fedlatent(
        *("edge", "provision", "--state", state, "--root", root, "--model", "tiny")
    )
    found["edge update"] = fedlatent("edge", "update", folder, "--state", state)
    found["edge status"] = fedlatent("edge", "status", "--state", state)
    found["release refresh"] = fedlatent("release", "refresh", folder)
    found["release rotate"] = fedlatent("release", "rotate", folder, "online", "--new")
    found["release withdraw"] = fedlatent("release", "withdraw", folder, "tiny", 1)
    found["release status, withdrawn"] = fedlatent("release", "status", folder)
    check(HERE / "commands_devices.json", scrub(scrub(found, tmp_path), finished.folder))


def test_experiments_say_what_they_did(tmp_path: Path) -> None:
    """A study is run, listed, reported and compared with a copy."""
    file, runs = tmp_path / "tiny.toml", tmp_path / "runs"
    file.write_text(EXPERIMENT)
    found = {
        "simulate run": fedlatent(
            "simulate", "run", file, "--out", runs / "tiny", "--data-sets", tmp_path
        ),
        "simulate list": fedlatent("simulate", "list", "--results", runs),
        "simulate report": fedlatent("simulate", "report", runs / "tiny"),
    }
    shutil.copytree(runs / "tiny", runs / "copy")
    found["simulate compare"] = fedlatent("simulate", "compare", runs / "tiny", runs / "copy")
    check(HERE / "commands_studies.json", scrub(found, tmp_path))
