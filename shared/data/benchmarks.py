"""Federations from the real data sets of the field: servers, letters and images.

As in `fedlatent.shared.data.sources`, rows stay raw, and `schema.preprocess` turns them into model
input. Series and images are kept as the files hold them: windows are views of the series where none
is left out, and images stay integers.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fedlatent.shared.data.archives import read_npz
from fedlatent.shared.data.catalog import paths
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.sources import Federation, SiteData, split_site

WINDOW = 8  # rows: 8 minutes of smd, 40 minutes of asd
MAX_WINDOWS = 3_000  # training windows of one machine
ASD_SERVERS = 8
CLASSES = 10  # of mnist and of fashion

IMAGE_SCHEMA = Schema(
    name="image-28x28",
    shape=(28, 28),
    unit="ink",
    scale=1 / 255,
    center="none",
    lower=0.0,
    upper=1.0,
)


def smd(data_dir: Path, *, length: int = WINDOW, stride: int | None = None) -> Federation:
    """Load the Server Machine Dataset: one client per machine, 38 metrics a minute.

    A record is a window [38, length]: channels first, so that dense networks and convolutions
    over time take it alike. A test window is anomalous when any of its rows is. Training rows
    carry no labels and count as normal, as is usual with this data; a few may not be. Machines
    with more than `MAX_WINDOWS` training windows keep that many, evenly spaced in time.

    Args:
        data_dir: Folder of the data set smd.
        length: Rows of a window.
        stride: Rows from one window to the next, in training and test; None: `length`, so that
            no row is in two windows.

    Raises:
        DataError: If a file is not in `data_dir` or is not as expected.
        ValueError: If `length` or `stride` is not positive, or a series is shorter than a window.
    """
    machines = {}
    for path in paths(data_dir, "smd"):
        arrays = read_npz(path, ["train", "test", "test_label"])
        machines[path.stem.removeprefix("smd_")] = tuple(arrays.values())
    return _machines(
        "smd",
        machines,
        length,
        stride,
        note=f"{len(machines)} real servers (Server Machine Dataset, Su et al. 2019), one client "
        f"per machine; a record is a window of {length} minutes of 38 metrics; anomalies are "
        "windows with a labelled minute.",
    )


def asd(data_dir: Path, *, length: int = WINDOW, stride: int | None = None) -> Federation:
    """Load the Application Server Dataset: one client per server, 19 metrics each 5 minutes.

    Windows and arguments are as in `smd`.

    Raises:
        DataError: If the file is not in `data_dir` or is not as expected.
        ValueError: As `smd`.
    """
    names = [f"s{number:02d}" for number in range(1, ASD_SERVERS + 1)]
    keys = [f"{name}_{part}" for name in names for part in ("train", "test", "label")]
    (path,) = paths(data_dir, "asd")
    arrays = read_npz(path, keys)
    servers = {
        f"server-{name[1:]}": (
            arrays[f"{name}_train"],
            arrays[f"{name}_test"],
            arrays[f"{name}_label"],
        )
        for name in names
    }
    return _machines(
        "asd",
        servers,
        length,
        stride,
        note=f"{ASD_SERVERS} real application servers (ASD, Li et al. 2021), one client per "
        f"server; a record is a window of {length} five-minute rows of 19 metrics; anomalies are "
        "windows with a labelled row.",
    )


def omniglot(data_dir: Path, seed: int = 0) -> Federation:
    """Load handwritten letters of 100 drawers, one client per drawer; digits are the anomalies.

    A drawer trains on 70 % of its letters of one alphabet and is tested on the others and on as
    many digits from MNIST, each digit at one drawer only. The class of a letter is its alphabet.

    Raises:
        DataError: If a file of omniglot or mnist is not in `data_dir` or is not that file.
    """
    (path,), (_, digits_path) = paths(data_dir, "omniglot"), paths(data_dir, "mnist")
    letters = read_npz(path, ["X", "alphabet", "alphabet_names", "client"])
    kind = letters["alphabet_names"][letters["alphabet"]]
    rng = np.random.default_rng(seed)
    foreign = rng.permutation(read_npz(digits_path, ["X"])["X"])
    sites, used = [], 0
    for client in np.unique(letters["client"]):
        mine = np.flatnonzero(letters["client"] == client)
        role = np.zeros(len(mine), dtype=np.uint8)
        name = f"drawer-{client:03d}"
        site = split_site(name, letters["X"][mine], kind[mine], role, rng, classes=True)
        own = len(site.test)
        digits = foreign[used : used + own]
        used += own
        sites.append(
            replace(
                site,
                test=np.concatenate([site.test, digits]),
                test_label=np.repeat(np.array([0, 1], dtype=np.uint8), [own, len(digits)]),
                test_kind=np.concatenate([site.test_kind, np.full(len(digits), "digit")]),
            )
        )
    return Federation(
        name="omniglot",
        schema=IMAGE_SCHEMA,
        sites=tuple(sites),
        synthetic=False,
        note=f"Handwritten letters of five alphabets (Omniglot, Lake et al. 2015), {len(sites)} "
        "drawers as clients; anomalies are foreign to all of them: handwritten digits of MNIST.",
    )


def mnist(data_dir: Path, *, anomaly: int = 2) -> Federation:
    """Load handwritten digits as one site named "pool"; there are no natural clients.

    Training records are those of the first 20,000 training images that do not show `anomaly`;
    the test is the official one. The amount of ink alone finds the default digit at an AUROC of
    0.64, the reconstruction error of 16 principal components at 0.86.

    Args:
        data_dir: Folder of the data set mnist.
        anomaly: The digit that counts as an anomaly and is never trained on.

    Raises:
        DataError: If a file is not in `data_dir` or is not that file.
        ValueError: If `anomaly` is no digit.
    """
    train, test = (read_npz(path, ["X", "y"]) for path in paths(data_dir, "mnist"))
    names = np.arange(CLASSES).astype(np.str_)
    return Federation(
        name="mnist",
        schema=IMAGE_SCHEMA,
        sites=(_pool((train["X"], train["y"]), (test["X"], test["y"]), names, anomaly),),
        synthetic=False,
        note="Handwritten digits (MNIST, LeCun and Cortes), without natural clients; anomalies "
        f"are the digit {anomaly}, which is never trained on.",
    )


def mnist_one(data_dir: Path, *, digit: int) -> Federation:
    """Load handwritten digits one against the rest, as one site named "pool".

    Training records show ``digit`` alone (about 2,000); in the official test all other digits are
    anomalies.

    Args:
        data_dir: Folder of the data set mnist.
        digit: The normal digit.

    Raises:
        DataError: If a file is not in `data_dir` or is not that file.
        ValueError: If `digit` is no digit.
    """
    whole = mnist(data_dir, anomaly=(digit + 1) % CLASSES)
    (pool,) = whole.sites
    if pool.train_kind is None or not 0 <= digit < CLASSES:
        raise ValueError(f"Expected a digit from 0 to {CLASSES - 1}, got {digit}.")
    mine = pool.train_kind == str(digit)
    site = replace(
        pool,
        train=pool.train[mine],
        train_kind=None,
        test_label=(pool.test_kind != str(digit)).astype(np.uint8),
        test_kind=np.where(pool.test_kind == str(digit), "normal", pool.test_kind),
    )
    return replace(
        whole,
        name="mnist_one",
        sites=(site,),
        note=f"Handwritten digits (MNIST, LeCun and Cortes), without natural clients; the digit "
        f"{digit} is normal, all others are anomalies.",
    )


def fashion(data_dir: Path, *, anomaly: int = 9) -> Federation:
    """Load images of clothing as one site named "pool"; there are no natural clients.

    Args:
        data_dir: Folder of the data set fashion.
        anomaly: Number of the class that counts as an anomaly and is never trained on; 9 is the
            ankle boot.

    Raises:
        DataError: If the file is not in `data_dir` or is not that file.
        ValueError: If `anomaly` is no class.
    """
    keys = ["X_train", "y_train", "X_test", "y_test", "names"]
    (path,) = paths(data_dir, "fashion")
    arrays = read_npz(path, keys)
    train, test = (arrays["X_train"], arrays["y_train"]), (arrays["X_test"], arrays["y_test"])
    site = _pool(train, test, arrays["names"], anomaly)
    return Federation(
        name="fashion",
        schema=IMAGE_SCHEMA,
        sites=(site,),
        synthetic=False,
        note="Images of clothing (Fashion-MNIST, Xiao et al. 2017), without natural clients; "
        f"anomalies are of the class {arrays['names'][anomaly]!s}, which is never trained on.",
    )


def windows(
    series: NDArray[Any], length: int, stride: int | None = None, most: int | None = None
) -> NDArray[Any]:
    """Cut a series [T, ...] into windows of consecutive rows, as a view where none is left out.

    Args:
        series: One row per time.
        length: Rows of a window.
        stride: Rows from one start to the next; None: `length`. Rows left at the end are dropped.
        most: Keep at most this many, evenly spaced; None keeps all.

    Returns:
        [windows, ..., length]: time is the last axis.

    Raises:
        ValueError: If `length`, `stride` or `most` is not positive, or the series is too short.
    """
    step = length if stride is None else stride
    if length < 1 or step < 1 or (most is not None and most < 1):
        raise ValueError(f"Expected positive window sizes, got {length}, {stride} and {most}.")
    if len(series) < length:
        raise ValueError(f"Expected at least {length} rows for a window, got {len(series)}.")
    cut = sliding_window_view(series, length, axis=0)[::step]
    if most is not None and len(cut) > most:
        cut = cut[np.linspace(0, len(cut) - 1, most).round().astype(np.int64)]
    return cut


def _machines(
    name: str,
    machines: Mapping[str, tuple[NDArray[Any], ...]],
    length: int,
    stride: int | None,
    note: str,
) -> Federation:
    """Make a federation of windows from (train, test, label of each test row) by machine."""
    sites = []
    for machine, (train, test, row_label) in machines.items():
        label = windows(row_label, length, stride).max(axis=-1)
        cut = windows(test, length, stride)
        sites.append(
            SiteData(
                name=machine,
                train=windows(train, length, stride, MAX_WINDOWS),
                test=cut,
                test_label=label.astype(np.uint8),
                test_kind=np.array(["normal", "anomaly"])[label],
                extra=cut[:0],
                extra_kind=np.array([], dtype=np.str_),
            )
        )
    schema = Schema(
        name=f"{name}-{length}",
        shape=sites[0].train.shape[1:],
        unit="",
        scale=1.0,
        center="none",
        lower=0.0,
        upper=1.0,
    )
    return Federation(name=name, schema=schema, sites=tuple(sites), synthetic=False, note=note)


def _pool(
    train: tuple[NDArray[Any], NDArray[Any]],
    test: tuple[NDArray[Any], NDArray[Any]],
    names: NDArray[np.str_],
    anomaly: int,
) -> SiteData:
    """Make one site of (images, classes) pairs; the class `anomaly` is not trained on."""
    if not 0 <= anomaly < len(names):
        raise ValueError(f"Expected a class from 0 to {len(names) - 1}, got {anomaly}.")
    (images, classes), (tested, test_classes) = train, test
    keep = classes != anomaly
    return SiteData(
        name="pool",
        train=images[keep],
        test=tested,
        test_label=(test_classes == anomaly).astype(np.uint8),
        test_kind=names[test_classes],
        extra=tested[:0],
        extra_kind=np.array([], dtype=np.str_),
        train_kind=names[classes[keep]],
    )
