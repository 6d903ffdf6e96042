"""The run file: good ones load, bad ones are refused in one sentence that names the field."""

from pathlib import Path

import pytest

from shared.config import RunConfig
from shared.errors import ConfigError

GOOD = """
name = "ward-hearts"
[data]
name = "ecg"
shape = [128]
center = "median"
lower = -2.5
upper = 2.5
[model]
family = "gaussian"
[model.options]
hidden = [64]
latent_dim = 8
"""


def test_a_run_file_round_trips_and_hashes_stably(tmp_path: Path) -> None:
    """TOML and JSON of the same run give equal configurations and digests."""
    path = tmp_path / "run.toml"
    path.write_text(GOOD)
    run = RunConfig.load(path)
    assert RunConfig.from_json(run.to_json()) == run
    assert RunConfig.from_json(run.to_json()).digest() == run.digest()
    assert run.model.options == {"hidden": [64], "latent_dim": 8}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("\n[privcy]\nepsilon = 1\n", "privcy"),
        ("\n[privacy]\nepsilon = -1\n", r"privacy\.epsilon.*got -1"),
        ("\n[privacy]\nepsilon = nan\n", r"privacy\.epsilon"),
        ("\n[privacy]\nmechanism = 'magic'\n", "mechanism"),
        ("\n[training]\nrounds = 0\n", r"training\.rounds"),
        ("\n[training\n", "syntax error"),
    ],
)
def test_a_bad_run_file_is_one_clear_sentence(change: str, sentence: str) -> None:
    """The message names the key, what was expected and what came."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        RunConfig.from_toml(GOOD + change)
    assert "\n" not in str(caught.value)


def test_inverted_bounds_and_missing_schema_are_refused() -> None:
    """The schema's public bounds must be in order, and a run without a schema is no run."""
    with pytest.raises(ConfigError, match="lower < upper"):
        RunConfig.from_toml(GOOD.replace("upper = 2.5", "upper = -3.0"))
    with pytest.raises(ConfigError, match="'data'"):
        RunConfig.from_toml('name = "x"')
