"""The commands on whole files: what they say of records outside the public bounds."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.edge.main import main
from fedlatent.shared.keys import SigningKey
from tests.shared.bundle import tiny

RAW = tiny.raw_records(300, seed=4) // 4


@pytest.fixture
def where(tmp_path: Path, signing_key: SigningKey) -> list[str]:
    """A bundle and its key, as arguments; their folder holds the right records, and others."""
    (tmp_path / "key.pub").write_bytes(signing_key.public.to_pem())
    tiny.write(tmp_path / "tiny.fedlatent", signing_key)
    for name, rows in (("right", RAW), ("wrong", RAW.astype(float) * 100)):
        np.savetxt(tmp_path / f"{name}.csv", rows, delimiter=",", fmt="%g")
    return [str(tmp_path / "tiny.fedlatent"), "--key", str(tmp_path / "key.pub")]


def test_rows_in_another_unit_are_said(
    tmp_path: Path, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows times 100 are said to lie outside the bounds, apart from their score; right ones not."""
    for name, outside in (("right", 0), ("wrong", 300)):
        assert main(["score", where[0], str(tmp_path / f"{name}.csv"), *where[1:], "--json"]) == 0
        out, err = capsys.readouterr()
        found = json.loads(out)
        rows = np.loadtxt(tmp_path / f"{name}.csv", delimiter=",")
        assert found["outside"] == outside
        assert found["clipped"] == tiny.SCHEMA.outside(rows).tolist()
        said = "warning: wrong.csv: 300 of 300 records lie outside the public bounds; "
        assert err.startswith(said) if outside else not err
        assert ("% of all values lie beyond the bounds" in err) == bool(outside)
    assert main(["score", where[0], str(tmp_path / "wrong.csv"), *where[1:]]) == 0
    assert "300 outside the public bounds" in capsys.readouterr().out


def test_a_table_of_another_dialect_is_read_as_it_is_said(
    tmp_path: Path, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Semicolons, decimal commas and UTF-16 score as the same records do, and are hinted at."""
    path = tmp_path / "export.csv"
    lines = [";".join(f"{value},0" for value in row) for row in RAW.tolist()]
    path.write_bytes("\r\n".join(lines).encode("utf-16"))
    said = ["--delimiter", ";", "--decimal", ",", "--encoding", "utf-16", "--no-header"]
    assert main(["score", where[0], str(tmp_path / "right.csv"), *where[1:], "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)["scores"]
    assert main(["score", where[0], str(path), *where[1:], "--json", *said]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == expected
    for options, hint in (([], "encoding='utf-16'"), (said[4:6], "delimiter=';' decimal=','")):
        assert main(["score", where[0], str(path), *where[1:], *options]) == 3
        assert hint in capsys.readouterr().err
    assert main(["score", where[0], str(path), *where[1:], "--delimiter", "x"]) == 2
    assert "Expected delimiter to be one of" in capsys.readouterr().err


def test_what_is_learnt_outside_the_bounds_is_refused(
    tmp_path: Path, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Calibrating and re-centring on records in another unit stop unless somebody accepts it."""
    wrong, made = str(tmp_path / "wrong.csv"), str(tmp_path / "made")
    right = str(tmp_path / "right.csv")
    calls = [
        ["calibrate", where[0], wrong, "--out", made, "--json"],
        ["score", where[0], right, "--normals", wrong, "--json"],
    ]
    for call in calls:
        assert main([*call, *where[1:]]) == 3
        out, err = capsys.readouterr()
        error = json.loads(out)["error"]
        assert error["reason"] == "clipped"
        assert "times too large" in error["message"]
        assert "wrong.csv" in err
        assert not Path(made).exists()
        assert main([*call, *where[1:], "--accept"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["outside"] == (0 if call[0] == "score" else 300)
        assert err.startswith("warning: wrong.csv: ")
        Path(made).unlink(missing_ok=True)


def test_encoding_records_outside_the_bounds_is_said(
    tmp_path: Path, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Latents of records in another unit are written with a warning, and counted."""
    call = ["encode", where[0], str(tmp_path / "wrong.csv"), "--out", str(tmp_path / "made")]
    assert main([*call, "--json", *where[1:]]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["outside"], err.count("300 of 300 records")) == (300, 1)


def test_table_of_scores_counts_clipped_values(tmp_path: Path, where: list[str]) -> None:
    """The CSV of scores has, for each record, how many of its values were clipped."""
    made = tmp_path / "scores.csv"
    call = ["score", where[0], str(tmp_path / "wrong.csv"), "--out", str(made), "--json"]
    assert main([*call, *where[1:]]) == 0
    with made.open() as stream:
        rows = list(csv.DictReader(stream))
    expected = tiny.SCHEMA.outside(RAW.astype(float) * 100).tolist()
    assert [int(row["clipped"]) for row in rows] == expected
