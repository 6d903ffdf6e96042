"""Federations from real tables: patients of four hospitals, network connections by service.

Rows are numbers of a known public range each; text columns are one-hot. Ranges and constants for
what was not measured are medical or technical limits, never taken from the data.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedlatent.shared.data.catalog import paths
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.sources import Federation, SiteData, split_site
from fedlatent.shared.errors import DataError

#: Public range of each measured column, and the value that stands for one that was not measured.
_HEART_RANGES: dict[str, tuple[float, float, float]] = {
    "age": (20.0, 90.0, 55.0),
    "sex": (0.0, 1.0, 0.5),
    "trestbps": (80.0, 200.0, 130.0),
    "chol": (100.0, 500.0, 220.0),
    "fbs": (0.0, 1.0, 0.0),
    "thalach": (60.0, 210.0, 140.0),
    "exang": (0.0, 1.0, 0.0),
    "oldpeak": (-2.0, 5.0, 0.0),
    "ca": (0.0, 3.0, 0.0),
}
_HEART_CHOICES: dict[str, tuple[float, ...]] = {
    "cp": (1.0, 2.0, 3.0, 4.0),
    "restecg": (0.0, 1.0, 2.0),
    "slope": (1.0, 2.0, 3.0),
    "thal": (3.0, 6.0, 7.0),
}
#: Zero stands for "not measured" in these.
_HEART_ZERO = ("trestbps", "chol")

#: Columns of NSL-KDD that count something, with the public end of log(1 + count).
_KDD_COUNTS: dict[str, float] = {
    "duration": 11.0,
    "src_bytes": 21.0,
    "dst_bytes": 21.0,
    "wrong_fragment": 1.4,
    "urgent": 1.4,
    "hot": 4.6,
    "num_failed_logins": 1.8,
    "num_compromised": 7.0,
    "num_root": 7.0,
    "num_file_creations": 4.6,
    "num_shells": 1.4,
    "num_access_files": 2.4,
    "count": 6.25,
    "srv_count": 6.25,
    "dst_host_count": 5.6,
    "dst_host_srv_count": 5.6,
}
_KDD_SHARES = (
    *("land", "logged_in", "root_shell", "su_attempted", "is_host_login", "is_guest_login"),
    *("serror_rate", "srv_serror_rate", "rerror_rate", "srv_rerror_rate", "same_srv_rate"),
    *("diff_srv_rate", "srv_diff_host_rate", "dst_host_same_srv_rate", "dst_host_diff_srv_rate"),
    *("dst_host_same_src_port_rate", "dst_host_srv_diff_host_rate", "dst_host_serror_rate"),
    *("dst_host_srv_serror_rate", "dst_host_rerror_rate", "dst_host_srv_rerror_rate"),
)
_KDD_CHOICES: dict[str, tuple[str, ...]] = {
    "protocol_type": ("tcp", "udp", "icmp"),
    "flag": ("SF", "S0", "REJ", "RSTR", "RSTO"),
}
#: Services that are clients by themselves; all others are one client together.
_KDD_SERVICES = (*("http", "domain_u", "smtp", "ftp_data", "other", "telnet", "private", "ftp"),)
_REST = "rest"


def heart_disease(data_dir: Path, seed: int = 0) -> Federation:
    """Load heart patients of four hospitals, one client a hospital; disease is the anomaly.

    A hospital trains on 70 % of its patients without disease and is tested on the others and on
    all with disease. What was not measured is a public constant, or none of the choices.

    Args:
        data_dir: Folder of the data set heart_disease.
        seed: Draws training and test.

    Raises:
        DataError: If the file is not in `data_dir` or is not as expected.
    """
    frame = _table(
        paths(data_dir, "heart_disease")[0],
        ["hospital", "disease", *_HEART_RANGES, *_HEART_CHOICES],
    )
    columns: list[NDArray[np.float64]] = []
    for name, (low, high, unknown) in _HEART_RANGES.items():
        values = frame[name].to_numpy(dtype=np.float64)
        if name in _HEART_ZERO:
            values = np.where(values == 0.0, np.nan, values)
        filled = np.where(np.isnan(values), unknown, values)
        columns.append(np.clip((filled - low) / (high - low), 0.0, 1.0))
    columns += _one_hot(frame, _HEART_CHOICES)
    rows = np.stack(columns, axis=1).astype(np.float32)
    kind = np.where(frame["disease"] == 1, "disease", "normal").astype(np.str_)
    hospital, rng = frame["hospital"].to_numpy(), np.random.default_rng(seed)
    sites = [
        split_site(name, rows[mine], kind[mine], (kind[mine] == "disease").astype(np.uint8), rng)
        for name in sorted(set(hospital.tolist()))
        for mine in [hospital == name]
    ]
    return Federation(
        name="heart_disease",
        schema=_schema("heart-patient", rows),
        sites=tuple(sites),
        synthetic=False,
        note=f"{len(frame)} patients of four hospitals (UCI, Janosi et al.), one client a "
        "hospital; anomalies are patients with heart disease.",
    )


def nsl_kdd(data_dir: Path) -> Federation:
    """Load network connections (NSL-KDD), one client a service; attacks are the anomalies.

    Training records are the normal ones of the training file; the test is the official one, where
    18 attacks occur that the training file lacks.

    Args:
        data_dir: Folder of the data set nsl_kdd.

    Raises:
        DataError: If a file is not in `data_dir` or is not as expected.
    """
    wanted = ["service", "category", *_KDD_COUNTS, *_KDD_SHARES, *_KDD_CHOICES]
    train, test = (_table(path, wanted) for path in paths(data_dir, "nsl_kdd"))
    train = train[train["category"] == "normal"]
    rows, tested = _connections(train), _connections(test)
    owners = [
        np.where(frame["service"].isin(_KDD_SERVICES), frame["service"], _REST)
        for frame in (train, test)
    ]
    kind = test["category"].to_numpy(dtype=np.str_)
    sites = [
        SiteData(
            name=name,
            train=rows[owners[0] == name],
            test=tested[mine],
            test_label=(kind[mine] != "normal").astype(np.uint8),
            test_kind=kind[mine],
            extra=tested[:0],
            extra_kind=kind[:0],
        )
        for name in (*_KDD_SERVICES, _REST)
        for mine in [owners[1] == name]
    ]
    return Federation(
        name="nsl_kdd",
        schema=_schema("connection", rows),
        sites=tuple(sites),
        synthetic=False,
        note="Network connections (NSL-KDD, Tavallaee et al. 2009), one client for each of "
        f"{len(_KDD_SERVICES)} services and one for the rest; anomalies are attacks.",
    )


def contaminate(federation: Federation, share: float, seed: int) -> Federation:
    """Put anomalies among the training records, so that they make up ``share`` of them.

    They are taken from the client's own test, which loses them, and labelled as normal. A client
    with too few anomalies gives half of them at most.

    Args:
        federation: Whose records.
        share: Of the training records after the change, 0 to less than 0.5.
        seed: Draws the anomalies.

    Raises:
        ValueError: If `share` is outside its range.
    """
    if not 0.0 <= share < 0.5:
        raise ValueError(f"Expected a share from 0 to less than 0.5, got {share}.")
    if share == 0.0:
        return federation
    rng = np.random.default_rng(seed)
    sites = []
    for site in federation.sites:
        anomalies = rng.permutation(np.flatnonzero(site.test_label == 1))
        wanted = round(share / (1.0 - share) * len(site.train))
        taken = anomalies[: min(wanted, len(anomalies) // 2)]
        keep = np.setdiff1d(np.arange(len(site.test)), taken)
        kinds = site.train_kind
        sites.append(
            replace(
                site,
                train=np.concatenate([site.train, site.test[taken].astype(site.train.dtype)]),
                test=site.test[keep],
                test_label=site.test_label[keep],
                test_kind=site.test_kind[keep],
                train_kind=None
                if kinds is None
                else np.concatenate([kinds, site.test_kind[taken]]),
            )
        )
    note = f"{federation.note} Up to {share:.0%} of the training records are anomalies."
    return replace(federation, sites=tuple(sites), note=note)


def _connections(frame: pd.DataFrame) -> NDArray[np.float32]:
    """Connections as numbers in [0, 1]: [N, features]."""
    columns = [
        np.clip(np.log1p(frame[name].to_numpy(dtype=np.float64)) / end, 0.0, 1.0)
        for name, end in _KDD_COUNTS.items()
    ]
    columns += [np.clip(frame[name].to_numpy(dtype=np.float64), 0.0, 1.0) for name in _KDD_SHARES]
    columns += _one_hot(frame, _KDD_CHOICES)
    return np.stack(columns, axis=1).astype(np.float32)


def _one_hot(
    frame: pd.DataFrame, choices: Mapping[str, tuple[float, ...] | tuple[str, ...]]
) -> list[NDArray[np.float64]]:
    return [
        np.asarray(frame[name] == value, dtype=np.float64)
        for name, values in choices.items()
        for value in values
    ]


def _schema(name: str, rows: NDArray[np.float32]) -> Schema:
    return Schema(
        name=name,
        shape=(rows.shape[1],),
        unit="",
        scale=1.0,
        center="none",
        lower=0.0,
        upper=1.0,
    )


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"Expected the table {path.name} in {path.parent}, got: {error}; check it."
        ) from None
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise DataError(f"Expected columns {missing[:3]} in {path}, got none; check the file.")
    return frame
