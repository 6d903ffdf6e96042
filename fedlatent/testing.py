"""What every model family must do, for those who write one: a contract as pytest tests.

A package with a family of its own has one file of tests::

    from fedlatent.testing import Case, contract

    CASES = {"plain": Case(family="shy", options={"latent_dim": 3}, shape=(12,), exported=True)}
    globals().update(contract(CASES))

and pytest runs each check on each case. Our own families are held to the same.
"""

import copy
import json
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import safetensors.torch
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from fedlatent.client.gradients.segments import Segments
from fedlatent.client.gradients.sums import NORM_FLOOR, Batch, StackedGradients
from fedlatent.client.trainer import gradient_sums, train_round
from fedlatent.shared.config import RunConfig, Training
from fedlatent.shared.export import Decoder, Encoder, export_decoder, export_encoder, export_graph
from fedlatent.shared.export.parity import parity, run_onnx
from fedlatent.shared.models import FAMILIES, VAE, Terms, build
from fedlatent.shared.models.base import Graph
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan

Values = Callable[[torch.Size, torch.Generator], torch.Tensor]


def levels(size: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Values in [0, 1] on 256 levels, fit for most likelihoods."""
    return torch.randint(0, 256, size, generator=generator).double() / 255.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """Arguments of `build`, and what its records look like.

    Attributes:
        family: A key of `FAMILIES`.
        options: Of the family.
        shape: Of one record.
        values: Draws records `[count, *shape]`.
        variational: Whether there is a posterior; without one the rate is no divergence.
        exact: Whether the rate is a closed form that is never negative.
        exported: Whether the slow export checks take this case; one or two of each family.
        quantised: Whether `encode` rounds to codes, so that a rounding error can move a whole step.
        gradients: Parameters that get none from some inputs, by the beginning of their name.
        upper: Largest value of a record; the least is 0.
    """

    family: str
    options: Mapping[str, object]
    shape: tuple[int, ...]
    values: Values = levels
    variational: bool = True
    exact: bool = True
    exported: bool = False
    quantised: bool = False
    gradients: tuple[str, ...] = ()
    upper: float = 1.0

    def model(self, seed: int = 0) -> VAE:
        """Build the model in float64."""
        return build(self.family, self.options, self.shape, seed).double()


def noise(case: Case, count: int, seed: int = 2) -> torch.Tensor:
    """Standard normal noise `[count, noise_dim]` float64."""
    generator = torch.Generator().manual_seed(seed)
    size = (count, case.model().noise_dim)
    return torch.randn(size, generator=generator, dtype=torch.float64)


def records(case: Case, count: int, seed: int = 1) -> torch.Tensor:
    """Records `[count, *shape]` in float64."""
    generator = torch.Generator().manual_seed(seed)
    return case.values(torch.Size((count, *case.shape)), generator).double()


def contract(cases: Mapping[str, Case]) -> dict[str, Callable[..., None]]:
    """The tests of the contract for these cases, by name, for ``globals().update``.

    Args:
        cases: by name; one or two of a family are `exported`, which takes seconds each.

    Returns:
        Pytest functions: fifteen checks of terms, gradients, clipping, training and export.
    """
    exported = {name: case for name, case in cases.items() if case.exported}
    return {
        name: _for_each(function, exported if function is test_onnx_parity else cases)
        for name, function in globals().items()
        if name.startswith("test_")
    }


def _for_each(function: Callable[..., None], cases: Mapping[str, Case]) -> Callable[..., None]:
    """A copy of a check that is run on each case."""
    assert isinstance(function, types.FunctionType)
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__)
    made.__dict__.update(copy.deepcopy(function.__dict__))
    made.__doc__, made.__annotations__ = function.__doc__, function.__annotations__
    every = pytest.mark.parametrize("case", cases.values(), ids=cases.keys())
    return every(made)


def loss_of_one(model: VAE, params: dict[str, Tensor], x: Tensor, eps: Tensor) -> Tensor:
    """Loss of a single record through a functional call."""
    terms = functional_call(model, params, (x[None], eps[None]))
    loss: Tensor = (terms.distortion + terms.rate).sum()
    return loss


def gradients_one_by_one(model: VAE, x: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """Per-record gradients `[B, ...]` by autograd on batches of one."""
    rows: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for record, draw in zip(x, eps, strict=True):
        model.zero_grad()
        terms = model(record[None], draw[None])
        torch.autograd.backward((terms.distortion + terms.rate).sum())
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            rows[name].append(parameter.grad.clone())
    return {name: torch.stack(values) for name, values in rows.items()}


def test_type(case: Case) -> None:
    """The table builds exactly the class it names, with the shapes asked for."""
    model = case.model()
    assert type(model) is FAMILIES[case.family].model
    assert model.input_shape == case.shape
    assert model.latent_dim >= 1


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_batch_sizes(case: Case, batch: int) -> None:
    """Terms are finite and per record for empty, single and odd batches, backward included."""
    model = case.model()
    x, eps = records(case, batch), noise(case, batch)
    terms = model(x, eps)
    assert isinstance(terms, Terms)
    assert terms.distortion.shape == terms.rate.shape == (batch,)
    torch.autograd.backward((terms.distortion + terms.rate).sum())
    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (batch, model.latent_dim)
    assert model.reconstruct(mu).shape == x.shape
    assert model.reconstruction_error(x, model.decode(mu)).shape == (batch,)
    assert torch.isfinite(torch.cat([*terms])).all()


def test_gradients_reach_every_parameter(case: Case) -> None:
    """Every parameter receives a finite gradient that is not all zero."""
    model = case.model()
    terms = model(records(case, 5), noise(case, 5))
    torch.autograd.backward((terms.distortion + terms.rate).sum())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0 or name.startswith(case.gradients), name


def test_rate_and_error_are_never_negative(case: Case) -> None:
    """Closed-form rates and reconstruction errors are at least zero, also far from the data."""
    model = case.model()
    x = torch.cat([records(case, 5), 1e3 * records(case, 2), -1e3 * records(case, 2)])
    rate = model(x, noise(case, 9)).rate
    assert torch.isfinite(rate).all()
    assert (rate >= 0).all() or not case.exact
    inside = records(case, 5)
    decoded = model.decode(model.encode(inside)[0])
    assert (model.reconstruction_error(inside, decoded) >= 0).all()


def test_rate_matches_monte_carlo(case: Case) -> None:
    """The rate has the same mean over draws as log q - log p, its estimate at one draw."""
    model, draws = case.model(), 4_000
    x = records(case, 2)
    if not case.variational:
        assert (model(x, noise(case, 2)).rate >= 0).all()
        return
    generator = torch.Generator().manual_seed(3)
    eps = torch.randn(2 * draws, model.noise_dim, generator=generator, dtype=x.dtype)
    repeated = x.repeat_interleave(draws, 0)
    with torch.no_grad():
        closed = model(repeated, eps).rate.view(2, draws)
        model.sampled = True
        sampled = model(repeated, eps).rate.view(2, draws)
    difference = sampled - closed
    error = 5 * difference.std(1) / draws**0.5 + 1e-9
    assert (difference.mean(1).abs() < error).all()


def test_records_are_independent(case: Case) -> None:
    """Changing one record moves no other record's terms."""
    model = case.model()
    x, eps = records(case, 5), noise(case, 5)
    before = model(x, eps)
    changed = x.clone()
    changed[2] = records(case, 1, seed=9)[0]
    after = model(changed, eps)
    others = [0, 1, 3, 4]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new[others], old[others], rtol=1e-12, atol=1e-12)
    assert after.distortion[2] != before.distortion[2]


def test_forward_changes_nothing(case: Case) -> None:
    """A model has no buffers, and a training-mode forward leaves its state as it was."""
    model = case.model().train()
    before = copy.deepcopy(model.state_dict())
    model(records(case, 5), noise(case, 5))
    assert not list(model.buffers())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_forward_draws_nothing(case: Case) -> None:
    """Terms depend on the arguments alone: torch's generator is not touched."""
    model = case.model()
    before = torch.get_rng_state()
    first = model(records(case, 3), noise(case, 3))
    assert torch.equal(torch.get_rng_state(), before)
    second = model(records(case, 3), noise(case, 3))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_opacus_gradients_are_exact(case: Case) -> None:
    """Per-record gradients of Opacus hooks equal autograd on batches of one."""
    x, eps = records(case, 5), noise(case, 5)
    expected = gradients_one_by_one(case.model(), x, eps)
    wrapped = GradSampleModule(case.model(), loss_reduction="sum")
    terms = wrapped(x, eps)
    with warnings.catch_warnings():
        # Torch's remark on hooks of a module whose input needs no gradient.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        torch.autograd.backward((terms.distortion + terms.rate).sum())
    for name, parameter in wrapped.named_parameters():
        wanted = expected[name.removeprefix("_module.")]
        torch.testing.assert_close(parameter.grad_sample, wanted, rtol=1e-9, atol=1e-9)


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


def test_round_trip(case: Case) -> None:
    """Options through JSON and weights through safetensors give the same model."""
    model = case.model(seed=7)
    options = json.loads(json.dumps(asdict(model.config)))  # type: ignore[call-overload]
    again = build(case.family, options, case.shape, seed=8).double()
    again.load_state_dict(safetensors.torch.load(safetensors.torch.save(model.state_dict())))
    assert again.config == model.config
    x, eps = records(case, 3), noise(case, 3)
    assert all(torch.equal(a, b) for a, b in zip(model(x, eps), again(x, eps), strict=True))


def one_by_one(case: Case, x: Tensor, eps: Tensor, clip: float) -> Tensor:
    """Sum [P] of the clipped gradients of single records, in float64."""
    model = case.model()
    rows = gradients_one_by_one(model, x, eps)
    flat = torch.cat([value.flatten(1) for value in rows.values()], 1)
    norms = flat.norm(dim=1, keepdim=True)
    assert (norms > clip).any()
    total: Tensor = (flat * (clip / (norms + NORM_FLOOR)).clamp(max=1.0)).sum(0)
    return total


def test_a_node_clips_records_by_themselves(case: Case) -> None:
    """What a node's trainer sums are the clipped gradients of batches of one."""
    plan, training = _plan(), Training()
    model, x, eps = case.model(), records(case, 5), noise(case, 5)
    with gradient_sums(model, plan, training) as sums:
        got = sums.of(x, eps[:, None])
    torch.testing.assert_close(got, one_by_one(case, x, eps, plan.clip), rtol=1e-6, atol=1e-8)


def test_stacked_clients_clip_records_by_themselves(case: Case) -> None:
    """What the stacked engine sums for two clients are their own clipped gradients."""
    plan, x, eps = _plan(), records(case, 5), noise(case, 5)
    model = case.model()
    sums = StackedGradients(model, plan.clip, Training())
    row = torch.cat([p.detach().flatten() for p in model.parameters()])
    total = torch.zeros(2, len(row), dtype=row.dtype)
    batch = Batch(x=x, eps=eps[:, None], segments=Segments((3, 2), even=False))
    sums(row.repeat(2, 1), batch, torch.ones(2, dtype=row.dtype), total)
    for got, part in zip(total, (slice(0, 3), slice(3, 5)), strict=True):
        expected = one_by_one(case, x[part], eps[part], plan.clip)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def test_private_training_stays_finite(case: Case) -> None:
    """Twenty noisy steps leave finite weights, and a finite loss on every record."""
    model = build(case.family, case.options, case.shape, 0)
    x = records(case, 30).float()
    training = Training(rounds=2, steps_per_round=10, learning_rate=1e-2)
    plan = _plan()
    optimizer: dict[str, Tensor] = {}
    for number in range(2):
        source = SimulationNoise(0, 0, number, 0)
        result = train_round(model, x, plan, training, source, optimizer, trained=number)
        optimizer = result.optimizer
    assert all(torch.isfinite(value).all() for value in result.state.values())
    terms = model(x, noise(case, 30).float())
    assert torch.isfinite(terms.distortion).all()
    assert torch.isfinite(terms.rate).all()


def test_draws_are_records(case: Case) -> None:
    """New records have the shape of records, are finite, and follow from the generator alone."""
    model = build(case.family, case.options, case.shape, 0).eval()
    before = torch.get_rng_state()
    with torch.no_grad():
        first = model.draw(3, torch.Generator().manual_seed(5))
        again = model.draw(3, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (3, *case.shape)
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)


def test_onnx_parity(case: Case) -> None:
    """Encoder, decoder and every graph of the family's own compute what torch computes."""
    model = build(case.family, case.options, case.shape, 0).eval()
    x = records(case, 6).float().numpy()
    extremes = (0.0, 1.0)
    parity(export_encoder(model), Encoder(model), {"x": x}, extremes)
    z = model.encode(torch.from_numpy(x))[0].detach().numpy()
    parity(export_decoder(model), Decoder(model), {"z": z}, extremes)
    for name, graph in model.graphs().items():
        data = export_graph(graph)
        generator = np.random.default_rng(0)
        feed = {
            key: like(value, generator) if value.is_floating_point() else value.numpy()
            for key, value in graph.inputs.items()
        }
        got, want = run_onnx(data, feed), run_torch(graph, feed)
        assert list(got) == list(graph.outputs), name
        for key in graph.outputs:
            np.testing.assert_allclose(got[key], want[key], rtol=1e-4, atol=1e-5)


def like(value: Tensor, generator: np.random.Generator) -> np.ndarray:
    """Random numbers in [0, 1] of the same shape."""
    return generator.random(tuple(value.shape)).astype(np.float32)


def run_torch(graph: Graph, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the graph's module by name."""
    with torch.no_grad():
        found = graph.module(*(torch.from_numpy(value) for value in feed.values()))
    values = found if isinstance(found, tuple) else (found,)
    return {name: v.numpy() for name, v in zip(graph.outputs, values, strict=True)}


def _plan() -> PrivacyPlan:
    return PrivacyPlan.from_config(
        RunConfig.parse(
            {
                "name": "contract",
                "data": {"name": "any", "shape": [1]},
                "privacy": {"rng": "simulation", "sample_rate": 0.2, "clip": 0.5},
                "training": {"rounds": 2, "steps_per_round": 10},
            },
            "contract",
        )
    )
