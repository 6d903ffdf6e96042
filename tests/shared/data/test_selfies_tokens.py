"""Molecules as tokens: a public alphabet, exact round trips, no invalid row."""

import numpy as np
import selfies

from fedlatent.shared.data.selfies_tokens import (
    ALPHABET,
    FIRST_ATOM,
    VOCABULARY,
    canonical,
    molecule_schema,
    to_records,
    to_smiles,
)
from fedlatent.shared.models.molecule import MoleculeConfig


def test_the_alphabet_is_the_grammars_own() -> None:
    """It is what the library calls robust, and the aromatic nitrogen with hydrogen."""
    expected = selfies.get_semantic_robust_alphabet() | {"[NH1]"}
    assert sorted(ALPHABET) == sorted(expected)
    assert MoleculeConfig().vocabulary == VOCABULARY
    assert MoleculeConfig().first_atom == FIRST_ATOM
    assert molecule_schema(50).upper == VOCABULARY - 1 == len(ALPHABET)


def test_molecules_come_back() -> None:
    """Records of drug-like molecules decode to the same canonical SMILES."""
    smiles = [
        "CC(=O)Oc1ccccc1C(=O)O",
        "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
        "c1cc[nH]c1",
        "C#N",
        "FC(Cl)Br",
    ]
    records, kept, _ = to_records(smiles, 30)
    assert kept.tolist() == [0, 1, 2, 3, 4]
    assert records.shape == (5, 30)
    assert to_smiles(records) == [canonical(text) for text in smiles]


def test_what_does_not_fit_is_left_out() -> None:
    """Too long molecules, atoms outside the alphabet and broken strings are left out."""
    records, kept, left_out = to_records(["CCCCCC", "[Na+]", "CC", "C(", "[13CH4]"], 4)
    assert kept.tolist() == [2, 4]
    assert records.shape == (2, 4)
    assert sorted(left_out.values()) == [1, 1, 1]
    assert to_records([], 4)[0].shape == (0, 4)


def test_any_row_is_a_molecule() -> None:
    """Random rows of tokens decode to molecules that RDKit reads; a stop at once to none."""
    rows = np.random.default_rng(0).integers(1, VOCABULARY, (200, 20)).astype(np.float32)
    assert all(to_smiles(rows))
    assert to_smiles(np.zeros((1, 20), dtype=np.float32)) == [""]


def test_any_row_that_begins_with_an_atom_is_one() -> None:
    """A single atom is a molecule, and so is whatever stands behind it."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, VOCABULARY, (200, 8)).astype(np.float32)
    rows[:, 0] = rng.integers(FIRST_ATOM, VOCABULARY, 200)
    assert all(to_smiles(rows))
    singles = np.zeros((VOCABULARY - FIRST_ATOM, 8), dtype=np.float32)
    singles[:, 0] = np.arange(FIRST_ATOM, VOCABULARY)
    assert all(to_smiles(singles))


def test_what_follows_a_stop_is_not_read() -> None:
    """Tokens behind the first stop change nothing."""
    records, _, _ = to_records(["CCO"], 8)
    behind = records.copy()
    behind[0, 5] = 9.0
    assert to_smiles(behind) == to_smiles(records) == ["CCO"]


def test_molecules_with_stereo_marks_are_kept() -> None:
    """Mirror images and sides of a double bond are one record, that of the plain molecule."""
    marked = ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "C/C=C/C", "no/molecule"]
    records, kept, _ = to_records(marked, 24)
    assert kept.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(records[0], records[1])
    assert to_smiles(records) == ["CC(N)C(=O)O", "CC(N)C(=O)O", "CC=CC"]
