"""The whole audit: every kind of release under attack, and the controls."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedlatent.simulations.audit.checks import Check
from fedlatent.simulations.audit.controls import control_findings, toy_finding
from fedlatent.simulations.audit.hostile import hostile
from fedlatent.simulations.audit.inversion import Inversion, inversion
from fedlatent.simulations.audit.membership import Membership, membership
from fedlatent.simulations.audit.node_checks import node_checks
from fedlatent.simulations.audit.one_run import OneRun, federated_run, one_run
from fedlatent.simulations.audit.person import person_findings
from fedlatent.simulations.audit.results import Finding, Watch
from fedlatent.simulations.audit.unit import step_finding, summary_findings
from fedlatent.simulations.audit.usual import usual_run

#: Of the two federated runs that are attacked.
CANARY_EPSILON, USUAL_EPSILON = 8.0, 2.0
#: The control: a run with the noise of this epsilon that claims another.
_NOISELESS_EPSILON, _PRETENDED = 2000.0, 2.0
_MEMORY, _NEEDED_BYTES = "/dev/shm", 2**28


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is drawn.

    Attributes:
        steps: training steps in each world, of the whole records.
        sampled: the same with half of the records sampled; 0 leaves this out.
        summaries: releases of each summary in each world.
        broken: training steps of a control in each world.
        toys: trainings of the linear autoencoder in each world.
        canaries: in one federated run.
        rounds: of that run.
        beats: of each client of the usual run.
        node_runs: of each plan on each home of the real nodes.
        hostile: rounds of a real node in each world, with hostile weights.
        tries: of constants of those weights.
    """

    steps: int
    sampled: int
    summaries: int
    broken: int
    toys: int
    canaries: int
    rounds: int
    beats: int
    node_runs: int
    hostile: int
    tries: int


QUICK = Sizes(
    steps=1500,
    sampled=0,
    summaries=20_000,
    broken=200,
    toys=1000,
    canaries=600,
    rounds=20,
    beats=400,
    node_runs=10,
    hostile=60,
    tries=200,
)
FULL = Sizes(
    steps=5000,
    sampled=8000,
    summaries=100_000,
    broken=1000,
    toys=4000,
    canaries=900,
    rounds=40,
    beats=700,
    node_runs=75,
    hostile=400,
    tries=10_000,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """What an audit found; but for the secure noise of real nodes a function of sizes and seed.

    Attributes:
        sizes: how much was drawn.
        seed: of everything.
        claims: findings about releases as they are.
        controls: findings about releases broken on purpose.
        checks: of the noise and samples of real nodes.
        canaries: the attack on one federated run.
        membership: of a usual run.
        membership_plain: the same attack on the same run without privacy.
        inversion: of the usual run.
        inversion_plain: of the same run without privacy.
    """

    sizes: Sizes
    seed: int
    claims: tuple[Finding, ...]
    controls: tuple[Finding, ...]
    checks: tuple[Check, ...]
    canaries: OneRun
    membership: Membership
    membership_plain: Membership
    inversion: Inversion
    inversion_plain: Inversion

    @property
    def good(self) -> bool:
        """All claims and checks hold, and all controls were caught."""
        return all(one.good for one in self.verdicts)

    @property
    def verdicts(self) -> tuple[Finding | Check, ...]:
        """All that can fail: claims, controls and checks."""
        return (*self.claims, *self.controls, *self.checks)

    def to_json(self) -> dict[str, object]:
        """Everything found as one JSON object."""
        return {
            "good": self.good,
            "seed": self.seed,
            "claims": [one.to_json() for one in self.claims],
            "controls": [one.to_json() for one in self.controls],
            "checks": [one.to_json() for one in self.checks],
            "membership": self.membership.to_json(),
            "membership_without_privacy": self.membership_plain.to_json(),
            "inversion": self.inversion.to_json(),
            "inversion_without_privacy": self.inversion_plain.to_json(),
        }


def run_audit(sizes: Sizes, seed: int, watch: Watch) -> Audit:
    """Attack everything; equal arguments give equal results but for the noise of real nodes.

    Args:
        sizes: how much to draw.
        seed: of all records, weights and noise but that of real nodes, which is secure.
        watch: told about progress.
    """
    claims = list(_unit_findings(sizes, seed, watch))
    controls = list(control_findings(sizes.broken, sizes.toys, seed, watch))
    for one in person_findings(sizes.steps, sizes.summaries // 2, seed, watch):
        (controls if one.control else claims).append(one)
    with tempfile.TemporaryDirectory(prefix="fedlatent-audit-", dir=_memory()) as name:
        folder = Path(name)
        attacked, share = hostile(folder, sizes.hostile, sizes.tries, seed, watch)
        node = (*node_checks(folder, sizes.node_runs, watch), share)
        canaries = one_run(
            f"federated run, {sizes.canaries} canaries",
            federated_run(seed, CANARY_EPSILON, sizes.rounds),
            sizes.canaries,
            folder / "canaries",
            watch,
        )
        noiseless = one_run(
            "federated run, noise all but off",
            federated_run(seed, _NOISELESS_EPSILON, sizes.rounds),
            sizes.canaries,
            folder / "noiseless",
            watch,
            claimed=_PRETENDED,
        )
        watch("membership and inversion", 0.0)
        usual, plain = (
            usual_run(folder / part, seed, clients=5, beats=sizes.beats, epsilon=epsilon)
            for part, epsilon in (("usual", USUAL_EPSILON), ("plain", None))
        )
        watch("membership and inversion", 0.5)
        found = membership("encoder of a usual run, membership", usual)
        audit = Audit(
            sizes=sizes,
            seed=seed,
            claims=tuple(
                one for one in (*claims, attacked, canaries.finding, found.finding) if one
            ),
            controls=(*controls, noiseless.finding),
            checks=node,
            canaries=canaries,
            membership=found,
            membership_plain=membership("without privacy", plain),
            inversion=inversion(usual),
            inversion_plain=inversion(plain),
        )
        watch("membership and inversion", 1.0)
    return audit


def _memory() -> str | None:
    """A folder in memory where the system has one: a ledger waits for the disk at every entry."""
    usable = os.access(_MEMORY, os.W_OK)
    return _MEMORY if usable and shutil.disk_usage(_MEMORY).free > _NEEDED_BYTES else None


def _unit_findings(sizes: Sizes, seed: int, watch: Watch) -> Iterator[Finding]:
    yield step_finding("training step", 1.0, sizes.steps, seed, watch)
    if sizes.sampled:
        yield step_finding("training step, half sampled", 0.5, sizes.sampled, seed, watch)
    yield from summary_findings(sizes.summaries, seed, watch)
    yield toy_finding(sizes.toys, seed, watch)
