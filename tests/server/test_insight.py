"""Sites seen through their released moments: distances, groups and drift, with their errors."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from fedlatent.server.checkpoint import Checkpoint
from fedlatent.server.insight import (
    RunSites,
    SiteMean,
    clusters,
    distances,
    distances_to_all,
    drifts,
    site_means,
)
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import (
    Form,
    clip_rows,
    default_radius,
    diagonal_moments,
    diagonal_spec,
    latent_density,
    moments,
    moments_spec,
    noisy_sum,
)
from fedlatent.shared.summaries import Federated

K = 3
WITHIN = np.array([[1.0, 0.6, 0.0], [0.6, 2.0, 0.2], [0.0, 0.2, 0.5]])
RUN = RunConfig.parse({"name": "x", "data": {"name": "d", "shape": [4]}}, "test")
RECORDS = (400, 150, 900, 250, 600)


def drawn(
    seed: int,
    centres: Sequence[Sequence[float]],
    *,
    sampled: bool = True,
    records: Sequence[int] = RECORDS,
) -> list[SiteMean]:
    """Noisy means of sites about ``centres``; ``sampled`` adds what a draw of N records adds."""
    rng = np.random.default_rng(seed)
    sites = []
    for number, (centre, n) in enumerate(zip(centres, records, strict=True)):
        variance = (8.0 / n) ** 2
        mean = np.asarray(centre) + rng.normal(size=K) * np.sqrt(variance)
        if sampled:
            mean = mean + rng.multivariate_normal(np.zeros(K), WITHIN / n)
        sites.append(SiteMean(name=f"s{number}", records=n, mean=mean, variance=variance))
    return sites


def moved(who: int, step: Sequence[float]) -> list[list[float]]:
    """Five centres at the origin, and that of one site elsewhere."""
    return [list(step) if number == who else [0.0] * K for number in range(len(RECORDS))]


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_means_are_read_from_a_checkpoint_with_the_variance_of_their_noise(form: Form) -> None:
    """Over many releases a site's mean is unbiased and scatters as ``variance`` says."""
    sigma = PrivacyPlan.from_config(RUN).multiplier("moments")
    latents = np.random.default_rng(0).normal(1.0, 1.0, size=(300, K))
    radius = default_radius(K)
    spec = moments_spec(K) if form == "full" else diagonal_spec(K)
    exact = (moments if form == "full" else diagonal_moments)(latents, radius)
    found = []
    for seed in range(400):
        state = Checkpoint(
            run_id="x",
            digest="",
            done=1,
            encoder={},
            released=Federated(
                form=form, moments={7: noisy_sum(exact, spec, sigma, SimulationNoise(seed))}
            ),
            sites={
                "north": {"node_id": "7", "records": 300},
                "replaced": {"node_id": "8", "records": 5},
            },
        )
        found += site_means(state, RUN)
    assert {(site.name, site.records) for site in found} == {("north", 300)}
    errors = np.stack([site.mean for site in found]) - clip_rows(latents, radius).mean(axis=0)
    variance = found[0].variance
    assert abs(errors.mean()) < 4 * np.sqrt(variance / errors.size)
    assert errors.var() / variance == pytest.approx(1.0, abs=0.12)  # 1,200 draws: 0.04 a deviation


def test_distances_lose_the_share_of_the_noise() -> None:
    """The mean over many releases is the true squared distance, and zero half of the time at 0."""
    step = np.array([1.5, 0.0, 0.0])
    true = float(step @ np.linalg.solve(WITHIN, step))
    runs = [drawn(seed, moved(0, step)) for seed in range(400)]
    found = np.stack([distances(sites, WITHIN) for sites in runs])
    assert found.mean(axis=0)[0, 1:] == pytest.approx([true] * 4, rel=0.05)
    np.testing.assert_array_equal(found, found.swapaxes(1, 2))
    assert (found[:, range(5), range(5)] == 0).all()
    assert (found >= 0).all()
    # Sites 1 and 2 are alike: what is left of the noise is its excess over the mean, floored.
    offsets = np.stack([sites[1].mean - sites[2].mean for sites in runs])
    raw = np.einsum("ni,ij,nj->n", offsets, np.linalg.inv(WITHIN), offsets)
    alike = found[:, 1, 2]
    assert 0.5 < (alike == 0).mean() < 0.7
    taken_off = raw[alike > 0] - alike[alike > 0]
    assert taken_off == pytest.approx(np.full(len(taken_off), raw.mean()), rel=0.1)


def test_distance_to_all_is_to_the_mean_over_records() -> None:
    """A site that is most of the federation lies near its mean; the others do not."""
    records, step = (9000, 500, 500), [2.0, 0.0, 0.0]
    centres = [[0.0] * K, step, step]
    found = np.mean(
        [distances_to_all(drawn(seed, centres, records=records), WITHIN) for seed in range(100)],
        axis=0,
    )
    true = float(np.asarray(step) @ np.linalg.solve(WITHIN, step))
    assert found == pytest.approx([0.01 * true, 0.81 * true, 0.81 * true], rel=0.1, abs=0.005)


def test_like_sites_make_one_group_and_unlike_ones_two() -> None:
    """One population is split in at most 2 % of runs at level 1 %; two populations are found."""
    alike = [clusters(drawn(seed, moved(0, [0.0] * K)), WITHIN) for seed in range(500)]
    assert sum(one != [1] * 5 for one in alike) <= 10
    step = [2.5, 0.0, 0.0]
    centres = [[0.0] * K, step, [0.0] * K, step, step]
    two = [clusters(drawn(seed, centres), WITHIN) for seed in range(100)]
    assert sum(one == [1, 2, 1, 2, 2] for one in two) >= 97
    assert clusters(drawn(0, moved(0, [0.0] * K))[:1], WITHIN) == [1]


@pytest.mark.parametrize("sampled", [False, True])
def test_false_alarms_are_as_rare_as_the_level_says(sampled: bool) -> None:
    """Sites that all move alike raise an alarm in 5 % of runs at level 5 %, noise exact or not."""
    runs, level = 1500, 0.05
    alarms = 0
    for seed in range(runs):
        common = np.random.default_rng(seed).normal(size=K) * 3.0
        before = drawn(2 * seed, moved(0, [0.0] * K), sampled=sampled)
        after = drawn(2 * seed + 1, [list(common)] * 5, sampled=sampled)
        within = WITHIN if sampled else None
        alarms += any(one.alarm for one in drifts(before, after, within, level))
    # Bonferroni over five dependent tests: a little below 5 %, and not far below.
    assert 0.03 * runs <= alarms <= 0.066 * runs


@pytest.mark.parametrize("within", [None, WITHIN], ids=["same records", "new records"])
def test_the_site_that_moved_is_named_and_no_other(within: np.ndarray | None) -> None:
    """A clear move of one site is found almost always and accuses nobody else."""
    sampled, right = within is not None, 0
    for seed in range(200):
        before = drawn(2 * seed, moved(0, [0.0] * K), sampled=sampled)
        after = drawn(2 * seed + 1, moved(1, [0.8, 0.0, 0.0]), sampled=sampled)
        right += [one.name for one in drifts(before, after, within) if one.alarm] == ["s1"]
    assert right >= 190


def test_small_moves_are_found_less_often_than_large_ones() -> None:
    """Power rises with the move, from the level to one."""
    found = []
    for step in (0.0, 0.25, 0.5, 1.0):
        hits = 0
        for seed in range(100):
            before = drawn(2 * seed, moved(0, [0.0] * K))
            after = drawn(2 * seed + 1, moved(3, [0.0, 0.0, step]))
            hits += drifts(before, after, WITHIN)[3].alarm
        found.append(hits)
    assert found == sorted(found)
    assert found[0] <= 3
    assert found[-1] >= 99


def test_drift_needs_three_sites_and_noise() -> None:
    """Two sites cannot say which of them moved; without noise there is no unit."""
    sites = drawn(0, moved(0, [0.0] * K))
    with pytest.raises(ValueError, match="three or more"):
        drifts(sites[:2], sites[:2])
    with pytest.raises(ValueError, match="three or more"):
        drifts(sites, sites[::-1])
    plain = [replace(site, variance=0.0) for site in sites]
    with pytest.raises(ValueError, match="within"):
        drifts(plain, plain)
    assert not any(one.alarm for one in drifts(plain, plain, WITHIN))


def test_false_alarms_stay_rare_with_moments_that_were_really_released() -> None:
    """The covariance comes from the same noisy releases; the level holds none the less."""
    radius, sigma, alarms, runs = default_radius(K), 2.0, 0, 300
    spec = moments_spec(K)

    def released(seed: int) -> tuple[list[SiteMean], np.ndarray]:
        rng = np.random.default_rng(seed)
        matrices = [
            noisy_sum(
                moments(rng.multivariate_normal(np.zeros(K), WITHIN, n), radius),
                spec,
                sigma,
                SimulationNoise(seed, n),
            )
            for n in RECORDS
        ]
        variances = [2.0 * (sigma * radius / n) ** 2 for n in RECORDS]
        sites = [
            SiteMean(name=str(n), records=n, mean=m[-1, :-1] * radius / n, variance=v)
            for n, m, v in zip(RECORDS, matrices, variances, strict=True)
        ]
        return sites, latent_density(matrices, radius, sigma).within

    for seed in range(runs):
        (before, within), (after, _) = released(2 * seed), released(2 * seed + 1)
        alarms += any(one.alarm for one in drifts(before, after, within, 0.05))
    assert 0.01 * runs <= alarms <= 0.09 * runs


def run_sites(
    *, kinds: Sequence[str] = ("train", "moments"), encoder: float = 0.0, count: int = 5
) -> RunSites:
    """A run with so many sites, as it stands after phases of ``kinds``."""
    state = Checkpoint(
        run_id="x",
        digest="",
        done=len(kinds),
        encoder={"encoder.w": np.full(2, encoder), "decoder.w": np.full(2, len(kinds))},
        history=[{"kind": kind} for kind in kinds],
    )
    sites = drawn(0, moved(0, [0.0] * K))[:count]
    return RunSites(run=RUN, state=state, sites=tuple(sites), within=WITHIN)


def test_only_runs_with_the_same_latents_are_compared() -> None:
    """Another encoder, moments older than the encoder, or too few common sites are refused."""
    first = run_sites()
    assert len(first.drifts_to(run_sites(kinds=("moments", "threshold")))) == 5
    assert len(first.drifts_to(run_sites(count=3))) == 3
    for later, words in (
        (run_sites(encoder=1.0), "same encoder"),
        (run_sites(kinds=("moments", "train")), "complete"),
        (run_sites(count=2), "three sites"),
    ):
        with pytest.raises(ConfigError, match=words):
            first.drifts_to(later)
