"""The schedule of a run: which phases it has, in which order; server and nodes derive it alike.

Phases are numbered from 1. A kind may come more than once; training rounds are counted apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedlatent.shared.config import RunConfig

#: What a phase asks for: scaling or a Gaussian of the data, training of a round, latent moments, a
#: step of expectation maximisation of the latent mixture, a density of the score's parts,
#: histograms of the score.
Kind = Literal["train", "moments", "threshold", "data", "mixture", "scores"]

SUMMARY_KINDS: tuple[Kind, ...] = ("data", "moments", "mixture", "scores", "threshold")

#: Summaries that look through the decoder, too, where a run shares whole models.
WHOLE_KINDS: tuple[Kind, ...] = ("scores", "threshold")

#: Training rounds between two releases of moments when a run names none.
EVERY = 5


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One exchange with the nodes.

    Attributes:
        number: unique in the run, from 1.
        kind: what is asked.
        trained: training rounds before this phase.
    """

    number: int
    kind: Kind
    trained: int


def phases(run: RunConfig) -> tuple[Phase, ...]:
    """All phases of a run in order."""
    trained, made = 0, []
    for number, kind in enumerate(_kinds(run), start=1):
        made.append(Phase(number=number, kind=kind, trained=trained))
        trained += kind == "train"
    return tuple(made)


def count_phases(run: RunConfig) -> int:
    """How many phases a run has, without making them: a hostile file may ask for any number."""
    summaries, rounds = run.summaries, training_rounds(run)
    mixture = summaries.em_rounds if summaries.components else 0
    every = (summaries.every or EVERY) if run.sharing == "encoder+summary" else 0
    between = (rounds - 1) // every if every and rounds else 0
    each = 1 + (mixture if summaries.prior == "mixture" else 0)
    once = (summaries.data != "none") + 1 + mixture + run.scoring.combined + 1
    return rounds + between * each + once


def phase_of(run: RunConfig, number: int) -> Phase | None:
    """The phase of that number; None when the run has no such phase."""
    found = phases(run)
    return found[number - 1] if 1 <= number <= len(found) else None


def training_round(run: RunConfig, number: int) -> int:
    """The training round that a phase is, from 1, or the last one before it."""
    found = phase_of(run, number)
    return 0 if found is None else found.trained + (found.kind == "train")


def last_moments(run: RunConfig, before: int) -> Phase | None:
    """The newest moments phase before phase number ``before``; None when there is none."""
    found = [one for one in phases(run)[: before - 1] if one.kind == "moments"]
    return found[-1] if found else None


def training_rounds(run: RunConfig) -> int:
    """How many rounds a run trains: none where only summaries are shared."""
    return 0 if run.sharing == "summary" else run.training.rounds


def _kinds(run: RunConfig) -> Iterator[Kind]:
    summaries, rounds = run.summaries, training_rounds(run)
    if summaries.data != "none":
        yield "data"
    every = (summaries.every or EVERY) if run.sharing == "encoder+summary" else 0
    for number in range(1, rounds + 1):
        yield "train"
        if every and number % every == 0 and number < rounds:
            yield "moments"
            if summaries.prior == "mixture":
                yield from _mixture(run)
    yield "moments"
    yield from _mixture(run)
    if run.scoring.combined:
        yield "scores"
    yield "threshold"


def _mixture(run: RunConfig) -> list[Kind]:
    summaries = run.summaries
    return ["mixture"] * summaries.em_rounds if summaries.components else []
