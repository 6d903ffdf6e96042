"""Epsilon of every configuration that is shipped, by three accountants side by side.

    fedlatent simulate bench accountants

RDP is what plans are solved with and ledgers charge by. PLD is what the same releases cost by their
privacy loss distributions. PRV, of Opacus, is an independent third: bounds that are about
``2 * PRV_ERROR`` apart. Three experiments of the zoo (denoise, molecules, columns) are left out:
their sampling rate follows from the data at hand.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from opacus.accountants import PRVAccountant

from fedlatent.server.example import RUN_EXAMPLE
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import hearts
from fedlatent.shared.privacy.accounting import GaussianEvent, merged_events
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.schedule import phases
from fedlatent.simulations.audit.one_run import federated_run
from fedlatent.simulations.audit.run import CANARY_EPSILON, FULL, QUICK, USUAL_EPSILON
from fedlatent.simulations.audit.usual import usual_config
from fedlatent.simulations.bench.plain import CONV, MLP
from fedlatent.simulations.bench.systems import run_config
from fedlatent.simulations.demo import demo_run
from fedlatent.simulations.study.shipped import shipped
from fedlatent.simulations.zoo import (
    disentangle,
    early_exit,
    forecast,
    generate,
    ladder,
    likelihood,
    tokens,
)
from fedlatent.simulations.zoo.training import run_for

#: Of the PRV accountant: its bounds are at most twice this apart.
PRV_ERROR = 0.01
#: Of the private trainings in docs/models.md.
ZOO_EPSILON = 8.0

_ANY = {"name": "any", "shape": [16]}  # a plan does not depend on the records


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan.

    Attributes:
        names: of the configurations that have it.
        plan: their noise.
    """

    names: tuple[str, ...]
    plan: PrivacyPlan


def shipped_runs() -> Iterator[tuple[str, RunConfig]]:
    """Every run that the package makes, by name."""
    federation = hearts(2, 0, beats=10)
    yield "run file of `server init`", RunConfig.from_toml(RUN_EXAMPLE)
    yield "`demo`", demo_run(federation, nodes=2, epsilon=4.0, rounds=10)
    for study in shipped():
        for cell in study.cells:
            if cell.work != "zoo" and cell.seed == study.seeds[0]:
                tables = {"name": study.name, "data": _ANY, **cell.run}
                yield f"`simulate {study.name}`", RunConfig.parse(tables, study.name)
    for name, task in (("MLP", MLP), ("convolutions", CONV)):
        yield f"benchmark ({name})", run_config(task, private=True)
    for form, sizes in (("quick", QUICK), ("full", FULL)):
        yield f"audit, canaries ({form})", federated_run(0, CANARY_EPSILON, sizes.rounds)
    yield "audit, membership", usual_config(federation, 0, USUAL_EPSILON)
    yield from _zoo()


def rows() -> list[Row]:
    """Each plan of a private run once; plans that release the same count as one."""
    solved: dict[tuple[object, ...], PrivacyPlan] = {}
    named: dict[tuple[object, ...], tuple[PrivacyPlan, list[str]]] = {}
    for name, run in shipped_runs():
        if run.privacy.mechanism == "none":
            continue
        key = _priced(run)
        plan = solved[key] = solved.get(key) or PrivacyPlan.from_config(run)
        released = (*merged_events(plan.events()), plan.delta)
        named.setdefault(released, (plan, []))[1].append(name)
    return [Row(names=tuple(dict.fromkeys(names)), plan=plan) for plan, names in named.values()]


def prv_bounds(events: Iterable[GaussianEvent], delta: float) -> tuple[float, float]:
    """Lower and upper bound of epsilon by Opacus' accountant of privacy loss random variables."""
    accountant = PRVAccountant()
    accountant.history = list(merged_events(events))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # logarithms of zeros that it masks, and its own orders
        loss = accountant._get_dprv(eps_error=PRV_ERROR, delta_error=delta / 1000)
        low, _, high = loss.compute_epsilon(delta, delta / 1000, PRV_ERROR)
    return float(low), float(high)


def table(found: Iterable[Row]) -> str:
    """The rows in Markdown, as in docs/privacy.md."""
    lines = [
        "| configuration | training | other releases | RDP | PLD | PRV |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        plan = row.plan
        steps = plan.rounds * plan.steps_per_round
        training = f"{steps} steps, q {plan.sample_rate:.3g}, sigma {plan.noise_multiplier:g}"
        others = ", ".join(f"{count} at sigma {sigma:g}" for _, count, sigma in plan.summaries)
        cells = (
            "; ".join(row.names),
            training if steps else "-",
            others,
            f"{plan.epsilon():.4f}",
            f"{plan.pld_epsilon():.4f}",
            f"{prv_bounds(plan.events(), plan.delta)[1]:.4f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _zoo() -> Iterator[tuple[str, RunConfig]]:
    """Private trainings of the zoo."""
    found: dict[str, tuple[Mapping[str, object], float]] = {
        module.__name__.rsplit(".", 1)[-1]: module._settings(ZOO_EPSILON, quick=False)[1:]
        for module in (likelihood, disentangle, tokens)
    }
    found["early_exit"] = early_exit._training(ZOO_EPSILON, quick=False)
    found["forecast"] = forecast.PRIVATE, forecast.PRIVATE_RATE
    made = generate._settings(ZOO_EPSILON, quick=False)
    found["generate"] = made["training"], made["sample_rate"]
    for setting in ladder.settings(ZOO_EPSILON, quick=False).values():
        found["ladder"] = setting.training, setting.sample_rate
    for name, (training, rate) in found.items():
        yield (
            f"`simulate {name}`",
            run_for(
                "gaussian",
                {"hidden": [8], "latent_dim": 2},
                (16,),
                training=training,
                epsilon=ZOO_EPSILON,
                sample_rate=rate,
            ),
        )


def _priced(run: RunConfig) -> tuple[object, ...]:
    """What a plan is solved from: runs for which it is equal have equal noise."""
    privacy = run.privacy.model_dump(exclude={"clip", "rng"})
    kinds = [phase.kind for phase in phases(run)]
    steps = kinds.count("train") * run.training.steps_per_round
    return (*privacy.items(), steps, tuple(kind for kind in kinds if kind != "train"))


def accountants() -> int:
    """Print the table."""
    print(table(rows()), end="")
    return 0
