"""Latency of a graph at batch 1 on one thread, several graphs side by side."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedlatent.shared.bundle.graphs import Graph

CALLS, ROUNDS, WARM_UP = 300, 5, 20


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall time of one call.

    Attributes:
        p50: Least of the rounds' medians, in microseconds: other work of the machine only adds.
        p99: Least of the rounds' 99th percentiles, in microseconds.
    """

    p50: float
    p99: float


def measure(
    graphs: Mapping[str, bytes],
    feeds: Mapping[str, np.ndarray],
    *,
    calls: int = CALLS,
    rounds: int = ROUNDS,
) -> dict[str, Latency]:
    """Time every graph on the same inputs.

    The graphs take turns within a round, so that a busy minute of the machine hits all of them, and
    are loaded anew in each: where the weights land in memory can make one instance of a graph half
    as slow again as the next.

    Args:
        graphs: As bytes, by name.
        feeds: Inputs of one record.
        calls: Timed calls of a graph per round, at least 1.
        rounds: At least 1.

    Raises:
        BundleError: A graph does not load or run.
    """
    seconds: dict[str, list[np.ndarray]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, data in graphs.items():
            graph = Graph(data, name)
            for _ in range(min(WARM_UP, calls)):
                graph.run(feeds)
            seconds[name].append(_round(graph, feeds, calls))
    return {
        name: Latency(
            p50=1e6 * min(float(np.median(times)) for times in taken),
            p99=1e6 * min(float(np.quantile(times, 0.99)) for times in taken),
        )
        for name, taken in seconds.items()
    }


def _round(graph: Graph, feeds: Mapping[str, np.ndarray], calls: int) -> np.ndarray:
    taken = np.empty(calls)
    for index in range(calls):
        start = time.perf_counter()
        graph.run(feeds)
        taken[index] = time.perf_counter() - start
    return taken
