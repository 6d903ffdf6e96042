"""What a federation has released so far, in one shape: on the wire, in files, in the result.

Each kind of summary pools its releases into a part, known by a name: "scaling" or "data" (a
Gaussian) of the records, "density" and "mixture" of the latents, "scores" of the score's parts. In
a message or a file a part is a few arrays under its name. numpy only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, TypeVar

import numpy as np

from fedlatent.shared.arrays import Arrays, add_prefix
from fedlatent.shared.data.gaussian import DataGaussian
from fedlatent.shared.data.scaling import Scaling
from fedlatent.shared.detection.density import ScoreDensity
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.privacy.mixture import LatentMixture
from fedlatent.shared.privacy.summaries import Form, LatentDensity

#: Names of parts in files where they differ from those in messages.
_STORED = {"scaling": "data"}


class Part(Protocol):
    """What the releases of one kind were pooled into."""

    def arrays(self) -> Arrays:
        """All of it as float64 arrays, for files and messages."""
        ...


PartT = TypeVar("PartT")


@dataclass(frozen=True, kw_only=True, eq=False)
class Federated:
    """Everything released and pooled so far; all of it is post-processing, free of privacy cost.

    Attributes:
        parts: by name.
        form: in which the latent moments were released last, or are asked for.
        moments: released latent moments by node id, of their newest phase; the server alone has
            them.
        thresholds: of the federation by name of the score: "absolute", "recentred", "combined".
        site_thresholds: the same of each client by site name, where the run wants them.
    """

    parts: Mapping[str, Part] = field(default_factory=dict)
    form: Form = "full"
    moments: Mapping[int, np.ndarray] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    site_thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def density(self) -> LatentDensity:
        """The released latent density.

        Raises:
            ProtocolError: there is none yet.
        """
        found = self._part("density", LatentDensity)
        if found is None:
            raise ProtocolError(
                "Expected a released latent density, got none; ask for moments first."
            )
        return found

    @property
    def mixture(self) -> LatentMixture | None:
        """The released latent mixture, or None."""
        return self._part("mixture", LatentMixture)

    @property
    def scaling(self) -> Scaling | None:
        """How records are scaled before the model, or None."""
        return self._part("scaling", Scaling)

    @property
    def gaussian(self) -> DataGaussian | None:
        """The released Gaussian of the data, or None."""
        return self._part("data", DataGaussian)

    @property
    def scores(self) -> ScoreDensity | None:
        """The released density of the score's parts, or None."""
        return self._part("scores", ScoreDensity)

    def having(self, name: str, part: Part) -> Self:
        """The same with a part put in, or in place of the one of that name."""
        return replace(self, parts={**self.parts, name: part})

    def sent(self, names: Iterable[str]) -> Arrays:
        """The arrays of those of the named parts that are there, as a request brings them."""
        found: Arrays = {}
        for name in names:
            if name in self.parts:
                found |= add_prefix(f"{name}.", self.parts[name].arrays())
        return found

    def stored(self) -> dict[str, Arrays]:
        """The arrays of every part by its name in files."""
        return {stored_name(name): part.arrays() for name, part in self.parts.items()}

    def _part(self, name: str, kind: type[PartT]) -> PartT | None:
        found = self.parts.get(name)
        return found if isinstance(found, kind) else None


def stored_name(name: str) -> str:
    """Name of a part in files."""
    return _STORED.get(name, name)


def form_of(moments: Mapping[int, np.ndarray]) -> Form:
    """The form in which moments were released; "full" where there are none yet."""
    return "diagonal" if any(one.ndim == 1 for one in moments.values()) else "full"
