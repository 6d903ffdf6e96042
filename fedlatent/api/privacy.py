"""What a run would cost, and whether the claim stands: before and after anything runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedlatent.client.policy import Caps
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import VAE, build_model
from fedlatent.shared.models.base import ENCODER_PREFIX
from fedlatent.shared.notebook import rows
from fedlatent.shared.privacy.accounting import ADJACENCY, epsilon_of
from fedlatent.shared.privacy.clipping import calibrated_clip, synthetic_records
from fedlatent.shared.privacy.delta import largest_delta
from fedlatent.shared.privacy.person import person_epsilon
from fedlatent.shared.privacy.plan import PrivacyPlan, drowned, shares_of
from fedlatent.shared.privacy.summaries import Form
from fedlatent.shared.schedule import Kind, phases
from fedlatent.shared.summaries import SUMMARIES, Federated, example_state

if TYPE_CHECKING:
    import pandas as pd

    from fedlatent.simulations.audit.run import Audit

_CLIP_RECORDS = 256
_EMPTY_EPSILON = 10.0  # from here on a guarantee says next to nothing


@dataclass(frozen=True, kw_only=True, repr=False)
class Outlook:
    """What a run would cost each client.

    Attributes:
        facts: all of it, as ``fedlatent privacy plan --json`` prints it.
    """

    facts: dict[str, Any]

    def __repr__(self) -> str:
        """The table of releases."""
        shown = self.releases[["releases", "bytes", "sensitivity", "noise_multiplier", "share"]]
        return f"epsilon {self.epsilon} at delta {self.facts['delta']:g}\n{shown}"

    @property
    def epsilon(self) -> float | None:
        """Of the whole run, for one record; None without privacy."""
        found: float | None = self.facts["epsilon"]
        return found

    @property
    def warnings(self) -> list[str]:
        """What would go wrong, a sentence each."""
        return [*self.facts["warnings"]]

    @cached_property
    def releases(self) -> "pd.DataFrame":
        """A row for each kind of release: how many, what leaves, sensitivity, noise, share."""
        import pandas as pd

        return pd.DataFrame(self.facts["releases"]).set_index("kind")

    def _repr_html_(self) -> str:
        """The releases and what they add up to, in a notebook."""
        kinds = self.facts["releases"]
        total = "no privacy" if self.epsilon is None else f"epsilon {self.epsilon:.4f}"
        title = f"{self.facts['name']}: {total} at delta {self.facts['delta']:g}"
        names = ["kind", "releases", "leaves", "bytes", "sensitivity", "noise_multiplier", "share"]
        return rows(title, names, [[_short(one[name]) for name in names] for one in kinds])


def privacy_plan(
    run: RunConfig | str | Path, *, records: int | None = None, person_records: int | None = None
) -> Outlook:
    """What leaves each client in a run, with which noise, for how much of the budget.

    Args:
        run: a configuration or its TOML file.
        records: of one client; then batch, delta and moments are looked at, too.
        person_records: most records of one person; gives the epsilon of a person.

    Raises:
        ConfigError: the run is wrong, or its budget leaves nothing for training.

    Examples:
        >>> import fedlatent as fl
        >>> plan = fl.privacy_plan(run, records=500)
        >>> round(plan.epsilon, 2)
        4.0
        >>> plan.releases.index.tolist()
        ['train', 'moments', 'threshold']
        >>> plan.warnings
        []
    """
    source = "run" if isinstance(run, RunConfig) else str(run)
    chosen = run if isinstance(run, RunConfig) else RunConfig.load(Path(run))
    return Outlook(facts=plan_facts(chosen, records, person_records, source))


def audit(
    out: str | Path,
    *,
    quick: bool = True,
    seed: int = 0,
    watch: Callable[[str, float], None] | None = None,
) -> "Audit":
    """Attack every kind of release, and real nodes, and write the report.

    Args:
        out: folder of the report and its pictures.
        quick: fewer draws: a minute or two, looser bounds.
        seed: of all that is random but the noise of nodes, which is secure.
        watch: told a sentence and the share of its stage that is done.

    Returns:
        What was found; its ``good`` is false where a claim or a check broke.

    Examples:
        >>> import fedlatent as fl
        >>> found = fl.audit("audit")  # doctest: +SKIP
        >>> found.good  # doctest: +SKIP
        True
    """
    # Packages of simulations, which a plan does not need.
    from fedlatent.simulations.audit.report import write_report
    from fedlatent.simulations.audit.run import FULL, QUICK, run_audit

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are tiny, and sums keep their order
    try:
        found = run_audit(QUICK if quick else FULL, seed, watch or (lambda *_: None))
    finally:
        torch.set_num_threads(threads)
    write_report(found, Path(out))
    return found


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A run with what follows from it.

    Attributes:
        run: its configuration.
        plan: its noise.
        model: with its first weights.
        form: of moments.
        why: it is that one.
        records: of one client, where known.
        person: most records of one person, where known.
    """

    run: RunConfig
    plan: PrivacyPlan
    model: VAE
    form: Form
    why: str
    records: int | None
    person: int | None


def plan_facts(
    run: RunConfig, records: int | None, person: int | None, source: str
) -> dict[str, Any]:
    """What leaves each client, with which noise and for how much of the budget, as JSON.

    Args:
        run: the configuration.
        records: of one client, where known.
        person: most records of one person, where known.
        source: what errors call the run.

    Raises:
        ConfigError: the budget cannot be reached, or leaves nothing for training.
    """
    try:
        solved = PrivacyPlan.from_config(run)
        model = build_model(run)
        form, why = _form(run, solved, records, model.latent_dim)
        planned = _Planned(
            run=run, plan=solved, model=model, form=form, why=why, records=records, person=person
        )
        totals = _totals(planned)
        return {
            "name": run.name,
            "releases": _releases(planned),
            **totals,
            "warnings": _warnings(planned, totals),
        }
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def _form(run: RunConfig, plan: PrivacyPlan, records: int | None, k: int) -> tuple[Form, str]:
    """As the server will choose it, with so many records at each client; and why."""
    clients = run.federation.nodes
    if run.summaries.moments != "auto":
        return run.summaries.moments, "as the run says"
    if not plan.private:
        return "full", "without noise"
    if phases(run)[0].kind == "moments":
        return "full", "as the first phase, before the server knows of any records"
    if records is None:
        return "full", "with enough records; give --records to see the server's choice"
    epsilon = plan.epsilon_of_one("moments")
    form = SUMMARIES["moments"].form(run, k, Federated(), [records] * clients, clients, epsilon)
    return form, f"for {records} records at each of {clients} clients"


def _releases(planned: _Planned) -> list[dict[str, Any]]:
    """Each kind of release in the order of the run."""
    counts: dict[Kind, int] = {}
    for phase in phases(planned.run):
        counts[phase.kind] = counts.get(phase.kind, 0) + 1
    shares = shares_of(planned.run) if planned.plan.private else {}
    return [_release(planned, kind, count, shares.get(kind)) for kind, count in counts.items()]


def _release(planned: _Planned, kind: Kind, count: int, share: float | None) -> dict[str, Any]:
    plan = planned.plan
    leaves, values, length, sensitivity = _leaving(planned, kind)
    event = plan.event(kind)
    return {
        "kind": kind,
        "releases": count,
        "steps": count * plan.steps_per_round if kind == "train" else count,
        "leaves": leaves,
        "values": values,
        "bytes": length,
        "sensitivity": sensitivity if event else None,
        "share": share,
        "noise_multiplier": plan.multiplier(kind) if event else None,
        "noise_deviation": plan.multiplier(kind) * sensitivity if event else None,
        "epsilon_alone": epsilon_of([event] * count, plan.delta) if event else None,
    }


def _leaving(planned: _Planned, kind: Kind) -> tuple[str, int, int, float]:
    """What one release of a kind is: words, numbers, bytes, and what one record adds at most."""
    run, model = planned.run, planned.model
    if kind == "train":
        whole = run.shares_decoder
        parameters = [
            p.numel()
            for name, p in model.named_parameters()
            if whole or name.startswith(ENCODER_PREFIX)
        ]
        words = "weights of the whole model" if whole else "weights of the encoder"
        return words, sum(parameters), 4 * sum(parameters), run.privacy.clip
    summary = SUMMARIES[kind]
    state = example_state(run, model.latent_dim, planned.form)
    spec = summary.spec(run, model.latent_dim, state)
    words = f"{summary.label} {list(spec.shape)}"
    return words, math.prod(spec.shape), 8 * math.prod(spec.shape), spec.sensitivity


def _totals(planned: _Planned) -> dict[str, Any]:
    run, plan, records = planned.run, planned.plan, planned.records
    training = plan.rounds > 0
    return {
        "private": plan.private,
        "epsilon": plan.epsilon() if plan.private else None,
        "epsilon_pld": plan.pld_epsilon() if plan.private else None,
        "delta": plan.delta,
        "adjacency": ADJACENCY,
        "unit": "record",
        "rng": plan.rng,
        "accounting": "rdp",
        "sample_rate": plan.sample_rate if training else None,
        "steps": plan.rounds * plan.steps_per_round,
        "clip": plan.clip if training and plan.private else None,
        "largest_clip": _largest_clip(planned) if training and plan.private else None,
        "records": records,
        "clients": run.federation.nodes,
        "expected_batch": plan.sample_rate * records if records and training else None,
        "signal_to_noise": _signal(planned),
        "moments": planned.form,
        "moments_because": planned.why,
        "person": _person(planned),
    }


def _signal(planned: _Planned) -> float | None:
    """Clipped gradients of an expected batch, all of one direction, over the noise of a step."""
    plan = planned.plan
    if not (planned.records and plan.private and plan.rounds):
        return None
    return plan.sample_rate * planned.records / plan.noise_multiplier


def _largest_clip(planned: _Planned) -> float | None:
    """The median gradient norm of public synthetic records; None where their scale is unknown."""
    run, training = planned.run, planned.run.training
    if run.summaries.data == "scaling":
        return None
    schema = run.data
    return calibrated_clip(
        planned.model,
        torch.from_numpy(schema.preprocess(synthetic_records(schema, _CLIP_RECORDS))),
        training,
    )


def _person(planned: _Planned) -> dict[str, Any] | None:
    """What the whole run costs one person with so many records, at the delta of a record."""
    plan, count = planned.plan, planned.person
    if count is None or not plan.private:
        return None
    epsilon = person_epsilon(plan.events(), plan.delta, count)
    found = epsilon if math.isfinite(epsilon) else None
    return {"records": count, "epsilon": found, "delta": plan.delta, "accounting": "pld"}


def _warnings(planned: _Planned, totals: dict[str, Any]) -> list[str]:
    """What would go wrong, one sentence each."""
    if not totals["private"]:
        return ["this run has no differential privacy: everything leaves without noise"]

    sigma, found = planned.plan.noise_multiplier, []
    if totals["rng"] == "simulation":
        found.append("random numbers are those of a simulation: no guarantee for real records")
    signal = totals["signal_to_noise"]
    if signal is not None and signal < 1:
        found.append(
            f"the expected batch q*N = {totals['expected_batch']:g} is small against sigma "
            f"{sigma:g} (signal-to-noise of a step {signal:.2g}, below 1): training would follow "
            "noise; raise the sample rate or epsilon, or take fewer steps"
        )
    largest = totals["largest_clip"]
    if largest is not None and totals["clip"] > largest:
        found.append(
            f"clip {totals['clip']:g} is above the median gradient norm {largest:.3g} of synthetic "
            "records at the first weights: most of it only adds noise; lower privacy.clip"
        )
    batch, least = totals["expected_batch"], Caps().smallest_batch
    if batch is not None and batch < least:
        found.append(
            f"the expected batch q*N = {batch:g} is below {least:g}: a node whose owner has not "
            "changed policy.caps.smallest_batch refuses the run; raise the sample rate"
        )
    records, delta = totals["records"], totals["delta"]
    if records is not None and delta > largest_delta(records):
        found.append(
            f"delta {delta:g} is above 1/(10 N) = {largest_delta(records):.3g}; lower privacy.delta"
        )
    if records is not None:
        clients = [records] * planned.run.federation.nodes
        if text := drowned(planned.run, planned.plan, clients):
            found.append(text)
    person = totals["person"]
    if person is not None and (person["epsilon"] or math.inf) > _EMPTY_EPSILON:
        known = "-" if person["epsilon"] is None else f"{person['epsilon']:.1f}"
        found.append(
            f"for a person with {person['records']} records epsilon is {known}: close to no "
            "guarantee; cap the records of a person or lower epsilon"
        )
    return found
