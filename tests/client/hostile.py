"""Weights that a hostile server would choose, so that floating point betrays a record."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlatent.shared.models import VAE

#: Pairs of numbers whose products with each other's are equal, and whose multiples round apart.
PAIRS = ((7.0, 11.0), (3.0, 5.0), (13.0, 17.0), (1.0, 1.0), (11.0, 19.0))
#: What a layer's weights may be: as they are drawn, or chosen so that sums cancel, overflow,
#: vanish or leave an activation flat.
TRICKS = ("plain", "cancel", "cancel", "blind", "huge", "tiny", "subnormal", "saturated", "zero")


def hostile_weights(model: VAE, victim: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """One draw of hostile weights by name, float32.

    Args:
        model: gives names, shapes and honest weights.
        victim: the record [*shape] at which first layers are blind.
        generator: of all choices.
    """
    state = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    for name, weight in state.items():
        if weight.dim() < 2:
            continue
        bias = state.get(name.removesuffix("weight") + "bias")
        trick = TRICKS[_choice(len(TRICKS), generator)]
        _apply(trick, weight, bias, victim, generator)
    return state


def cancelling(
    weight: Tensor,
    bias: Tensor | None,
    pair: tuple[float, float],
    large: float,
    small: float,
) -> None:
    """Rows -a A and b A with biases b m and a m: back-propagated, they add up to zero.

    With a gradient equal to the output, as the rate of a Gaussian has it for its mean, the input's
    gradient is -a A b m + b A a m = 0, exactly in floating point, and only at this scale.
    """
    first, second = pair
    weight[0::2] = -first * large
    weight[1::2] = second * large
    if bias is not None:
        bias[0::2] = second * small
        bias[1::2] = first * small


def _apply(
    trick: str, weight: Tensor, bias: Tensor | None, victim: Tensor, generator: torch.Generator
) -> None:
    if trick == "cancel":
        large = 2.0 ** _choice(60, generator)
        small = 2.0 ** _choice(24, generator)
        cancelling(weight, bias, PAIRS[_choice(len(PAIRS), generator)], large, small)
    elif trick == "blind" and bias is not None and weight[0].numel() == victim.numel():
        # Zero for the victim and for nobody else; a power of two, so that the zero is exact.
        rows, place = weight.flatten(1), _choice(victim.numel(), generator)
        rows.zero_()
        rows[:, place] = 2.0 ** _choice(30, generator)
        bias.copy_(-rows[:, place] * victim.flatten()[place])
    elif trick == "huge":
        weight.mul_(10.0 ** _choice(25, generator))
    elif trick == "tiny":
        weight.mul_(10.0 ** -_choice(25, generator))
    elif trick == "subnormal":
        weight.mul_(1e-42)
    elif trick == "saturated" and bias is not None:
        bias.copy_(10.0 ** _choice(8, generator) * torch.randn(bias.shape, generator=generator))
    elif trick == "zero":
        weight.zero_()


def as_row(state: dict[str, Tensor]) -> Tensor:
    """All weights [P] in the order of the model's parameters."""
    return torch.cat([value.reshape(-1) for value in state.values()])


def _choice(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))


def rows_of(model: VAE, victims: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Hostile weights [C, P], one row for each victim."""
    return torch.stack([as_row(hostile_weights(model, v, generator)) for v in victims])
