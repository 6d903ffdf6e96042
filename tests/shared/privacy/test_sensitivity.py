"""No record moves any summary by more than its stated sensitivity; noise has its stated covariance.

Neighbours are data sets of equal size, one with a null record (NaN) where the other has a record:
zero-out.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedlatent.client.compute import parse_request
from fedlatent.shared.arrays import add_prefix
from fedlatent.shared.config import RunConfig
from fedlatent.shared.detection.density import (
    pool_scores,
    score_centres,
    score_names,
    score_radius,
)
from fedlatent.shared.privacy.mixture import LatentMixture
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.summaries import (
    SCORE_EDGES,
    Form,
    LatentDensity,
    SummarySpec,
    choose_form,
    client_mean,
    diagonal_moments,
    diagonal_spec,
    histograms,
    latent_density,
    mixture_moments,
    mixture_spec,
    moments,
    moments_spec,
    noisy_sum,
    scaling_spec,
    scaling_sums,
    threshold_spec,
)
from fedlatent.shared.schedule import Kind
from fedlatent.shared.summaries import SUMMARIES, Federated, View, latent_radius
from tests.client.support import tiny_run

DIMENSIONS, COMPONENTS, FEATURES = 3, 4, 5
FLOAT32_MAX = 3.4e38
SLACK = 1.0 + 1e-9

#: Latents as an encoder in float32 may give them, small and tiny ones and duplicates included.
LATENT = st.one_of(
    st.floats(-5.0, 5.0),
    st.sampled_from([0.0, 1.0, -1.0, 1e-300, FLOAT32_MAX, -FLOAT32_MAX]),
    st.floats(-FLOAT32_MAX, FLOAT32_MAX),
)
VALUE = st.one_of(st.floats(-1.0, 1.0), st.sampled_from([-1.0, 0.0, 1.0]))
SCORE = st.one_of(st.floats(0.0, 30.0), st.floats(0.0, 1e300), st.sampled_from(list(SCORE_EDGES)))
RADIUS = st.sampled_from([1e-3, 0.7, 2.0, 1e3])


def _records(elements: st.SearchStrategy[float], *shape: int) -> st.SearchStrategy[np.ndarray]:
    """One to seven records; the first is the one that a neighbour lacks."""
    count = st.integers(1, 7)
    return count.flatmap(lambda n: arrays(np.float64, (n, *shape), elements=elements))


LATENTS = _records(LATENT, DIMENSIONS)


def mixture_of(seed: int, spread: float = 1.0) -> LatentMixture:
    """Random components."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(COMPONENTS, DIMENSIONS, DIMENSIONS))
    return LatentMixture(
        weights=rng.dirichlet(np.ones(COMPONENTS)),
        means=spread * rng.normal(size=(COMPONENTS, DIMENSIONS)),
        covariances=factors @ factors.swapaxes(1, 2) + 0.05 * np.eye(DIMENSIONS),
    )


def without(records: np.ndarray) -> np.ndarray:
    """The neighbour: a null record takes the place of the first."""
    neighbour = records.copy()
    neighbour[0] = np.nan
    return neighbour


def moved(of: Callable[[np.ndarray], np.ndarray], records: np.ndarray) -> float:
    """Norm of the difference of a sum between neighbours."""
    return float(np.linalg.norm(of(records) - of(without(records))))


@settings(max_examples=80, deadline=None)
@given(LATENTS, RADIUS)
def test_moments_move_by_at_most_their_sensitivity(latents: np.ndarray, radius: float) -> None:
    """Full moments move by sqrt 3 in Frobenius norm at most."""
    bound = moments_spec(DIMENSIONS).sensitivity
    assert bound == math.sqrt(3.0)
    assert moved(lambda rows: moments(rows, radius), latents) <= bound * SLACK


@settings(max_examples=80, deadline=None)
@given(LATENTS, RADIUS)
def test_diagonal_moments_move_by_at_most_their_sensitivity(
    latents: np.ndarray, radius: float
) -> None:
    """Diagonal moments move by sqrt 2 at most."""
    bound = diagonal_spec(DIMENSIONS).sensitivity
    assert bound == math.sqrt(2.0)
    assert moved(lambda rows: diagonal_moments(rows, radius), latents) <= bound * SLACK


@settings(max_examples=80, deadline=None)
@given(LATENTS, RADIUS, st.integers(0, 50), st.sampled_from([0.1, 1.0, 100.0]))
def test_mixture_moments_move_by_at_most_their_sensitivity(
    latents: np.ndarray, radius: float, seed: int, spread: float
) -> None:
    """The stack over all components moves by 2 at most, whatever the mixture is."""
    bound = mixture_spec(COMPONENTS, DIMENSIONS).sensitivity
    mixture = mixture_of(seed, spread)
    assert bound == 2.0
    assert moved(lambda rows: mixture_moments(rows, radius, mixture), latents) <= bound * SLACK


@settings(max_examples=80, deadline=None)
@given(_records(VALUE, FEATURES, 3))
def test_scaling_sums_move_by_at_most_their_sensitivity(values: np.ndarray) -> None:
    """Sums for scaling move by sqrt 2 at most."""
    bound = scaling_spec(FEATURES).sensitivity
    assert bound == math.sqrt(2.0)
    assert moved(scaling_sums, values) <= bound * SLACK


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4).flatmap(lambda scores: _records(SCORE, scores)))
def test_histograms_move_by_exactly_their_sensitivity(scores: np.ndarray) -> None:
    """One record adds one count to each histogram: the root of their number, always."""
    count = scores.shape[1]
    assert moved(lambda rows: histograms(*rows.T), scores) == pytest.approx(
        threshold_spec(count).sensitivity
    )
    assert histograms(*scores.T).shape == threshold_spec(count).shape


def test_a_worst_record_reaches_the_sensitivity() -> None:
    """No sensitivity is stated larger than needed: some record moves its sum that far."""
    far = np.array([[1e9, 0.0, 0.0]])
    assert moved(lambda rows: moments(rows, 2.0), far) == pytest.approx(math.sqrt(3.0))
    assert moved(lambda rows: diagonal_moments(rows, 2.0), far) == pytest.approx(math.sqrt(2.0))
    lonely = LatentMixture(
        weights=np.array([0.5, 0.5]),
        means=np.array([[2.0, 0.0, 0.0], [-200.0, 0.0, 0.0]]),
        covariances=np.stack([np.eye(3)] * 2),
    )
    assert moved(lambda rows: mixture_moments(rows, 2.0, lonely), far) == pytest.approx(2.0)
    assert moved(scaling_sums, np.ones((1, 5, 3))) == pytest.approx(math.sqrt(2.0))


def counted(sums: np.ndarray, spec: SummarySpec, records: int) -> np.ndarray:
    """The sums of nobody with a public count, where they have one: what null records give."""
    expected = np.zeros_like(sums)
    if spec.count is not None:
        expected[spec.count] = records
    return expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_a_null_record(bad: float) -> None:
    """It counts in the public number of records and adds nothing else; no sum fails for it."""
    latents = np.array([[0.1, 0.2, 0.3], [0.0, bad, 0.0]])
    values = np.full((2, 5, 3), 0.5)
    values[1, 2, 0] = bad
    made = [
        (lambda rows: moments(rows, 2.0), latents, moments_spec(3)),
        (lambda rows: diagonal_moments(rows, 2.0), latents, diagonal_spec(3)),
        (lambda rows: mixture_moments(rows, 2.0, mixture_of(0)), latents, mixture_spec(4, 3)),
        (scaling_sums, values, scaling_spec(5)),
    ]
    for of, records, spec in made:
        found = of(records)
        np.testing.assert_allclose(found - of(records[:1]), counted(found, spec, 1), atol=1e-15)


def test_nan_falls_into_no_bin_and_infinity_into_the_outer_ones() -> None:
    """A null record has no score; one beyond all edges has one."""
    low, none, high = histograms(np.array([-math.inf]), np.array([math.nan]), np.array([math.inf]))
    assert low[0] == high[-1] == 1.0
    assert low.sum() == high.sum() == 1.0
    assert not none.any()


COUNTED = [moments_spec(3), diagonal_spec(3), scaling_spec(5)]


@pytest.mark.parametrize("spec", COUNTED, ids=["matrix", "diagonal", "scaling"])
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_public_count_is_exact_and_equal_for_neighbours(
    spec: SummarySpec, data: st.DataObject
) -> None:
    """The count leaves as N without noise, for any records and with a null record among them."""
    if spec == scaling_spec(5):
        records, of = data.draw(_records(VALUE, 5, 2)), scaling_sums
    else:
        full = spec == moments_spec(3)
        records = data.draw(LATENTS)

        def of(rows: np.ndarray) -> np.ndarray:
            return (moments if full else diagonal_moments)(rows, 2.0)

    for rows in (records, without(records)):
        released = noisy_sum(of(rows), spec, 3.0, SimulationNoise(len(records)))
        assert spec.count is not None
        assert released[spec.count] == len(records)


def test_only_public_counts_go_without_noise() -> None:
    """Components and bins have counts that one record moves: none of them is exact."""
    assert mixture_spec(2, 3).count is None
    assert threshold_spec().count is None
    for spec in (mixture_spec(2, 3), threshold_spec(), *COUNTED):
        silent = noisy_sum(np.zeros(spec.shape), spec, 1.0, SimulationNoise(3)) == 0.0
        assert silent.sum() == (spec.count is not None)


def test_inputs_that_break_a_sensitivity_are_refused() -> None:
    """Values outside the bounds, rows without two axes and shares off the simplex raise."""

    class Doubled:
        def responsibilities(self, latents: np.ndarray) -> np.ndarray:
            return np.ones((len(latents), 2))

    class Signed:
        def responsibilities(self, latents: np.ndarray) -> np.ndarray:
            return np.tile([2.0, -1.0], (len(latents), 1))

    with pytest.raises(ValueError, match="within"):
        scaling_sums(np.full((1, 5, 3), 1.001))
    with pytest.raises(ValueError, match="rows"):
        moments(np.zeros(3), 2.0)
    for wrong in (Doubled(), Signed()):
        with pytest.raises(ValueError, match="simplex"):
            mixture_moments(np.zeros((2, 3)), 2.0, wrong)


def test_nobody_gives_zeros() -> None:
    """An empty data set has sums of zeros of the stated shapes."""
    nobody = np.zeros((0, DIMENSIONS))
    made = [
        (moments(nobody, 2.0), moments_spec(DIMENSIONS)),
        (diagonal_moments(nobody, 2.0), diagonal_spec(DIMENSIONS)),
        (mixture_moments(nobody, 2.0, mixture_of(0)), mixture_spec(COMPONENTS, DIMENSIONS)),
        (scaling_sums(np.zeros((0, 5, 3))), scaling_spec(5)),
        (histograms(np.zeros(0), np.zeros(0)), threshold_spec()),
    ]
    for sums, spec in made:
        assert sums.shape == spec.shape, spec.key
        assert not sums.any(), spec.key
        assert sums.dtype == np.float64, spec.key


# Through real requests: what client and server derive from a run.


def summary_run(data: str = "none", **summaries: object) -> RunConfig:
    """A run with every kind of summary."""
    return tiny_run(
        sharing="full",
        summaries={"data": data, "components": COMPONENTS, "features": 6, **summaries},
        scoring={"combined": True},
    )


def _density(k: int, seed: int) -> LatentDensity:
    rng = np.random.default_rng(seed)
    return latent_density([moments(rng.normal(size=(50, k)), 3.0)], 3.0, 0.0)


def _asked(run: RunConfig, kind: Kind, extra: Mapping[str, np.ndarray] | None = None) -> Federated:
    """What a request brings, checked as a node checks it."""
    names = score_names(run)
    scores = np.random.default_rng(2).uniform(-1, 1, size=(40, len(names)))
    root = math.sqrt(len(names))
    pooled = pool_scores([moments(scores, root)], names, score_centres(run, 3), 0.0)
    brought = {
        **add_prefix("density.", _density(DIMENSIONS, 1).arrays()),
        **add_prefix("mixture.", mixture_of(3).arrays()),
        **add_prefix("scores.", pooled.density.arrays()),
    }
    return parse_request(run, kind, {**brought, **(extra or {})}, DIMENSIONS).state


@settings(max_examples=40, deadline=None)
@given(_records(st.one_of(st.floats(-3.0, 3.0), st.sampled_from([-3.0, 3.0])), 12))
@pytest.mark.parametrize("data", ["scaling", "gaussian"])
@pytest.mark.parametrize("radius", [0.0, 0.05, 50.0])
def test_what_a_client_releases_of_its_data_keeps_the_sensitivity(
    data: str, radius: float, records: np.ndarray
) -> None:
    """Neither form of the phase "data" moves by more than the spec of the run says."""
    run = summary_run(data, data_radius=radius)
    spec = SUMMARIES["data"].spec(run, DIMENSIONS, Federated())
    batch = np.vstack([records, np.ones((1, 12))]).astype(np.float32)
    assert _data_sums(run, batch).shape == spec.shape
    assert moved(lambda rows: _data_sums(run, rows), batch) <= spec.sensitivity * (1 + 1e-6)
    if spec.count is not None:
        assert _data_sums(run, batch)[spec.count] == len(batch)


def _data_sums(run: RunConfig, records: np.ndarray) -> np.ndarray:
    """What a client releases of its records, without noise."""
    view = View(records=records, latents=np.zeros((len(records), 0)))
    return SUMMARIES["data"].exact(run, Federated(), view)


def _own_moments(run: RunConfig, center: np.ndarray) -> np.ndarray:
    """Moments [k+1, k+1] of a client whose mean is ``center``."""
    own = np.zeros((len(center) + 1, len(center) + 1))
    own[-1] = np.append(center / latent_radius(run, len(center)), 1.0)
    return own


@pytest.mark.parametrize("data", ["scaling", "gaussian"])
def test_the_data_of_nobody_gives_zeros(data: str) -> None:
    """A client without records releases noise about zeros in the phase "data"."""
    run = summary_run(data)
    sums = _data_sums(run, np.zeros((0, 12), np.float32))
    assert sums.shape == SUMMARIES["data"].spec(run, DIMENSIONS, Federated()).shape
    assert not sums.any()


PARTS = st.one_of(
    st.floats(0.0, 50.0), st.sampled_from([0.0, 1e300, math.inf, math.nan]), st.floats(-20.0, 20.0)
)


@settings(max_examples=40, deadline=None)
@given(LATENTS, st.data(), st.sampled_from([0.0, 0.5, 40.0]))
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("moments", "full"),
        ("moments", "diagonal"),
        ("mixture", "full"),
        ("scores", "full"),
        ("threshold", "full"),
    ],
)
def test_what_a_client_releases_of_its_latents_keeps_the_sensitivity(
    kind: Kind, form: Form, latents: np.ndarray, data: st.DataObject, radius: float
) -> None:
    """No kind of request is answered by sums that one record moves further than its spec says.

    Parts of the score may be anything at all, infinity and NaN too.
    """
    run = summary_run().model_copy(
        update={"scoring": summary_run().scoring.model_copy(update={"radius": radius})}
    )
    names = score_names(run)
    table = data.draw(arrays(np.float64, (len(latents), len(names)), elements=PARTS))
    asked = replace(_asked(run, kind), form=form)
    spec = SUMMARIES[kind].spec(run, DIMENSIONS, asked)
    own = _own_moments(run, np.array([0.5, -0.5, 0.0]))

    def sums(rows: np.ndarray) -> np.ndarray:
        parts = {name: table[:, i] for i, name in enumerate(names)}
        view = View(records=rows, latents=rows, score_parts=parts, own=own)
        return SUMMARIES[kind].exact(run, asked, view)

    assert sums(latents).shape == spec.shape
    assert moved(sums, latents) <= spec.sensitivity * SLACK


def test_no_mapped_part_of_a_score_is_clipped() -> None:
    """The radius of the parts holds the cube that they are mapped to, and is not larger."""
    corner = np.ones((1, 4))
    assert np.linalg.norm(corner) == pytest.approx(score_radius(4))
    assert moved(lambda rows: moments(rows, score_radius(4)), corner) == pytest.approx(math.sqrt(3))
    assert np.allclose(client_mean(moments(corner, score_radius(4)), score_radius(4)), corner)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("kind", ["mixture", "threshold"])
def test_no_request_can_be_made_to_fail_for_one_record_alone(kind: Kind) -> None:
    """Densities that overflow for one record do not fail: a refusal would show its presence."""
    run = summary_run()
    tiny = 1e-308 * np.eye(DIMENSIONS)
    brought: dict[str, np.ndarray] = {
        **add_prefix(
            "mixture.",
            LatentMixture(
                weights=np.ones(1), means=np.zeros((1, DIMENSIONS)), covariances=tiny[None]
            ).arrays(),
        ),
        **add_prefix(
            "density.",
            LatentDensity(
                count=9.0, mean=np.zeros(DIMENSIONS), covariance=tiny, within=tiny
            ).arrays(),
        ),
    }
    asked = _asked(run, kind, brought)
    parts = {name: np.ones(3) for name in score_names(run)}
    near, far = np.full((3, DIMENSIONS), 0.1), np.full((3, DIMENSIONS), 0.1)
    far[1] = 1.2  # within the radius
    own = _own_moments(run, np.zeros(DIMENSIONS))
    without, present = (
        SUMMARIES[kind].exact(
            run, asked, View(records=rows, latents=rows, score_parts=parts, own=own)
        )
        for rows in (near, far)
    )
    assert np.isfinite(without).all()
    assert np.isfinite(present).all()


# Noise.


def _draws(spec: SummarySpec, sigma: float, count: int = 6000) -> np.ndarray:
    exact = np.zeros(spec.shape)
    return np.stack([noisy_sum(exact, spec, sigma, SimulationNoise(7, i)) for i in range(count)])


@pytest.mark.parametrize("spec", [moments_spec(3), mixture_spec(2, 2)], ids=["matrix", "stack"])
def test_symmetric_noise_has_the_stated_covariance(spec: SummarySpec) -> None:
    """Variance s^2 on the diagonal, half of that off it, no correlation but of mirrored entries.

    The public count has none.
    """
    deviation = spec.sensitivity * 1.5
    draws = _draws(spec, 1.5)
    assert np.array_equal(draws, draws.swapaxes(-1, -2))
    size = spec.shape[-1]
    upper = np.triu_indices(size)
    if spec.count is not None:
        assert not draws[..., size - 1, size - 1].any()
        upper = (upper[0][:-1], upper[1][:-1])
    entries = draws[..., upper[0], upper[1]].reshape(len(draws), -1)
    expected = np.where(upper[0] == upper[1], deviation**2, deviation**2 / 2)
    expected = np.tile(expected, int(np.prod(spec.shape[:-2])))
    found = np.cov(entries.T) / np.sqrt(np.outer(expected, expected))
    assert np.abs(entries.mean(axis=0)).max() < 0.06 * deviation
    assert np.abs(found - np.eye(len(expected))).max() < 0.08


@pytest.mark.parametrize(
    "spec", [diagonal_spec(2), scaling_spec(3), threshold_spec(1)], ids=["diagonal", "scaling", "h"]
)
def test_noise_of_vectors_has_the_stated_covariance(spec: SummarySpec) -> None:
    """Every entry but a public count has variance s^2; none is correlated with another."""
    deviation = spec.sensitivity * 0.8
    entries = _draws(spec, 0.8).reshape(6000, -1)[:, :12]
    if spec.count is not None:
        assert not entries[:, 0].any()
        entries = entries[:, 1:]
    found = np.cov(entries.T) / deviation**2
    assert np.abs(found - np.eye(entries.shape[1])).max() < 0.08


def test_no_noise_means_exact_and_a_wrong_shape_is_refused() -> None:
    """Multiplier zero returns the sums themselves; a summary of another shape raises."""
    exact = moments(np.random.default_rng(0).normal(size=(9, 3)), 2.0)
    assert np.array_equal(noisy_sum(exact, moments_spec(3), 0.0, SimulationNoise(1)), exact)
    with pytest.raises(ValueError, match="shape"):
        noisy_sum(exact, moments_spec(2), 0.0, SimulationNoise(1))


# What the server makes of moments.


@pytest.mark.parametrize(
    ("records", "clients", "epsilon", "k", "form"),
    [
        (3000, 1, 1.0, 10, "full"),
        (2999, 1, 1.0, 10, "diagonal"),
        (6000, 4, 1.0, 10, "full"),
        (5999, 4, 1.0, 10, "diagonal"),
        (1500, 1, 2.0, 10, "full"),
        (30, 0, 1.0, 1, "full"),
    ],
)
def test_the_form_of_moments_follows_what_the_records_bear(
    records: int, clients: int, epsilon: float, k: int, form: Form
) -> None:
    """Full from 30 k^2 records times epsilon, where the noise of clients adds up to its root."""
    assert choose_form(records, clients, epsilon, k) == form


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 5]))
def test_pooled_diagonal_moments_tell_mean_and_variances(seed: int, clients: int) -> None:
    """Without noise the diagonal density has the true mean and variances of all records."""
    rng = np.random.default_rng(seed)
    own = [rng.normal(size=(60, 3)) + 0.3 * rng.normal(size=3) for _ in range(clients)]
    radius = 20.0
    density = latent_density([diagonal_moments(rows, radius) for rows in own], radius, 0.0)
    pooled = np.vstack(own)
    centred = np.vstack([rows - rows.mean(axis=0) for rows in own])
    assert density.count == pytest.approx(60 * clients)
    assert np.allclose(density.mean, pooled.mean(axis=0))
    assert np.allclose(density.covariance, np.diag(pooled.var(axis=0)))
    assert np.allclose(density.within, np.diag((centred**2).mean(axis=0)))


def test_both_forms_tell_the_mean_of_a_client() -> None:
    """The centre of a client is the mean of its clipped latents in either form; nobody's is 0."""
    rows = np.random.default_rng(4).normal(size=(40, 3))
    for of in (moments, diagonal_moments):
        assert np.allclose(client_mean(of(rows, 30.0), 30.0), rows.mean(axis=0))
        assert np.array_equal(client_mean(of(rows[:0], 30.0), 30.0), np.zeros(3))
    clipped = client_mean(diagonal_moments(np.array([[10.0, 0.0, 0.0]]), 2.0), 2.0)
    assert np.allclose(clipped, [2.0, 0.0, 0.0])


@pytest.mark.parametrize("of", [moments, diagonal_moments])
def test_pooled_means_come_to_the_truth_with_more_records(
    of: Callable[[np.ndarray, float], np.ndarray],
) -> None:
    """The error of the pooled mean under fixed noise falls as records grow."""
    truth = np.array([0.7, -0.4, 0.1])
    spec = moments_spec(3) if of is moments else diagonal_spec(3)
    errors = []
    for count in (100, 1_000, 50_000):
        rng = np.random.default_rng(count)
        released = [
            noisy_sum(
                of(truth + rng.normal(size=(count, 3)), 6.0), spec, 3.0, SimulationNoise(count, c)
            )
            for c in range(4)
        ]
        errors.append(np.linalg.norm(latent_density(released, 6.0, 3.0).mean - truth))
    assert errors[2] < 0.03 < errors[0]
    assert errors[2] < errors[1] < errors[0] * 1.01


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_noise_is_taken_out_of_the_spread_of_client_means(form: Form) -> None:
    """Clients with one centre keep the whole variance within clients, noise notwithstanding."""
    of, spec = (
        (moments, moments_spec(2)) if form == "full" else (diagonal_moments, diagonal_spec(2))
    )
    own = [np.random.default_rng(i).normal(size=(400, 2)) for i in range(200)]
    released = [noisy_sum(of(x, 3.0), spec, 8.0, SimulationNoise(9, i)) for i, x in enumerate(own)]
    density = latent_density(released, 3.0, 8.0)
    exact = latent_density([of(x, 3.0) for x in own], 3.0, 0.0)
    assert np.allclose(np.diag(density.within), np.diag(exact.within), atol=0.06)
