"""What the deep hierarchical family promises beyond the contract."""

import pytest
import torch

from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import build, build_model
from fedlatent.shared.models.hierarchical import HierarchicalVAE
from fedlatent.shared.models.size import size_of
from fedlatent.shared.models.topdown import HierarchicalConfig
from fedlatent.simulations.zoo.training import fit, run_for

OPTIONS: dict[str, object] = {
    "network": "conv2d",
    "latent_dim": 4,
    "groups": (2, 1),
    "blocks": (1, 1),
    "width": 8,
    "bottleneck": 4,
    "z_channels": 2,
    "likelihood": "bernoulli",
}


def small(**options: object) -> HierarchicalVAE:
    """An untrained model of 8x8 images in float32."""
    model = build("hierarchical", {**OPTIONS, **options}, (8, 8), 0)
    assert isinstance(model, HierarchicalVAE)
    return model.eval()


def images(count: int) -> torch.Tensor:
    """Binary images [count, 8, 8] in float32."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 8, 8, generator=generator).round()


def one_step(epsilon: float | None, preset: str) -> RunConfig:
    """One step on 28x28 images."""
    return run_for(
        "hierarchical",
        {"preset": preset},
        (28, 28),
        training={"rounds": 1, "steps_per_round": 1, "learning_rate": 1e-3},
        epsilon=epsilon,
        sample_rate=0.5,
    )


def test_noise_counts_every_group() -> None:
    """Noise is one number for each latent of the top group and of all places of the others."""
    assert small().noise_dim == 4 + 2 * (2 * 4 * 4 + 1 * 8 * 8)
    assert small(patch=2).noise_dim == 4 + 2 * (2 * 2 * 2 + 1 * 4 * 4)


def test_untrained_priors_are_standard_normal() -> None:
    """The last convolution of every prior starts at zero, so all priors start as N(0, 1)."""
    model = small()
    _, groups = model.decoder(torch.zeros(3, 4))
    assert len(groups) == 3
    for _, _, prior in groups:
        assert torch.equal(prior.mean, torch.zeros_like(prior.mean))
        assert torch.equal(prior.logvar, torch.zeros_like(prior.logvar))


def test_rate_is_zero_where_posteriors_are_priors() -> None:
    """With weights of zero, posteriors are priors and a record costs no rate."""
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        terms = model(images(3), torch.randn(3, model.noise_dim))
    torch.testing.assert_close(terms.rate, torch.zeros(3))


def test_decode_takes_the_prior_means() -> None:
    """`decode` is what the top-down network gives for draws of the priors with noise 0."""
    model = small()
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        out, _ = model.decoder(z, None, torch.zeros(3, model.noise_dim - 4))
        torch.testing.assert_close(model.decode(z)[:, 0], out[:, 0])


def test_draws_without_temperature_are_all_alike() -> None:
    """Temperature 0 draws the means of all groups; temperature 1 draws different records."""
    model = small()
    with torch.no_grad():
        cold = model.draw(4, torch.Generator().manual_seed(0), temperature=0.0)
        warm = model.draw(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(cold[0], cold[3])
    assert not torch.allclose(warm[0], warm[3])


def test_all_groups_reconstruct_better_than_the_top_one() -> None:
    """After training, posterior means of all groups give a closer record than the top group."""
    run = run_for(
        "hierarchical",
        OPTIONS,
        (8, 8),
        training={"rounds": 1, "steps_per_round": 40, "learning_rate": 5e-3},
        epsilon=None,
        sample_rate=0.5,
    )
    x = images(40)
    model = fit(run, x.numpy())
    assert isinstance(model, HierarchicalVAE)
    with torch.no_grad():
        fully = (model.reconstruct_fully(x) - x).abs().mean()
        coarse = (model.reconstruct(model.encode(x)[0]) - x).abs().mean()
    assert fully < coarse


@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_the_deep_preset_trains(epsilon: float | None) -> None:
    """24 blocks and 32 groups take steps with and without privacy and stay finite."""
    x = torch.rand(4, 28, 28, generator=torch.Generator().manual_seed(0)).round()
    run = one_step(epsilon, "deep")
    before = build_model(run)
    assert isinstance(before, HierarchicalVAE)
    assert sum(before.config.groups) == 32
    assert sum(before.config.blocks) == 24
    model = fit(run, x.numpy())
    terms = model(x, torch.randn(4, model.noise_dim, generator=torch.Generator().manual_seed(1)))
    assert torch.isfinite(torch.stack(terms)).all()
    moved = [
        name
        for name, value in model.named_parameters()
        if not torch.equal(value, before.get_parameter(name))
    ]
    assert any(".prior." in name for name in moved)
    assert any(name.startswith("encoder.") for name in moved)


def test_depth_costs_layers_and_not_shared_dimensions() -> None:
    """More groups add work to decoding alone: what sites share does not grow."""
    shallow, deep = size_of(small()), size_of(small(groups=(6, 3)))
    assert deep.shared == shallow.shared
    assert deep.encode == shallow.encode
    assert deep.decode > 2 * shallow.decode


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": "mlp"}, "groups and blocks of 1 resolutions"),
        ({"groups": (1,)}, "groups and blocks of 1 resolutions"),
        ({"groups": (0, 0)}, "at least one group"),
        ({"groups": ()}, "groups as a list"),
        ({"blocks": (1, -1)}, "blocks between 0"),
        ({"width": 0}, "width between 1"),
        ({"network": "conv3d"}, "network as one of"),
        ({"variance": 0.0}, "variance as a positive number"),
    ],
)
def test_wrong_options_are_refused(change: dict[str, object], words: str) -> None:
    """An option out of range is named together with what to do."""
    with pytest.raises(ConfigError, match=words):
        HierarchicalConfig(**{**OPTIONS, **change})  # type: ignore[arg-type]


def test_signals_need_the_mlp() -> None:
    """A convolutional ladder refuses records that are no images."""
    with pytest.raises(ConfigError, match="choose network 'mlp'"):
        build("hierarchical", OPTIONS, (8,), 0)
