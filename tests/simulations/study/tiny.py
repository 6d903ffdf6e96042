"""A tiny study: two settings and two seeds, each a run of seconds."""

from pathlib import Path

from fedlatent.simulations.study.results import Results
from fedlatent.simulations.study.run import run_study
from fedlatent.simulations.study.spec import Study, parse

#: Line 1 is the name; tests rely on the line numbers.
TEXT = """\
name = "tiny"
description = "Two patients & <friends>"
grid = "stacked"
seeds = [0, 1]

[data]
source = "hearts"
clients = 3
absent = 1

[run.model]
options = { hidden = [8], latent_dim = 3 }

[run.privacy]
epsilon = [4, "none"]

[run.training]
rounds = 2
steps_per_round = 3

[evaluate]
questions = ["seen", "absent", "new10"]
"""


def tiny(old: str = "", new: str = "") -> Study:
    """The study with one part of its text replaced."""
    return parse(TEXT.replace(old, new) if old else TEXT, "tiny.toml")


def run(study: Study, out: Path) -> Results:
    """Run it without real data."""
    run_study(study, out, data_dir=out / "no-data")
    return Results.load(out)
