"""Throughput of one GPU: the whole simulated round beside the bare loop and pfl on that GPU.

``python -m fedlatent.simulations.bench.gpu [--device cuda] [--clients 1000] [--repeats 3] [--out
FILE]`` prints JSON. Exit status 3: the machine has no such device.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fedlatent.shared.files import write_json
from fedlatent.simulations.bench.measure import Gemm, circumstances, compare
from fedlatent.simulations.bench.peers import missing
from fedlatent.simulations.bench.plain import MLP

NO_DEVICE = 3
_BASELINE = "plain_loop"


def measure_gpu(device: str, clients: int, turns: int) -> dict[str, object]:
    """Clients a second of each system on ``device``, and as multiples of the bare loop's.

    Raises:
        ServiceError: a system failed.
    """
    absent = missing(("pfl",))
    names = [_BASELINE, "simulated", "simulated_dp", *(() if absent else ("pfl",))]
    task = replace(MLP, device=device, clients=clients)
    facts = circumstances()
    found = compare(names, task, turns, watch=_say, gemm=Gemm())
    baseline = found[_BASELINE].wall_ms
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if _is_cuda(device) else device,
        "clients": clients,
        "clients_per_s": {name: 1e3 / measured.wall_ms for name, measured in found.items()},
        "ratio": {
            f"{name}_over_{_BASELINE}": baseline / measured.wall_ms
            for name, measured in found.items()
            if name != _BASELINE
        },
        "systems": {name: measured.to_json() for name, measured in found.items()},
        "missing": absent,
        "circumstances": facts,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m fedlatent.simulations.bench.gpu"
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each system")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args(arguments)
    if _is_cuda(options.device) and not torch.cuda.is_available():
        sys.stderr.write(
            f"Expected a CUDA device {options.device!r}, but PyTorch {torch.__version__} finds "
            "none on this machine; use --device cpu to try the script.\n"
        )
        return NO_DEVICE
    report = measure_gpu(options.device, options.clients, options.repeats)
    if options.out is not None:
        write_json(options.out, report)
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


def _is_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def _say(sentence: str, share: float) -> None:
    sys.stderr.write(f"{sentence}\n")


if __name__ == "__main__":
    sys.exit(main())
