"""The whole comparison as one value that can be written as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedlatent.simulations.bench.measure import (
    GROWING,
    SIZES,
    Gemm,
    Measured,
    Watch,
    circumstances,
    compare,
    growth,
    ratios,
)
from fedlatent.simulations.bench.peers import OURS, TRAINERS, missing
from fedlatent.simulations.bench.plain import CONV, MLP

#: Turns of the growth series at most; a round of ten thousand clients takes a minute.
GROWTH_TURNS = 3

NOTE = (
    "Poisson sampling and noise from seeded streams in ours; peers take fixed batches, and Opacus "
    "draws its own noise. Costs are medians; start-up is apart. pfl, Flower, simulated and "
    "simulated_dp include the server's side of a round, the other systems are trainers alone. "
    "pfl, Flower, plain_loop, stacked and simulated are not private."
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to measure.

    Attributes:
        clients: of a round.
        turns: of each system.
        peers: beside our own systems.
        conv: whether to compare the trainers on a convolutional model too.
        grow: whether to measure 100, 1,000 and 10,000 clients.
        ours: our own systems.
    """

    clients: int
    turns: int
    peers: Sequence[str]
    conv: bool
    grow: bool
    ours: Sequence[str] = OURS


def measure_all(choice: Choice, watch: Watch) -> dict[str, object]:
    """Measure and return the report.

    Raises:
        ServiceError: a system that is installed failed.
    """
    facts, gemm = circumstances(), Gemm()
    absent = missing(choice.peers)
    names = [name for name in (*choice.peers, *choice.ours) if name not in absent]
    found = compare(names, MLP.sized(choice.clients), choice.turns, watch=watch, gemm=gemm)
    report: dict[str, object] = {
        "cpu_ms": {name: measured.cpu_ms for name, measured in found.items()},
        "ratio": _ratios(found, gemm),
        "systems": {name: measured.to_json() for name, measured in found.items()},
        "gemm": {
            "gflops": gemm.rate / 1e9,
            "limit_cpu_ms": gemm.limit_ms(next(iter(found.values())).work),
        },
        "missing": absent,
    }
    if choice.conv:
        report["conv"] = _conv([n for n in names if n in TRAINERS], choice, watch, gemm)
    if choice.grow:
        report["growth"] = _growth([n for n in names if n in GROWING], choice, watch)
    return report | {"circumstances": facts, "note": NOTE}


def _ratios(found: Mapping[str, Measured], gemm: Gemm) -> dict[str, float]:
    cpu_ms = {name: measured.cpu_ms for name, measured in found.items()}
    of_limit = {
        f"{name}_over_gemm_limit": cpu_ms[name] / gemm.limit_ms(found[name].work) for name in cpu_ms
    }
    return ratios(cpu_ms) | of_limit


def _conv(names: Sequence[str], choice: Choice, watch: Watch, gemm: Gemm) -> dict[str, object]:
    found = compare(names, CONV.sized(choice.clients), choice.turns, watch=watch, gemm=gemm)
    cpu_ms = {name: measured.cpu_ms for name, measured in found.items()}
    return {
        "cpu_ms": cpu_ms,
        "ratio": ratios(cpu_ms),
        "systems": {name: measured.to_json() for name, measured in found.items()},
    }


def _growth(names: Sequence[str], choice: Choice, watch: Watch) -> dict[str, object]:
    found = growth(names, MLP, min(choice.turns, GROWTH_TURNS), sizes=SIZES, watch=watch)
    return {
        name: {
            "sizes": {str(size): sizes[size].to_json() for size in SIZES},
            "flat_10000_over_100": sizes[SIZES[-1]].cpu_ms / sizes[SIZES[0]].cpu_ms,
        }
        for name, sizes in found.items()
    }
