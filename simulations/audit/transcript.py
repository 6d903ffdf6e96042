"""Everything that leaves the clients of one federated run, as an attacker at the server has it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message

from fedlatent.server.driver import drive
from fedlatent.server.home import ServerHome
from fedlatent.server.results import RunFolder
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.records import from_records, reply_of
from fedlatent.shared.schedule import Kind
from fedlatent.simulations.availability import Availability
from fedlatent.simulations.federation import FIRST_NODE_ID, counts_of, open_policy
from fedlatent.simulations.grid import InProcessGrid
from fedlatent.simulations.stacked.cohort import Cohort


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One answer of one client.

    Attributes:
        site: who answered.
        phase: number of the phase.
        kind: what was asked.
        sent: arrays that the client got.
        released: arrays that it answered with.
        epsilon: spent so far, as the client says; None without privacy.
    """

    site: str
    phase: int
    kind: Kind
    sent: Arrays
    released: Arrays
    epsilon: float | None


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """One federated run.

    Attributes:
        heard: all answers, in order.
        result: of the server.
    """

    heard: tuple[Heard, ...]
    result: RunFolder

    @property
    def epsilon(self) -> float | None:
        """The highest of the clients; None without privacy."""
        return max((one.epsilon for one in self.heard if one.epsilon is not None), default=None)


def record(run: RunConfig, sites: Mapping[str, Dataset], folder: Path) -> Transcript:
    """Train ``run`` with the real server loop and stacked clients, and keep what leaves them.

    Args:
        run: with seeded noise.
        sites: preprocessed records by site name.
        folder: receives the files of server and clients; new or empty.
    """
    names = {FIRST_NODE_ID + place: site for place, site in enumerate(sites)}
    cohort = Cohort(
        run,
        run.name,
        sites,
        names,
        folder / "clients",
        policy=open_policy(run),
        availability=Availability(),
    )
    heard: list[Heard] = []

    def answers(messages: Sequence[Message]) -> Iterator[Message | None]:
        for message, reply in zip(messages, cohort.answers(messages), strict=True):
            if reply is not None:
                heard.append(_heard(message, reply))
            yield reply

    server = ServerHome(folder / "server")
    server.create()
    result = drive(
        InProcessGrid(names, answers),
        run,
        server,
        run_id=run.name,
        sites=lambda: names,
        counts=counts_of(sites),
    )
    return Transcript(heard=tuple(heard), result=result)


def _heard(message: Message, reply: Message) -> Heard:
    (request, sent), (header, released) = from_records(message.content), reply_of(reply.content)
    return Heard(
        site=header.site,
        phase=request.round,
        kind=request.kind,
        sent=sent,
        released={key: value.copy() for key, value in released.items()},
        epsilon=header.epsilon,
    )
