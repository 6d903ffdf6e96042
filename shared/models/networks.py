"""Encoder and decoder networks by name, and checks of the options that describe them."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import nn

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models.layers import (
    ACTIVATIONS,
    conv_decoder,
    conv_encoder,
    initialise,
    mlp,
)
from fedlatent.shared.models.likelihoods import LIKELIHOODS
from fedlatent.shared.models.recurrent import Reader, Writer

RECURRENT = "recurrent"
NETWORKS = {"mlp": None, "conv1d": 1, "conv2d": 2, RECURRENT: 1}  # dimensions of space or time
MAX_WIDTH = 8192
MAX_DEPTH = 16
Value = TypeVar("Value")
#: Gains of the last layers. Under noise the first weights stay visible to the end: latents must
#: start on the scale of the prior, or noise drowns them, and outputs near zero, or the decoder's
#: first draw stays in every reconstruction (measured on MIT-BIH at epsilon 4).
ENCODER_GAIN, DECODER_GAIN = 1.0, 0.1


def wrong_option(name: str, sentence: str) -> ConfigError:
    """The error about an option of a family; its field is the option's key in a run file."""
    return ConfigError(sentence, field=f"model.options.{name}")


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raise ConfigError unless `value` is one of the names allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise wrong_option(
            name, f"Expected {name} as one of {sorted(allowed)}, got {value!r}; choose one."
        )


def check_switch(name: str, value: object) -> None:
    """Raise ConfigError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise wrong_option(name, f"Expected {name} as true or false, got {value!r}; choose one.")


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raise ConfigError unless `value` is a whole number from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise wrong_option(
            name, f"Expected {name} between {least} and {most}, got {value!r}; give a whole number."
        )


def check_list(name: str, value: Any, least: int, most: int) -> None:  # noqa: ANN401
    """Raise ConfigError unless `value` is a tuple of a few whole numbers in the range."""
    if not isinstance(value, tuple) or not 1 <= len(value) <= MAX_DEPTH:
        raise wrong_option(
            name,
            f"Expected {name} as a list of 1 to {MAX_DEPTH} numbers, got {value!r}; "
            f"give for example [{max(least, 8)}].",
        )
    for number in value:
        check_whole(name, number, least, most)


def check_positive(name: str, value: object) -> None:
    """Raise ConfigError unless `value` is a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise wrong_option(
            name, f"Expected {name} as a positive number, got {value!r}; give for example 0.05."
        )


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a family, made of fields such as `whole` that know what they may hold."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: A field has the wrong type or lies outside its range.
        """
        for one in fields(self):
            if "check" in one.metadata:
                one.metadata["check"](one.name, getattr(self, one.name))


def whole(default: int, least: int = 1, most: int = MAX_WIDTH) -> int:
    """A field of a whole number from `least` to `most`."""
    limits = {"minimum": least, "maximum": most}
    return _checked(default, lambda name, value: check_whole(name, value, least, most), limits)


def positive(default: float) -> float:
    """A field of a finite number above 0."""
    return _checked(default, check_positive, {"exclusiveMinimum": 0})


def choice(default: str, allowed: Collection[str]) -> str:
    """A field of one of the names allowed."""
    limits = {"enum": [*allowed]}
    return _checked(default, lambda name, value: check_choice(name, value, allowed), limits)


def switch(*, default: bool) -> bool:
    """A field of true or false."""
    return _checked(default, check_switch, {})


def wholes(default: tuple[int, ...], least: int = 1, most: int = MAX_WIDTH) -> tuple[int, ...]:
    """A field of a few whole numbers from `least` to `most`."""
    limits = {"items": {"type": "integer", "minimum": least, "maximum": most}}
    return _checked(default, lambda name, value: check_list(name, value, least, most), limits)


def _checked(
    default: Value, check: Callable[[str, object], None], limits: Mapping[str, object]
) -> Value:
    """A field that is checked; ``limits`` say the same as JSON Schema."""
    return field(default=default, metadata={"check": check, "limits": limits})


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Options):
    """Options of an encoder, a decoder that mirrors it, and a likelihood.

    Attributes:
        network: "mlp", "conv1d", "conv2d", or "recurrent" over time.
        hidden: Widths of the hidden layers, channels of the strided convolutions, or widths of the
            recurrent cells, from the data to the latent.
        activation: "tanh", "relu", "gelu" or "silu".
        likelihood: "gaussian" for real values, "bernoulli" for values in [0, 1], "discretised"
            for values in [0, 1] on 256 levels.
        variance: Of the Gaussian likelihood, in squared data units.
    """

    network: str = choice("mlp", NETWORKS)
    hidden: tuple[int, ...] = wholes((64,))
    activation: str = choice("tanh", ACTIVATIONS)
    likelihood: str = choice("gaussian", LIKELIHOODS)
    variance: float = positive(0.05)


def encoder_and_decoder(
    config: NetworkOptions,
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    outputs: int,
    inputs: int,
) -> tuple[nn.Sequential, nn.Sequential]:
    """Both networks with weights drawn from `generator`, which the encoder reads first.

    Args:
        config: What they are made of.
        shape: Of one record.
        generator: Where initial weights come from.
        outputs: Width of the encoder's result.
        inputs: Width of what the decoder takes.

    Raises:
        ConfigError: The network does not fit the shape.
    """
    # On "meta" the layers draw nothing from torch's global generator.
    with torch.device("meta"):
        encoder = nn.Sequential(*encoder_layers(config, shape, outputs))
        decoder = nn.Sequential(*decoder_layers(config, inputs, shape))
    for network, gain in ((encoder, ENCODER_GAIN), (decoder, DECODER_GAIN)):
        network.to_empty(device="cpu")
        initialise(network, config.activation, generator, gain)
    return encoder, decoder


def encoder_layers(config: NetworkOptions, shape: tuple[int, ...], outputs: int) -> list[nn.Module]:
    """Layers from records `[B, *shape]` to `[B, outputs]`.

    Raises:
        ConfigError: The network does not fit the shape.
    """
    if config.network == "mlp":
        widths = (math.prod(shape), *config.hidden, outputs)
        # From the end, so that an axis between batch and record passes.
        return [nn.Flatten(-len(shape)), *mlp(widths, config.activation)]
    first = _channels_first(config.network, shape)
    adapt = [nn.Unflatten(1, (1, shape[0]))] if len(first) > len(shape) else []
    if config.network == RECURRENT:
        return [*adapt, Reader(first, config.hidden, outputs)]
    return [*adapt, *conv_encoder(first, config.hidden, outputs, config.activation)]


def decoder_layers(config: NetworkOptions, inputs: int, shape: tuple[int, ...]) -> list[nn.Module]:
    """Layers from `[B, inputs]` to flattened likelihood parameters `[B, parameters * size]`.

    Raises:
        ConfigError: The network does not fit the shape.
    """
    parameters = LIKELIHOODS[config.likelihood].parameters
    if config.network == "mlp":
        widths = (inputs, *reversed(config.hidden), parameters * math.prod(shape))
        return mlp(widths, config.activation)
    channels, *size = _channels_first(config.network, shape)
    outputs = (parameters * channels, *size)
    if config.network == RECURRENT:
        return [Writer(inputs, config.hidden, outputs), nn.Flatten()]
    return [*conv_decoder(inputs, config.hidden, outputs, config.activation), nn.Flatten()]


def _channels_first(network: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    dims = NETWORKS[network]
    if dims == len(shape):
        return (1, *shape)
    if dims is not None and dims + 1 == len(shape):
        return shape
    raise wrong_option(
        "network",
        f"Expected records of {dims} dimensions (or {dims} after a channel) for network "
        f"{network!r}, got shape {shape}; choose another network.",
    )
