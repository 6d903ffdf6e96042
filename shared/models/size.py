"""How large a model is and how much work one record is."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.flop_counter import FlopCounterMode

from fedlatent.shared.models.base import VAE


@dataclass(frozen=True, kw_only=True)
class Size:
    """Counts of one model.

    Attributes:
        parameters: Trained numbers, all together.
        shared: Of these, those under `encoder.`.
        encode: Multiply-adds of encoding one record.
        decode: Multiply-adds of decoding one latent.
    """

    parameters: int
    shared: int
    encode: int
    decode: int


def size_of(model: VAE) -> Size:
    """Count parameters, and multiply-adds of matrix products and convolutions."""
    like = next(model.parameters())
    record = like.new_zeros(1, *model.input_shape)
    latent = like.new_zeros(1, model.latent_dim)
    with torch.no_grad():
        with FlopCounterMode(display=False) as encoding:
            model.encode(record)
        with FlopCounterMode(display=False) as decoding:
            model.decode(latent)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return Size(
        parameters=sum(sizes.values()),
        shared=sum(count for name, count in sizes.items() if name.startswith("encoder.")),
        encode=encoding.get_total_flops() // 2,
        decode=decoding.get_total_flops() // 2,
    )


class TooLarge(Exception):
    """A model has more parameters than it may."""


@contextlib.contextmanager
def at_most(parameters: int | None) -> Iterator[None]:
    """Stop the building of a model as soon as it has more parameters; None lets any be built.

    Families lay their layers out before they give them memory, so a giant costs nothing.

    Raises:
        TooLarge: from within the block.
    """
    if parameters is None:
        yield
        return
    count = 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += parameter.numel() if parameter is not None else 0
        if count > parameters:
            raise TooLarge

    handle = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()
