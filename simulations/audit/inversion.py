"""Inversion: what a record looks like to someone who has the released encoder and summaries.

The attacker makes public synthetic beats, encodes them with the released encoder, and goes back
from a latent to the mean of the public beats whose latents are nearest: no gradients and no
training, and better here than a regression on random features. Two targets:

- what leaves: the noisy latent mean of each client's released moments, inverted into one beat;
- what never leaves: the exact latent of a single record, as if it had been stolen. It shows how
  much a latent says, and is no attack on a release.

Beside both stands the mean of the public beats, which needs no release at all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedlatent.shared.data.sources import hearts
from fedlatent.shared.privacy.summaries import client_mean
from fedlatent.shared.summaries import latent_radius
from fedlatent.simulations.audit.usual import UsualRun, codes

#: Public patients and beats of each; their seeds are far from those of any federation here.
_PATIENTS, _BEATS, _PUBLIC_SEED = 60, 60, 987_654_321
_NEIGHBOURS = 8
_SHOWN = 4  # records in the picture


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well records were recovered, as means over them.

    Attributes:
        correlation: of the recovered with the true record, over its places.
        error: root mean squared difference in data units.
    """

    correlation: float
    error: float

    @classmethod
    def of(cls, recovered: np.ndarray, records: np.ndarray) -> "Quality":
        """Compare [N, L] with [N, L]."""
        first = recovered - recovered.mean(axis=1, keepdims=True)
        second = records - records.mean(axis=1, keepdims=True)
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        each = (first * second).sum(axis=1) / np.maximum(norms, 1e-12)
        error = np.sqrt(np.square(recovered - records).mean(axis=1))
        return cls(correlation=float(each.mean()), error=float(error.mean()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Inversion:
    """What was recovered of the training records.

    Attributes:
        qualities: by attack, in the order of a table.
        records: some true records [S, L].
        recovered: the same by attack [S, L].
        unit: of the records.
    """

    qualities: dict[str, Quality]
    records: np.ndarray
    recovered: dict[str, np.ndarray]
    unit: str

    def to_json(self) -> dict[str, object]:
        """Qualities as JSON values."""
        return {
            name: {"correlation": one.correlation, "rmse": one.error}
            for name, one in self.qualities.items()
        }


PUBLIC, RELEASED, STOLEN, STOLEN_OTHERS = (
    "mean of public beats",
    "from the released moments",
    "from a stolen latent",
    "from a stolen latent, held-out record",
)


def inversion(usual: UsualRun) -> Inversion:
    """Attack a usual run."""
    model = usual.released()
    public = _public_beats(usual)
    invert = _way_back(codes(model, public)[0], public)
    members, others = usual.members(), usual.others()
    sites = np.repeat(
        np.arange(len(usual.federation.sites)), [len(site.train) for site in usual.federation.sites]
    )
    recovered = {
        PUBLIC: np.broadcast_to(public.mean(axis=0), members.shape),
        RELEASED: invert(_released_means(usual))[sites],
        STOLEN: invert(codes(model, members)[0]),
    }
    qualities = {name: Quality.of(found, members) for name, found in recovered.items()}
    qualities[STOLEN_OTHERS] = Quality.of(invert(codes(model, others)[0]), others)
    firsts = np.unique(sites, return_index=True)[1][:_SHOWN]
    return Inversion(
        qualities=qualities,
        records=members[firsts],
        recovered={name: np.asarray(found[firsts]) for name, found in recovered.items()},
        unit=usual.federation.schema.unit,
    )


def _public_beats(usual: UsualRun) -> np.ndarray:
    """Preprocessed normal beats of patients that are in no federation [N, L]."""
    public = hearts(_PATIENTS, _PUBLIC_SEED, beats=_BEATS)
    return np.concatenate([usual.federation.schema.preprocess(one.train) for one in public.sites])


def _released_means(usual: UsualRun) -> np.ndarray:
    """Latent mean of each client as its released moments tell it [sites, k]."""
    released = {
        heard.site: next(iter(heard.released.values()))
        for heard in usual.transcript.heard
        if heard.kind == "moments"
    }
    radius = latent_radius(usual.config, usual.released().latent_dim)
    return np.stack([client_mean(released[site.name], radius) for site in usual.federation.sites])


def _way_back(latents: np.ndarray, records: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """From latents [N, k] to records [N, L]: the mean of the nearest public beats."""
    scale = latents.std(axis=0) + 1e-9

    def invert(queries: np.ndarray) -> np.ndarray:
        squares = np.square((queries[:, None] - latents[None]) / scale).sum(axis=2)
        nearest = np.argpartition(squares, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
        return np.asarray(records[nearest].mean(axis=1))

    return invert
