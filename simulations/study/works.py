"""What a cell of a study may do, by name: every kind of study is a function of this table.

A function gets a :class:`~fedlatent.simulations.study.job.Job` and the cell's parameters by name,
and returns what it found. It is imported when a cell needs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_HERE = "fedlatent.simulations"


@dataclass(frozen=True, kw_only=True)
class Work:
    """A function that does the work of a cell.

    Attributes:
        module: where it is defined.
        function: its name there.
        shared: whether it is about clients with records, as the table ``[data]`` says.
        reads: names of further data sets that it reads, whatever its parameters.
    """

    module: str
    function: str
    shared: bool = True
    reads: tuple[str, ...] = ()

    def needs(self, parameters: Mapping[str, object]) -> tuple[str, ...]:
        """Data sets beside those of ``[data]``: its own, and those of the topic it is given."""
        return self.reads + TOPICS.get(str(parameters.get("topic")), ())


#: Topics of the work ``zoo``, and the data sets that each reads.
TOPICS: dict[str, tuple[str, ...]] = {
    "likelihood": ("mnist",),
    "disentangle": (),
    "denoise": ("kodak", "mitbih_strips"),
    "tokens": ("mnist",),
    "forecast": ("etth1",),
    "ladder": ("mnist",),
    "early_exit": ("mitbih",),
    "generate": ("mnist",),
    "molecules": ("moses", "esol"),
    "columns": ("heart_disease", "nsl_kdd"),
}
WORKS = {
    "federated": Work(module=f"{_HERE}.study.methods", function="federated"),
    "whole-model": Work(module=f"{_HERE}.study.methods", function="whole_model"),
    "pooled": Work(module=f"{_HERE}.study.methods", function="pooled"),
    "pooled-model": Work(module=f"{_HERE}.study.methods", function="pooled_model"),
    "alone": Work(module=f"{_HERE}.study.methods", function="alone"),
    "untrained": Work(module=f"{_HERE}.study.methods", function="untrained"),
    "own-baseline": Work(module=f"{_HERE}.study.baselines", function="own_baseline"),
    "dp-mahalanobis": Work(module=f"{_HERE}.study.baselines", function="dp_mahalanobis"),
    "attacked": Work(module=f"{_HERE}.study.attacks", function="attacked"),
    "generation": Work(
        module=f"{_HERE}.zoo.generation", function="generation", shared=False, reads=("mnist",)
    ),
    "zoo": Work(module=f"{_HERE}.zoo.topics", function="topic", shared=False),
}
