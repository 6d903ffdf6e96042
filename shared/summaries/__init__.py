"""Every kind of summary: one module each, and one row of ``SUMMARIES``."""

import re
from collections.abc import Mapping

import numpy as np

from fedlatent.shared.arrays import Arrays, strip_prefix
from fedlatent.shared.config import KIND, RunConfig
from fedlatent.shared.errors import ConfigError, DataError, ProtocolError
from fedlatent.shared.plugins import PluginTable
from fedlatent.shared.privacy.summaries import Form
from fedlatent.shared.summaries.base import (
    Replies,
    Summary,
    View,
    When,
    WorstCase,
    latent_radius,
    scaling_of,
)
from fedlatent.shared.summaries.data import Data
from fedlatent.shared.summaries.mixture import Mixture
from fedlatent.shared.summaries.moments import Moments
from fedlatent.shared.summaries.scores import Scores
from fedlatent.shared.summaries.state import Federated, Part, form_of, stored_name
from fedlatent.shared.summaries.threshold import THRESHOLDS, Threshold

__all__ = [
    "SUMMARIES",
    "THRESHOLDS",
    "Federated",
    "Part",
    "Replies",
    "Summary",
    "View",
    "When",
    "WorstCase",
    "carried",
    "example_state",
    "form_of",
    "kinds",
    "latent_radius",
    "names_of",
    "read_parts",
    "read_stored",
    "scaling_of",
    "split_parts",
    "stored_name",
    "stream_of",
    "taking_place",
]

_OWN: dict[str, Summary] = {
    one.kind: one for one in (Data(), Moments(), Mixture(), Scores(), Threshold())
}


def _wrong(name: str, value: object) -> str | None:
    """Why a plugin's summary may not stand under its name."""
    if not isinstance(value, Summary):
        return f"expected a Summary, got a {type(value).__name__}"
    if value.kind != name:
        return f"expected a summary of kind {name!r}, got one of kind {value.kind!r}"
    if not re.fullmatch(KIND, name):
        return "expected a name that summaries.more may hold (lower-case letters, digits, hyphens)"
    if not isinstance(value.stream, int) or value.stream < 1:
        return f"expected a positive number as its stream of noise, got {value.stream!r}"
    taken = {one.stream: one.kind for one in SUMMARIES.values()} | {0: "train"}
    if value.stream in taken:
        return f"expected a stream of noise of its own, got that of {taken[value.stream]!r}"
    return None


#: By kind, in the order in which the phases of one moment of a run follow each other: ours, and
#: behind them those of plugins.
SUMMARIES: PluginTable[Summary] = PluginTable("summaries", _OWN, _wrong)


def taking_place(run: RunConfig) -> dict[str, Summary]:
    """The kinds that a run may have: ours, and those of plugins that it names; what closes is last.

    Raises:
        ConfigError: it names one that no installed package has, or that cannot be used.
    """
    missing = [name for name in run.summaries.more if not SUMMARIES.plugged(name)]
    if missing:
        raise ConfigError(
            f"Expected a kind of summary that a plugin has in summaries.more, got {missing[0]!r}; "
            "install its package here, too, or leave it out.",
            field="summaries.more",
        )
    for name in run.summaries.more:
        _ = SUMMARIES[name]  # says why one cannot be used
    found = [one for one in SUMMARIES if one in run.summaries.more or not SUMMARIES.plugged(one)]
    return {kind: SUMMARIES[kind] for kind in sorted(found, key=lambda one: SUMMARIES[one].closes)}


def kinds() -> tuple[str, ...]:
    """What a phase may ask for: training and every summary, by their streams of noise."""
    return ("train", *sorted(SUMMARIES, key=lambda kind: SUMMARIES[kind].stream))


def stream_of(kind: str) -> int:
    """Number of the stream of seeded noise of a kind of phase."""
    return 0 if kind == "train" else SUMMARIES[kind].stream


def names_of(run: RunConfig) -> dict[str, Summary]:
    """Names of the parts that a run may release, with the kind that each is pooled from."""
    named = ((one.part(run), one) for one in taking_place(run).values())
    return {name: one for name, one in named if name is not None}


def example_state(run: RunConfig, latent_dim: int, form: Form = "full") -> Federated:
    """A state that tells nothing about anybody, with every part that the run may release."""
    parts = {name: one.example(run, latent_dim) for name, one in names_of(run).items()}
    return Federated(parts={name: one for name, one in parts.items() if one}, form=form)


def carried(run: RunConfig, kind: str) -> tuple[str, ...]:
    """Names of the parts that a request of a kind brings; in training those that are there yet."""
    if kind != "train":
        return SUMMARIES[kind].needs(run)
    warm = ("data",) if run.training.warm_start_steps else ()
    prior = ("density", "mixture") if run.summaries.prior != "none" else ()
    return (*scaling_of(run), *warm, *prior)


def split_parts(
    run: RunConfig, arrays: Mapping[str, np.ndarray]
) -> tuple[Arrays, dict[str, Arrays]]:
    """The weights of a request, and the arrays of each part that it brings, by name."""
    groups = {name: strip_prefix(arrays, f"{name}.") for name in names_of(run)}
    prefixes = tuple(f"{name}." for name in groups)
    weights = {key: value for key, value in arrays.items() if not key.startswith(prefixes)}
    return weights, {name: one for name, one in groups.items() if one}


def read_parts(run: RunConfig, latent_dim: int, groups: Mapping[str, Arrays]) -> Federated:
    """The parts out of their arrays by name, each checked.

    Raises:
        ProtocolError: arrays are not what their name says.
    """
    read = names_of(run)
    return Federated(
        parts={name: read[name].read(run, latent_dim, one) for name, one in groups.items()}
    )


def read_stored(run: RunConfig, groups: Mapping[str, Arrays]) -> Federated:
    """The parts out of their arrays by the names that they have in files.

    Raises:
        DataError: arrays are not what their name says.
    """
    found = {name: groups.get(stored_name(name), {}) for name in names_of(run)}
    latent_dim = len(groups["density"]["mean"]) if groups.get("density") else 0
    try:
        return read_parts(run, latent_dim, {name: one for name, one in found.items() if one})
    except ProtocolError as error:
        raise DataError(str(error)) from None
