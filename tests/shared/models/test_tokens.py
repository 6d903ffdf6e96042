"""The token prior is a distribution, its draws follow it, and the use of codes is counted."""

import itertools
import math

import pytest
import torch

from fedlatent.shared.models.tokens import TokenPrior, code_use, digits_of, tokens_of

LEVELS, POSITIONS = (3, 4), 2


def prior(levels: tuple[int, ...] = LEVELS, positions: int = POSITIONS) -> TokenPrior:
    """A prior with weights far from the nearly uniform start, in float64."""
    generator = torch.Generator().manual_seed(0)
    model = TokenPrior(levels, positions, width=8, depth=2, generator=generator).double()
    with torch.no_grad():
        for head in model.heads:
            head[-1].weight.mul_(20.0)
    return model


def every_record(levels: tuple[int, ...], positions: int) -> torch.Tensor:
    """All records there are, `[codes ** positions, positions]`."""
    codes = range(math.prod(levels))
    return torch.tensor(list(itertools.product(codes, repeat=positions)))


def test_digits_and_tokens_are_inverse() -> None:
    """Each token has its own digits, all below their levels."""
    tokens = torch.arange(2 * 3 * 5).reshape(5, 6)
    digits = digits_of(tokens, (2, 3, 5))
    assert torch.equal(tokens_of(digits, (2, 3, 5)), tokens)
    assert (digits < torch.tensor([2, 3, 5])).all()
    assert digits_of(torch.tensor(13), (2, 3, 5)).tolist() == [1, 0, 2]


@pytest.mark.parametrize(("levels", "positions"), [((3, 4), 2), ((6,), 3), ((3, 3), 1)])
def test_probabilities_sum_to_one(levels: tuple[int, ...], positions: int) -> None:
    """Over all records, for one digit and several, one position and several."""
    with torch.no_grad():
        log_prob = prior(levels, positions).log_prob(every_record(levels, positions))
    assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
    assert log_prob.std() > 0.5


def test_a_new_prior_is_nearly_uniform() -> None:
    """At the start a record costs about the logarithm of the number of codes for each token."""
    generator = torch.Generator().manual_seed(1)
    model = TokenPrior((8, 5, 5, 5), 16, width=32, depth=2, generator=generator)
    tokens = torch.randint(1000, (200, 16), generator=generator)
    nats = -model.log_prob(tokens).mean().item()
    assert nats == pytest.approx(16 * math.log(1000), rel=0.02)


def test_draws_follow_the_prior() -> None:
    """Frequencies of many draws are the probabilities."""
    model, count = prior(), 40_000
    with torch.no_grad():
        drawn = model.sample(count, torch.Generator().manual_seed(0))
        odds = model.log_prob(every_record(LEVELS, POSITIONS)).exp()
    cells = torch.bincount(drawn[:, 0] * math.prod(LEVELS) + drawn[:, 1], minlength=len(odds))
    error = (cells / count - odds).abs()
    assert (error < 5 * (odds * (1 - odds) / count).sqrt() + 1e-9).all()


def test_code_use_of_known_tokens() -> None:
    """Two of four codes, equally often, are half of the codes and a perplexity of two."""
    use = code_use(torch.tensor([[0, 3], [3, 0]]), 4)
    assert use.used == pytest.approx(0.5)
    assert use.perplexity == pytest.approx(2.0)
    assert code_use(torch.arange(7), 7).perplexity == pytest.approx(7.0)
