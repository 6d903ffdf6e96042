"""The seam of summaries: all that the system knows about one kind of noisy sum.

A summary is a sum over a client's records with Gaussian noise of a stated sensitivity. A new kind
is one subclass of :class:`Summary` in a module of its own, and one row of
``fedlatent.shared.summaries.SUMMARIES``. The schedule, the privacy plan, both sides of the wire,
screening, the stacked simulation, stored files and the audit read everything there. numpy only.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from fedlatent.shared.config import RunConfig
from fedlatent.shared.privacy.summaries import Form, SummarySpec, default_radius
from fedlatent.shared.summaries.state import Federated, Part

#: When phases of a kind take place: before training, after every few of its rounds, or at the end.
When = Literal["start", "between", "end"]

#: In a worst case: records beside the canary, and a coordinate beyond any radius.
OTHERS = 8
FAR = 100.0


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A client's records as a summary sees them; a null record is NaN in all that is there of it.

    Attributes:
        records: preprocessed [N, *shape].
        latents: means [N, k] under the encoder that was sent; empty for a kind that does without.
        score_parts: parts [N] of the combined score by name, where the run has such a score.
        own: this client's newest release of the kind that the summary builds on, noise included.
    """

    records: np.ndarray
    latents: np.ndarray
    score_parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    own: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Replies:
    """What the clients released in one phase, in the order of their nodes' ids.

    Attributes:
        nodes: id of each.
        sites: name of each.
        sums: noisy, float64, of the shape that was asked for.
        records: number of records of each; public.
        weights: [n] records that each counts for at most; None where nothing bounds them.
        sigma: noise multiplier of each release; 0 without privacy.
        epsilon: of one release by itself; None without privacy.
    """

    nodes: Sequence[int]
    sites: Sequence[str]
    sums: Sequence[np.ndarray]
    records: Sequence[int]
    weights: np.ndarray | None
    sigma: float
    epsilon: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class WorstCase:
    """A data set with and without the record that moves a summary most.

    Attributes:
        name: of the release.
        run: under which it is made.
        state: that the request brings.
        present: the records with the canary.
        absent: the same with a null record in its place, since the number of records is public.
    """

    name: str
    run: RunConfig
    state: Federated
    present: View
    absent: View


class Summary(ABC):
    """One kind of summary.

    Attributes:
        kind: its name, in messages, files and ledgers.
        stream: number of its stream of seeded noise; never changed and never used again.
        keys: of the arrays that it may release.
        label: what leaves a client, in a few words.
        pooled: name of the part that it is pooled into, unless the run decides that.
        whole_model: looks through the decoder, too, where a run shares whole models.
        sees_model: looks at records through a model at all.
        builds_on: kind whose last release of the same client it looks at, or None.
        closes: the last look at a run's records, after which a site makes its own bundle.
    """

    kind: ClassVar[str]
    stream: ClassVar[int]
    keys: ClassVar[tuple[str, ...]]
    label: ClassVar[str]
    pooled: ClassVar[str | None] = None
    whole_model: ClassVar[bool] = False
    sees_model: ClassVar[bool] = True
    builds_on: ClassVar[str | None] = None
    closes: ClassVar[bool] = False

    @abstractmethod
    def times(self, run: RunConfig, when: When) -> int:
        """How many phases of this kind follow each other at such a moment of a run."""

    def share(self, run: RunConfig) -> float:
        """Share of the budget, in the sum of 1 / sigma^2, of all its phases together.

        It is the run's ``privacy.<kind>_share`` unless a kind says otherwise.
        """
        return float(getattr(run.privacy, f"{self.kind}_share"))

    @abstractmethod
    def spec(self, run: RunConfig, latent_dim: int, state: Federated) -> SummarySpec:
        """Key, shape and sensitivity of what a client releases, given what the request brings."""

    @abstractmethod
    def exact(self, run: RunConfig, state: Federated, view: View) -> np.ndarray:
        """The sum over a client's records without noise, float64 of the spec's shape.

        Raises:
            ProtocolError: the request does not bring what it needs.
        """

    @abstractmethod
    def pool(
        self, run: RunConfig, latent_dim: int, state: Federated, replies: Replies
    ) -> Federated:
        """The state once the clients' releases are pooled into it.

        Raises:
            ValueError: they cannot be, for example of no record.
        """

    @abstractmethod
    def worst_cases(
        self, run: RunConfig, latent_dim: int, rng: np.random.Generator
    ) -> Iterator[WorstCase]:
        """What an audit attacks: every form of the release with its worst record.

        Args:
            run: gives the shape and the bounds of records.
            latent_dim: of the latents; a small one.
            rng: draws the other records.
        """

    def part(self, run: RunConfig) -> str | None:
        """Name of what it is pooled into; None where that is no part of the state."""
        return self.pooled

    def read(self, run: RunConfig, latent_dim: int, arrays: Mapping[str, np.ndarray]) -> Part:
        """Its part out of the arrays that another party sent, checked.

        Raises:
            ProtocolError: they are not such a part.
        """
        raise NotImplementedError(f"{type(self).__name__} pools into no part.")

    def needs(self, run: RunConfig) -> tuple[str, ...]:
        """Names of the parts that a request brings."""
        return scaling_of(run)

    def form(
        self,
        run: RunConfig,
        latent_dim: int,
        state: Federated,
        records: Sequence[float],
        clients: int,
        epsilon: float | None,
    ) -> Form:
        """The form of moments that a request names.

        Args:
            run: the run.
            latent_dim: of its model.
            state: so far.
            records: numbers of records of the sites that have stated them, bounded.
            clients: how many are asked.
            epsilon: of one release; None without privacy.
        """
        return state.form

    def example(self, run: RunConfig, latent_dim: int) -> Part | None:
        """A part that tells nothing about anybody, to make requests of; None where it has none."""
        return None

    def fault(self, released: np.ndarray, records: int, reach: float) -> str | None:
        """What is wrong with a release that has the right shape and range, in a sentence, or None.

        Args:
            released: with noise.
            records: of the client.
            reach: how far noise may move an entry.
        """
        return None


def scaling_of(run: RunConfig) -> tuple[str, ...]:
    """The part by which records are scaled before the model, where the run has one."""
    return ("scaling",) if run.summaries.data == "scaling" else ()


def latent_radius(run: RunConfig, latent_dim: int) -> float:
    """The public radius that latents are clipped to."""
    return run.scoring.radius or default_radius(latent_dim)


def latent_case(run: RunConfig, rng: np.random.Generator, name: str, state: Federated) -> WorstCase:
    """A canary far out on the first latent axis: its clipped row, and that of squares, are longest.

    The latent dimension is that of the density in ``state``.
    """
    k = len(state.density.mean)
    others = rng.normal(0, 1, (OTHERS, k))
    canary = np.zeros((1, k))
    canary[0, 0] = FAR
    records = np.zeros((OTHERS + 1, *run.data.shape), np.float32)
    present, absent = (
        View(records=records, latents=np.vstack([others, last]))
        for last in (canary, np.nan * canary)
    )
    return WorstCase(name=name, run=run, state=state, present=present, absent=absent)
