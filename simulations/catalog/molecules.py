"""Molecules as SMILES."""

import csv
import gzip
import io
import tarfile
from collections.abc import Mapping

import numpy as np

from fedlatent.simulations.catalog.content import gzipped

MOSES = {
    "molsets-0.3.1.tar.gz": "https://files.pythonhosted.org/packages/source/m/molsets/"
    "molsets-0.3.1.tar.gz"
}
ESOL = {
    "delaney-processed.csv": "https://raw.githubusercontent.com/deepchem/deepchem/master/datasets/"
    "delaney-processed.csv"
}
_DRAWN = {"train": 120_000, "test": 10_000}
_SEED = 11
_ESOL_COLUMNS = {
    "smiles": "smiles",
    "logS": "measured log solubility in mols per litre",
    "mol_weight": "Molecular Weight",
    "name": "Compound ID",
}


def moses(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """120,000 molecules of the training set and 10,000 of the test, drawn, in their order."""
    rng = np.random.default_rng(_SEED)
    lines = ["smiles,split"]
    with tarfile.open(fileobj=io.BytesIO(originals["molsets-0.3.1.tar.gz"])) as archive:
        for part, count in _DRAWN.items():
            member = archive.extractfile(f"molsets-0.3.1/moses/dataset/data/{part}.csv.gz")
            if member is None:
                raise ValueError(f"the archive has no {part}.csv.gz")
            _, *smiles = gzip.decompress(member.read()).decode().split()
            chosen = np.sort(rng.permutation(len(smiles))[:count])
            lines += [f"{smiles[i]},{part}" for i in chosen]
    return {"moses_130k.csv.gz": gzipped("\n".join([*lines, ""]).encode())}


def esol(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """Four columns under short names; spaces around SMILES go."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_ESOL_COLUMNS)
    rows = csv.DictReader(io.StringIO(originals["delaney-processed.csv"].decode()))
    if not set(_ESOL_COLUMNS.values()) <= set(rows.fieldnames or ()):
        raise ValueError(f"delaney-processed.csv without {', '.join(_ESOL_COLUMNS.values())}")
    for row in rows:
        smiles, *others = (row[column] for column in _ESOL_COLUMNS.values())
        writer.writerow([smiles.strip(), *others])
    return {"esol.csv.gz": gzipped(stream.getvalue().encode())}
