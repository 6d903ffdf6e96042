"""``fedlatent privacy``: what a run would cost, before anything runs."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlatent.cli.console import err, figure, out, print_json, size, styled, table
from fedlatent.cli.options import JsonOption, RunFileArgument

if TYPE_CHECKING:
    from fedlatent.shared.config import RunConfig
    from fedlatent.shared.models import VAE
    from fedlatent.shared.privacy.plan import PrivacyPlan
    from fedlatent.shared.privacy.summaries import Form
    from fedlatent.shared.schedule import Kind

app = typer.Typer(no_args_is_help=True, help="Plan the privacy budget of a run.")

_CLIP_RECORDS = 256
_EMPTY_EPSILON = 10.0  # from here on a guarantee says next to nothing


@app.callback()
def privacy() -> None:
    """Plan the privacy budget of a run."""


@app.command(
    epilog="Examples: fedlatent privacy plan run.toml | "
    "fedlatent privacy plan run.toml --records 2000 --person-records 50 | "
    "fedlatent privacy plan run.toml --json"
)
def plan(
    config: RunFileArgument,
    records: Annotated[
        int | None,
        typer.Option(min=1, help="Records of one client; checks batch, delta and moments."),
    ] = None,
    person_records: Annotated[
        int | None,
        typer.Option(min=1, help="Most records of one person; gives the person's epsilon."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what leaves each client, with which noise and for how much of the budget."""
    from fedlatent.shared.config import RunConfig

    facts = _planned(RunConfig.load(config), records, person_records, str(config))
    if json:
        print_json(facts)
    else:
        _print(facts)


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

    run: "RunConfig"
    plan: "PrivacyPlan"
    model: "VAE"
    form: "Form"
    why: str
    records: int | None
    person: int | None


def _planned(
    run: "RunConfig", records: int | None, person: int | None, source: str
) -> dict[str, Any]:
    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.models import build_model
    from fedlatent.shared.privacy.plan import PrivacyPlan

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


def _form(run: "RunConfig", plan: "PrivacyPlan", records: int | None, k: int) -> "tuple[Form, str]":
    """As the server will choose it, with so many records at each client; and why."""
    from fedlatent.shared.schedule import phases
    from fedlatent.shared.summaries import SUMMARIES, Federated

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
    from fedlatent.shared.privacy.plan import shares_of
    from fedlatent.shared.schedule import phases

    counts: dict[Kind, int] = {}
    for phase in phases(planned.run):
        counts[phase.kind] = counts.get(phase.kind, 0) + 1
    shares = shares_of(planned.run) if planned.plan.private else {}
    return [_release(planned, kind, count, shares.get(kind)) for kind, count in counts.items()]


def _release(planned: _Planned, kind: "Kind", count: int, share: float | None) -> dict[str, Any]:
    from fedlatent.shared.privacy.accounting import epsilon_of

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


def _leaving(planned: _Planned, kind: "Kind") -> tuple[str, int, int, float]:
    """What one release of a kind is: words, numbers, bytes, and what one record adds at most."""
    from fedlatent.shared.models.base import ENCODER_PREFIX
    from fedlatent.shared.summaries import SUMMARIES, example_state

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
    from fedlatent.shared.privacy.accounting import ADJACENCY

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
    import torch

    from fedlatent.shared.privacy.clipping import calibrated_clip, synthetic_records

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
    from fedlatent.shared.privacy.person import person_epsilon

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
    from fedlatent.client.policy import Caps
    from fedlatent.shared.privacy.plan import drowned

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
    if records is not None and delta > 1 / (10 * records):
        found.append(
            f"delta {delta:g} is above 1/(10 N) = {1 / (10 * records):.3g}; lower privacy.delta"
        )
    if records is not None:
        clients = [records] * planned.run.federation.nodes
        if text := drowned(planned.run, planned.plan, clients):
            found.append(text)
    person = totals["person"]
    if person is not None and (person["epsilon"] or math.inf) > _EMPTY_EPSILON:
        found.append(
            f"for a person with {person['records']} records epsilon is "
            f"{figure(person['epsilon'], 1)}: close to no guarantee; cap the records of a person "
            "or lower epsilon"
        )
    return found


def _print(facts: dict[str, Any]) -> None:
    releases = facts["releases"]
    left = table(
        f"what leaves each client of {facts['name']}", "kind", "#times", "what", "#size of one"
    )
    for one in releases:
        steps = f" ({one['steps']} steps)" if one["kind"] == "train" else ""
        cells = (one["kind"], f"{one['releases']}{steps}", one["leaves"])
        left.add_row(*cells, size(one["bytes"]))
    noise = table(
        "its noise", "kind", "#L2 sensitivity", "#share", "#sigma", "#deviation", "#epsilon alone"
    )
    for one in releases:
        share = "-" if one["share"] is None else f"{100 * one['share']:.1f} %"
        found = (one["kind"], figure(one["sensitivity"]), share, figure(one["noise_multiplier"]))
        noise.add_row(*found, figure(one["noise_deviation"]), figure(one["epsilon_alone"]))
    out.print(left)
    if facts["private"]:
        out.print(noise)
    for line in _lines(facts):
        out.print(line)
    for warning in facts["warnings"]:
        err.print(styled("yellow", "warning", f": {warning}"))


def _lines(facts: dict[str, Any]) -> list[str]:
    """The totals in words."""
    found = []
    if facts["private"]:
        found.append(
            f"total: epsilon {facts['epsilon']:.4f} at delta {facts['delta']:g} by "
            f"RDP, the guard; {facts['epsilon_pld']:.4f} by PLD ({facts['adjacency']} adjacency, "
            f"one {facts['unit']}); {facts['rng']} random numbers"
        )
    if facts["steps"]:
        batch = facts["expected_batch"]
        known = "" if batch is None else f"; expected batch {batch:g} of {facts['records']}"
        signal = facts["signal_to_noise"]
        known += "" if signal is None else f", signal-to-noise of a step {signal:.3g}"
        found.append(f"training: q {facts['sample_rate']:g}, {facts['steps']} steps{known}")
    if facts["clip"] is not None:
        found.append(f"clip: {facts['clip']:g}; {_clip_words(facts['largest_clip'])}")
    found.append(f"moments: {facts['moments']} ({facts['moments_because']})")
    person = facts["person"]
    if person is not None:
        found.append(
            f"person with at most {person['records']} records: epsilon "
            f"{figure(person['epsilon'], 3)} at delta {person['delta']:g} by PLD "
            f"({facts['adjacency']} adjacency, all records of one person)"
        )
    return found


def _clip_words(largest: float | None) -> str:
    if largest is None:
        return "gradient norms are unknown before the release that scales records"
    return (
        f"the largest worth trying is {largest:.3g}, the median gradient norm of public synthetic "
        "records at the first weights; smaller ones have done as well or better"
    )
