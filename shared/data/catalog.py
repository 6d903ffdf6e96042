"""The data sets that studies, benchmarks and pages name: their files, origins, licences, digests.

What a study needs is told by the names here. Nothing of this module reads a network: a file that is
not in the data folder is an error that names the command which brings it.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedlatent.shared.errors import ConfigError, DataError

_NEAR = Path("../shared/data")  # beside a checkout


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A prepared file.

    Attributes:
        name: Of the file.
        size: Bytes of the copy in circulation.
        sha256: Of that copy's bytes.
        contents: Digests (`simulations.catalog.content`) of what may be in it: of that copy first,
            then of a file made anew from the originals where it cannot be the same.
    """

    name: str
    size: int
    sha256: str
    contents: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set of the catalogue.

    Attributes:
        about: What it is, in some words.
        origin: Page of its publisher, or of the copy that the originals are taken from.
        licence: Name of its terms.
        files: The prepared files.
        remark: How a file made anew from the originals differs; empty where it does not.
    """

    about: str
    origin: str
    licence: str
    files: tuple[DataFile, ...]
    remark: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in self.files)


def data_folder(chosen: Path | None = None) -> Path:
    """The folder of the real data sets.

    As chosen, or `$FEDLATENT_DATA`, or `../shared/data` where that is a folder, or
    `fedlatent/data` in the user's folder of data (`$XDG_DATA_HOME`, by default `~/.local/share`).

    Raises:
        ConfigError: The account has no home.
    """
    named = chosen or os.environ.get("FEDLATENT_DATA")
    if named:
        return Path(named)
    if _NEAR.is_dir():
        return _NEAR
    try:
        users = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    except RuntimeError:
        raise ConfigError(
            "Expected an account with a home for the data sets, got none; name their folder in "
            "FEDLATENT_DATA."
        ) from None
    return users / "fedlatent" / "data"


def paths(folder: Path, name: str) -> list[Path]:
    """The files of a data set in a folder, in the order of the catalogue.

    Raises:
        DataError: One is not there; the sentence names the command that brings it.
    """
    require(folder, [name])
    return [Path(folder) / one.name for one in CATALOG[name].files]


def absent(folder: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """The files of data sets that a folder lacks, by data set; whole data sets are left out."""
    found = {
        name: [one.name for one in CATALOG[name].files if not (Path(folder) / one.name).is_file()]
        for name in dict.fromkeys(names)
    }
    return {name: files for name, files in found.items() if files}


def require(folder: Path, names: Sequence[str], who: str = "") -> None:
    """See that whole data sets are in a folder.

    Args:
        folder: Of the prepared files.
        names: Of the data sets.
        who: Who needs them, for the sentence, such as "the study mitbih".

    Raises:
        DataError: A file is not there; the sentence names the command that brings all that is
            missing. `field` is the first data set, `reason` is "absent".
    """
    missing = absent(folder, names)
    if missing:
        files = [file for each in missing.values() for file in each]
        some = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        needs = f" for {who}" if who else ""
        raise DataError(
            f"Expected {some} in the data folder {folder}{needs}, got none; run "
            f"'fedlatent data get {' '.join(missing)}', with --from FOLDER for a copy at hand.",
            field=next(iter(missing)),
            reason="absent",
        )


def _file(name: str, size: int, sha256: str, *contents: str) -> DataFile:
    return DataFile(name=name, size=size, sha256=sha256, contents=contents)


_BY = "ODC-By 1.0"
CATALOG: dict[str, DataSet] = {
    "mitbih": DataSet(
        about="Heart beats of 22 patients (MIT-BIH Arrhythmia Database)",
        origin="https://physionet.org/content/mitdb/1.0.0/",
        licence=_BY,
        files=(
            _file(
                "mitbih_beats.npz",
                2_817_507,
                "f5335110333275b09ba9b643bc5eb63a06ff950b37594008069d02eeec81305f",
                "dfbdf995a68cf72f15e349b61e4661e9a84a3fd0c0db431b91d729ad5eb8bacd",
            ),
        ),
    ),
    "mitbih_strips": DataSet(
        about="90 seconds of electrocardiogram of the same 22 patients",
        origin="https://physionet.org/content/mitdb/1.0.0/",
        licence=_BY,
        files=(
            _file(
                "mitbih_strips.npz",
                691_418,
                "c560370fecf3580cee891ef321c244cb3f98fb6850a826017e311dfa4cbeee6a",
                "23a4adbaf4b98e0d225e80bacf8d4b63ad117efea856a15fd18b648685a1ec88",
            ),
        ),
    ),
    "ecg5000": DataSet(
        about="5,000 heart beats of one patient (ECG5000 of the UCR archive)",
        origin="https://github.com/HFuoc/ECG5000-Anomaly",
        licence=_BY,
        files=(
            _file(
                "ecg5000.npz",
                2_600_051,
                "0bab7bc1e0db3fc15ae11f1e4bd6aa6de8784001eaf0a8fcc5f21da854d8840e",
                "ccbc27ac25ac6cbc33e6a473cf7e8ccaa67eff3c82dd2092788486bd441fcc37",
                "c9d4a73903c5d1d0f3f6d8497c3bc3bd917a8827139a9ddbf7bc9aaa782cbefe",
            ),
        ),
        remark="The rows after the 500 of training stand in another order.",
    ),
    "smd": DataSet(
        about="Metrics of five servers, a row a minute (Server Machine Dataset)",
        origin="https://github.com/NetManAIOps/OmniAnomaly",
        licence="MIT",
        files=(
            _file(
                "smd_machine-1-6.npz",
                2_731_709,
                "2aad593af59d720467bfd8c346ea8e0d8aa414fa6258c8f78fdbcea618c87f2f",
                "053d0e6338a52ca1920859a859a3bbf84f0797d49f09a4c1598e284f925fbe8e",
            ),
            _file(
                "smd_machine-2-1.npz",
                2_278_909,
                "fa40918df70f96c819324611ca2e2092f5702d470bc783e79512d8b22e006153",
                "73a4ba5efb17ac0a8d388bb29162bcdb049d40cf257ce63bc7a33e229c2530bf",
            ),
            _file(
                "smd_machine-2-2.npz",
                1_564_964,
                "02678cdab6f2267171f1bfcdf0ac6d8809aba399eaa60d314eb7be594e06ae33",
                "3757cb0e1421be72685c24b99ff0bb41dfb69ea2ee05fb2d04b6daf1bd32696e",
            ),
            _file(
                "smd_machine-2-8.npz",
                2_165_514,
                "b4640c15e9db51d2f123c49d46684f025b8fccd870335d76066f45953431ea43",
                "8b57d2b7a437bf75608006ce29a2369d3632caf1c7357545558f3a42a677a7ef",
            ),
            _file(
                "smd_machine-3-4.npz",
                1_846_416,
                "1a3b0d116f174b3eb78f965a884760ef7fba27f0c5b8a4defc00ede7ee236e11",
                "fcc40e431e3bd7dc6fe2ba2be0a0bd67ef7eadf90b473f76f94328962816e08f",
            ),
        ),
    ),
    "asd": DataSet(
        about="Metrics of eight servers, a row each 5 minutes (Application Server Dataset)",
        origin="https://github.com/zhhlee/InterFusion",
        licence="MIT",
        files=(
            _file(
                "asd_servers.npz",
                1_060_569,
                "708cb407b8a4716eb6298cbc7dd5bc816b27b85d0d3999ef71baad570d6bb1d6",
                "2a604787c371f18b644ff3ddcf22d505d3cb0530e685abc4874ba53ee3ee36c8",
            ),
        ),
    ),
    "nab": DataSet(
        about="22 labelled series of one metric each (Numenta Anomaly Benchmark)",
        origin="https://github.com/numenta/NAB",
        licence="MIT",
        files=(
            _file(
                "nab_real.csv.gz",
                440_941,
                "e29520d391c4f88667ee254cf72cab2417c4cb1625a1377cf273d5d4ed7e9976",
                "22fb4b34ff7295508012facaebd97db5be8958a8810f9daa2c6653c49eca06a5",
                "9436ece87202e274d0d247fd59d1dea146899ec55281228cf5faf17ff26fd108",
            ),
        ),
        remark="Values keep the last digits of the originals.",
    ),
    "nsl_kdd": DataSet(
        about="Network connections with their attacks (NSL-KDD)",
        origin="https://github.com/defcom17/NSL_KDD",
        licence="redistribution with a citation",
        files=(
            _file(
                "nsl_kdd_train20.csv.gz",
                409_498,
                "f6736cd4c648c0e4ff27afaf856aab946fba6c6285016c9db0765c3266e18db8",
                "53e4f263701cdad38b11a8bd8ba7e3d521fdee878a4b544a6f52fd9d5d04234d",
            ),
            _file(
                "nsl_kdd_test.csv.gz",
                374_608,
                "0685225ce6c0b54805cd2f4bad9a83b9d0c8144fbe2fa0caf9387fc0d50c4a94",
                "99d59e71b243cbc87495ee6e694de65022c24d8036f6088fc1ba4eb133791edc",
            ),
        ),
    ),
    "heart_disease": DataSet(
        about="920 patients of four hospitals (UCI Heart Disease)",
        origin="https://archive.ics.uci.edu/dataset/45/heart+disease",
        licence="CC BY 4.0",
        files=(
            _file(
                "heart_disease.csv.gz",
                9_190,
                "53e4cc0b9895b545afa911fed37c25ca6b1076ac06ff56f48b11a3750d8f5ebd",
                "4cfae8a3767c7934dbe7155b8a7139c3d24579c658547d53f468c74770427644",
            ),
        ),
    ),
    "mnist": DataSet(
        about="Handwritten digits, 28 x 28 (MNIST, the first 20,000 of training and the test)",
        origin="https://yann.lecun.com/exdb/mnist/",
        licence="CC BY-SA 3.0",
        files=(
            _file(
                "mnist_train20k.npz",
                3_283_439,
                "9f7d219f7006a3d93f158c5c21c3481efd31d234ae33d8b2f9315d2df31248c1",
                "d83947c2c0ea36496f9d2e6ff592244894ee9fb5a188d8ad761af837324e9ceb",
            ),
            _file(
                "mnist_test10k.npz",
                1_639_219,
                "65a5c2ccee7bbe7bd4faa4e32e452e1ea9c794fdb94afab383997ef78e7a94ba",
                "a056d50eee6e9ff02fd4966717fbd674438a67ec5decf5316bf8f92ec459bb9e",
            ),
        ),
    ),
    "fashion": DataSet(
        about="Images of clothing, 28 x 28 (Fashion-MNIST, 6,500 and 1,500)",
        origin="https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT",
        files=(
            _file(
                "fashion_mnist_8k.npz",
                3_517_893,
                "a9fd1a32b161e89a916b13f99c07b33466bba349109895c7bbc2f5825c051d4f",
                "689ea6d024ef86dac61bb459cef712922f278176bf5589e7dff41b5949d64db7",
            ),
        ),
    ),
    "omniglot": DataSet(
        about="Letters of five alphabets by 20 drawers each, 28 x 28 (Omniglot)",
        origin="https://github.com/brendenlake/omniglot",
        licence="MIT",
        files=(
            _file(
                "omniglot_small1_28.npz",
                241_143,
                "fa726a3ce88a2d8f557164bac93082b564a884b2de126c6a7d4f106b3cfaa32c",
                "47ba9cf0da6635c94535e6280935a372fb098a6306d5ac6a88d73dd003c46730",
            ),
        ),
    ),
    "kodak": DataSet(
        about="Crops of 12 photographs, 256 x 384 (Kodak Lossless True Color Image Suite)",
        origin="https://github.com/Zelex/images",
        licence="free use (Kodak)",
        files=(
            _file(
                "kodak_crops.npz",
                2_430_535,
                "984747bdfeedc4412af2efb9b33d61d7a445cfa57dda83fb5ad973434d620f88",
                "6d8b1d2b647930883d3635754ff65d11d7e740457f8b150eda0ef66b089e1fb6",
            ),
        ),
    ),
    "moses": DataSet(
        about="130,000 drug-like molecules as SMILES (MOSES)",
        origin="https://github.com/molecularsets/moses",
        licence="MIT",
        files=(
            _file(
                "moses_130k.csv.gz",
                1_082_050,
                "f5891e16d7e0b171fddd24508f34862da236e5d021ea9531a4b48116a9f42a29",
                "53bd76b6477f0bf7582f04dd2e347c619f900d35df1e1f8e675e7d218782f42a",
            ),
        ),
    ),
    "esol": DataSet(
        about="1,128 molecules with their solubility (Delaney)",
        origin="https://github.com/deepchem/deepchem",
        licence="MIT",
        files=(
            _file(
                "esol.csv.gz",
                22_277,
                "02032acc5cd33bce5be8f17cacef344016ade923ff6b4fb23dc51f898e2468e4",
                "7778a5eb8bf1237ce300e3ecbde16cbb5ff8858f90076c912df099f094a61e47",
                "4fac2429adc67c5dd3a13dcb0345f59097e15f5060c9a98ce90c2f1421b8c1a0",
            ),
        ),
        remark="Weights keep the last digits of the original.",
    ),
    "etth1": DataSet(
        about="Load and oil temperature of a transformer, hourly",
        origin="https://github.com/zhouhaoyi/ETDataset",
        licence="CC BY-ND 4.0",
        files=(
            _file(
                "ETTh1.csv.gz",
                405_601,
                "f1141f82f9d46968f05afa77ba16abfc4f790fe07583f9de06bb685b29a5411f",
                "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
            ),
        ),
    ),
    "etth2": DataSet(
        about="The same of a second transformer",
        origin="https://github.com/zhouhaoyi/ETDataset",
        licence="CC BY-ND 4.0",
        files=(
            _file(
                "ETTh2.csv.gz",
                428_678,
                "d2675d6e447075e69ec50a1abcd08ac2f3cf4f38611664d773b8de49ef1ac5b9",
                "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
            ),
        ),
    ),
}
"""All data sets by name."""
