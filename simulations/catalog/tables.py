"""Tables: network connections, patients, loads of transformers."""

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd

from fedlatent.simulations.catalog.content import gzipped

_KDD = "https://raw.githubusercontent.com/defcom17/NSL_KDD/27bbbdf5c5cccf9970b8b6037a0f19dc09c5a0a9"
NSL_KDD = {
    "KDDTrain+_20Percent.txt": f"{_KDD}/KDDTrain%2B_20Percent.txt",
    "KDDTest+.txt": f"{_KDD}/KDDTest%2B.txt",
}
_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease"
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
HEART_DISEASE = {f"processed.{one}.data": f"{_UCI}/processed.{one}.data" for one in HOSPITALS}
_ETT = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small"
ETTH1 = {"ETTh1.csv": f"{_ETT}/ETTh1.csv"}
ETTH2 = {"ETTh2.csv": f"{_ETT}/ETTh2.csv"}

KDD_COLUMNS = (
    *("duration", "protocol_type", "service", "flag", "src_bytes", "dst_bytes", "land"),
    *("wrong_fragment", "urgent", "hot", "num_failed_logins", "logged_in", "num_compromised"),
    *("root_shell", "su_attempted", "num_root", "num_file_creations", "num_shells"),
    *("num_access_files", "num_outbound_cmds", "is_host_login", "is_guest_login", "count"),
    *("srv_count", "serror_rate", "srv_serror_rate", "rerror_rate", "srv_rerror_rate"),
    *("same_srv_rate", "diff_srv_rate", "srv_diff_host_rate", "dst_host_count"),
    *("dst_host_srv_count", "dst_host_same_srv_rate", "dst_host_diff_srv_rate"),
    *("dst_host_same_src_port_rate", "dst_host_srv_diff_host_rate", "dst_host_serror_rate"),
    *("dst_host_srv_serror_rate", "dst_host_rerror_rate", "dst_host_srv_rerror_rate"),
)
#: Attacks by category (Tavallaee et al., 2009).
_ATTACKS = {
    "normal": "normal",
    "dos": "apache2 back land mailbomb neptune pod processtable smurf teardrop udpstorm worm",
    "probe": "ipsweep mscan nmap portsweep saint satan",
    "r2l": "ftp_write guess_passwd httptunnel imap multihop named phf sendmail snmpgetattack "
    "snmpguess spy warezclient warezmaster xlock xsnoop",
    "u2r": "buffer_overflow loadmodule perl ps rootkit sqlattack xterm",
}
CATEGORY = {attack: category for category, text in _ATTACKS.items() for attack in text.split()}
HEART_COLUMNS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak"),
    *("slope", "ca", "thal", "num"),
)


def nsl_kdd(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """Names for the columns, and the category of each attack; all rows, in their order."""
    found = {}
    for original, name in (("KDDTrain+_20Percent.txt", "train20"), ("KDDTest+.txt", "test")):
        columns = [*KDD_COLUMNS, "attack", "difficulty"]
        frame = pd.read_csv(io.BytesIO(originals[original]), names=columns)
        frame["category"] = frame["attack"].map(CATEGORY)
        if frame["category"].isna().any():
            raise ValueError(f"{original} has attacks without a category")
        found[f"nsl_kdd_{name}.csv.gz"] = _table(frame)
    return found


def heart_disease(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """One table of the four hospitals' files; what is "?" (or -9) at UCI is empty."""
    parts = []
    for hospital in HOSPITALS:
        text = originals[f"processed.{hospital}.data"]
        frame = pd.read_csv(
            io.BytesIO(text), names=list(HEART_COLUMNS), na_values=["?", "-9", "-9.0"]
        )
        if frame["num"].isna().any():
            raise ValueError(f"processed.{hospital}.data has rows without a diagnosis")
        frame.insert(0, "hospital", hospital)
        parts.append(frame)
    whole = pd.concat(parts, ignore_index=True)
    whole["disease"] = (whole["num"] > 0).astype(np.int64)
    return {"heart_disease.csv.gz": _table(whole)}


def verbatim(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files as they are, gzipped: their licence allows no other form."""
    return {f"{name}.gz": gzipped(text) for name, text in originals.items()}


def _table(frame: pd.DataFrame) -> bytes:
    return gzipped(frame.to_csv(index=False, lineterminator="\n").encode())
