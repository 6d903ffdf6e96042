"""Runs with hostile sites, whose replies are changed between what they computed and the server.

A hostile site does the honest work, knows the weights that it was sent and its own reply, and sends
another one with the right run, round, names and shapes, so that it is screened by its values alone.
All hostile sites of a run are of one mind: they send the same random numbers.
"""

import copy
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from flwr.app import Message
from pydantic import Field

from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation
from fedlatent.shared.errors import FedlatentError
from fedlatent.shared.privacy.summaries import (
    DIAGONAL_KEY,
    HISTOGRAMS_KEY,
    MIXTURE_KEY,
    MOMENTS_KEY,
    SCALING_KEY,
)
from fedlatent.shared.records import LocalRecords, from_records, reply_of, reply_records
from fedlatent.shared.wire import ReplyHeader, RequestHeader, deliver, pack
from fedlatent.simulations.federation import datasets, simulate
from fedlatent.simulations.grid import Answers
from fedlatent.simulations.partition import Partition, repartition
from fedlatent.simulations.study.evaluation import Detector, global_detector, normals_of, rate
from fedlatent.simulations.study.job import Found, Job
from fedlatent.simulations.study.methods import union

#: Share of the largest update norm that an attacker goes to, so that its reply is not dropped.
_WITHIN = 0.9
_BOOST = 100.0
#: Index of the public number of records in the summaries that hold it.
_COUNTS: dict[str, int | tuple[int, int]] = {
    MOMENTS_KEY: (-1, -1),
    DIAGONAL_KEY: 0,
    SCALING_KEY: 0,
}
_SYMMETRIC = (MOMENTS_KEY, MIXTURE_KEY)

#: New shared arrays from those that were sent, the honest update, the largest norm of an update
#: and the attackers' random numbers.
Weights = Callable[[Arrays, Arrays, float, np.random.Generator], Arrays]
#: A new summary from its name, the honest one and the number of records.
Summary = Callable[[str, np.ndarray, int, np.random.Generator], np.ndarray]


def _scaled(factor: float) -> Weights:
    """The honest update times ``factor``, within the bound on norms."""

    def weights(sent: Arrays, update: Arrays, largest: float, rng: np.random.Generator) -> Arrays:
        norm = _norm(update) * abs(factor)
        within = factor * min(1.0, _WITHIN * largest / max(norm, 1e-12))
        return {key: value + within * update[key] for key, value in sent.items()}

    return weights


def _random_weights(
    sent: Arrays, update: Arrays, largest: float, rng: np.random.Generator
) -> Arrays:
    """As far away as the bound on norms allows, in a random direction."""
    drawn = {key: rng.standard_normal(value.shape) for key, value in sent.items()}
    scale = _WITHIN * largest / _norm(drawn)
    return {key: value + scale * drawn[key] for key, value in sent.items()}


def _zero_weights(sent: Arrays, update: Arrays, largest: float, rng: np.random.Generator) -> Arrays:
    return {key: np.zeros_like(value) for key, value in sent.items()}


def _last_bin(key: str, value: np.ndarray, records: int, rng: np.random.Generator) -> np.ndarray:
    """All records in the last bin of each score, so that nothing would be flagged."""
    if key != HISTOGRAMS_KEY:
        return value
    false = np.zeros_like(value)
    false[:, -1] = records
    return false


def _false_moments(
    key: str, value: np.ndarray, records: int, rng: np.random.Generator
) -> np.ndarray:
    """The largest entries that are let through, with random signs, beside the true count."""
    if key == HISTOGRAMS_KEY:
        return value
    signs = np.where(rng.random(value.shape) < 0.5, -1.0, 1.0)
    if key in _SYMMETRIC:
        signs = np.tril(signs) + np.swapaxes(np.tril(signs, -1), -1, -2)
    return _with_count(key, value, signs * records)


def _nan(key: str, value: np.ndarray, records: int, rng: np.random.Generator) -> np.ndarray:
    return np.full_like(value, np.nan)


def _with_count(key: str, value: np.ndarray, false: np.ndarray) -> np.ndarray:
    if key in _COUNTS:
        false[_COUNTS[key]] = value[_COUNTS[key]]
    return false


def _both_false(key: str, value: np.ndarray, records: int, rng: np.random.Generator) -> np.ndarray:
    return _last_bin(key, _false_moments(key, value, records, rng), records, rng)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What a hostile site sends.

    Attributes:
        weights: in the place of its weights; None for the honest ones.
        summary: in the place of its summaries; None for the honest ones.
        claims: whether it claims the largest number of records that a run allows.
    """

    weights: Weights | None = None
    summary: Summary | None = None
    claims: bool = False


#: Attacks by name.
ATTACKS: Mapping[str, Attack] = {
    "flipped": Attack(weights=_scaled(-1.0)),
    "random": Attack(weights=_random_weights),
    "zero": Attack(weights=_zero_weights),
    "100 times": Attack(weights=_scaled(_BOOST)),
    "false histogram": Attack(summary=_last_bin),
    "false moments": Attack(summary=_false_moments),
    "NaN": Attack(
        weights=lambda sent, *_: {k: np.full_like(v, np.nan) for k, v in sent.items()},
        summary=_nan,
    ),
    "all at once": Attack(weights=_scaled(-_BOOST), summary=_both_false),
    "false records": Attack(weights=_random_weights, summary=_both_false, claims=True),
}


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """Some nodes of a simulation made hostile, as ``simulate`` takes them.

    Attributes:
        attack: what they send.
        sites: names of the hostile ones.
        run: the run, for its bounds and seed.
    """

    attack: Attack
    sites: Collection[str]
    run: RunConfig

    def __call__(self, answers: Answers) -> Answers:
        """The same answers, but for those of the hostile sites."""

        def changed(messages: Sequence[Message]) -> Iterator[Message | None]:
            for message, reply in zip(messages, answers(messages), strict=True):
                yield reply if reply is None or reply.has_error() else self._reply(message, reply)

        return changed

    def _reply(self, message: Message, reply: Message) -> Message:
        header, arrays = reply_of(reply.content)
        if header.site not in self.sites or header.status != "ok":
            return reply
        asked, sent = from_records(message.content)
        header, arrays = self._false(asked, sent, header, arrays)
        false = copy.copy(reply)
        local = isinstance(reply.content, LocalRecords)
        false.content = (
            LocalRecords(header, arrays) if local else reply_records(deliver(pack(header, arrays)))
        )
        return false

    def _false(
        self, asked: RequestHeader, sent: Arrays, header: ReplyHeader, arrays: Arrays
    ) -> tuple[ReplyHeader, Arrays]:
        rng = np.random.default_rng([self.run.seed, asked.round])
        limits, attack = self.run.federation, self.attack
        if asked.kind == "train" and attack.weights is not None:
            before = {key: sent[key].astype(np.float64) for key in arrays}
            update = {key: value - before[key] for key, value in arrays.items()}
            made = attack.weights(before, update, limits.max_update_norm, rng)
            arrays = {key: value.astype(arrays[key].dtype) for key, value in made.items()}
        records = limits.max_records if attack.claims else header.records
        if asked.kind != "train" and attack.summary is not None:
            arrays = {k: attack.summary(k, v, records, rng) for k, v in arrays.items()}
            for key in _COUNTS.keys() & arrays.keys():
                if attack.claims:
                    arrays[key][_COUNTS[key]] = records
        return header.model_copy(update={"records": records}), arrays


#: Instead of an attack: no site hostile, and the honest sites without the hostile ones.
HONEST, ALONE = "none", "honest alone"
_NORMALS = 100  # of a new client, to re-centre on
Count = Annotated[int, Field(ge=1)]


def attacked(
    job: Job,
    *,
    attack: str,
    sites: Count = 5,
    hostile: Count = 1,
    shares: Literal["iid", "groups"] = "iid",
    records: Count | None = None,
    share_records: Count | None = None,
) -> Found:
    """A run with hostile sites, and what its global detector is worth.

    The detector is rated on all test records of the honest sites under one threshold, and
    re-centred on 100 normal records of each client that takes no part. A run that does not finish
    has a problem in place of these figures.

    Args:
        job: gives the clients; those that take part are put together into sites.
        attack: one of ``ATTACKS``, ``HONEST`` or ``ALONE``.
        sites: how many.
        hostile: how many of them, the last ones.
        shares: "iid" shares all records at random; "groups" are whole clients, so that no two
            sites have anything in common.
        records: most training records of a client, before they are shared.
        share_records: most training records of a site, after that.
    """
    known = (HONEST, ALONE, *ATTACKS)
    if attack not in known:
        sentence = f"expected one of {', '.join(known)}, got {attack!r}."
        raise job.study.error(("parameters", "attack"), sentence, job.cell)
    whole = cut(job.split.present, records)
    if shares == "groups":
        present = grouped(whole, sites)
    else:
        partition = Partition(kind="iid", clients=sites)
        present = cut(repartition(whole, partition, job.cell.seed, images=False), share_records)
    honest = replace(present, sites=present.sites[:-hostile])
    names = [site.name for site in present.sites[-hostile:]]
    if attack == ALONE:
        present = honest
    run = job.run(len(present.sites), len(honest.sites) if attack in ATTACKS else None)
    tamper = None
    if attack in ATTACKS:
        tamper = Hostile(attack=ATTACKS[attack], sites=names, run=run)
    folder, started = Path(tempfile.mkdtemp(prefix="fedlatent-attack-")), time.monotonic()
    try:
        result = simulate(
            run, datasets(present), folder, engine="stacked", tamper=tamper, watch=job.tell
        ).result
    except FedlatentError as error:
        problem = f"{type(error).__name__}: {error}"
        return Found(figures={"finished": 0.0, "problem": problem}, run=run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds, threshold = time.monotonic() - started, result.released.thresholds["absolute"]
    detector = global_detector(result)
    own = [
        (site, global_detector(result, normals_of(site, _NORMALS, job.cell.seed)))
        for site in job.split.rated_absent
    ]
    flagged, false_alarms = shares_above(honest, detector, threshold)
    return Found(
        figures={
            "auroc": rate([(site, detector) for site in honest.sites]).pooled,
            "flagged": flagged,
            "recentred": rate(own).pooled,
            "false_alarms": false_alarms,
            "threshold": threshold,
            "finished": 1.0,
            "attack_seconds": round(seconds, 2),
        },
        run=run,
    )


def cut(federation: Federation, most: int | None) -> Federation:
    """At most so many training records of each site; all of its test."""
    sites = tuple(replace(site, train=site.train[:most]) for site in federation.sites)
    return replace(federation, sites=sites)


def grouped(federation: Federation, count: int) -> Federation:
    """The sites put together in so many groups, in their order."""
    made = []
    for number, members in enumerate(np.array_split(np.arange(len(federation.sites)), count)):
        group = replace(federation, sites=tuple(federation.sites[place] for place in members))
        made.append(replace(union(group).sites[0], name=f"group-{number}"))
    return replace(federation, sites=tuple(made))


def shares_above(
    federation: Federation, detector: Detector, threshold: float
) -> tuple[float, float]:
    """Shares of anomalies and of normal records above a threshold."""
    label = np.concatenate([site.test_label for site in federation.sites])
    above = np.concatenate([detector(site.test) for site in federation.sites]) > threshold
    return float(above[label == 1].mean()), float(above[label == 0].mean())


def _norm(arrays: Arrays) -> float:
    return float(np.sqrt(sum(float(np.square(value).sum()) for value in arrays.values())))
