"""Signed bundles: what their manifests say and the scores a device computes stay what they were."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.shared.keys import VerifyKey
from tests.golden.conftest import Finished
from tests.golden.files import check, outline, scrub

HERE = Path(__file__).parent


def records() -> np.ndarray:
    """Four records of a formula: waves that grow, faster each, within and beyond the bounds."""
    time = np.linspace(0.0, 2.0 * np.pi, 128)
    return np.stack([k * np.sin(k * time) for k in (0.5, 1.0, 2.0, 4.0)]).astype(np.float32)


def told(bundle: Path, key: Path, normals: np.ndarray | None, folder: Path) -> dict[str, Any]:
    """The manifest of a bundle, and what its model says of the records."""
    with zipfile.ZipFile(bundle) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        names = sorted(archive.namelist())
    model = EdgeModel.load(bundle, [VerifyKey.load(key)])
    scored = {}
    models = {"plain": model}
    if normals is not None:
        models["re-centred"] = model.recentre(normals, anyway=True)
    for name, one in models.items():
        table = one.score(records())
        scored[name] = {
            "score": table.score.tolist(),
            "flag": table.flag.tolist(),
            "threshold": table.threshold,
            "parts": {part: values.tolist() for part, values in table.parts.items()},
            "latents": outline(table.mu),
        }
    return {"manifest": scrub(manifest, folder), "files": names, "scored": scored}


def test_bundles_say_and_score_what_they_did(finished: Finished) -> None:
    """Manifest, names of files, scores, flags and thresholds of a global and of a site's bundle."""
    normals = np.load(finished.folder / "normals.npz")["X"]
    found = {
        "global": told(*finished.bundle("global"), normals, finished.folder),
        "site": told(*finished.bundle("site"), None, finished.folder),
    }
    check(HERE / "bundle.json", found)
