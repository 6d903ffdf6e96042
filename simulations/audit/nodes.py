"""Real nodes under audit: ledger, store and door in a temporary home, secure noise, every request.

What is driven here is ``fedlatent.client.node.Node.handle``, as a resident node drives it. Requests
are those of a server that knows the code and chooses every weight. What left, less what the node's
records give without noise, is the noise; divided by the deviation that the ledger's entry pays for,
it must be standard normal.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedlatent.client.compute import (
    latents_of,
    load_weights,
    parse_request,
    scaled,
    view_of,
)
from fedlatent.client.home import ClientHome
from fedlatent.client.ledger import Entry
from fedlatent.client.local import assemble
from fedlatent.client.node import Node
from fedlatent.client.policy import NodeConfig
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.models import build_model
from fedlatent.shared.models.base import ENCODER_PREFIX
from fedlatent.shared.privacy.summaries import Form, SummarySpec
from fedlatent.shared.schedule import Kind, Phase, phases
from fedlatent.shared.summaries import SUMMARIES, carried, example_state, scaling_of
from fedlatent.shared.wire import PROTOCOL, ReplyHeader, RequestHeader, unpack
from fedlatent.simulations.audit.unit import cases_of

#: A record is 8 features at 8 places; there is a record for each of the 64 values.
SHAPE = (8, 8)
RECORDS = 64
LATENT = 8
#: Not 1, so that a missing factor shows.
CLIP = 0.5
BOUND = 3.0

#: The kinds whose sensitivity is stated here.
_STATED = ("data", "moments", "mixture", "scores", "threshold")
_DEADLINE_S = 60.0
_RECORD = "record"  # of the file that a node's configuration names and nobody reads here


def audit_config(**sections: Any) -> RunConfig:  # noqa: ANN401
    """A run of a 64-4-8 model with secure noise; sections replace the defaults."""
    values: dict[str, Any] = {
        "name": "audit",
        "data": {"name": "audit", "shape": list(SHAPE), "lower": -BOUND, "upper": BOUND},
        "model": {"options": {"hidden": [4], "latent_dim": LATENT}},
        "privacy": {"epsilon": 4.0, "rng": "secure", "clip": CLIP},
        "training": {
            "rounds": 1,
            "steps_per_round": 1,
            "optimizer": "sgd",
            "learning_rate": 1e-3,
        },
    }
    for key, value in sections.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return RunConfig.parse(values, "audit")


def audit_records() -> np.ndarray:
    """Records [64, 8, 8], each with one value of its own: no two push the same output."""
    return np.float32(BOUND) * np.eye(RECORDS, dtype=np.float32).reshape(RECORDS, *SHAPE)


def audit_node(root: Path, run: RunConfig, records: np.ndarray | None = None) -> Node:
    """A node whose owner lets the audit spend as much as it likes."""
    config = NodeConfig.model_validate(
        {
            "site": "audit",
            "data": {"path": _RECORD, "schema": run.data.to_dict()},
            "policy": {
                "max_epsilon": 1e12,
                "allowed_sharing": ["encoder", "summary", "encoder+summary", "full"],
                # Without the owner's caps, too, epsilon must be true.
                "caps": {
                    "largest_weight": 1e30,
                    "smallest_sigma": 0.0,
                    "smallest_batch": 0.0,
                },
            },
        }
    )
    held = audit_records() if records is None else records
    return assemble(config, Dataset(records=held, schema=run.data), ClientHome(root))


def home_of(folder: Path, run: RunConfig, number: int) -> Path:
    """Where a node of a run has its home."""
    return folder / f"{run.name}-{number}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What left for one request.

    Attributes:
        entry: of the node's ledger, which pays for it.
        arrays: that left, by name.
    """

    entry: Entry
    arrays: Arrays


def ask(
    node: Node, run: RunConfig, run_id: str, phase: Phase, form: Form, arrays: Mapping[str, Any]
) -> Answer:
    """Send one request to ``Node.handle``.

    Raises:
        ValueError: the node refused.
    """
    header = RequestHeader(
        protocol=PROTOCOL,
        run_id=run_id,
        round=phase.number,
        kind=phase.kind,
        config=run,
        form=form,
        deadline_s=_DEADLINE_S,
    )
    out = node.handle(header, dict(arrays))
    if out.header.status != "ok":
        raise ValueError(f"Expected an answer from the node, got: {out.header.text}")
    return Answer(entry=node.ledger.entries()[-1], arrays=unpack(ReplyHeader, out.payload)[1])


def zero_weights(run: RunConfig) -> Arrays:
    """Weights under which only the decoder's last bias has a gradient: all of them zero."""
    model = build_model(run)
    prefix = "" if run.shares_decoder else ENCODER_PREFIX
    return {
        key: np.zeros(tuple(value.shape), np.float32)
        for key, value in model.state_dict().items()
        if key.startswith(prefix)
    }


def first_weights(run: RunConfig, *, whole: bool) -> Arrays:
    """The weights with which a run begins, of the encoder alone or of the whole model."""
    state, prefix = build_model(run).state_dict(), "" if whole else ENCODER_PREFIX
    return {key: value.numpy() for key, value in state.items() if key.startswith(prefix)}


def request_arrays(run: RunConfig, kind: Kind) -> Arrays:
    """What a server sends with a request: zero weights in training, first weights for summaries.

    Beside them lie unit scalings and densities, where the kind needs some.
    """
    state = example_state(run, LATENT)
    if kind == "train":
        return zero_weights(run) | state.sent(scaling_of(run))
    summary, weights = SUMMARIES[kind], Arrays()
    if summary.sees_model:
        weights = first_weights(run, whole=run.shares_decoder and summary.whole_model)
    return weights | state.sent(carried(run, kind))


def exact_sums(
    node: Node, run: RunConfig, kind: Kind, form: Form, arrays: Arrays, own: np.ndarray | None
) -> np.ndarray:
    """What the node's records give for a request, without noise; ``own`` is what it builds on."""
    model, summary = build_model(run), SUMMARIES[kind]
    asked = parse_request(run, kind, arrays, LATENT, form=form)
    latents = np.zeros((len(node.records), 0))
    if summary.sees_model:
        load_weights(model, asked.weights, whole=run.shares_decoder and summary.whole_model)
        latents = latents_of(model, scaled(node.records, asked.state.scaling))
    view = view_of(run, model, node.records, asked, latents)
    return summary.exact(run, asked.state, replace(view, own=own))


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """What training rounds released, taken apart.

    Under ``zero_weights`` the clipped gradient of record i is minus the clip on output i alone, so
    the last bias tells how often each record took part, and all other weights move by noise alone.

    Attributes:
        noise: in units of the deviation that is paid for [R, P]; the last bias without its counts.
        encoder: which of the P numbers are the encoder's [P].
        shares: how often each record took part [R, N], with noise.
        entries: of the ledger, one for each round.
    """

    noise: np.ndarray
    encoder: np.ndarray
    shares: np.ndarray
    entries: list[Entry]

    @property
    def counts(self) -> np.ndarray:
        """How often each record took part: whole numbers [R, N]."""
        return np.asarray(np.rint(self.shares))


def training_rounds(folder: Path, run: RunConfig, homes: int, runs: int) -> Rounds:
    """All training rounds of ``runs`` runs on each of ``homes`` nodes, sharing whole models."""
    start, noise, shares, entries = zero_weights(run), [], [], []
    # One step of SGD moves a weight by rate / (q N) times the noisy sum; this is that sum / C.
    unit = run.privacy.sample_rate * RECORDS / run.training.learning_rate / run.privacy.clip
    for home in range(homes):
        node = audit_node(home_of(folder, run, home), run)
        for number in range(runs):
            for phase in (one for one in phases(run) if one.kind == "train"):
                answer = ask(node, run, f"audit-{number}", phase, "full", start)
                moved = [-unit * answer.arrays[key].astype(np.float64).ravel() for key in start]
                shares.append(-moved[-1])
                moved[-1] = moved[-1] - np.rint(moved[-1])
                paid = answer.entry.noise_multiplier * math.sqrt(answer.entry.steps)
                noise.append(np.concatenate(moved) / paid)
                entries.append(answer.entry)
    encoder = [np.full(value.size, key.startswith(ENCODER_PREFIX)) for key, value in start.items()]
    return Rounds(
        noise=np.stack(noise),
        encoder=np.concatenate(encoder),
        shares=np.stack(shares),
        entries=entries,
    )


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise of the releases of one kind, in units of the deviation that is paid for.

    Attributes:
        rows: independent numbers of each release [R, D], homes and their runs in order.
        diagonal: which of the D numbers lie on the diagonal of a symmetric matrix [D], or None.
    """

    rows: np.ndarray
    diagonal: np.ndarray | None


def summary_noise(
    folder: Path, run: RunConfig, form: Form, homes: int, runs: int
) -> dict[Kind, Noise]:
    """Noise of every summary of ``runs`` runs on each of ``homes`` nodes."""
    found: dict[Kind, list[np.ndarray]] = {}
    for home in range(homes):
        node = audit_node(home_of(folder, run, home), run)
        exact: dict[Kind, np.ndarray] = {}
        for number in range(runs):
            # The same names in every home: noise that follows from a request would repeat.
            for kind, one in _noise_of_run(node, run, form, f"audit-{number}", exact):
                found.setdefault(kind, []).append(one)
    return {
        kind: _independent(
            np.stack(one),
            is_symmetric=symmetric(run, kind, form),
            count=_counts(run, kind, form),
        )
        for kind, one in found.items()
    }


def _noise_of_run(
    node: Node, run: RunConfig, form: Form, run_id: str, exact: dict[Kind, np.ndarray]
) -> Iterator[tuple[Kind, np.ndarray]]:
    """Noise of each summary of one run; ``exact`` keeps what is the same in all runs."""
    released: dict[Kind, np.ndarray] = {}
    for phase in phases(run):
        kind, arrays = phase.kind, request_arrays(run, phase.kind)
        answer = ask(node, run, run_id, phase, form, arrays)
        if kind == "train":
            continue
        (released[kind],) = answer.arrays.values()
        base = SUMMARIES[kind].builds_on
        own = None if base is None else released[base]
        if kind not in exact or own is not None:
            exact[kind] = exact_sums(node, run, kind, form, arrays, own)
        paid = answer.entry.noise_multiplier * sensitivity(run, kind, form)
        yield kind, (released[kind] - exact[kind]) / paid


def symmetric(run: RunConfig, kind: Kind, form: Form) -> bool:
    """Whether a summary is a symmetric matrix, or a stack of them."""
    if kind not in _STATED:
        return _spec(run, kind, form).symmetric
    return not _diagonal(run, kind, form) and kind != "threshold"


def sensitivity(run: RunConfig, kind: Kind, form: Form) -> float:
    """What one record adds at most to a summary, as docs/privacy.md derives it.

    Stated here a second time on purpose: the audit must not believe the code it audits. Of a kind
    that is not stated, what the worst record of its audit adds.
    """
    if kind not in _STATED:
        rng = np.random.default_rng(0)
        return max(case.moved for case in cases_of(kind, run, LATENT, rng))
    if kind == "threshold":
        return math.sqrt(3 if run.scoring.combined else 2)
    if kind == "mixture":
        return 2.0
    return math.sqrt(2.0) if _diagonal(run, kind, form) else math.sqrt(3.0)


def _counts(run: RunConfig, kind: Kind, form: Form) -> int | None:
    """Which of the independent numbers is the public number of records, which needs no noise."""
    if kind not in _STATED or kind in ("threshold", "mixture"):
        return None
    return 0 if _diagonal(run, kind, form) else -1


def _spec(run: RunConfig, kind: Kind, form: Form) -> SummarySpec:
    return SUMMARIES[kind].spec(run, LATENT, example_state(run, LATENT, form))


def _diagonal(run: RunConfig, kind: Kind, form: Form) -> bool:
    if kind == "data":
        return run.summaries.data == "scaling"
    return kind == "moments" and form == "diagonal"


def _independent(noise: np.ndarray, *, is_symmetric: bool, count: int | None) -> Noise:
    """The independent numbers of noise [R, *shape] but for the count, each of deviation 1."""
    flat, diagonal = noise.reshape(len(noise), -1), None
    if is_symmetric:
        rows, columns = np.triu_indices(noise.shape[-1])
        upper = noise[..., rows, columns] * np.where(rows == columns, 1.0, math.sqrt(2.0))
        flat = upper.reshape(len(noise), -1)
        diagonal = np.tile(rows == columns, flat.shape[1] // len(rows))
    if count is not None:
        flat = np.delete(flat, count, axis=1)
        diagonal = None if diagonal is None else np.delete(diagonal, count)
    return Noise(rows=flat, diagonal=diagonal)
