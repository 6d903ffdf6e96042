"""Run one experiment of the model families, or print their tables.

Examples:
    python -m fedlatent.simulations.zoo list
    python -m fedlatent.simulations.zoo run likelihood
    python -m fedlatent.simulations.zoo run denoise --epsilon 8 --seed 1 --out runs/zoo
    python -m fedlatent.simulations.zoo tables runs/zoo > tables.md
"""

import argparse
import importlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from fedlatent.shared.errors import ConfigError, FedlatentError
from fedlatent.shared.files import read_json, write_atomic, write_json
from fedlatent.simulations.zoo import report
from fedlatent.simulations.zoo.training import Watch

#: Every experiment: its module here has the topic's name.
TOPICS = {
    "likelihood": "how likely binarised MNIST is: VAE against importance-weighted VAE",
    "disentangle": "whether latents follow the factors of sprites: beta-VAE and capacity",
    "denoise": "denoising of images and signals against classical filters",
    "tokens": "discrete tokens: reconstruction and use of the codebook",
    "forecast": "forecasts of series with intervals against seasonal baselines",
    "ladder": "deep hierarchies of latents: likelihood by depth",
    "early_exit": "early exits: skipped work, time and accuracy together",
    "generate": "latent diffusion: synthetic images judged by a classifier",
    "molecules": "molecules from SELFIES: validity, novelty and distance",
    "columns": "tables of mixed columns: synthetic records and anomalies",
}


class Experiment(Protocol):
    """What a module of an experiment offers."""

    TITLE: str

    def experiment(
        self, data: Path, *, epsilon: float | None, seed: int, quick: bool, watch: Watch
    ) -> dict[str, Any]:
        """Train and measure; JSON-ready figures, and under "picture" what the picture needs."""
        ...

    def picture(self, found: Any) -> bytes | None:  # noqa: ANN401
        """A PNG of what the experiment returned under "picture"."""
        ...


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and do what it says."""
    parsed = _parser().parse_args(arguments)
    if parsed.command == "list":
        width = max(map(len, TOPICS))
        for topic, about in TOPICS.items():
            print(f"{topic:{width}s}  {about}")
    elif parsed.command == "tables":
        print(tables(parsed.folder), end="")
    else:
        data = parsed.data or Path(os.environ.get("FEDLATENT_DATA", "../shared/data"))
        result = run(
            parsed.topic,
            data,
            parsed.out,
            epsilon=parsed.epsilon,
            seed=parsed.seed,
            quick=parsed.quick,
        )
        if parsed.json:
            print(json.dumps(result, allow_nan=False, ensure_ascii=False))
        else:
            where = f"{report.epsilon_words(parsed.epsilon)}, {result['seconds']:.0f} s"
            print(f"{result['title']}, {where}\n\n{report.text(result['figures'])}")


def run(
    topic: str, data: Path, out: Path, *, epsilon: float | None, seed: int, quick: bool
) -> dict[str, Any]:
    """Run one experiment and write its figures as JSON and its picture as PNG into ``out``."""
    from fedlatent.simulations.bench.measure import circumstances

    module: Experiment = importlib.import_module(f"fedlatent.simulations.zoo.{topic}")
    began = time.perf_counter()
    found = module.experiment(data, epsilon=epsilon, seed=seed, quick=quick, watch=_tell)
    shown = found.pop("picture", None)
    result: dict[str, Any] = {
        "topic": topic,
        "title": module.TITLE,
        "epsilon": epsilon,
        "seed": seed,
        "quick": quick,
        "seconds": time.perf_counter() - began,
        "circumstances": {**circumstances(), "command": _command(topic, epsilon, seed, quick)},
        "figures": report.plain(found),
    }
    budget = "none" if epsilon is None else f"eps{epsilon:g}"
    name = f"{topic}-{budget}-seed{seed}" + ("-quick" if quick else "")
    write_json(out / f"{name}.json", result)
    image = None if shown is None else module.picture(shown)
    if image is not None:
        write_atomic(out / f"{name}.png", image)
    return result


def tables(folder: Path) -> str:
    """Markdown of all figures in a folder, quick ones left out.

    Raises:
        ConfigError: the folder holds none.
    """
    found: list[Any] = [read_json(path) for path in sorted(folder.glob("*-seed*.json"))]
    full = [one for one in found if not one["quick"]]
    if not full:
        raise ConfigError(
            f"Expected figures of full runs in {folder}, got {len(found)} of quick ones; "
            "run an experiment with --out first."
        )
    return report.markdown(full)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fedlatent.simulations.zoo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="Print the topics.")
    one = commands.add_parser("run", help="Run one experiment; figures and a picture are written.")
    one.add_argument("topic", choices=TOPICS, metavar="topic", help="One of `list`.")
    one.add_argument("--data", type=Path, help="Folder of the real data; default $FEDLATENT_DATA.")
    one.add_argument("--out", type=Path, default=Path("runs/zoo"), help="Folder for the results.")
    one.add_argument("--epsilon", type=_epsilon, help="Of the training; default none.")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--quick", action="store_true", help="Seconds instead of minutes; no result.")
    one.add_argument("--json", action="store_true", help="Print one JSON object.")
    show = commands.add_parser("tables", help="Print Markdown tables of a folder.")
    show.add_argument("folder", type=Path)
    return parser


def _command(topic: str, epsilon: float | None, seed: int, quick: bool) -> str:
    budget = "none" if epsilon is None else f"{epsilon:g}"
    line = f"python -m fedlatent.simulations.zoo run {topic} --epsilon {budget} --seed {seed}"
    return f"{line} --quick" if quick else line


def _epsilon(word: str) -> float | None:
    if word == "none":
        return None
    value = float(word)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a positive number or none, got {word!r}")
    return value


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except FedlatentError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
