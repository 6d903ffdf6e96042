"""Golden files: written rounded, compared within a tolerance, without what differs by the run."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

WRITE = os.environ.get("FEDLATENT_WRITE_GOLDEN") == "1"
TOLERANCE = 1e-4  # relative; two processors round differently
_SHOWN = 20

#: Keys whose values no seed decides, and what is written in their place.
_PASSING = {
    **dict.fromkeys(("charged", "created", "finished", "started", "updated", "time"), "<time>"),
    **dict.fromkeys(("first_seen", "last_seen", "seconds", "checked_seconds_ago"), "<time>"),
    **dict.fromkeys(("clients_per_second", "process"), "<speed>"),
    **dict.fromkeys(("golden_error", "parity"), "<rounding>"),
    **dict.fromkeys(("bytes", "model_bytes"), "<size>"),  # of text with times, of graphs
    **dict.fromkeys(("opset", "min_onnxruntime"), "<library>"),
}
_PATTERNS = (
    (re.compile(r"-----BEGIN .*?-----END [A-Z ]+-----\n?", re.DOTALL), "<pem>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?"), "<time>"),
    (re.compile(r"\b[0-9a-f]{16,}\b"), "<hex>"),
)


def scrub(value: Any, folder: Path) -> Any:  # noqa: ANN401 - JSON
    """The JSON value without times, hashes, keys and the path of the temporary ``folder``."""
    if isinstance(value, Mapping):
        return {
            scrub(key, folder): _PASSING[key]
            if key in _PASSING and one is not None
            else scrub(one, folder)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [scrub(one, folder) for one in value]
    if isinstance(value, str):
        value = value.replace(str(folder), "<folder>")
        for pattern, words in _PATTERNS:
            value = pattern.sub(words, value)
    return value


def outline(array: np.ndarray) -> dict[str, Any]:
    """A tensor in four facts: shape, norm, sum, and a sum that knows the order of its values."""
    flat = np.asarray(array, dtype=np.float64).ravel()
    return {
        "shape": list(np.shape(array)),
        "norm": float(np.linalg.norm(flat)),
        "sum": float(flat.sum()),
        "ramp": float(flat @ np.linspace(-1.0, 1.0, flat.size)),
    }


def check(path: Path, value: Any) -> None:  # noqa: ANN401 - JSON
    """Compare with a golden file, or write it where the environment says so."""
    value = _rounded(value)
    if WRITE:
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
        path.write_text(text, encoding="utf-8")
    found = list(_differences(json.loads(path.read_text(encoding="utf-8")), value, path.stem))
    more = len(found) - _SHOWN
    told = "\n".join(found[:_SHOWN] + ([f"and {more} more"] if more > 0 else []))
    assert not found, f"{len(found)} values differ from {path.name}:\n{told}"


def _rounded(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, Mapping):
        return {str(key): _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _differences(golden: Any, value: Any, where: str, slack: float = 0.0) -> Iterator[str]:  # noqa: ANN401
    if isinstance(golden, dict) and isinstance(value, dict):
        for key in sorted(golden.keys() | value.keys()):
            if key not in value:
                yield f"{where}.{key}: gone, was {golden[key]!r}"[:300]
            elif key not in golden:
                yield f"{where}.{key}: new, {value[key]!r}"[:300]
            else:  # sums may cancel out: they are as exact as their tensor is long
                norm = golden.get("norm") if {"ramp", "sum"} <= golden.keys() else None
                yield from _differences(
                    golden[key], value[key], f"{where}.{key}", TOLERANCE * (norm or 0.0)
                )
    elif isinstance(golden, list) and isinstance(value, list):
        if len(golden) != len(value):
            yield f"{where}: {len(value)} values, were {len(golden)}"
        for place, (one, other) in enumerate(zip(golden, value, strict=False)):
            yield from _differences(one, other, f"{where}[{place}]")
    elif not _agree(golden, value, slack):
        yield f"{where}: {value!r}, was {golden!r}"


def _agree(golden: Any, value: Any, slack: float) -> bool:  # noqa: ANN401 - JSON
    if type(golden) is not type(value):
        return False
    if isinstance(golden, float):
        return math.isclose(golden, value, rel_tol=TOLERANCE, abs_tol=max(slack, 1e-12))
    return bool(golden == value)
