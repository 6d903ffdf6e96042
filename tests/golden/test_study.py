"""Tiny federated studies: what they release, cost and learn stays what it was."""

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from fedlatent.simulations.federation import Simulation
from tests.golden.conftest import RUNS, Finished, simulated
from tests.golden.files import check, outline, scrub

HERE = Path(__file__).parent


def told(simulation: Simulation, folder: Path) -> dict[str, Any]:
    """All that a finished run leaves behind: files of the result, facts of its phases, a site."""
    result = simulation.result.folder
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    facts = json.loads((result / "result.json").read_text())
    own = simulation.material("patient-000")
    return {
        "facts": {**scrub(facts, folder), "digest": facts["digest"]},
        "released": {
            file.stem: {name: outline(array) for name, array in load_file(file).items()}
            for file in sorted(result.glob("*.safetensors"))
        },
        "phases": [scrub(json.loads(line), folder) for line in lines],
        "site": {
            "decoder": {name: outline(array) for name, array in own.decoder.items()},
            "center": outline(own.center),
            "epsilon": own.epsilon,
        },
    }


def test_studies_of_stacked_clients_give_what_they_gave(tmp_path: Path) -> None:
    """Encoders, released state, thresholds, costs and cohorts of the stacked engine."""
    found = {
        name: told(simulated(name, "stacked", tmp_path / name), tmp_path / name) for name in RUNS
    }
    check(HERE / "study_stacked.json", found)


def test_studies_of_real_nodes_give_what_they_gave(finished: Finished, tmp_path: Path) -> None:
    """Encoders, released state, thresholds, costs and cohorts of real nodes with homes."""
    found = {"everything": told(finished.simulation, finished.folder)}
    for name in RUNS:
        if name not in found:
            found[name] = told(simulated(name, "nodes", tmp_path / name), tmp_path / name)
    check(HERE / "study_nodes.json", found)
