"""The run file: good ones load, bad ones are refused in one sentence that names the field."""

from pathlib import Path

import pytest

from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError

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
    assert len({run, RunConfig.from_json(run.to_json())}) == 1
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


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        (
            {"sharing": "encoder+summary", "summaries": {"prior": "mixture"}},
            "expected summaries.components of 1 or more for a mixture, got 0",
        ),
        (
            {"sharing": "full", "summaries": {"prior": "gaussian"}},
            "expected sharing 'encoder+summary' for a broadcast prior, got 'full'",
        ),
        (
            {"training": {"warm_start_steps": 5}},
            "expected summaries.data 'gaussian' for a warm start on released data, got 'none'",
        ),
        (
            {"sharing": "full", "strategy": {"name": "mr-mtl"}},
            "expected sharing of the encoder for strategy 'mr-mtl', got 'full'",
        ),
    ],
)
def test_settings_that_exclude_each_other_are_said(
    tables: dict[str, object], sentence: str
) -> None:
    """What does not fit together is one sentence, without the rest of the file."""
    value = {"name": "try", "data": {"name": "any", "shape": [4]}, **tables}
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse(value, "run.toml")
    assert str(caught.value) == f"run.toml: {sentence}; change one of them."
