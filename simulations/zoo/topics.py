"""Topics of the model zoo as work of a study."""

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from fedlatent.simulations.study.job import Found, Job

Topic = Literal[
    "likelihood",
    "disentangle",
    "denoise",
    "tokens",
    "forecast",
    "ladder",
    "early_exit",
    "generate",
    "molecules",
    "columns",
]
Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["none"]


class Module(Protocol):
    """What a module of a topic offers."""

    def experiment(
        self, data: Path, *, epsilon: float | None, seed: int, quick: bool, watch: object
    ) -> dict[str, Any]:
        """Train and measure; figures, and under "picture" what the picture needs."""
        ...

    def picture(self, found: Any) -> bytes | None:  # noqa: ANN401
        """A PNG of what the experiment returned under "picture"."""
        ...


def topic(job: Job, *, topic: Topic, epsilon: Epsilon = "none", quick: bool = False) -> Found:
    """Train models in one place and hold them against known numbers.

    Args:
        job: whose data folder holds what the topic reads.
        topic: the module here.
        epsilon: of each training at delta 1e-5, or "none".
        quick: seconds instead of minutes, and no result.
    """
    module: Module = importlib.import_module(f"fedlatent.simulations.zoo.{topic}")
    budget = None if epsilon == "none" else epsilon
    found = module.experiment(
        job.data_dir, epsilon=budget, seed=job.cell.seed, quick=quick, watch=job.tell
    )
    shown = found.pop("picture", None)
    image = None if shown is None else module.picture(shown)
    return Found(figures=found, picture=image)
