import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.edge.footprint import edge_footprint
from fedlatent.shared.keys import SigningKey
from tests.shared.bundle import tiny

ROOT = Path(__file__).parents[3]
FORBIDDEN = ("torch", "flwr", "opacus", "pydantic", "pandas", "sklearn", "onnx", "safetensors")

PROGRAM = """
import json, sys
from pathlib import Path
from fedlatent.client.edge.footprint import edge_footprint
from fedlatent.client.edge.reader import read_records
from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.shared.keys import VerifyKey
model = EdgeModel.load(Path(sys.argv[1]), [VerifyKey.load(Path(sys.argv[2]))])
records = read_records(Path(sys.argv[3]), model.bundle.manifest.schema).records
first = model.score(records[:1])
seconds = edge_footprint().seconds
model.recentre(records[:30], anyway=True).score(records)
packages = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps([packages, seconds, edge_footprint().peak_mb]))
"""


def test_fresh_process_is_light(
    tmp_path: Path, signing_key: SigningKey, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that loads, scores and re-centres imports no heavy package and stays small."""
    bundle = tiny.write(tmp_path / "tiny.fedlatent", signing_key)
    (tmp_path / "key.pub").write_bytes(signing_key.public.to_pem())
    np.savez(tmp_path / "records.npz", X=tiny.raw_records(5000))
    arguments = [str(tmp_path / name) for name in (bundle.name, "key.pub", "records.npz")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    packages, seconds, peak_mb = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\nedge: first score {seconds:.2f} s after start, peak {peak_mb:.0f} MB")
    assert not set(FORBIDDEN) & set(packages)
    assert peak_mb <= 100
    assert 0 < seconds < 30


def test_package_import_is_free() -> None:
    """Importing the package alone loads neither numpy nor ONNX Runtime."""
    program = (
        "import sys, fedlatent.client.edge; "
        "print('numpy' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_footprint_measures_this_process() -> None:
    """Peak memory grows with an allocation, and the clock runs on."""
    before = edge_footprint()
    block = b"\1" * int(before.peak_mb * 1e6 + 1e7)
    time.sleep(0.05)
    after = edge_footprint()
    assert after.peak_mb > len(block) / 1e6 > before.peak_mb
    assert after.seconds >= before.seconds + 0.03
