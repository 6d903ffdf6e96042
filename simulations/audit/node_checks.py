"""The checks of a real node: what left, less what its records give, is noise that is paid for."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from opacus.accountants import RDPAccountant

from fedlatent.shared.config import RunConfig
from fedlatent.shared.privacy.accounting import ORDERS
from fedlatent.shared.privacy.summaries import Form
from fedlatent.shared.schedule import phases
from fedlatent.simulations.audit import checks
from fedlatent.simulations.audit.checks import Check
from fedlatent.simulations.audit.nodes import (
    Noise,
    Rounds,
    audit_config,
    audit_node,
    home_of,
    summary_noise,
    training_rounds,
)
from fedlatent.simulations.audit.results import Watch

#: So large that the noise on a count of steps is a sixteenth: each count can be read off.
_READABLE_EPSILON = 1e4
#: Noise of summaries: so much on moments that the centre they give is not the exact one, and so
#: little on histograms that each record's bin shows.
_SUMMARIES = {"epsilon": 40.0, "moments_share": 0.01, "threshold_share": 0.3}
#: Steps of a round, and the shares of records in a step: some of them, and often none.
STEPS, OFTEN, SELDOM = 4, 0.3, 0.01

#: Homes of each plan. They get the same requests, so noise that follows from a request repeats.
HOMES = 4


def training_run(rate: float) -> RunConfig:
    """Two rounds of four steps on samples of that rate; the decoder leaves, too."""
    return audit_config(
        name=f"train-{round(100 * rate)}",
        sharing="full",
        privacy={"epsilon": _READABLE_EPSILON, "sample_rate": rate},
        training={"rounds": 2, "steps_per_round": STEPS},
    )


def full_run() -> RunConfig:
    """A run with every summary that is a matrix, and three histograms."""
    return audit_config(
        name="full",
        sharing="full",
        privacy=_SUMMARIES,
        summaries={"data": "gaussian", "features": 8, "components": 2, "em_rounds": 1},
        scoring={"combined": True},
    )


def diagonal_run() -> RunConfig:
    """A run of personal models with summaries of single features, and two histograms."""
    return audit_config(
        name="diagonal",
        privacy=_SUMMARIES,
        strategy={"name": "mr-mtl"},
        summaries={"data": "scaling"},
    )


def node_checks(folder: Path, runs: int, watch: Watch) -> Iterator[Check]:
    """All checks.

    Args:
        folder: for the homes of the nodes.
        runs: of each plan in each of the ``HOMES`` homes.
        watch: told about progress.
    """
    for title, rate in (("training", OFTEN), ("training, few records", SELDOM)):
        watch(f"a real node, {title}", 0.0)
        rounds = training_rounds(folder, training_run(rate), HOMES, runs)
        yield from training_checks(title, rounds)
        watch(f"a real node, {title}", 1.0)
    forms: tuple[tuple[str, RunConfig, Form], ...] = (
        ("full", full_run(), "full"),
        ("diagonal", diagonal_run(), "diagonal"),
    )
    for title, run, form in forms:
        watch(f"a real node, {title} summaries", 0.0)
        noises = summary_noise(folder, run, form, HOMES, runs)
        for kind, noise in noises.items():
            yield from summary_checks(f"{kind}, {title}", noise)
        # The two have the same size, so one key for both would give the same numbers.
        pair = noises["data"].rows, noises["moments"].rows
        yield checks.correlation(f"data and moments, {title}", *pair)
        yield from ledger_checks(f"ledger, {title}", folder, run, runs)
        watch(f"a real node, {title} summaries", 1.0)


def summary_checks(name: str, noise: Noise) -> Iterator[Check]:
    """Of one kind of summary."""
    rows = noise.rows
    yield checks.deviation(f"{name}: noise", rows)
    if noise.diagonal is not None:
        yield checks.deviation(f"{name}: noise off the diagonal", rows[:, ~noise.diagonal])
    yield checks.normality(f"{name}: law of the noise", rows)
    yield checks.coordinates(f"{name}: numbers of one release", rows)
    yield checks.releases(f"{name}: two releases", rows)
    yield checks.correlation(f"{name}: neighbouring releases", rows[:-1], rows[1:])


def training_checks(name: str, rounds: Rounds) -> Iterator[Check]:
    """Of training rounds: noise and samples."""
    noise, entry = rounds.noise, rounds.entries[0]
    counts, law = rounds.counts, (entry.steps, entry.sample_rate)
    yield checks.deviation(f"{name}: noise", noise)
    yield checks.deviation(f"{name}: noise of the encoder", noise[:, rounds.encoder])
    yield checks.deviation(f"{name}: noise of the decoder", noise[:, ~rounds.encoder])
    yield checks.spread(f"{name}: noise of every round", noise)
    yield checks.normality(f"{name}: law of the noise", noise)
    yield checks.coordinates(f"{name}: numbers of one round", noise)
    yield checks.releases(f"{name}: two rounds", noise)
    yield checks.correlation(f"{name}: neighbouring rounds", noise[:-1], noise[1:])
    yield largest_share(name, rounds)
    yield checks.sampling_rate(f"{name}: rate of samples", counts, *law)
    yield checks.sampling_law(f"{name}: samples of each step", counts, *law)
    yield checks.sample_sizes(f"{name}: sizes of samples", counts, *law)
    if entry.sample_rate > SELDOM:  # rounds without any record are equal and no fault
        yield checks.sample_repeats(f"{name}: samples of two rounds", counts, *law)


def largest_share(name: str, rounds: Rounds) -> Check:
    """What a record moved a round by at most, in clips for each step: the clip is exact."""
    entry = rounds.entries[0]
    # No noise is larger than that in all of the rounds, but for a chance of ALPHA.
    margin = float(checks.largest_normal(rounds.shares.size)) * entry.noise_multiplier
    return checks.at_most(
        f"{name}: part of one record",
        "clips for each step",
        float(np.abs(rounds.shares).max()) / entry.steps,
        1.0 + margin / math.sqrt(entry.steps),
        rounds.shares.size,
    )


def ledger_checks(name: str, folder: Path, run: RunConfig, runs: int) -> Iterator[Check]:
    """A ledger holds an entry for each answer, and its epsilon is that of them all by Opacus."""
    ledger = audit_node(home_of(folder, run, 0), run).ledger
    entries, answers = ledger.entries(), runs * len(phases(run))
    yield checks.equal(f"{name}: entries", "entries", len(entries), answers, answers)
    accountant = RDPAccountant()
    accountant.history = [(one.noise_multiplier, one.sample_rate, one.steps) for one in entries]
    with warnings.catch_warnings():  # the audit spends far beyond what orders are chosen for
        warnings.filterwarnings("ignore", message="Optimal order")
        expected = accountant.get_epsilon(ledger.delta, alphas=list(ORDERS))
    yield checks.equal(
        f"{name}: epsilon", "epsilon of all entries", ledger.epsilon(), expected, len(entries)
    )
