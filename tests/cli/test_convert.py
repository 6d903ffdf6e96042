"""``fedlatent data convert``: records of any source, as a device takes them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from tests.cli.conftest import Run


def shots(root: Path) -> Path:
    """A folder of 60 images in good/ and 20 in bad/, 8 x 8 pixels."""
    rng = np.random.default_rng(0)
    for kind, count, light in (("good", 60, 40), ("bad", 20, 160)):
        (root / kind).mkdir(parents=True)
        for at in range(count):
            pixels = rng.integers(0, 60, (8, 8)) + light
            Image.fromarray(pixels.astype(np.uint8)).save(root / kind / f"{at:02}.png")
    return root


def test_a_folder_of_images_goes_from_training_to_a_device(run: Run, tmp_path: Path) -> None:
    """Trained as they lie, and scored as the array that they were converted to."""
    place, bundle = shots(tmp_path / "shots"), tmp_path / "shots.fedlatent"
    labels = ["--label", "folder", "--normal-label", "good"]
    code, printed, error = run("train", place, *labels, "-o", bundle, "--json")
    assert code == 0, error
    assert json.loads(printed)["auroc"]["took part"]["fedlatent"] > 0.95
    target = tmp_path / "shots.npz"
    code, printed, error = run("data", "convert", place, target, *labels)
    assert code == 0, error
    assert printed.startswith("80 records of shape [8, 8] in ")
    with np.load(target) as arrays:
        label = arrays["label"]
        assert label.tolist() == [1] * 20 + [0] * 60
    code, printed, error = run(
        "edge", "score", bundle, target, "--key", tmp_path / "publisher.pem.pub", "--json"
    )
    assert code == 0, error
    scores = np.array(json.loads(printed)["scores"])
    assert scores[label == 1].min() > np.median(scores[label == 0])


def test_a_simulation_takes_a_folder_of_images(run: Run, tmp_path: Path) -> None:
    """Without a study, a folder is that of the records."""
    code, _, error = run(
        *("simulate", "run", "--data", shots(tmp_path / "shots"), "--label", "folder"),
        *("--normal-label", "good", "--quick", "--out", tmp_path / "out", "--json"),
    )
    assert code == 0, error
    assert (tmp_path / "out" / "report.html").is_file()


def test_columns_and_windows_are_those_of_the_schema(run: Run, tmp_path: Path) -> None:
    """A table's columns are found by name, and its rows cut into records."""
    table, schema, target = tmp_path / "t.parquet", tmp_path / "t.toml", tmp_path / "t.npz"
    pd.DataFrame({"b": ["x", "y"] * 6, "a": np.arange(12.0)}).to_parquet(table)
    schema.write_text(
        '[data]\nname = "t"\n[[data.columns]]\nname = "a"\nupper = 20\n'
        '[[data.columns]]\nname = "b"\nlevels = ["x", "y"]\n[data.window]\nlength = 4\nstep = 4\n'
    )
    code, printed, error = run("data", "convert", table, target, "--schema", schema, "--json")
    assert code == 0, error
    assert json.loads(printed)["shape"] == [3, 2, 4]
    with np.load(target) as arrays:
        assert arrays["X"][1].tolist() == [[4, 5, 6, 7], [0, 1, 0, 1]]


def test_what_cannot_be_is_one_sentence(run: Run, tmp_path: Path) -> None:
    """A target that is no NPZ, and an array with labels that it has not, write nothing."""
    np.save(tmp_path / "x.npy", np.zeros((5, 3)))
    code, _, error = run("data", "convert", tmp_path / "x.npy", tmp_path / "x.csv")
    assert (code, "ending in .npz, got 'x.csv'" in error) == (2, True), error
    code, _, error = run("data", "convert", tmp_path / "x.npy", tmp_path / "x.npz", "--label", "y")
    assert (code, "no 'y' for x.npy" in error) == (3, True), error
    assert not (tmp_path / "x.npz").exists()


def test_the_records_themselves_are_not_written_over(run: Run, tmp_path: Path) -> None:
    """By any of their names; they hold more than is converted."""
    path, other = tmp_path / "x.npz", tmp_path / "y.npz"
    np.savez(path, X=np.zeros((5, 3)), y=np.zeros(5))
    other.symlink_to(path)
    before = path.read_bytes()
    for target in (path, other):
        code, _, error = run("data", "convert", path, target)
        assert (code, "got the file itself" in error) == (2, True), error
    assert path.read_bytes() == before


def test_what_is_left_out_is_told(run: Run, tmp_path: Path) -> None:
    """Scores of a device stand in the order of what was converted, not of the file."""
    (tmp_path / "x.smi").write_text("CCO\n[Na+].[Cl-]\nCC\n")
    schema = tmp_path / "x.toml"
    code, _, error = run("data", "describe", tmp_path / "x.smi", "-o", schema)
    assert code == 0, error
    convert = ("data", "convert", tmp_path / "x.smi", tmp_path / "x.npz", "--schema", schema)
    code, printed, error = run(*convert)
    assert (code, printed.startswith("2 records")) == (0, True), error
    assert "warning: left out: 1 more than one part, as salts have" in error
    _, printed, _ = run(*convert, "--json")
    assert json.loads(printed)["left_out"] == {"more than one part, as salts have": 1}
