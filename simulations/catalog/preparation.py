"""How the files of each data set are made from its originals: a row of `PREPARATIONS` each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedlatent.simulations.catalog import hearts, images, molecules, servers, tables

#: Originals by name.
Originals = Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a data set is made.

    Attributes:
        originals: Web address of each original by the name under which `make` takes it; a copy at
            hand is looked for under that name.
        make: From the originals to the bytes of each prepared file. Raises `ValueError` or
            `KeyError` where an original is not what it must be.
    """

    originals: Mapping[str, str]
    make: Callable[[Originals], dict[str, bytes]]


PREPARATIONS: dict[str, Preparation] = {
    "mitbih": Preparation(originals=hearts.MITBIH, make=hearts.beats),
    "mitbih_strips": Preparation(originals=hearts.MITBIH, make=hearts.strips),
    "ecg5000": Preparation(originals=hearts.ECG5000, make=hearts.ecg5000),
    "smd": Preparation(originals=servers.SMD, make=servers.smd),
    "asd": Preparation(originals=servers.ASD, make=servers.asd),
    "nab": Preparation(originals=servers.NAB, make=servers.nab),
    "nsl_kdd": Preparation(originals=tables.NSL_KDD, make=tables.nsl_kdd),
    "heart_disease": Preparation(originals=tables.HEART_DISEASE, make=tables.heart_disease),
    "etth1": Preparation(originals=tables.ETTH1, make=tables.verbatim),
    "etth2": Preparation(originals=tables.ETTH2, make=tables.verbatim),
    "mnist": Preparation(originals=images.MNIST, make=images.mnist),
    "fashion": Preparation(originals=images.FASHION, make=images.fashion),
    "omniglot": Preparation(originals=images.OMNIGLOT, make=images.omniglot),
    "kodak": Preparation(originals=images.KODAK, make=images.kodak),
    "moses": Preparation(originals=molecules.MOSES, make=molecules.moses),
    "esol": Preparation(originals=molecules.ESOL, make=molecules.esol),
}
