"""Sizes of models against hand counts."""

import math

import torch

from fedlatent.shared.models import build
from fedlatent.shared.models.size import size_of


def test_sizes_of_a_dense_model() -> None:
    """Parameters are weights and biases, and work is one multiply-add for each weight."""
    options = {"hidden": [7], "latent_dim": 3}
    size = size_of(build("gaussian", options, (4, 3), seed=0))
    encoder, decoder = 12 * 7 + 7 * 6, 3 * 7 + 7 * 12
    assert (size.encode, size.decode) == (encoder, decoder)
    assert size.shared == encoder + 7 + 6
    assert size.parameters == size.shared + decoder + 7 + 12


def test_sizes_of_a_convolutional_model() -> None:
    """A convolution works once for each weight and output place."""
    model = build("gaussian", {"network": "conv2d", "hidden": [2], "latent_dim": 3}, (8, 8), 0)
    size = size_of(model)
    kernel, head = 1 * 2 * 3 * 3, 2 * 4 * 4 * 6
    assert size.shared == kernel + 2 + head + 6
    assert size.encode == kernel * 4 * 4 + head
    counts = [math.prod(value.shape) for value in model.state_dict().values()]
    assert size.parameters == sum(counts)


def test_counting_leaves_the_model_alone() -> None:
    """Weights, gradients and the random generator are as before."""
    model = build("gaussian", {}, (16,), seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    size_of(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
