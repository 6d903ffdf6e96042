"""Building models from options and loading what other machines send."""

import math

import pytest
import torch

from fedlatent.shared.errors import ConfigError, ProtocolError
from fedlatent.shared.models import FAMILIES, build, encoder_state, load_encoder, load_state
from fedlatent.shared.models.base import use_prior
from fedlatent.shared.models.priors import GaussianPrior, StandardNormal
from fedlatent.testing import noise, records
from tests.shared.models.cases import CASES


def test_defaults_match_the_reference_capacity() -> None:
    """The default model for 128 samples is 128-64-2x8 and 8-64-128."""
    model = build("gaussian", {}, (128,), seed=0)
    shapes = [tuple(value.shape) for value in model.state_dict().values() if value.dim() == 2]
    assert shapes == [(64, 128), (16, 64), (64, 8), (128, 64)]


def test_presets_are_options() -> None:
    """A preset stands for its options, and an option beside it wins."""
    named = build("gaussian", {"preset": "base", "latent_dim": 5}, (12,), seed=0)
    spelt = build("gaussian", {"hidden": [512, 256], "latent_dim": 5}, (12,), seed=0)
    assert named.latent_dim == 5
    for key, value in spelt.state_dict().items():
        assert torch.equal(named.state_dict()[key], value)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_three_presets(family: str) -> None:
    """Each family is described in one line and begins its sizes with tiny, small, base."""
    assert list(FAMILIES[family].presets)[:3] == ["tiny", "small", "base"]
    assert 10 < len(FAMILIES[family].about) < 100


def test_unknown_presets_are_named() -> None:
    """A size that the family lacks is refused with those it has."""
    with pytest.raises(ConfigError, match=r"base.*small.*tiny.*'huge'"):
        build("gaussian", {"preset": "huge"}, (12,), seed=0)


def test_a_preset_that_is_no_name_is_refused() -> None:
    """A list, which a run file may hold at any option, is an error of this option."""
    for wrong in (["tiny"], [], 3):
        with pytest.raises(ConfigError, match="Expected a preset") as refused:
            build("gaussian", {"preset": wrong}, (12,), seed=0)
        assert refused.value.field == "model.options.preset"


def test_a_broadcast_prior_replaces_the_standard_one() -> None:
    """The rate is measured against the prior that is given, and without one nothing changes."""
    model = build("gaussian", {"latent_dim": 2}, (6,), seed=0)
    use_prior(model, None)
    assert model.prior == StandardNormal()
    prior = GaussianPrior(mean=torch.ones(2), covariance=2.0 * torch.eye(2))
    use_prior(model, prior)
    mu, logvar = model.encode(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)))
    expected = 0.5 * (
        logvar.exp() / 2.0 + (mu - 1.0).square() / 2.0 - 1.0 - logvar + math.log(2.0)
    ).sum(1)
    torch.testing.assert_close(model.rate(mu, logvar, mu), expected)
    assert list(model.state_dict()) == list(
        build("gaussian", {"latent_dim": 2}, (6,), seed=0).state_dict()
    )


def test_a_trained_prior_is_not_replaced() -> None:
    """A model with a prior of its own refuses a broadcast one, and keeps its own under none."""

    class Trained(torch.nn.Module):
        def rate(self, mu: torch.Tensor, logvar: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            return mu.sum(1)

        def log_prob(self, z: torch.Tensor) -> torch.Tensor:
            return z.sum(1)

        def sample(self, eps: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            return eps

    model = build("gaussian", {"latent_dim": 2}, (6,), seed=0)
    model.prior = Trained()
    use_prior(model, None)
    assert isinstance(model.prior, Trained)
    with pytest.raises(ConfigError, match="broadcast"):
        use_prior(model, StandardNormal())


@pytest.mark.parametrize("name", CASES)
def test_seed_decides_the_weights(name: str) -> None:
    """Equal seeds give equal weights, other seeds others, and torch's generator stays put."""
    case = CASES[name]
    before = torch.get_rng_state()
    first, again, other = case.model(3), case.model(3), case.model(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    moved = case.model(3)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        assert torch.equal(value, moved.state_dict()[key])
    pairs = zip(first.parameters(), other.parameters(), strict=True)
    assert any(not torch.equal(one, another) for one, another in pairs)


@pytest.mark.parametrize("network", ["mlp", "conv1d"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "silu"])
def test_initial_signal_is_well_scaled(network: str, activation: str) -> None:
    """Fresh latents of unit-variance data have a deviation of the order of the prior's."""
    hidden = [64, 64] if network == "mlp" else [16, 16]
    model = build(
        "gaussian", {"network": network, "hidden": hidden, "activation": activation}, (128,), 0
    )
    x = torch.randn(256, 128, generator=torch.Generator().manual_seed(5))
    mu, logvar = model.encode(x)
    assert 0.4 < mu.std().item() < 1.5
    assert -8.0 < logvar.min().item() < logvar.max().item() < 4.0


@pytest.mark.parametrize(
    ("family", "options", "shape", "words"),
    [
        ("gausian", {}, (4,), "gaussian"),
        ("gaussian", {"latentdim": 3}, (4,), "latent_dim"),
        ("gaussian", {"network": "rnn"}, (4,), "conv1d"),
        ("gaussian", {"network": ["mlp"]}, (4,), "network"),
        ("gaussian", {"activation": "elu"}, (4,), "tanh"),
        ("gaussian", {"likelihood": "poisson"}, (4,), "bernoulli"),
        ("gaussian", {"latent_dim": 0}, (4,), "latent_dim"),
        ("gaussian", {"latent_dim": True}, (4,), "latent_dim"),
        ("gaussian", {"latent_dim": 2.0}, (4,), "latent_dim"),
        ("gaussian", {"hidden": 64}, (4,), "hidden"),
        ("gaussian", {"hidden": []}, (4,), "hidden"),
        ("gaussian", {"hidden": [64, 10**9]}, (4,), "hidden"),
        ("gaussian", {"variance": 0.0}, (4,), "variance"),
        ("gaussian", {"variance": math.nan}, (4,), "variance"),
        ("gaussian", {"variance": "small"}, (4,), "variance"),
        ("gaussian", {"stochastic": 1}, (4,), "stochastic"),
        ("gaussian", {"network": "conv2d"}, (4,), "conv2d"),
        ("gaussian", {"network": "conv1d"}, (2, 3, 4), "conv1d"),
        ("gaussian", {}, (), "shape"),
        ("gaussian", {}, (4, 0), "shape"),
    ],
)
def test_bad_configurations_are_named(
    family: str, options: dict[str, object], shape: tuple[int, ...], words: str
) -> None:
    """Every wrong option is refused in a sentence that names it and what is allowed."""
    with pytest.raises(ConfigError, match=words) as caught:
        build(family, options, shape, seed=0)
    assert "Expected" in str(caught.value)
    assert "got" in str(caught.value)


def test_encoder_travels_and_decoder_stays() -> None:
    """Loading a received encoder reproduces its latents and leaves the decoder alone."""
    case = CASES["conv1d"]
    sender, receiver = case.model(1), case.model(2)
    decoder = {k: v.clone() for k, v in receiver.state_dict().items() if k.startswith("decoder.")}
    sent = encoder_state(sender)
    assert all(key.startswith("encoder.") for key in sent)
    load_encoder(receiver, sent)
    x = records(case, 3)
    assert torch.equal(receiver.encode(x)[0], sender.encode(x)[0])
    assert all(torch.equal(receiver.state_dict()[key], value) for key, value in decoder.items())


def test_encoder_state_is_a_copy() -> None:
    """Training on after taking the encoder's state does not change what was taken."""
    model = CASES["mlp"].model()
    state = encoder_state(model)
    kept = {key: value.clone() for key, value in state.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(state[key], value) for key, value in kept.items())


@pytest.mark.parametrize("damage", ["missing", "extra", "decoder", "shape", "nan", "inf", "dtype"])
def test_damaged_encoders_change_nothing(damage: str) -> None:
    """A received encoder that does not fit exactly is refused and nothing of it is loaded."""
    case = CASES["mlp"]
    model, arrays = case.model(1), encoder_state(case.model(2))
    key = "encoder.5.bias"  # the last: a loader that checks while writing would fail here
    spoil = {
        "missing": lambda: arrays.pop(key),
        "extra": lambda: arrays.update({"encoder.9.bias": torch.zeros(1)}),
        "decoder": lambda: arrays.update({"decoder.0.bias": model.state_dict()["decoder.0.bias"]}),
        "shape": lambda: arrays.update({key: torch.zeros(1, dtype=torch.float64)}),
        "nan": lambda: arrays[key].fill_(math.nan),
        "inf": lambda: arrays[key].fill_(math.inf),
        "dtype": lambda: arrays.update({key: torch.zeros(6, dtype=torch.int64)}),
    }
    spoil[damage]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ProtocolError, match="Expected"):
        load_encoder(model, arrays)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_whole_state_loads() -> None:
    """Without a prefix every tensor is loaded, and an encoder alone is refused."""
    case = CASES["conv2d"]
    sender, receiver = case.model(1), case.model(2)
    load_state(receiver, sender.state_dict())
    x, eps = records(case, 2), noise(case, 2)
    assert torch.equal(receiver(x, eps).distortion, sender(x, eps).distortion)
    with pytest.raises(ProtocolError, match="missing"):
        load_state(receiver, encoder_state(sender))
