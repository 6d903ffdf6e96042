"""Metrics of servers: SMD, ASD, NAB."""

import io
import json
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fedlatent.simulations.catalog.content import gzipped, npz

MACHINES = ("1-6", "2-1", "2-2", "2-8", "3-4")
_RAW = "https://raw.githubusercontent.com"
_OMNI = f"{_RAW}/NetManAIOps/OmniAnomaly/7fb0e0acf89ea49908896bcc9f9e80fcfff6baf4"
SMD = {
    f"{part}/machine-{one}.txt": f"{_OMNI}/ServerMachineDataset/{part}/machine-{one}.txt"
    for one in MACHINES
    for part in ("train", "test", "test_label")
}
SERVERS = range(1, 9)
_INTER = f"{_RAW}/zhhlee/InterFusion/8c85d511c1f070669ba8c5cf097b8fa4a202d15b"
ASD = {
    f"omi-{number}_{part}.pkl": f"{_INTER}/data/processed/omi-{number}_{part}.pkl"
    for number in SERVERS
    for part in ("train", "test", "test_label")
}
_NUMENTA = f"{_RAW}/numenta/NAB/ea702d75cc2258d9d7dd35ca8e5e2539d71f3140"
SERIES = (
    "realAWSCloudwatch/ec2_cpu_utilization_24ae8d",
    "realAWSCloudwatch/ec2_cpu_utilization_53ea38",
    "realAWSCloudwatch/ec2_cpu_utilization_77c1ca",
    "realAWSCloudwatch/ec2_cpu_utilization_825cc2",
    "realAWSCloudwatch/ec2_cpu_utilization_c6585a",
    "realAWSCloudwatch/ec2_cpu_utilization_fe7f93",
    "realAWSCloudwatch/ec2_disk_write_bytes_1ef3de",
    "realAWSCloudwatch/ec2_disk_write_bytes_c0d644",
    "realAWSCloudwatch/ec2_network_in_257a54",
    "realAWSCloudwatch/grok_asg_anomaly",
    "realAWSCloudwatch/iio_us-east-1_i-a2eb1cd9_NetworkIn",
    "realAWSCloudwatch/rds_cpu_utilization_cc0c53",
    "realKnownCause/ambient_temperature_system_failure",
    "realKnownCause/ec2_request_latency_system_failure",
    "realKnownCause/nyc_taxi",
    "realKnownCause/rogue_agent_key_hold",
    "realKnownCause/rogue_agent_key_updown",
    "realTraffic/TravelTime_387",
    "realTraffic/TravelTime_451",
    "realTraffic/occupancy_t4013",
    "realTraffic/speed_6005",
    "realTraffic/speed_t4013",
)
_LABELS = "labels/combined_windows.json"
NAB = {name: f"{_NUMENTA}/{name}" for name in (*(f"data/{one}.csv" for one in SERIES), _LABELS)}


def smd(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """A file a machine: metrics float32 [T, 38], labels uint8 [T]; column by column."""
    found = {}
    for one in MACHINES:
        train, test, label = (
            np.loadtxt(
                io.BytesIO(originals[f"{part}/machine-{one}.txt"]), delimiter=",", dtype=kind
            )
            for part, kind in (("train", "f4"), ("test", "f4"), ("test_label", "f4"))
        )
        found[f"smd_machine-{one}.npz"] = npz(
            {
                "train": np.asfortranarray(train),
                "test": np.asfortranarray(test),
                "test_label": label.astype(np.uint8),
            }
        )
    return found


def asd(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """One file of all servers: metrics float32 [T, 19], labels uint8 [T]."""
    arrays = {}
    for number in SERVERS:
        for part, kind in (("train", np.float32), ("test", np.float32), ("test_label", np.uint8)):
            array = plain_pickle(originals[f"omi-{number}_{part}.pkl"])
            name = f"s{number:02d}_{part.removeprefix('test_') if part == 'test_label' else part}"
            arrays[name] = np.asarray(array).astype(kind)
    return {"asd_servers.npz": npz(arrays)}


def nab(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """One table of all series; a row within a window of the labels is an anomaly."""
    windows = json.loads(originals[_LABELS])
    parts = []
    for name in SERIES:
        frame = pd.read_csv(io.BytesIO(originals[f"data/{name}.csv"]), dtype={"value": str})
        frame.insert(0, "series", name)
        times = pd.to_datetime(frame["timestamp"])
        inside = np.zeros(len(frame), dtype=np.int64)
        for first, last in windows[f"{name}.csv"]:
            inside |= times.between(pd.Timestamp(first), pd.Timestamp(last)).to_numpy(np.int64)
        frame["anomaly"] = inside
        parts.append(frame)
    whole = pd.concat(parts, ignore_index=True)
    return {"nab_real.csv.gz": gzipped(whole.to_csv(index=False, lineterminator="\n").encode())}


class _Plain(pickle.Unpickler):
    """Arrays of NumPy and nothing else, for a pickle can run any program."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as Unpickler has it
        core = ("numpy.core.multiarray", "numpy._core.multiarray")
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")} or (
            module in core and name in {"_reconstruct", "scalar"}
        ):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise ValueError(f"a pickle that asks for {module}.{name}")


def plain_pickle(data: bytes) -> Any:  # noqa: ANN401 - what was pickled
    """A pickled array of NumPy.

    Raises:
        ValueError: The pickle asks for anything else, or is none.
    """
    try:
        return _Plain(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError) as error:
        raise ValueError(f"no pickle of an array ({type(error).__name__})") from error
