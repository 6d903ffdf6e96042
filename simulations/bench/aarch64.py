"""Every form of two scorers on emulated 64-bit ARM processors, against this machine.

The scorers are those of `fedlatent.simulations.bench.edge`, trained for a short time. Each form
becomes a signed bundle; `client/edge/deploy/check-aarch64.sh` verifies and scores it on x86-64 and
on ARM.

    fedlatent simulate bench aarch64 --set work=/tmp/aarch64
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedlatent.shared.bundle.archive import GOLDEN, SCORER, Bundle, read_bundle, write_bundle
from fedlatent.shared.bundle.graphs import make_golden
from fedlatent.shared.bundle.manifest import Precision, Runtime
from fedlatent.shared.data.catalog import data_folder, require
from fedlatent.shared.export.bundling import golden_records, make_bundle
from fedlatent.shared.export.compact import (
    to_fp16,
    to_int8_dynamic,
    to_int8_static,
    to_int8_weights,
)
from fedlatent.shared.export.targets import TOLERANCES
from fedlatent.shared.keys import SigningKey
from fedlatent.simulations.bench.edge import NEEDS, Subject, ecg, image

SCRIPT = Path(__file__).parents[2] / "client/edge/deploy/check-aarch64.sh"
SUBJECTS: Mapping[str, Callable[[Path, int], Subject]] = {"ecg": ecg, "image": image}
CALIBRATION = 128


def graphs(subject: Subject, fp32: bytes) -> dict[Precision, bytes]:
    """The scorer in every form, by precision."""
    calibration = subject.schema.preprocess(subject.public[:CALIBRATION])
    center = subject.contents.density.mean.astype(np.float32)
    return {
        "fp32": fp32,
        "fp16": to_fp16(fp32),
        "int8-weights": to_int8_weights(fp32),
        "int8-dynamic": to_int8_dynamic(fp32),
        "int8-static": to_int8_static(fp32, calibration, center),
    }


def write_form(
    path: Path, base: Bundle, graph: bytes, precision: Precision, key: SigningKey
) -> None:
    """Write the bundle ``base`` with another form of its scorer and golden outputs of that."""
    runtime = Runtime(precision=precision, tolerance=TOLERANCES[precision])
    manifest = replace(base.manifest, files={}, runtime=runtime)
    files = {**base.files, SCORER: graph}
    files[GOLDEN] = make_golden(manifest, files, golden_records(manifest.schema))
    write_bundle(path, manifest, files, key)


def check(subject: Subject, folder: Path, count: int) -> int:
    """Write all forms and ``count`` test records to ``folder``, and run the script on them.

    Returns:
        Exit code of the script: 1 when a form differs by more than its tolerance.
    """
    key = SigningKey.generate(folder / "key.pem")
    make_bundle(folder / "base.fedlatent", subject.contents, key)
    base = read_bundle(folder / "base.fedlatent", [key.public])
    paths = []
    for precision, graph in graphs(subject, base.files[SCORER]).items():
        path = folder / f"{subject.name}-{precision}.fedlatent"
        write_form(path, base, graph, precision, key)
        paths.append(str(path))
    chosen = np.random.default_rng(0).permutation(len(subject.test))[:count]
    np.savez(folder / "records.npz", X=subject.test[chosen])
    arguments = [f"{folder}/key.pem.pub", f"{folder}/records.npz", *paths]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([str(SCRIPT), *arguments], env=environment, check=False).returncode


def aarch64(
    *,
    data: Path | None = None,
    rounds: int = 20,
    records: int = 500,
    work: Path | None = None,
) -> int:
    """Check both scorers; 1 when a form differs by more than its tolerance.

    Args:
        data: folder of the data sets; by default that of ``data_folder``.
        rounds: of training, 20 steps each.
        records: that are scored.
        work: where the emulator is kept; by default it is not.
    """
    require(data_folder(data), NEEDS, "the benchmark aarch64")
    if work is not None:
        os.environ["WORK"] = str(work)
    codes = []
    for name, make in SUBJECTS.items():
        subject = make(data_folder(data), rounds)
        with tempfile.TemporaryDirectory(prefix=f"fedlatent-{name}-") as folder:
            codes.append(check(subject, Path(folder), records))
    return max(codes)
