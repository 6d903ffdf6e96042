"""What is special about categorical latents, beside the contract of all families."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models.gumbel import GumbelConfig, GumbelVAE, _gumbel
from fedlatent.shared.models.objective import iwae
from fedlatent.testing import noise, records
from tests.shared.models.cases import CASES


def model_of(name: str = "gumbel") -> GumbelVAE:
    """The model of a case, in evaluation."""
    model = CASES[name].model().eval()
    assert isinstance(model, GumbelVAE)
    return model


def test_noise_is_gumbel() -> None:
    """Its distribution function is exp(-exp(-g)), and float32 stays finite far out."""
    eps = torch.linspace(-4.0, 4.0, 17, dtype=torch.float64)
    torch.testing.assert_close((-(-_gumbel(eps)).exp()).exp(), torch.special.ndtr(eps))
    assert torch.isfinite(_gumbel(torch.tensor([-12.0, -6.0, 0.0, 6.0, 12.0, 40.0]))).all()


def test_temperature_falls_with_the_training() -> None:
    """From its start over the geometric mean to its end."""
    model = model_of()
    values = []
    for progress in (0.0, 0.5, 1.0):
        model.progress = progress
        values.append(model.temperature)
    assert values == pytest.approx([1.0, math.sqrt(0.5), 0.5])


def test_rate_is_the_divergence_from_uniform() -> None:
    """It equals entropy counted from the logits, and is zero for equal logits."""
    model, x = model_of(), records(CASES["gumbel"], 4)
    p = model.encoder(x).view(4, 3, 4).softmax(-1)
    wanted = 3 * math.log(4) + (p * p.log()).sum((1, 2))
    torch.testing.assert_close(model(x, noise(CASES["gumbel"], 4)).rate, wanted)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
    assert model(x, noise(CASES["gumbel"], 4)).rate.abs().max() < 1e-12


def test_coordinates_are_moments_of_one_hot_draws() -> None:
    """`encode` gives mean and variance of scaled one-hot vectors drawn from the posterior."""
    model, x, draws = model_of(), records(CASES["gumbel"], 1), 40_000
    mu, logvar = model.encode(x)
    p = model.encoder(x).view(3, 4).softmax(-1)
    generator = torch.Generator().manual_seed(0)
    index = torch.multinomial(p, draws, replacement=True, generator=generator).T
    z = ((F.one_hot(index, 4) - 0.25) * 2.0).flatten(1).double()
    torch.testing.assert_close(z.mean(0), mu[0], atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(0), logvar[0].exp(), atol=0.03, rtol=0)


def test_evaluation_is_hard_and_training_is_not() -> None:
    """In evaluation a record has one of finitely many distortions, in training it varies."""
    model, x = model_of("gumbel-conv1d"), records(CASES["gumbel-conv1d"], 1)
    repeated, eps = x.expand(200, -1), noise(CASES["gumbel-conv1d"], 200)
    hard = model(repeated, eps).distortion
    assert len(torch.unique((hard * 1e9).round())) <= 3**2
    soft = model.train()(repeated, eps).distortion
    assert len(torch.unique((soft * 1e9).round())) > 100


def test_iwae_is_the_exact_likelihood() -> None:
    """With many draws the bound meets the sum over all 64 choices of categories."""
    model, case = model_of(), CASES["gumbel"]
    x = records(case, 2)
    with torch.no_grad():
        every = torch.tensor(list(itertools.product(range(4), repeat=3)))
        z = ((F.one_hot(every, 4).double() - 0.25) * 2.0).flatten(1)
        decoded = model.decode(z)
        log_x = torch.stack([-model.distortion(row.expand(64, -1), decoded) for row in x])
        exact = 3 * math.log(4) - torch.logsumexp(log_x, 1)
        generator = torch.Generator().manual_seed(0)
        eps = torch.randn(20_000, 2, model.noise_dim, generator=generator, dtype=x.dtype)
        for mode in (model.eval(), model.train()):
            torch.testing.assert_close(iwae(mode, x, eps), exact, atol=2e-2, rtol=0)


def test_decoding_takes_the_largest_category() -> None:
    """Any real latent decodes as the one-hot vectors of its largest numbers."""
    model = model_of()
    z = torch.randn(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hot = ((F.one_hot(z.view(5, 3, 4).argmax(-1), 4) - 0.25) * 2.0).flatten(1).double()
    torch.testing.assert_close(model.decode(z), model.decode(hot))
    assert torch.isfinite(model.decode(1e6 * z)).all()


def test_draws_use_all_categories_equally() -> None:
    """The largest of independent normal numbers is uniform, as the prior is."""
    model, seen = model_of(), []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.float().draw(8_000, torch.Generator().manual_seed(0))
    share = (seen[0].view(-1, 3, 4) > 0).float().mean(0)
    assert (share - 0.25).abs().max() < 0.03


@pytest.mark.parametrize("wrong", [{"groups": 0}, {"categories": 1}, {"tau_end": 0.0}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    """A value out of range is named."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        GumbelConfig(**wrong)  # type: ignore[arg-type]


class _Exponentials(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what `exp` is asked for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.least = 0.0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is torch.ops.aten.exp.default:
            self.least = min(self.least, float(args[0].min()))
        return func(*args, **(kwargs or {}))


def test_a_category_that_is_all_but_impossible_takes_no_longer() -> None:
    """The exponential is up to 30 times slower where it underflows; time would tell of a record."""
    case = CASES["gumbel"]
    model = case.model().float().train()
    with torch.no_grad():
        next(reversed(list(model.encoder.parameters()))).copy_(-100.0 * (torch.arange(12) % 2))
    with _Exponentials() as seen:
        model(records(case, 4).float(), noise(case, 4).float())
    assert seen.least > -80.0
