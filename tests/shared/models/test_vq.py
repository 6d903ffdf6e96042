"""What is special about models with tokens, beside the contract of all families."""

import math

import numpy as np
import onnxruntime
import pytest
import torch

from fedlatent.client.trainer import train_round
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.export import export_graph
from fedlatent.shared.models import build
from fedlatent.shared.models.quantisers import FiniteScalar
from fedlatent.shared.models.vq import VQVAE, VQConfig
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.testing import noise, records
from tests.shared.models.cases import CASES

BOTH = ("vq-fsq", "vq-codebook")


def model_of(name: str) -> VQVAE:
    """The model of a case."""
    model = CASES[name].model().eval()
    assert isinstance(model, VQVAE)
    return model


@pytest.mark.parametrize("levels", [(3,), (4,), (8, 5, 5, 5), (7, 6)])
def test_rounding_reaches_every_code_and_no_other(levels: tuple[int, ...]) -> None:
    """Encoder outputs from far below to far above give exactly the levels of each number."""
    quantiser = FiniteScalar(levels)
    line = torch.linspace(-30.0, 30.0, 6001)[:, None, None].expand(-1, 1, len(levels))
    tokens, codes = quantiser.snap(quantiser.bound(line))
    assert torch.equal(quantiser.lookup(tokens, line), codes)
    for place, level in enumerate(levels):
        values = codes[..., place].unique()
        assert len(values) == level
        assert values.min() == -1.0
        assert values.max() <= 1.0


def test_every_token_is_its_own_code() -> None:
    """Codes of all tokens differ, and each is nearest to itself."""
    quantiser, every = FiniteScalar((4, 5, 3)), torch.arange(60)[None]
    codes = quantiser.lookup(every, torch.zeros(1))
    assert torch.equal(quantiser.snap(codes)[0], every)
    assert len(codes[0].unique(dim=0)) == 60


@pytest.mark.parametrize("name", BOTH)
def test_quantising_twice_changes_nothing(name: str) -> None:
    """Codes decode as they are, and latents between codes decode as the nearest one."""
    model, x = model_of(name), records(CASES[name], 5)
    z = model.encode(x)[0]
    torch.testing.assert_close(model.reconstruct(z + 1e-3), model.reconstruct(z))
    torch.testing.assert_close(model.reconstruct_tokens(model.tokens(x)), model.reconstruct(z))
    assert torch.isfinite(model.reconstruct(1e6 * torch.randn_like(z))).all()


def test_codebook_takes_the_nearest_code() -> None:
    """The token is that of the least distance, computed one by one."""
    model = model_of("vq-codebook")
    table = model.encoder.quantiser.table.weight.detach()
    z = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.cdist(z, table[None]).argmin(-1)
    assert torch.equal(model.encoder.quantiser.snap(z)[0], wanted)


@pytest.mark.parametrize("name", BOTH)
def test_the_rate_moves_the_token_prior_alone(name: str) -> None:
    """Gradients of the rate are zero outside of the prior, those of the distortion inside."""
    model, case = model_of(name).train(), CASES[name]
    for part, inside in (("rate", True), ("distortion", False)):
        model.zero_grad()
        getattr(model(records(case, 5), noise(case, 5)), part).sum().backward()
        for key, parameter in model.named_parameters():
            moved = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert moved == (key.startswith("token_prior.") == inside), key


def test_beta_and_prior_do_not_change_the_first_stage() -> None:
    """Training without privacy gives the same encoder and decoder for any weight of the rate."""
    results = [_trained(beta, width) for beta, width in ((1.0, 4), (0.1, 4), (1.0, 0))]
    for key, value in results[2].items():
        assert torch.equal(results[0][key], value)
        assert torch.equal(results[1][key], value)


def test_training_lowers_the_code_length() -> None:
    """A few steps on records of two kinds bring the rate well below that of uniform tokens."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (64, 1), generator=generator) * torch.ones(64, 12)
    model, run = _model_and_run(beta=1.0, width=8, steps=100)
    train_round(
        model, x, PrivacyPlan.from_config(run), run.training, SimulationNoise(0, 0, 0, 0), {}
    )
    terms = model(x, torch.zeros(64, model.noise_dim))
    assert terms.rate.mean().item() < 0.5 * 3 * math.log(model.codes)


def test_evaluation_leaves_the_codebook_loss_out() -> None:
    """In evaluation the distortion is the likelihood alone."""
    model, case = model_of("vq-codebook"), CASES["vq-codebook"]
    x = records(case, 5)
    likelihood = model.distortion(x, model.decode(model.encode(x)[0]))
    torch.testing.assert_close(model(x, noise(case, 5)).distortion, likelihood)
    assert (model.train()(x, noise(case, 5)).distortion > likelihood).all()


def test_without_a_prior_tokens_are_uniform() -> None:
    """The rate is the logarithm of the number of records, and draws are records."""
    model = build("vq", {"positions": 3, "levels": [3, 4], "prior_width": 0}, (12,), 0).eval()
    terms = model(torch.zeros(2, 12), torch.zeros(2, model.noise_dim))
    assert terms.rate.tolist() == pytest.approx([3 * math.log(12)] * 2)
    assert model.draw(4, torch.Generator().manual_seed(0)).shape == (4, 12)


@pytest.mark.parametrize("name", BOTH)
def test_token_graphs_keep_whole_numbers(name: str) -> None:
    """Exported tokens are those of torch as int64, and come back as the same records."""
    case = CASES[name]
    model = model_of(name).float()
    x = records(case, 5).float()
    graphs = model.graphs()
    (tokens,) = _session(export_graph(graphs["tokens"])).run(None, {"x": x.numpy()})
    assert tokens.dtype == np.int64
    assert np.array_equal(tokens, model.tokens(x).numpy())
    (back,) = _session(export_graph(graphs["detokens"])).run(None, {"tokens": tokens})
    wanted = model.reconstruct_tokens(torch.from_numpy(tokens)).detach().numpy()
    np.testing.assert_allclose(back, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"quantiser": "ema"},
        {"levels": (2, 5)},
        {"levels": ()},
        {"positions": 0},
        {"prior_width": 6},
        {"commitment": 0.0},
        {"network": "rnn"},
        {"positions": 1, "levels": (8, 8)},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    """A value out of range is named."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        VQConfig(**wrong)  # type: ignore[arg-type]


def _session(data: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def _model_and_run(beta: float, width: int, steps: int) -> tuple[VQVAE, RunConfig]:
    options = {"hidden": [7], "positions": 3, "levels": [4, 3], "prior_width": width}
    model = build("vq", options, (12,), 0)
    assert isinstance(model, VQVAE)
    run = RunConfig.parse(
        {
            "name": "vq",
            "data": {"name": "any", "shape": [12]},
            "privacy": {"mechanism": "none", "rng": "simulation", "sample_rate": 0.5},
            "training": {
                "rounds": 1,
                "steps_per_round": steps,
                "beta": beta,
                "learning_rate": 0.01,
            },
        },
        "vq",
    )
    return model, run


def _trained(beta: float, width: int) -> dict[str, torch.Tensor]:
    """Encoder and decoder after a few steps."""
    model, run = _model_and_run(beta, width, steps=5)
    x = records(CASES["vq-codebook"], 20).float()
    plan, source = PrivacyPlan.from_config(run), SimulationNoise(0, 0, 0, 0)
    state = train_round(model, x, plan, run.training, source, {}).state
    return {key: value for key, value in state.items() if not key.startswith("token_prior.")}
