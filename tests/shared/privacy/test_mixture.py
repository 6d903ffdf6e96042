"""The mixture of latents: its density, its shares and what a message may bring."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.privacy.mixture import MAX_COMPONENTS, LatentMixture

Arrays = dict[str, np.ndarray]


def mixture_of(seed: int, components: int = 3, k: int = 2) -> LatentMixture:
    """Random correlated components."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(components, k, k))
    return LatentMixture(
        weights=rng.dirichlet(np.ones(components)),
        means=2.0 * rng.normal(size=(components, k)),
        covariances=factors @ factors.swapaxes(1, 2) + 0.1 * np.eye(k),
    )


def scipy_parts(mixture: LatentMixture, latents: np.ndarray) -> np.ndarray:
    """Logarithm of weight times density [N, K] by scipy."""
    return np.stack(
        [
            np.log(w) + np.atleast_1d(multivariate_normal(m, c).logpdf(latents))
            for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
        ],
        axis=1,
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4))
def test_density_and_shares_equal_scipy(seed: int, components: int, k: int) -> None:
    """Log density and responsibilities of any mixture are those of scipy's Gaussians."""
    mixture = mixture_of(seed, components, k)
    latents = 3.0 * np.random.default_rng(seed + 1).normal(size=(7, k))
    parts = scipy_parts(mixture, latents)
    total = logsumexp(parts, axis=1)
    assert np.allclose(mixture.log_density(latents), total)
    assert np.allclose(mixture.responsibilities(latents), np.exp(parts - total[:, None]))


@settings(max_examples=80, deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(0, 6), st.just(2)), elements=st.floats(-1e9, 1e9)),
    st.integers(0, 1000),
)
def test_shares_lie_on_the_simplex(latents: np.ndarray, seed: int) -> None:
    """Shares are not negative and add up to 1, however far a latent is from every component."""
    shares = mixture_of(seed, 4).responsibilities(latents)
    assert shares.shape == (len(latents), 4)
    assert (shares >= 0).all()
    assert np.allclose(shares.sum(axis=1), 1.0)


def test_density_far_away_does_not_underflow() -> None:
    """Where every density is zero in floating point its logarithm is still that of scipy."""
    mixture, far = mixture_of(1), np.array([[300.0, -500.0]])
    assert np.exp(scipy_parts(mixture, far)).max() == 0.0
    assert np.allclose(mixture.log_density(far), logsumexp(scipy_parts(mixture, far), axis=1))


def test_arrays_round_trip() -> None:
    """What arrays write is read back bit for bit, by either reader."""
    mixture = mixture_of(2)
    for again in (
        LatentMixture.from_arrays(mixture.arrays()),
        LatentMixture.checked(mixture.arrays(), 2),
    ):
        for key, value in mixture.arrays().items():
            assert np.array_equal(again.arrays()[key], value)
            assert again.arrays()[key].dtype == np.float64


def _without(key: str) -> Callable[[Arrays], object]:
    return lambda found: found.pop(key)


def _put(key: str, value: np.ndarray) -> Callable[[Arrays], object]:
    return lambda found: found.update({key: value})


INDEFINITE = np.array([[1.0, 2.0], [2.0, 1.0]])


@pytest.mark.parametrize(
    "spoil",
    [
        _without("weights"),
        _without("covariances"),
        _put("surplus", np.zeros(1)),
        _put("weights", np.array([0.5, 0.5])),
        _put("weights", np.array([0.5, 0.5, 0.0])),
        _put("weights", np.array([0.9, 0.3, -0.2])),
        _put("weights", np.array([0.5, np.nan, 0.5])),
        _put("weights", np.array([1, 1, 1])),
        _put("weights", np.array(1.0)),
        _put("means", np.zeros((3, 3))),
        _put("means", np.array([[0.0, 0.0], [np.inf, 0.0], [0.0, 0.0]])),
        _put("covariances", np.zeros((3, 2, 2))),
        _put("covariances", np.stack([np.eye(2), np.eye(2), INDEFINITE])),
        _put("covariances", np.stack([np.eye(2), np.eye(2), -np.eye(2)])),
        _put("covariances", np.full((3, 2, 2), np.nan)),
    ],
)
def test_what_is_no_mixture_is_refused(spoil: Callable[[Arrays], object]) -> None:
    """Missing, surplus, misshapen, mistyped, infinite or indefinite arrays raise ProtocolError."""
    found = dict(mixture_of(3).arrays())
    spoil(found)
    with pytest.raises(ProtocolError, match="Expected a mixture"):
        LatentMixture.checked(found, 2)


@pytest.mark.parametrize("count", [0, MAX_COMPONENTS + 1])
def test_a_mixture_of_too_few_or_many_components_is_refused(count: int) -> None:
    """No component and more than the limit raise; the limit itself is fine."""
    with pytest.raises(ProtocolError, match=f"1 to {MAX_COMPONENTS}"):
        LatentMixture.checked(_of(count), 2)
    assert len(LatentMixture.checked(_of(MAX_COMPONENTS), 2).weights) == MAX_COMPONENTS


def _of(count: int) -> Arrays:
    return {
        "weights": np.full(count, 1.0 / max(count, 1)),
        "means": np.zeros((count, 2)),
        "covariances": np.tile(np.eye(2), (count, 1, 1)),
    }


@pytest.mark.parametrize("weights", [[0.5, 0.5, 0.5], [1e-3, 1e-3, 1e-3]])
def test_weights_that_do_not_add_up_to_one_are_refused(weights: list[float]) -> None:
    """A density that does not integrate to 1 is no mixture."""
    found = {**mixture_of(3).arrays(), "weights": np.array(weights)}
    with pytest.raises(ProtocolError, match="Expected a mixture"):
        LatentMixture.checked(found, 2)


def test_covariances_that_are_not_symmetric_are_refused() -> None:
    """Density and draws would be of different Gaussians otherwise."""
    skewed = np.stack([np.array([[1.0, 0.9], [-0.9, 1.0]])] * 3)
    found = {**mixture_of(3).arrays(), "covariances": skewed}
    with pytest.raises(ProtocolError, match="Expected a mixture"):
        LatentMixture.checked(found, 2)
