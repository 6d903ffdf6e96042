"""``fedlatent privacy plan``: the numbers printed are those that a run will spend."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedlatent.shared.config import RunConfig, Training
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.export.bundling import golden_records
from fedlatent.shared.models import build
from fedlatent.shared.models.objective import elbo
from fedlatent.shared.privacy.accounting import epsilon_of
from fedlatent.shared.privacy.clipping import calibrated_clip, gradient_norms, synthetic_records
from fedlatent.shared.privacy.person import person_epsilon
from fedlatent.shared.privacy.plan import PrivacyPlan
from tests.cli.conftest import Run

_RUN = """\
name = "planned"
sharing = "{sharing}"
[data]
name = "curves"
shape = [16]
[model.options]
hidden = [8]
latent_dim = 3
[privacy]
epsilon = 2.0
{privacy}
[training]
rounds = 4
steps_per_round = 5
[federation]
nodes = 3
[summaries]
{summaries}
[scoring]
combined = {combined}
"""


def written(
    folder: Path,
    *,
    sharing: str = "encoder",
    privacy: str = "",
    summaries: str = "",
    combined: str = "false",
) -> Path:
    """A run file."""
    path = folder / "run.toml"
    path.write_text(
        _RUN.format(sharing=sharing, privacy=privacy, summaries=summaries, combined=combined)
    )
    return path


def planned(run: Run, path: Path, *options: object) -> dict[str, Any]:
    """The plan as scripts read it."""
    status, out, _ = run("privacy", "plan", path, "--json", *options)
    assert status == 0, out
    facts: dict[str, Any] = json.loads(out)
    return facts


ALL = 'data = "gaussian"\nfeatures = 5\ncomponents = 2\nem_rounds = 3'


def test_every_kind_of_release_is_listed_with_what_it_costs(run: Run, tmp_path: Path) -> None:
    """Kinds, sizes, sensitivities, shares and noise are the plan's, and add up to its epsilon."""
    path = written(tmp_path, summaries=ALL, combined="true")
    facts = planned(run, path, "--records", 500)
    rows = {one["kind"]: one for one in facts["releases"]}
    assert list(rows) == ["data", "train", "moments", "mixture", "scores", "threshold"]
    assert [one["releases"] for one in rows.values()] == [1, 4, 1, 3, 1, 1]
    encoder = 16 * 8 + 8 + 2 * (8 * 3 + 3)
    assert (rows["train"]["values"], rows["train"]["bytes"]) == (encoder, 4 * encoder)
    assert rows["data"]["values"] == 6 * 6
    assert rows["mixture"]["bytes"] == 8 * 2 * 4 * 4
    assert rows["threshold"]["values"] == 3 * 128
    assert rows["threshold"]["sensitivity"] == pytest.approx(math.sqrt(3))
    assert sum(one["share"] for one in rows.values()) == pytest.approx(1.0)
    plan = PrivacyPlan.from_config(RunConfig.load(path))
    for kind, one in rows.items():
        sigma = plan.multiplier(kind)  # type: ignore[arg-type]
        assert one["noise_multiplier"] == sigma
        assert one["noise_deviation"] == pytest.approx(sigma * one["sensitivity"])
        alone = [plan.required(kind)] * one["releases"]  # type: ignore[arg-type]
        assert one["epsilon_alone"] == pytest.approx(epsilon_of(alone, 1e-5))
        assert one["epsilon_alone"] < facts["epsilon"]
    assert facts["epsilon"] == plan.epsilon() <= 2.0
    assert facts["epsilon_pld"] == plan.pld_epsilon() < facts["epsilon"]
    assert (facts["adjacency"], facts["unit"], facts["rng"]) == ("zero-out", "record", "secure")
    assert (facts["sample_rate"], facts["steps"], facts["expected_batch"]) == (0.1, 20, 50.0)
    assert facts["signal_to_noise"] == pytest.approx(50 / plan.noise_multiplier)
    assert facts["warnings"] == []


def test_form_of_moments_follows_records(run: Run, tmp_path: Path) -> None:
    """Few records bear the diagonal alone, many all products; the run's word goes before both."""
    path = written(tmp_path)
    sizes = {}
    for records in (100, 10_000):
        facts = planned(run, path, "--records", records)
        sizes[facts["moments"]] = next(
            one["values"] for one in facts["releases"] if one["kind"] == "moments"
        )
    assert sizes == {"diagonal": 7, "full": 16}
    path = written(tmp_path, summaries='moments = "diagonal"')
    assert planned(run, path, "--records", 10_000)["moments"] == "diagonal"
    path = written(tmp_path, sharing="summary")
    assert "first phase" in planned(run, path, "--records", 100)["moments_because"]


def test_sharing_decides_what_leaves(run: Run, tmp_path: Path) -> None:
    """Summaries alone train nothing; whole models are larger than encoders."""
    only = planned(run, written(tmp_path, sharing="summary"))
    assert [one["kind"] for one in only["releases"]] == ["moments", "threshold"]
    assert only["steps"] == 0
    assert only["largest_clip"] is None
    whole, part = (
        planned(run, written(tmp_path, sharing=sharing))["releases"][0]["values"]
        for sharing in ("full", "encoder")
    )
    assert whole > part


def test_largest_clip_is_told_unless_a_release_scales_records(run: Run, tmp_path: Path) -> None:
    """It is the median norm of public records under the run's own objective."""
    path = written(tmp_path)
    config = RunConfig.load(path)
    schema = config.data
    records = torch.from_numpy(schema.preprocess(synthetic_records(schema, 256)))
    model = build("gaussian", config.model.options, (16,), config.seed)
    assert planned(run, path)["largest_clip"] == pytest.approx(
        calibrated_clip(model, records, config.training)
    )
    path = written(tmp_path, summaries='data = "scaling"')
    assert planned(run, path)["largest_clip"] is None
    assert "unknown" in run("privacy", "plan", path)[1]


@pytest.mark.parametrize(
    ("privacy", "options", "words"),
    [
        ("sample_rate = 0.01", ("--records", 50), "signal-to-noise"),
        ("sample_rate = 0.2", ("--records", 50), "policy.caps.smallest_batch"),
        ("", ("--records", 20_000), "delta"),
        ("clip = 1e6", (), "clip"),
        ("", ("--person-cap", 20), "person with 20 records"),
        ('rng = "simulation"', (), "simulation"),
        ('mechanism = "none"', (), "no differential privacy"),
    ],
)
def test_what_would_go_wrong_is_said(
    run: Run, tmp_path: Path, privacy: str, options: tuple[object, ...], words: str
) -> None:
    """Each danger has its own warning, on standard error for people."""
    path = written(tmp_path, privacy=privacy)
    warnings = planned(run, path, *options)["warnings"]
    assert sum(words in one for one in warnings) == 1
    status, out, err = run("privacy", "plan", path, *options)
    assert status == 0
    assert words in err
    assert "moments" in out


def test_a_person_with_one_record_has_the_records_epsilon(run: Run, tmp_path: Path) -> None:
    """For one record the figure is that record's by PLD; it grows with records at equal delta."""
    path = written(tmp_path)
    plan = PrivacyPlan.from_config(RunConfig.load(path))
    found = {m: planned(run, path, "--person-cap", m)["person"] for m in (1, 2, 5, 10**6)}
    assert found[1]["epsilon"] == person_epsilon(plan.events(), 1e-5, 1) < plan.epsilon()
    assert found[1]["epsilon"] < found[2]["epsilon"] < found[5]["epsilon"]
    assert found[2]["epsilon"] == person_epsilon(plan.events(), 1e-5, 2)
    assert {one["delta"] for one in found.values()} == {1e-5}
    assert found[10**6]["epsilon"] is None or found[10**6]["epsilon"] > 1e4
    shown = run("privacy", "plan", path, "--person-cap", 2)[1]
    assert f"epsilon {found[2]['epsilon']:.3f} at delta 1e-05 by PLD" in shown


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": "moments_share = 0.9\nthreshold_share = 0.2"}, "below 1"),
        ({"privacy": "delta = 2"}, "delta"),
        ({"sharing": "decoder"}, "sharing"),
    ],
)
def test_errors_are_one_sentence(
    run: Run, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    """A run that cannot be planned ends with exit code 2 and names what is wrong."""
    path = written(tmp_path, **changes)
    status, out, err = run("privacy", "plan", path)
    assert (status, out) == (2, "")
    assert "error (config)" in err
    assert words in err
    assert "Traceback" not in err


def test_calibrated_clip_is_the_median_norm_of_single_gradients() -> None:
    """The norms equal those of one backward pass a record, drawn latents averaged."""
    model = build("gaussian", {"hidden": [8], "latent_dim": 3}, (16,), 0)
    records = torch.from_numpy(np.random.default_rng(1).normal(size=(21, 16)).astype(np.float32))
    training = Training(beta=0.5, free_bits=1.0, multiplicity=2)
    eps = torch.randn(21, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = []
    for x, draws in zip(records, eps, strict=True):
        loss = elbo(model(x.expand(2, 16), draws), 0.5, 1.0).mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        expected.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))
    norms = gradient_norms(model, records, training)
    np.testing.assert_allclose(norms.numpy(), expected, rtol=1e-4)
    clip = calibrated_clip(model, records, training)
    assert clip == pytest.approx(np.median(expected), rel=1e-4)
    upper = calibrated_clip(model, records, training, 0.9)
    assert upper == pytest.approx(np.quantile(expected, 0.9), rel=1e-4)
    for bad in (0.0, 1.0):
        with pytest.raises(ValueError, match="quantile"):
            calibrated_clip(model, records, training, bad)
    with pytest.raises(ValueError, match="got 0"):
        calibrated_clip(model, records[:0], training)


def test_synthetic_records_are_the_golden_ones_and_more() -> None:
    """The first are those of every bundle, so that both come from one public recipe."""
    schema = Schema.from_dict(
        {
            "name": "c",
            "shape": [4, 4],
            "unit": "",
            "scale": 2.0,
            "center": "none",
            "lower": -1.0,
            "upper": 3.0,
        }
    )
    records = synthetic_records(schema, 30)
    assert records.shape == (30, 4, 4)
    np.testing.assert_array_equal(records[:4], golden_records(schema))
