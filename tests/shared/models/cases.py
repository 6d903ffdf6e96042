"""One tiny model per family, network and likelihood, for the contract test and others."""

import torch

from fedlatent.testing import Case


def tokens(size: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Indices of five tokens, 0 among them."""
    return torch.randint(0, 5, size, generator=generator).double()


def table(size: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """A number, a class of three, a number and a class of two, a few of them missing."""
    numbers, there = (torch.rand(size[0], 4, generator=generator) for _ in range(2))
    three = (numbers[:, 1:2] * 3).long() == torch.arange(3)
    two = (numbers[:, 3:] * 2).long() == torch.arange(2)
    flags = (there < 0.8).double()
    first, second = (torch.stack([numbers[:, i], torch.ones(size[0])], 1) for i in (0, 2))
    blocks = (first, three, second, two)
    return torch.cat([block * flags[:, i : i + 1] for i, block in enumerate(blocks)], 1)


def _gaussian(shape: tuple[int, ...], **options: object) -> Case:
    return Case(family="gaussian", options={"latent_dim": 3, **options}, shape=shape)


CASES = {
    "mlp": _gaussian((12,), hidden=[7, 5]),
    "mlp-2d": _gaussian((4, 3), hidden=[7], activation="silu", likelihood="bernoulli"),
    "mlp-discretised": _gaussian((12,), hidden=[7], likelihood="discretised"),
    "mlp-autoencoder": Case(
        family="gaussian",
        options={"latent_dim": 3, "hidden": [7], "stochastic": False},
        shape=(12,),
        variational=False,
    ),
    "conv1d": _gaussian((13,), network="conv1d", hidden=[2, 3]),
    "conv1d-channels": _gaussian((2, 9), network="conv1d", hidden=[3], activation="relu"),
    "conv2d": Case(
        family="gaussian",
        options={
            "latent_dim": 3,
            "network": "conv2d",
            "hidden": [2, 3],
            "likelihood": "discretised",
        },
        shape=(8, 7),
        exported=True,
    ),
    "conv2d-channels": _gaussian((2, 5, 6), network="conv2d", hidden=[3], activation="gelu"),
    "recurrent": _gaussian((2, 37), network="recurrent", hidden=[4, 3]),
    "denoising": Case(
        family="denoising",
        options={
            "latent_dim": 3,
            "hidden": [7],
            "shortcut": True,
            "corruptions": ["gaussian", "wander", "salt_pepper"],
        },
        shape=(12,),
    ),
    "denoising-conv1d": Case(
        family="denoising",
        options={
            "latent_dim": 3,
            "network": "conv1d",
            "hidden": [3],
            "corruptions": ["masking", "wander"],
        },
        shape=(2, 9),
    ),
    "denoising-conv2d": Case(
        family="denoising",
        options={
            "latent_dim": 3,
            "network": "conv2d",
            "hidden": [2, 3],
            "corruptions": ["blur", "gaussian"],
        },
        shape=(8, 7),
        exported=True,
    ),
    "mlp-mixture": Case(
        family="gaussian",
        options={"latent_dim": 3, "hidden": [7], "prior": "mixture", "components": 5},
        shape=(12,),
        exact=False,
    ),
    "mlp-vamp": Case(
        family="gaussian",
        options={"latent_dim": 3, "hidden": [7], "prior": "vamp", "components": 5},
        shape=(4, 3),
        exact=False,
    ),
    "diffusion": Case(
        family="diffusion",
        options={"latent_dim": 3, "hidden": [7], "width": 6, "blocks": 1, "levels": 2},
        shape=(12,),
        variational=False,
        exported=True,
    ),
    "diffusion-conv2d": Case(
        family="diffusion",
        options={
            "latent_dim": 3,
            "network": "conv2d",
            "hidden": [2, 3],
            "likelihood": "bernoulli",
            "width": 6,
            "blocks": 2,
            "levels": 1,
        },
        shape=(8, 7),
        variational=False,
    ),
    "vq-fsq": Case(
        family="vq",
        options={
            "network": "conv2d",
            "hidden": [2, 3],
            "likelihood": "bernoulli",
            "positions": 3,
            "levels": [4, 5, 3],
            "prior_width": 4,
        },
        shape=(8, 7),
        variational=False,
        exported=True,
        quantised=True,
    ),
    "vq-codebook": Case(
        family="vq",
        options={
            "quantiser": "codebook",
            "hidden": [7],
            "positions": 3,
            "codes": 6,
            "code_dim": 2,
            "prior_width": 4,
        },
        shape=(12,),
        variational=False,
        quantised=True,
    ),
    "gumbel": Case(
        family="gumbel",
        options={"hidden": [7], "groups": 3, "categories": 4, "likelihood": "bernoulli"},
        shape=(12,),
        quantised=True,
    ),
    "gumbel-conv1d": Case(
        family="gumbel",
        options={"network": "conv1d", "hidden": [3], "groups": 2, "categories": 3},
        shape=(9,),
        exported=True,
        quantised=True,
    ),
    "hierarchical": Case(
        family="hierarchical",
        options={"latent_dim": 3, "groups": [2], "blocks": [1], "width": 6, "bottleneck": 4},
        shape=(12,),
        gradients=("decoder.levels.0.0.prior", "decoder.levels.0.1.prior"),
    ),
    "hierarchical-conv2d": Case(
        family="hierarchical",
        options={
            "network": "conv2d",
            "latent_dim": 3,
            "groups": [1, 1],
            "blocks": [1, 0],
            "width": 4,
            "bottleneck": 3,
            "z_channels": 2,
            "patch": 2,
            "likelihood": "bernoulli",
        },
        shape=(7, 6),
        exported=True,
        gradients=("decoder.levels.0.0.prior", "decoder.levels.1.0.prior"),
    ),
    "mixed": Case(
        family="mixed",
        options={"columns": [0, 3, 0, 2], "hidden": [7], "latent_dim": 3, "presence": True},
        shape=(9,),
        values=table,
        exported=True,
    ),
    "mixed-complete": Case(
        family="mixed",
        options={"columns": [0, 3, 0, 2], "hidden": [7], "latent_dim": 3},
        shape=(9,),
        values=table,
    ),
    "molecule": Case(
        family="molecule",
        options={
            "vocabulary": 5,
            "first_atom": 2,
            "embedding": 4,
            "channels": [3],
            "hidden": 6,
            "latent_dim": 3,
            "activation": "tanh",
        },
        shape=(6,),
        values=tokens,
        exported=True,
    ),
    "sequence": Case(
        family="sequence", options={"latent_dim": 2, "width": 4, "hidden": 5}, shape=(5,)
    ),
    "sequence-season": Case(
        family="sequence",
        options={
            "latent_dim": 2,
            "width": 4,
            "hidden": 5,
            "patch": 2,
            "season": 4,
            "memory": 6,
            "known": 1,
        },
        shape=(3, 8),
        exported=True,
    ),
    "sequence-masked": Case(
        family="sequence",
        options={"latent_dim": 2, "width": 4, "hidden": 5, "patch": 2, "masked": True},
        shape=(2, 8),
    ),
    "sparse": Case(
        family="sparse",
        options={"latent_dim": 3, "stem": 4, "hidden": [7], "likelihood": "bernoulli"},
        shape=(4, 3),
    ),
    "sparse-conv1d": Case(
        family="sparse",
        options={"network": "conv1d", "latent_dim": 3, "stem": 4, "hidden": [3, 2]},
        shape=(13,),
        exported=True,
    ),
}
