"""Throughput of one GPU: the whole simulated round beside the bare loop and pfl on that GPU.

``fedlatent simulate bench gpu`` prints JSON. Exit status 3: the machine has no such device.
"""

import json
import sys
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


def gpu(
    *, device: str = "cuda", clients: int = 1000, repeats: int = 3, out: Path | None = None
) -> int:
    """Measure and print; returns the exit status.

    Args:
        device: cuda, cuda:1 or cpu.
        clients: of a round.
        repeats: turns of each system.
        out: gets the JSON too.
    """
    if _is_cuda(device) and not torch.cuda.is_available():
        sys.stderr.write(
            f"Expected a CUDA device {device!r}, but PyTorch {torch.__version__} finds "
            "none on this machine; set device=cpu to try the script.\n"
        )
        return NO_DEVICE
    report = measure_gpu(device, clients, repeats)
    if out is not None:
        write_json(out, report)
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


def _is_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def _say(sentence: str, share: float) -> None:
    sys.stderr.write(f"{sentence}\n")
