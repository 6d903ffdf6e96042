"""Read molecules: a SMILES file, or a table with a column of SMILES, as rows of tokens.

RDKit and selfies are imported only here, where a schema is one of molecules.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlatent.shared.data.asked import Asked, Found, name_of, needed
from fedlatent.shared.data.frames import found_in
from fedlatent.shared.data.table import open_packed
from fedlatent.shared.errors import DataError

if TYPE_CHECKING:
    from fedlatent.shared.data.selfies_tokens import Tokens

#: Endings of files with a SMILES and perhaps a name in each line.
SMILES_FILES = (".smi", ".smiles", ".smi.gz", ".smiles.gz")
#: The column of molecules, where nobody names another.
SMILES = "smiles"


def find_in_lines(path: Path, asked: Asked) -> Found:
    """The columns ``smiles`` and ``name`` of a SMILES file."""
    import pandas as pd

    cells = [[*line.split(maxsplit=1), ""][:2] for line in read_lines(path)]
    frame = pd.DataFrame(cells, columns=[SMILES, "name"], dtype=object)
    if asked.columns is None:
        raise DataError(
            f"Expected a schema of molecules for {path.name}, got none; 'fedlatent data describe' "
            "proposes one.",
            reason="schema",
        )
    return found_in(frame, path.name, asked)


def read_lines(path: Path) -> list[str]:
    """The lines of a SMILES file that are no comments.

    Raises:
        DataError: It cannot be read, or is no text.
    """
    try:
        with open_packed(path) as stream:
            text = stream.read().decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(
            f"Expected lines of SMILES in {path.name}, got a {type(error).__name__}; write it "
            "again as UTF-8 text."
        ) from None
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def as_molecules(
    reader: Callable[[Any, Asked], Found], length: int
) -> Callable[[Any, Asked], Found]:
    """A reader that makes rows of at most ``length`` tokens of its one column of SMILES."""

    def read(path: Any, asked: Asked) -> Found:  # noqa: ANN401 - a file, or what is in memory
        columns = asked.columns or (SMILES,)
        if len(columns) != 1:
            raise DataError(
                f"Expected one column of SMILES in {path.name}, got {len(columns)}; name one.",
                reason="column",
            )
        key = name_of(columns[0])
        found = reader(path, replace(asked, columns=(), others=(key, *asked.others)))
        smiles = ["" if one is None else str(one).strip() for one in found.sides[0]]
        tokens = tokens_of(smiles, length, path.name)
        sides = [side[tokens.kept] for side in found.sides[1:]]
        return Found(tokens.records, sides, left_out=tokens.left_out)

    return read


def tokens_of(smiles: list[str], length: int, name: str) -> "Tokens":
    """Tokens of the molecules that have some, and how many have none and why.

    Args:
        smiles: Of each record.
        length: Most tokens of a molecule.
        name: Of the file, for messages.

    Raises:
        DataError: RDKit or selfies is not installed, or no molecule has tokens.
    """
    with needed("zoo", f"the SMILES of {name}"):
        from rdkit.rdBase import BlockLogs

        from fedlatent.shared.data.selfies_tokens import to_records
    with BlockLogs():
        found = to_records(smiles, length)
    if not len(found.kept):
        why = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        raise DataError(
            f"Expected molecules in {name}, got none that can be used of {len(smiles)}: "
            f"{why or 'no lines'}; check the column and the schema's length.",
            reason="molecules",
        )
    return found
