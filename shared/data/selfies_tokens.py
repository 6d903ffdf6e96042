"""Molecules as rows of token indices: SELFIES strings over a public alphabet.

SELFIES (Krenn et al., 2020, "Self-referencing embedded strings") is a grammar in which every row
of tokens is a molecule. The alphabet is the grammar's own, never collected from records: a token
in it says nothing about anyone's molecules.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import selfies
from numpy.typing import NDArray
from rdkit import Chem

from fedlatent.shared.data.schema import SELFIES, SELFIES_TOKENS, Schema

STOP = 0  # index that ends a molecule and fills the rest of a record

#: `selfies.get_semantic_robust_alphabet()` of selfies 2.x under its default constraints, and
#: `[NH1]`, the aromatic nitrogen with its hydrogen, which the encoder writes and that set lacks.
#: A literal, so that every site counts alike whatever version it has.
_GRAMMAR: tuple[str, ...] = (
    "[#B-1]",
    "[#B]",
    "[#Branch1]",
    "[#Branch2]",
    "[#Branch3]",
    "[#C+1]",
    "[#C-1]",
    "[#C]",
    "[#N+1]",
    "[#N]",
    "[#O+1]",
    "[#P+1]",
    "[#P-1]",
    "[#P]",
    "[#S+1]",
    "[#S-1]",
    "[#S]",
    "[=B+1]",
    "[=B-1]",
    "[=B]",
    "[=Branch1]",
    "[=Branch2]",
    "[=Branch3]",
    "[=C+1]",
    "[=C-1]",
    "[=C]",
    "[=N+1]",
    "[=N-1]",
    "[=N]",
    "[=O+1]",
    "[=O]",
    "[=P+1]",
    "[=P-1]",
    "[=P]",
    "[=Ring1]",
    "[=Ring2]",
    "[=Ring3]",
    "[=S+1]",
    "[=S-1]",
    "[=S]",
    "[B+1]",
    "[B-1]",
    "[B]",
    "[Br]",
    "[Branch1]",
    "[Branch2]",
    "[Branch3]",
    "[C+1]",
    "[C-1]",
    "[C]",
    "[Cl]",
    "[F]",
    "[H]",
    "[I]",
    "[N+1]",
    "[N-1]",
    "[NH1]",
    "[N]",
    "[O+1]",
    "[O-1]",
    "[O]",
    "[P+1]",
    "[P-1]",
    "[P]",
    "[Ring1]",
    "[Ring2]",
    "[Ring3]",
    "[S+1]",
    "[S-1]",
    "[S]",
)
_STRUCTURE = tuple(
    token for token in _GRAMMAR if "Branch" in token or "Ring" in token or token == "[H]"
)
#: Tokens that lay out branches and rings, and then the atoms, each in the grammar's order.
ALPHABET = _STRUCTURE + tuple(token for token in _GRAMMAR if token not in _STRUCTURE)
#: Indices from here on are atoms, one of which a molecule begins with.
FIRST_ATOM = len(_STRUCTURE) + 1
_INDEX = {token: index for index, token in enumerate(ALPHABET, start=1)}
VOCABULARY = len(ALPHABET) + 1
_STEREO = "@/\\"  # marks of SMILES that tell mirror images and sides of a double bond


def molecule_schema(length: int) -> Schema:
    """What records of at most `length` tokens look like."""
    return Schema(
        name="molecule",
        shape=(length,),
        unit=SELFIES,
        scale=1.0,
        center="none",
        lower=0.0,
        upper=float(SELFIES_TOKENS),
    )


class Tokens(NamedTuple):
    """Molecules as tokens.

    Attributes:
        records: [N, T] of indices, 0 behind the last token.
        kept: The positions [N] of the molecules that they stand for.
        left_out: Why others are not among them, and how many.
    """

    records: NDArray[np.float32]
    kept: NDArray[np.intp]
    left_out: dict[str, int]


def to_records(smiles: Iterable[str], length: int) -> Tokens:
    """Turn SMILES into records, leaving out what the alphabet or the length cannot hold.

    Tokens know no stereo marks and no isotopes, so a molecule is written without them first.

    Args:
        smiles: Molecules that RDKit reads.
        length: Greatest number T of tokens.

    """
    rows, kept, left_out = [], [], Counter[str]()
    for position, text in enumerate(smiles):
        tokens = _read(text)
        if isinstance(tokens, str) or len(tokens) > length:
            left_out[tokens if isinstance(tokens, str) else f"longer than {length} tokens"] += 1
            continue
        row = np.zeros(length, dtype=np.float32)
        row[: len(tokens)] = tokens
        rows.append(row)
        kept.append(position)
    shape = (len(rows), length)
    records = np.array(rows, dtype=np.float32).reshape(shape)
    return Tokens(records, np.array(kept, dtype=np.intp), dict(left_out))


def _read(smiles: str) -> list[int] | str:
    """Tokens of a molecule, or why it has none."""
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        return "no molecule that RDKit reads"
    marked = any(mark in smiles for mark in _STEREO)
    tokens = None if marked else _tokens(smiles)
    if tokens is not None:
        return tokens
    plain = str(Chem.MolToSmiles(molecule, isomericSmiles=False))
    if "." in plain:
        return "more than one part, as salts have"
    found = _tokens(plain)
    return "atoms, charges or bonds that the alphabet lacks" if found is None else found


def to_smiles(records: NDArray[np.float32]) -> list[str]:
    """Canonical SMILES of records [N, T]; an empty string where no atom is left."""
    found = []
    for row in np.rint(records).astype(np.int64):
        stops = np.flatnonzero(row == STOP)
        ends = int(stops[0]) if len(stops) else len(row)
        text = selfies.decoder("".join(ALPHABET[index - 1] for index in row[:ends]))
        found.append(canonical(text) or "")
    return found


def canonical(smiles: str) -> str | None:
    """RDKit's canonical SMILES without stereo marks, or None for what is no molecule."""
    molecule = Chem.MolFromSmiles(smiles) if smiles else None
    return None if molecule is None else str(Chem.MolToSmiles(molecule, isomericSmiles=False))


def _tokens(smiles: str) -> list[int] | None:
    """Indices of a molecule's tokens, or None where the alphabet or its rules have it not."""
    try:  # strict: what has more bonds than the rules of the alphabet would come back as another
        tokens = list(selfies.split_selfies(selfies.encoder(smiles)))
    except (selfies.EncoderError, LookupError):  # some texts that its parser falls over
        return None
    found = [_INDEX.get(token, STOP) for token in tokens]
    return None if STOP in found else found
