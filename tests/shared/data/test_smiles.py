"""Molecules are read as tokens from SMILES files and from tables with a column of them."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter

from fedlatent.shared.config import Data
from fedlatent.shared.data.checks import check
from fedlatent.shared.data.describe import describe
from fedlatent.shared.data.readers import read_raw
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.selfies_tokens import (
    canonical,
    molecule_schema,
    to_records,
    to_smiles,
)
from fedlatent.shared.errors import DataError

SCHEMA = molecule_schema(16)
SMILES = ["CCO", "[Na+].[Cl-]", "C[C@H](N)C(=O)O", "C" * 40, "no molecule", "[13CH4]", "c1ccccc1"]
KEPT = ["CCO", "CC(N)C(=O)O", "C", "c1ccccc1"]


def lines(path: Path) -> Path:
    """A SMILES file with names, a comment and an empty line."""
    text = "# of the lab\n" + "\n".join(f"{one}\tname {at}" for at, one in enumerate(SMILES))
    path.write_text(text.replace("no molecule", "no_molecule") + "\n\n")
    return path


def test_a_smiles_file_is_rows_of_tokens(tmp_path: Path) -> None:
    """Marks of stereo and isotopes are taken off; what has no tokens is left out and counted."""
    raw = read_raw(lines(tmp_path / "x.smi"), SCHEMA, client_key="name")
    assert to_smiles(raw.records) == KEPT
    assert raw.client_id is not None
    assert raw.client_id.tolist() == ["name 0", "name 2", "name 5", "name 6"]
    assert raw.left_out == {
        "more than one part, as salts have": 1,
        "longer than 16 tokens": 1,
        "no molecule that RDKit reads": 1,
    }
    packed = tmp_path / "y.SMI.gz"
    packed.write_bytes(gzip.compress((tmp_path / "x.smi").read_bytes()))
    np.testing.assert_array_equal(read_raw(packed, SCHEMA).records, raw.records)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_column_of_a_table_holds_molecules(tmp_path: Path, ending: str) -> None:
    """By its name; labels and clients go with the molecules that are kept."""
    path = tmp_path / f"x.{ending}"
    frame = pd.DataFrame({"drug": SMILES, "toxic": [0, 1, 1, 1, 1, 0, 0], "lab": list("abcdefg")})
    {"csv": lambda to: frame.to_csv(to, index=False), "parquet": frame.to_parquet}[ending](path)
    raw = read_raw(path, SCHEMA, columns=["drug"], label_key="toxic", client_key="lab")
    assert to_smiles(raw.records) == KEPT
    assert raw.label is not None
    assert raw.label.tolist() == [0, 1, 0, 0]
    assert raw.client_id is not None
    assert raw.client_id.tolist() == ["a", "c", "f", "g"]
    with pytest.raises(DataError, match=r"columns? '?smiles"):
        read_raw(path, SCHEMA)
    with pytest.raises(DataError, match=r"one column of SMILES in x\..*, got 2"):
        read_raw(path, SCHEMA, columns=["drug", "lab"])


def test_many_molecules_left_out_stop(tmp_path: Path) -> None:
    """The check says how many and why, and more than a tenth of the file stops it."""
    raw = read_raw(lines(tmp_path / "x.smi"), SCHEMA)
    (found,) = check(raw.records, SCHEMA, left_out=raw.left_out).findings
    assert (found.kind, found.severity) == ("left-out", "stop")
    assert found.text.startswith("3 of about 7 are left out: 1 ")
    (few,) = check(np.tile(raw.records, (10, 1)), SCHEMA, left_out={"too long": 3}).findings[-1:]
    assert few.severity == "warning"


def test_a_proposal_reads_its_own_file(tmp_path: Path) -> None:
    """Its length holds the longest molecule, and its range is that of the alphabet."""
    path = lines(tmp_path / "x.smi")
    schema: Schema = TypeAdapter(Data).validate_python(describe(path).data)
    assert schema.shape == (40,)
    assert len(read_raw(path, schema).records) == 5


def test_files_without_molecules_are_refused(tmp_path: Path) -> None:
    """None that can be used, no schema, and bytes that are no text are one sentence each."""
    (tmp_path / "none.smi").write_text("[Na+]\nC(\n")
    with pytest.raises(DataError, match=r"molecules in none\.smi, got none .* of 2: 1 "):
        read_raw(tmp_path / "none.smi", SCHEMA)
    with pytest.raises(DataError, match="Expected a schema of molecules"):
        read_raw(tmp_path / "none.smi")
    (tmp_path / "bytes.smi").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"lines of SMILES in bytes\.smi, got a Unicode"):
        read_raw(tmp_path / "bytes.smi", SCHEMA)


@pytest.mark.parametrize(
    "text",
    ["C(C)(C)(C)(C)C", "F(F)F", "=C", "cc", "SS33s", "F:s", "CC>>CO", "", "c1cccc1", "S" * 9 + "s"],
)
def test_what_is_no_molecule_has_no_tokens(text: str) -> None:
    """Nor does what the parser of SELFIES takes, or falls over, and RDKit does not."""
    found = to_records(["CCO", text], 16)
    assert found.kept.tolist() == [0]
    assert found.left_out == {"no molecule that RDKit reads": 1}


def test_tokens_stand_for_the_molecule_that_was_read() -> None:
    """More bonds than the alphabet's rules know would come back as another molecule."""
    smiles = ["OS(=O)(=O)O", "CN(=O)=O", "Cl(=O)(=O)(=O)O", "CP(=O)(O)O"]
    found = to_records(smiles, 24)
    assert to_smiles(found.records) == [canonical(smiles[at]) for at in (0, 1, 3)]
    assert found.left_out == {"atoms, charges or bonds that the alphabet lacks": 1}


@pytest.mark.parametrize("key", ["label_key", "client_key", "person_key"])
def test_the_column_of_molecules_is_nothing_else(tmp_path: Path, key: str) -> None:
    """Also where nobody names it."""
    (tmp_path / "x.csv").write_text("smiles,y\nCCO,0\nCC,1\n")
    with pytest.raises(DataError, match=r"'smiles' to hold the .* and nothing else"):
        read_raw(tmp_path / "x.csv", SCHEMA, **{key: "smiles"})


def test_a_damaged_packed_file_is_one_sentence(tmp_path: Path) -> None:
    """Wherever its bytes are wrong."""
    good = gzip.compress("".join(f"{'C' * (at % 9 + 1)}O name{at}\n" for at in range(99)).encode())
    for at in range(10, len(good), 7):
        (tmp_path / "x.smi.gz").write_bytes(good[:at] + bytes([good[at] ^ 0x5A]) + good[at + 1 :])
        with pytest.raises(DataError, match=r"lines of SMILES in x\.smi\.gz, got a "):
            read_raw(tmp_path / "x.smi.gz", SCHEMA)
