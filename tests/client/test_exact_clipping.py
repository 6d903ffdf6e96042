"""One record adds the clip at most to the sums that get the noise, whatever a server sends.

What a record adds is measured in float64: the sum of a sample less the sum of the same sample with
a null record in its place, as zero-out adjacency has it.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedlatent.client.gradients import sums as gradient_engine
from fedlatent.client.gradients.parts import Grams, RecordGradients, Rows, Table, Whole, dense
from fedlatent.client.gradients.segments import Segments
from fedlatent.client.gradients.sums import Batch, StackedGradients, steady
from fedlatent.client.trainer import GradientSums, gradient_sums
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig, Training
from fedlatent.shared.models import VAE, build_model
from fedlatent.shared.models.priors import GaussianPrior
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.wire import ReplyHeader, unpack
from fedlatent.testing import Case, noise, records
from tests.client.hostile import cancelling, hostile_weights, rows_of
from tests.client.support import request, tiny_node, tiny_run, weights_of
from tests.shared.models.cases import CASES

CLIP = 0.5
MOST = CLIP * (1 + 1e-4)
PLAN = dataclasses.replace(PrivacyPlan.from_config(tiny_run()), clip=CLIP)
TOGETHER, SAMPLE, VICTIM = 100, 3, 1
BY_ROWS = ("recurrent", "vq-codebook")

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def added(sums: GradientSums, x: Tensor, eps: Tensor, victim: int = VICTIM) -> float:
    """Norm of what one record adds to a node's sum."""
    without = torch.arange(len(x)) != victim
    moved = sums.of(x, eps) - sums.of(x, eps, without)
    assert bool(torch.isfinite(moved).all())
    return float(moved.norm())


def added_by_layers(case: Case, sums: StackedGradients, seed: int, dtype: torch.dtype) -> Tensor:
    """Norms [C] of what a record adds under each of C draws of hostile weights."""
    generator = torch.Generator().manual_seed(seed)
    count = TOGETHER * SAMPLE
    x, eps = records(case, count, seed).float(), noise(case, count, seed + 1).float()
    victims = [x[i * SAMPLE + VICTIM] for i in range(TOGETHER)]
    weights = rows_of(case.model().float(), victims, generator)
    found = []
    for present in (torch.ones(count, dtype=torch.bool), torch.arange(count) % SAMPLE != VICTIM):
        total = torch.zeros(weights.shape, dtype=dtype)
        segments = Segments((SAMPLE,) * TOGETHER, even=False)
        batch = Batch(x=x, eps=eps[:, None], segments=segments, mask=present)
        with steady():
            sums(weights, batch, torch.ones(TOGETHER, dtype=torch.float64), total)
        found.append(total.double())
    return (found[0] - found[1]).norm(dim=1)


def most_added(case: Case, tries: int, dtype: torch.dtype = torch.float64) -> float:
    """The most that a record adds in so many draws of hostile weights."""
    model = case.model().float().train()
    sums = StackedGradients(model, CLIP, Training())
    if sums.by_layer:
        rounds = range(max(tries // TOGETHER, 1))
        each = torch.cat([added_by_layers(case, sums, seed, dtype) for seed in rounds])
        assert bool(torch.isfinite(each).all())
        return float(each.max())
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for seed in range(tries):
        x, eps = records(case, SAMPLE, seed).float(), noise(case, SAMPLE, seed + 1).float()
        state = hostile_weights(model, x[VICTIM], generator)
        model.load_state_dict(state)
        with steady(), gradient_sums(model, PLAN, Training()) as one:
            worst = max(worst, added(one, x, eps[:, None]))
    return worst


@every_case
def test_a_record_adds_the_clip_at_most_under_hostile_weights(case: Case) -> None:
    """Weights that cancel, blind, overflow, vanish or saturate layers bring no record past C."""
    tries = 20 if case in (CASES["recurrent"], CASES["vq-codebook"]) else 200
    most = most_added(case, tries)
    assert CLIP * 0.99 < most <= MOST


@pytest.mark.slow
@every_case
def test_ten_thousand_draws_of_hostile_weights_find_nothing(case: Case) -> None:
    """A search over constants on this processor."""
    assert most_added(case, 10_000) <= MOST


@every_case
def test_the_simulator_is_as_exact_in_single_precision(case: Case) -> None:
    """The stacked engine sums in float32 by the same rules, and its bounds say so."""
    if StackedGradients(case.model().float(), CLIP, Training()).by_layer:
        assert most_added(case, TOGETHER, torch.float32) <= MOST


@pytest.mark.parametrize("name", ["mlp", "conv1d", "recurrent", "vq-codebook", "molecule"])
def test_what_others_add_does_not_depend_on_a_record(name: str) -> None:
    """With a null record in its place the sum is the same to the last bit, whatever it holds."""
    case = CASES[name]
    model = case.model().float().train()
    x, eps = records(case, 5).float(), noise(case, 5).float()[:, None]
    without = torch.arange(5) != 2
    sums_of = []
    for other in (x[2], x[4], torch.zeros_like(x[2])):
        x = x.clone()
        x[2] = other
        with gradient_sums(model, PLAN, Training()) as sums:
            sums_of.append(sums.of(x, eps, without))
    assert torch.equal(sums_of[0], sums_of[1])
    assert torch.equal(sums_of[0], sums_of[2])


def blind_and_cancelling(run: RunConfig, victim: np.ndarray, large: float, small: float) -> Arrays:
    """Encoder weights under which one record's gradient cancels, and everyone else's does not.

    The first layer is zero for the victim. Its latent mean is then the head's bias, of which the
    rate's gradient is a copy, and back-propagated it cancels at this scale alone: scaled by a clip
    factor, the two products round apart.
    """
    arrays = {key: value.copy() for key, value in weights_of(run).items()}
    first, first_bias, head, head_bias = (arrays[key] for key in sorted_by_layer(arrays))
    first[:], first[:, 0] = 0.0, 2.0**12  # a power of two, so that the zero is exact
    first_bias[:] = -first[:, 0] * victim[0]
    k = len(head) // 2
    head[k:], head_bias[k:] = 0.0, 0.0
    parts = torch.from_numpy(head[:k]), torch.from_numpy(head_bias[:k])
    cancelling(*parts, pair=(7.0, 11.0), large=large, small=small)
    return arrays


def sorted_by_layer(arrays: Arrays) -> list[str]:
    """Weight and bias of the first layer, then of the head."""
    names = list(arrays)
    return [*names[:2], *names[-2:]]


@pytest.mark.parametrize("multiplicity", [1, 2])
@pytest.mark.parametrize("large", [2.0**10, 2.0**30, 2.0**50])
def test_a_gradient_that_cancels_once_is_clipped_all_the_same(
    tmp_path: Path, large: float, multiplicity: int
) -> None:
    """A real node, secure noise, one paid round: what leaves moves by noise and one clip."""
    run = tiny_run(
        privacy={"rng": "secure", "sample_rate": 1.0, "epsilon": 4.0},
        training={
            "rounds": 1,
            "steps_per_round": 1,
            "optimizer": "sgd",
            "learning_rate": 1.0,
            "multiplicity": multiplicity,
        },
    )
    plan = PrivacyPlan.from_config(run)
    moved = []
    for present in (True, False):
        # The owner's cap on weights would refuse these; clipping holds without it.
        node = tiny_node(tmp_path / str(present), run, caps={"largest_weight": 1e30})
        victim = node.records[0].numpy().copy()
        if not present:
            node.records[0] = torch.nan
        sent = blind_and_cancelling(run, victim, large, small=2.0**20)
        reply = node.handle(request(run, 1), sent)
        assert reply.header.status == "ok", reply.header.text
        _, got = unpack(ReplyHeader, reply.payload)
        # The first bias, whose gradient is that of the hidden layer itself.
        name = sorted_by_layer(sent)[1]
        moved.append((got[name] - sent[name]).astype(np.float64) * len(node.records))
    noise_at_most = 6 * plan.noise_multiplier * plan.clip
    others = (len(node.records) - 1) * plan.clip  # they saturate, so they hardly move this bias
    assert np.abs(moved[0] - moved[1]).max() < 2 * noise_at_most + plan.clip
    assert np.abs(moved[0]).max() < others + noise_at_most


def test_beta_and_priors_at_the_edges_do_not_loosen_the_clip() -> None:
    """Beta and a broadcast prior are factors of a gradient before it is clipped."""
    run = tiny_run()
    generator = torch.Generator().manual_seed(1)
    for beta in (0.0, 1e-6, 100.0, 1e6):
        for size in (1e-6, 1.0, 1e6):
            model = build_model(run).train()
            model.prior = GaussianPrior(
                mean=torch.full((2,), 1e4, dtype=torch.float64),
                covariance=size * torch.eye(2, dtype=torch.float64),
            )
            x, eps = torch.randn(6, 12, generator=generator), torch.randn(6, 1, 2)
            model.load_state_dict(hostile_weights(model, x[VICTIM], generator))
            training = run.training.model_copy(update={"beta": beta})
            with gradient_sums(model, PLAN, training) as sums:
                assert added(sums, x, eps) <= MOST


def test_a_broadcast_prior_needs_no_trial_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node gets a new one in each round and lives for years."""
    tried: dict[str, int | None] = {}
    monkeypatch.setattr(gradient_engine, "_TRIALS", tried)
    model = build_model(tiny_run()).train()
    for mean in (0.0, 1.0, 2.0):
        model.prior = GaussianPrior(
            mean=torch.full((2,), mean, dtype=torch.float64),
            covariance=torch.eye(2, dtype=torch.float64),
        )
        assert StackedGradients(model, CLIP, Training()).by_layer
    assert len(tried) == 1


def exact_norm(left: Tensor, right: Tensor) -> float:
    """Frobenius norm of ``left^T right`` [L, O], [L, K] in exact arithmetic."""
    rows = [[Fraction(float(v)) for v in row] for row in left]
    columns = [[Fraction(float(v)) for v in row] for row in right]
    square = Fraction(0)
    for i in range(left.shape[1]):
        for j in range(right.shape[1]):
            square += sum(a[i] * b[j] for a, b in zip(rows, columns, strict=True)) ** 2
    return float(square) ** 0.5


def _positions(seed: int, positions: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Large terms of positions that cancel but for a small rest."""
    generator = torch.Generator().manual_seed(seed)
    left = 1e8 * torch.randn(1, positions, outputs, generator=generator)
    right = torch.randn(1, positions, inputs, generator=generator)
    left[:, 1::2], right[:, 1::2] = -left[:, 0::2], right[:, 0::2]
    left[:, -1] += 1.0
    return left, right


PRODUCTS: dict[str, Callable[[Tensor, Tensor], RecordGradients]] = {
    "rows": Rows,
    "dense": dense,
    "grams": lambda left, right: Grams(left.mT[:, None], right.mT[:, None]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PRODUCTS)
def test_tokens_that_cancel_are_measured_by_what_is_left(name: str, dtype: torch.dtype) -> None:
    """A norm from products of positions never falls below that of the sum itself."""
    for seed in range(20):
        left, right = _positions(seed, 4, 9, 8)
        part = PRODUCTS[name](left, right)
        bound = float(part.bounds(dtype)[0])
        place = torch.zeros(1, 9, 8, dtype=dtype)
        part.add_up(torch.ones(1), None, Segments((1,), even=False), place)
        assert bound >= float(place.double().norm()) * (1 - 1e-12)
        if name != "dense" or isinstance(part, Rows):
            assert bound >= exact_norm(left[0], right[0])
            sizes = float((left.norm(dim=2) * right.norm(dim=2)).sum())
            assert bound <= exact_norm(left[0], right[0]) + 1e-5 * sizes


def test_entries_of_a_table_that_cancel_are_measured_by_what_is_left() -> None:
    """The same for positions that looked up one entry."""
    for seed in range(20):
        left, _ = _positions(seed, 4, 9, 1)
        part = Table(torch.zeros(1, 4, dtype=torch.long), left)
        place = torch.zeros(1, 3, 9, dtype=torch.float64)
        part.add_up(torch.ones(1), None, Segments((1,), even=False), place)
        assert float(part.bounds(torch.float64)[0]) >= float(place.norm())


def test_a_record_that_overflows_takes_the_same_pass() -> None:
    """Its weight is zero, and the model is not run again."""
    options = {"hidden": [6], "latent_dim": 2, "activation": "relu"}
    model = build_model(tiny_run(model={"options": options})).train()
    calls: list[int] = []
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    passes = []
    for far in (1.0, 1e30):
        x[3] = far
        with gradient_sums(model, PLAN, Training()) as sums:
            assert sums._layers is not None
            inner = sums._layers._model
            handle = inner.register_forward_hook(lambda *_: calls.append(1))
            sums.of(x, torch.zeros(8, 1, 2))
            handle.remove()
        passes.append(len(calls))
    assert passes == [1, 2]


@pytest.mark.parametrize("name", ["mlp", "recurrent"])
def test_a_record_that_overflows_adds_nothing(name: str) -> None:
    """Neither NaN nor anything else, by layers and by rows."""
    case = CASES[name]
    model: VAE = case.model().float().train()
    x, eps = records(case, 5).float(), noise(case, 5).float()[:, None]
    x[2] = 1e38
    with gradient_sums(model, PLAN, Training()) as sums:
        assert added(sums, x, eps, victim=2) == 0.0
        assert float(sums.of(x, eps).norm()) > 0


def test_whole_gradients_are_measured_in_double_precision() -> None:
    """A norm whose square leaves single precision is still a norm."""
    bound = Whole(torch.tensor([[3e30, 4e30], [3e-30, 4e-30]])).bounds(torch.float64)
    torch.testing.assert_close(
        bound, torch.tensor([5e30, 5e-30], dtype=torch.float64), rtol=1e-6, atol=0
    )
