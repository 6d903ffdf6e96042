"""Synthetic records from a released decoder, and the classifiers that judge them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from fedlatent.client.compute import load_weights, run_model
from fedlatent.server.results import RunFolder
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models.priors import StandardNormal
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.simulations.federation import simulate
from fedlatent.simulations.study.shipped import locate
from fedlatent.simulations.study.spec import Study
from fedlatent.simulations.zoo.generation import (
    CLASSES,
    PIXELS,
    REPEATS,
    accuracy,
    classifier,
    generation_run,
    labelled,
    picture,
    priors_of,
    synthetic,
)


def bars(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, 28, 28] with one bright bar, whose place is the class, and classes."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, count).astype(np.uint8)
    images = rng.integers(0, 60, (count, 28, 28)).astype(np.uint8)
    for image, place in zip(images, classes, strict=True):
        image[4 + 2 * place : 6 + 2 * place, rng.integers(0, 8) :] = 230
    return images, classes


def study_run(clients: int) -> RunConfig:
    """The run of the shipped study."""
    study = Study.load(locate("generation"))
    return generation_run(study, study.cells[1], clients)


def small_result(folder: Path, **sections: Mapping[str, object]) -> RunFolder:
    """The experiment's run on a small model, two clients and bars."""
    plain = study_run(2).model_dump(mode="json")
    sections = {
        "model": {"options": {"hidden": [32], "latent_dim": 4, "likelihood": "bernoulli"}},
        "summaries": {"components": 6, "em_rounds": 2},
        **sections,
    }
    run = RunConfig.parse({**plain, **{k: {**plain[k], **v} for k, v in sections.items()}}, "test")
    records = labelled(*bars(1_000, seed=0))
    schema = Schema.from_dict(plain["data"])
    sites = {f"s{i}": Dataset(records=records[i::2], schema=schema) for i in range(2)}
    return simulate(run, sites, folder, engine="stacked").result


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A short private run."""
    training = {"rounds": 2, "steps_per_round": 2}
    return small_result(tmp_path_factory.mktemp("short"), training=training)


def test_the_run_spends_its_epsilon_at_a_delta_below_one_tenth_of_a_record() -> None:
    """Every client of the experiment ends at epsilon, with delta at most 1e-5 and 1/(10 N)."""
    for clients, delta in ((1, 5e-6), (10, 1e-5)):
        run = study_run(clients)
        assert run.privacy.delta == pytest.approx(delta)
        assert run.shares_decoder
        assert 9.9 < PrivacyPlan.from_config(run).epsilon() <= 10.0


def test_a_record_is_an_image_with_its_label_repeated() -> None:
    """Pixels come first, in [0, 1]; each repetition is the one-hot class."""
    images, classes = bars(7, seed=3)
    records = labelled(images, classes)
    assert records.shape == (7, PIXELS + REPEATS * CLASSES)
    assert records.dtype == np.float32
    np.testing.assert_allclose(records[:, :PIXELS] * 255.0, images.reshape(7, -1), rtol=1e-6)
    hot = records[:, PIXELS:].reshape(7, REPEATS, CLASSES)
    assert (hot.argmax(axis=2) == classes[:, None]).all()
    assert (hot.sum(axis=2) == 1.0).all()


def test_every_released_density_is_a_prior(result: RunFolder) -> None:
    """N(0, I) always, the Gaussian and the mixture as they were released."""
    priors = priors_of(result)
    assert list(priors) == ["N(0, I)", "gaussian", "mixture"]
    parts = {key: part for key, part in result.released.parts.items() if key != "mixture"}
    without = dataclasses.replace(result.released, parts=parts)
    found = priors_of(dataclasses.replace(result, released=without))
    assert list(found) == ["N(0, I)", "gaussian"]


def test_draws_are_what_the_released_decoder_makes_of_seeded_latents(result: RunFolder) -> None:
    """Images and labels are the decoder's mean; a seed gives one sample, another gives another."""
    images, labels = synthetic(result, StandardNormal(), 50, seed=2)
    model = run_model(result.config)
    load_weights(model, result.arrays, whole=True)
    eps = torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        records = model.reconstruct(eps).numpy()
    np.testing.assert_array_equal(images, records[:, :PIXELS])
    sums = records[:, PIXELS:].reshape(50, REPEATS, CLASSES).sum(axis=1)
    np.testing.assert_array_equal(labels, sums.argmax(axis=1))
    for prior in priors_of(result).values():
        first, again, other = (synthetic(result, prior, 20, seed) for seed in (2, 2, 3))
        np.testing.assert_array_equal(first[0], again[0])
        assert not np.array_equal(first[0], other[0])
        assert first[0].min() >= 0
        assert first[0].max() <= 1


def test_a_run_that_kept_its_decoders_makes_no_data(result: RunFolder) -> None:
    """Without the decoder there is nothing to draw from."""
    kept = result.config.model_copy(update={"sharing": "encoder"})
    with pytest.raises(ConfigError, match="shares whole models"):
        synthetic(dataclasses.replace(result, config=kept), StandardNormal(), 1, 0)


def test_the_picture_is_a_png(result: RunFolder) -> None:
    """It draws even where a class has no sample."""
    assert picture(result, seed=0).startswith(b"\x89PNG")


def test_a_classifier_learns_and_repeats() -> None:
    """It names new images of what it learnt, and equal seeds give equal networks."""
    images, classes = bars(2_000, seed=0)
    pixels, labels = labelled(images, classes)[:, :PIXELS], classes.astype(np.int64)
    first, again = (classifier(pixels[:1_500], labels[:1_500], seed=5) for _ in range(2))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert accuracy(first, pixels[1_500:], labels[1_500:]) > 0.9
    # Turned labels are named right by nobody who learnt the true ones.
    assert accuracy(first, pixels[1_500:], (labels[1_500:] + 1) % CLASSES) < 0.1


def test_synthetic_records_teach_what_real_ones_would(tmp_path: Path) -> None:
    """Without noise, draws from the mixture teach a classifier the classes and bear right labels.

    Their labels fit their images better than those of draws from N(0, I), where the decoder was
    not trained.
    """
    made = small_result(
        tmp_path,
        privacy={"mechanism": "none", "sample_rate": 0.3},
        training={"rounds": 12, "steps_per_round": 25, "learning_rate": 5e-3},
        summaries={"components": 30, "em_rounds": 4},
    )
    images, classes = bars(1_000, seed=9)
    real = labelled(images, classes)[:, :PIXELS], classes.astype(np.int64)
    judge = classifier(*real, seed=0)
    agreement, learnt = {}, {}
    for name, prior in priors_of(made).items():
        drawn = synthetic(made, prior, 2_000, seed=0)
        agreement[name] = accuracy(judge, *drawn)
        learnt[name] = accuracy(classifier(*drawn, seed=0), *real)
    assert agreement["mixture"] > max(0.8, agreement["N(0, I)"] + 0.05)
    assert learnt["mixture"] > 0.8
