"""The schedule of a run: which phases it has, in which order; server and nodes derive it alike.

Phases are numbered from 1. A kind may come more than once; training rounds are counted apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import WrapValidator

from fedlatent.shared.config import RunConfig
from fedlatent.shared.summaries import SUMMARIES, When, kinds, stream_of, taking_place

_OWN = sorted(SUMMARIES.own, key=stream_of)


def _known(kind: object, others: Callable[[object], Any]) -> Any:  # noqa: ANN401
    """A kind of the table as it is by now, which may have grown since this module was read."""
    return kind if kind in kinds() else others(kind)


#: What a phase asks for: "train", or a kind of ``fedlatent.shared.summaries.SUMMARIES``. Whatever
#: is validated against it is one of these. Our own stand here, since plugins, which may import this
#: module, are looked up when a kind is.
if TYPE_CHECKING:
    Kind = str
else:
    Kind = Annotated[Literal[("train", *_OWN)], WrapValidator(_known)]

#: Training rounds between two releases of moments when a run names none.
EVERY = 5

_WHEN: tuple[When, ...] = get_args(When)


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
    rounds, every = training_rounds(run), _every(run)
    between = (rounds - 1) // every if every and rounds else 0
    counts = {
        when: sum(one.times(run, when) for one in taking_place(run).values()) for when in _WHEN
    }
    return rounds + counts["start"] + between * counts["between"] + counts["end"]


def phase_of(run: RunConfig, number: int) -> Phase | None:
    """The phase of that number; None when the run has no such phase."""
    found = phases(run)
    return found[number - 1] if 1 <= number <= len(found) else None


def training_round(run: RunConfig, number: int) -> int:
    """The training round that a phase is, from 1, or the last one before it."""
    found = phase_of(run, number)
    return 0 if found is None else found.trained + (found.kind == "train")


def last_phase(run: RunConfig, kind: Kind, before: int) -> Phase | None:
    """The newest phase of a kind before phase number ``before``; None when there is none."""
    found = [one for one in phases(run)[: before - 1] if one.kind == kind]
    return found[-1] if found else None


def training_rounds(run: RunConfig) -> int:
    """How many rounds a run trains: none where only summaries are shared."""
    return 0 if run.sharing == "summary" else run.training.rounds


def _kinds(run: RunConfig) -> Iterator[Kind]:
    rounds, every = training_rounds(run), _every(run)
    yield from _summaries(run, "start")
    for number in range(1, rounds + 1):
        yield "train"
        if every and number % every == 0 and number < rounds:
            yield from _summaries(run, "between")
    yield from _summaries(run, "end")


def _summaries(run: RunConfig, when: When) -> Iterator[Kind]:
    for kind, one in taking_place(run).items():
        yield from [kind] * one.times(run, when)


def _every(run: RunConfig) -> int:
    """Training rounds between two releases of summaries; 0 where there are none in between."""
    return (run.summaries.every or EVERY) if run.sharing == "encoder+summary" else 0
