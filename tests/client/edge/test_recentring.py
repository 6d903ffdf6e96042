"""When a device's own normal records may re-centre it."""

import numpy as np
import pytest

from fedlatent.client.edge.recentring import doubt

K = 4
#: All clients together lie about 0, each of them scatters by 1.
DENSITY = (np.zeros(K), np.eye(K))


def normals(count: int, away: float, scatter: float = 1.0) -> np.ndarray:
    """Latents of a client whose middle lies ``away`` in each dimension."""
    return away + scatter * np.random.default_rng(0).normal(size=(count, K))


@pytest.mark.parametrize("count", [5, 10, 30, 300])
def test_a_client_of_its_own_is_centred(count: int) -> None:
    """A middle far from that of all clients is trusted, also of few records."""
    assert doubt(normals(count, 3.0), *DENSITY) is None
    assert doubt(normals(count, -3.0, scatter=3.0), *DENSITY) is None


@pytest.mark.parametrize(
    ("latents", "words"),
    [
        (normals(4, 3.0), "fewer than 5"),
        (normals(10, 0.4), "by chance"),
        (normals(300, 0.0), "by chance"),
        (np.concatenate([normals(20, 1.0), normals(20, 4.0)]), "first half"),
        (np.concatenate([normals(30, 2.0), normals(3, 60.0)])[::3], "wider"),
        (normals(40, 1.0, scatter=4.0), "wider"),
    ],
)
def test_what_may_be_off_is_doubted(latents: np.ndarray, words: str) -> None:
    """Too few, no further away than by chance, drifting or scattered records are not trusted."""
    told = doubt(latents, *DENSITY)
    assert told is not None
    assert words in told


def test_a_series_that_repeats_itself_counts_as_few() -> None:
    """Ten neighbours of a series are alike and off together, which their scatter does not show."""
    alike = 0.6 + 0.05 * np.random.default_rng(0).normal(size=(10, K))
    assert "by chance" in str(doubt(alike, *DENSITY))
