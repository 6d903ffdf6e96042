"""What every model family must do, whatever it is made of."""

import copy
import json
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from shared.models import FAMILIES, VAE, Terms, build, encoder_state
from tests.shared.models.cases import CASES, Case, noise, records

FROZEN = Path(__file__).parent / "frozen" / "encoder_keys.txt"

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def loss_of_one(model: VAE, params: dict[str, Tensor], x: Tensor, eps: Tensor) -> Tensor:
    """Loss of a single record through a functional call."""
    terms = functional_call(model, params, (x[None], eps[None]))
    return (terms.distortion + terms.rate).sum()


def gradients_one_by_one(model: VAE, x: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """Per-record gradients `[B, ...]` by autograd on batches of one."""
    rows: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for record, draw in zip(x, eps, strict=True):
        model.zero_grad()
        terms = model(record[None], draw[None])
        (terms.distortion + terms.rate).sum().backward()
        for name, parameter in model.named_parameters():
            rows[name].append(parameter.grad.clone())
    return {name: torch.stack(values) for name, values in rows.items()}


def test_every_family_has_a_case() -> None:
    """A family cannot be registered without entering this contract."""
    assert {case.family for case in CASES.values()} == FAMILIES.keys()


@every_case
def test_type(case: Case) -> None:
    """The table builds exactly the class it names, with the shapes asked for."""
    model = case.model()
    assert type(model) is FAMILIES[case.family].model
    assert model.input_shape == case.shape
    assert model.latent_dim == 3


@every_case
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_batch_sizes(case: Case, batch: int) -> None:
    """Terms are finite and per record for empty, single and odd batches, backward included."""
    model = case.model()
    x, eps = records(case, batch), noise(case, batch)
    terms = model(x, eps)
    assert isinstance(terms, Terms)
    assert terms.distortion.shape == terms.rate.shape == (batch,)
    (terms.distortion + terms.rate).sum().backward()
    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (batch, 3)
    assert model.reconstruct(mu).shape == x.shape
    assert model.reconstruction_error(x, model.decode(mu)).shape == (batch,)
    assert torch.isfinite(torch.cat([*terms])).all()


@every_case
def test_gradients_reach_every_parameter(case: Case) -> None:
    """Every parameter receives a finite gradient that is not all zero."""
    model = case.model()
    terms = model(records(case, 5), noise(case, 5))
    (terms.distortion + terms.rate).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@every_case
def test_rate_and_error_are_never_negative(case: Case) -> None:
    """Rates and reconstruction errors are at least zero, also far outside the data."""
    model = case.model()
    x = torch.cat([records(case, 5), 1e3 * records(case, 2), -1e3 * records(case, 2)])
    assert (model(x, noise(case, 9)).rate >= 0).all()
    inside = records(case, 5)
    decoded = model.decode(model.encode(inside)[0])
    assert (model.reconstruction_error(inside, decoded) >= 0).all()


@every_case
def test_rate_matches_monte_carlo(case: Case) -> None:
    """The closed-form rate is the mean of log q - log p over the posterior."""
    model, draws = case.model(), 20_000
    if not case.options.get("stochastic", True):
        assert (model(records(case, 2), noise(case, 2)).rate == 0).all()
        return
    x = records(case, 2)
    mu, logvar = (value.detach() for value in model.encode(3.0 * x))
    eps = torch.randn(draws, *mu.shape, generator=torch.Generator().manual_seed(3), dtype=mu.dtype)
    posterior = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    z = mu + (0.5 * logvar).exp() * eps
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    samples = (posterior.log_prob(z) - prior.log_prob(z)).sum(2)
    error = 5 * samples.std(0) / draws**0.5
    assert ((samples.mean(0) - model(3.0 * x, eps[0]).rate).abs() < error).all()


@every_case
def test_records_are_independent(case: Case) -> None:
    """Changing one record moves no other record's terms."""
    model = case.model()
    x, eps = records(case, 5), noise(case, 5)
    before = model(x, eps)
    changed = x.clone()
    changed[2] = 1.0 - changed[2]
    after = model(changed, eps)
    others = [0, 1, 3, 4]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new[others], old[others], rtol=1e-12, atol=1e-12)
    assert after.distortion[2] != before.distortion[2]


@every_case
def test_forward_changes_nothing(case: Case) -> None:
    """A model has no buffers, and a training-mode forward leaves its state as it was."""
    model = case.model().train()
    before = copy.deepcopy(model.state_dict())
    model(records(case, 5), noise(case, 5))
    assert not list(model.buffers())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@every_case
def test_forward_draws_nothing(case: Case) -> None:
    """Terms depend on the arguments alone: torch's generator is not touched."""
    model = case.model()
    before = torch.get_rng_state()
    first = model(records(case, 3), noise(case, 3))
    assert torch.equal(torch.get_rng_state(), before)
    second = model(records(case, 3), noise(case, 3))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_case
def test_opacus_gradients_are_exact(case: Case) -> None:
    """Per-record gradients of Opacus hooks equal autograd on batches of one."""
    x, eps = records(case, 5), noise(case, 5)
    expected = gradients_one_by_one(case.model(), x, eps)
    wrapped = GradSampleModule(case.model(), loss_reduction="sum")
    terms = wrapped(x, eps)
    with warnings.catch_warnings():
        # Torch's remark on hooks of a module whose input needs no gradient.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        (terms.distortion + terms.rate).sum().backward()
    for name, parameter in wrapped.named_parameters():
        wanted = expected[name.removeprefix("_module.")]
        torch.testing.assert_close(parameter.grad_sample, wanted, rtol=1e-9, atol=1e-9)


@every_case
def test_vmap_gradients_are_exact(case: Case) -> None:
    """Per-record gradients of `vmap(grad)` equal autograd on batches of one."""
    model = case.model()
    x, eps = records(case, 5), noise(case, 5)
    params = {name: value.detach() for name, value in model.named_parameters()}
    got = vmap(grad(lambda p, r, e: loss_of_one(model, p, r, e)), in_dims=(None, 0, 0))(
        params, x, eps
    )
    for name, wanted in gradients_one_by_one(model, x, eps).items():
        torch.testing.assert_close(got[name], wanted, rtol=1e-9, atol=1e-9)


@every_case
def test_vmap_over_clients_equals_the_loop(case: Case) -> None:
    """Three clients with own weights give the same terms in one vmap as one after another."""
    models = [case.model(seed) for seed in range(3)]
    x = torch.stack([records(case, 4, seed) for seed in range(3)])
    eps = torch.stack([noise(case, 4, seed) for seed in range(3)])
    params, buffers = stack_module_state(models)
    template = models[0]
    got = vmap(lambda p, b, r, e: functional_call(template, (p, b), (r, e)))(
        params, buffers, x, eps
    )
    for index, model in enumerate(models):
        wanted = model(x[index], eps[index])
        for together, alone in zip(got, wanted, strict=True):
            torch.testing.assert_close(together[index], alone, rtol=1e-10, atol=1e-10)


@every_case
def test_round_trip(case: Case) -> None:
    """Options through JSON and weights through safetensors give the same model."""
    model = case.model(seed=7)
    options = json.loads(json.dumps(asdict(model.config)))
    again = build(case.family, options, case.shape, seed=8).double()
    again.load_state_dict(safetensors.torch.load(safetensors.torch.save(model.state_dict())))
    assert again.config == model.config
    x, eps = records(case, 3), noise(case, 3)
    assert all(torch.equal(a, b) for a, b in zip(model(x, eps), again(x, eps), strict=True))


def test_encoder_keys_are_frozen() -> None:
    """What sites share, by name and shape, changes only together with the frozen file."""
    lines = [
        f"{name} {key} {'x'.join(map(str, value.shape))}"
        for name, case in CASES.items()
        for key, value in encoder_state(case.model()).items()
    ]
    assert FROZEN.read_text(encoding="utf-8").splitlines() == lines
