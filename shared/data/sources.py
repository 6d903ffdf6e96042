"""Named federations for demonstrations, tests and experiments.

Rows stay raw: whoever uses them applies `schema.preprocess`, as a node or an edge device does.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data import hearts as heart_model
from fedlatent.shared.data.archives import read_npz
from fedlatent.shared.data.catalog import paths
from fedlatent.shared.data.checks import Check, check
from fedlatent.shared.data.memory import InMemory
from fedlatent.shared.data.readers import Fields, read_raw
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import Window
from fedlatent.shared.data.transforms import affine_points, resample
from fedlatent.shared.notebook import rows

if TYPE_CHECKING:
    import pandas as pd

TRAIN_FRACTION = 0.7
_SHOWN = 20  # clients, in a notebook

_NORMAL, _ANOMALY, _EXTRA = range(3)

HEARTS_SCHEMA = Schema(
    name="heart-beat-128",
    shape=(heart_model.LENGTH,),
    unit="mV",
    scale=1.0,
    center="median",
    lower=-2.5,
    upper=2.5,
)
#: The same records from integer microvolt, as `mitbih_beats.npz` holds them.
MITBIH_SCHEMA = replace(HEARTS_SCHEMA, name="heart-beat-128-uv", scale=1e-3)
DIGITS_SCHEMA = Schema(
    name="digit-8x8",
    shape=(1, 8, 8),
    unit="ink",
    scale=1 / 16,
    center="none",
    lower=0.0,
    upper=1.0,
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SiteData:
    """What one client holds, as raw rows.

    Attributes:
        name: Name of the client.
        train: Normal records [N, ...].
        test: Records kept for evaluation [M, ...]: other normal ones and anomalies.
        test_label: uint8 [M], 0 normal and 1 anomalous.
        test_kind: Text [M]: the class of each test record, such as "N" or "V".
        extra: Further abnormal records [E, ...] of kinds that the standard measure leaves out.
        extra_kind: Text [E].
        train_kind: Text [N]: the class of each training record, for shares that follow classes;
            None where the normal records are of one class.
    """

    name: str
    train: NDArray[Any]
    test: NDArray[Any]
    test_label: NDArray[np.uint8]
    test_kind: NDArray[np.str_]
    extra: NDArray[Any]
    extra_kind: NDArray[np.str_]
    train_kind: NDArray[np.str_] | None = None

    def __repr__(self) -> str:
        """Name and counts, and no record."""
        counts = f"{len(self.train)} to train on, {len(self.test)} to test on"
        return f"SiteData({self.name!r}: {counts}, {int(self.test_label.sum())} anomalies)"


@dataclass(frozen=True, kw_only=True, repr=False)
class Federation:
    """A data set with its natural clients.

    Attributes:
        name: Name of the source.
        schema: What every record is.
        sites: The clients, in a fixed order.
        synthetic: Whether the records were made by a program.
        note: One or two sentences on origin and meaning, to print beside results.
        check: What a look at the records of a user's own file found; None for named sources.

    Examples:
        >>> clients = fl.read("patients.csv", client="hospital", label="disease")
        >>> present, absent = clients.hold_out(1, seed=0)
        >>> len(present.sites), len(absent.sites)
        (3, 1)
        >>> clients.clients.loc["east", "trained_on"] > 20
        np.True_
    """

    name: str
    schema: Schema
    sites: tuple[SiteData, ...]
    synthetic: bool
    note: str
    check: Check | None = None

    def __repr__(self) -> str:
        """Name and counts, and no record."""
        return f"Federation({self.name!r}: {self._count()} of {self.schema.name!r})"

    def _count(self) -> str:
        return "1 client" if len(self.sites) == 1 else f"{len(self.sites)} clients"

    @property
    def clients(self) -> "pd.DataFrame":
        """A row for each client: records to train on, to test on, and anomalies among these."""
        import pandas as pd

        names = ["client", "trained_on", "tested", "anomalies"]
        return pd.DataFrame(self._rows(), columns=names).set_index("client")

    def _rows(self) -> list[tuple[str, int, int, int]]:
        return [
            (one.name, len(one.train), len(one.test), int(one.test_label.sum()))
            for one in self.sites
        ]

    def _repr_html_(self) -> str:
        """The clients, in a notebook."""
        shown = self._rows()[:_SHOWN]
        title = f"{self.name}: {self._count()}, records of shape {self.schema.shape}"
        return rows(title, ["client", "trained on", "tested", "anomalies"], shown)

    def hold_out(self, count: int, seed: int) -> tuple["Federation", "Federation"]:
        """Draw `count` clients that take no part; return (those who take part, the absent).

        Raises:
            ValueError: Unless both sides keep at least one client.
        """
        if not 0 < count < len(self.sites):
            raise ValueError(
                f"Expected 1 to {len(self.sites) - 1} absent sites, got {count}; hold out fewer."
            )
        absent = set(np.random.default_rng(seed).permutation(len(self.sites))[:count].tolist())
        stay = tuple(site for i, site in enumerate(self.sites) if i not in absent)
        away = tuple(site for i, site in enumerate(self.sites) if i in absent)
        return replace(self, sites=stay), replace(self, sites=away)


def hearts(n_patients: int, seed: int, *, beats: int = 700) -> Federation:
    """Simulate patients with the heart model; every patient is a client.

    Args:
        n_patients: Number of clients.
        seed: Same seed, same patients; another seed gives other patients.
        beats: Beats per patient before the split. The share of ectopic ones is drawn from
            2 % to 20 %.

    Raises:
        ValueError: If `n_patients` is not positive or `beats` is below 10.
    """
    if n_patients < 1 or beats < 10:
        raise ValueError(f"Expected at least 1 patient and 10 beats, got {n_patients}, {beats}.")
    sites = []
    for i, sequence in enumerate(np.random.SeedSequence(seed).spawn(n_patients)):
        rng = np.random.default_rng(sequence)
        rows, label = heart_model.patient(int(rng.integers(2**63)), beats, rng.uniform(0.02, 0.2))
        kind = np.array(["N", "V"])[label]
        sites.append(split_site(f"patient-{i:03d}", rows, kind, label, rng))
    return Federation(
        name="hearts",
        schema=HEARTS_SCHEMA,
        sites=tuple(sites),
        synthetic=True,
        note="Synthetic heart beats (model of McSharry et al. 2003), one client per patient; "
        "anomalies are ventricular ectopic beats.",
    )


def digits(n_sites: int, seed: int, *, anomaly: int = 0) -> Federation:
    """Share the handwritten digits of scikit-learn among sites with different writing styles.

    Each image belongs to one site only. A site's style is a slant, a stretch, a shift and a
    stroke weight, the same for all its images. One digit never occurs in training: it is the
    anomaly.

    Args:
        n_sites: Number of clients, at most 100 (about 1,800 images in all).
        seed: Draws the sharing and the styles.
        anomaly: The digit that counts as an anomaly.

    Raises:
        ValueError: If `n_sites` or `anomaly` is outside its range.
    """
    from sklearn.datasets import load_digits

    if not 1 <= n_sites <= 100 or not 0 <= anomaly <= 9:
        raise ValueError(f"Expected 1 to 100 sites and a digit, got {n_sites} and {anomaly}.")
    images, classes = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    shares = np.array_split(rng.permutation(len(images)), n_sites)
    sites = []
    for i, share in enumerate(shares):
        rows = _restyle(images[share].reshape(-1, 8, 8), rng)[:, None]
        kind = classes[share].astype(np.str_)
        role = classes[share] == anomaly
        sites.append(split_site(f"writer-{i:02d}", rows, kind, role, rng, classes=True))
    return Federation(
        name="digits",
        schema=DIGITS_SCHEMA,
        sites=tuple(sites),
        synthetic=False,
        note="Handwritten digits (UCI, from scikit-learn) shared among sites; each site's writing "
        f"style is artificial; anomalies are the digit {anomaly}, which is never trained on.",
    )


def mitbih(data_dir: Path, seed: int = 0) -> Federation:
    """Load beats of 22 patients of the MIT-BIH Arrhythmia Database, one client per patient.

    Anomalies of the standard test are ventricular beats (V); supraventricular (S), fusion (F) and
    unclassifiable (Q) beats are in `extra`. Seed 0 gives the split of the published figures.

    Raises:
        DataError: If `mitbih_beats.npz` is not in `data_dir` or is not that file.
    """
    (path,) = paths(data_dir, "mitbih")
    arrays = read_npz(path, ["X", "y", "classes", "record"])
    rows, owner, kind = arrays["X"], arrays["record"], arrays["classes"][arrays["y"]]
    role = np.select([kind == "N", kind == "V"], [_NORMAL, _ANOMALY], _EXTRA)
    sites = _by_owner(owner, rows, kind, role, seed)
    return Federation(
        name="mitbih",
        schema=MITBIH_SCHEMA,
        sites=sites,
        synthetic=False,
        note="Real heart beats of 22 patients (MIT-BIH Arrhythmia Database, Moody and Mark, "
        "PhysioNet, ODC-By 1.0), lead MLII; anomalies are ventricular beats.",
    )


def from_file(
    path: Path | str | InMemory, schema: Schema, *, seed: int = 0, **where: Unpack[Fields]
) -> Federation:
    """Read a file, or what is in memory, as a federation: a site per client, or one without names.

    Arguments and errors are those of `fedlatent.shared.data.readers.read`, `where` being what the
    file calls its fields; `seed` draws the split into training and test records.

    Raises:
        DataError: If the file cannot be read, a record does not fit the schema, or none is normal.
    """
    raw = read_raw(path, schema, **where)
    name = Path(path).resolve().name if isinstance(path, (str, Path)) else path.name
    schema.preprocess(raw.records)  # fails here rather than in the middle of a run
    found = check(raw.records, schema, label=raw.label, names=raw.names, left_out=raw.left_out)
    count = len(raw.records)
    label = np.zeros(count, dtype=np.uint8) if raw.label is None else raw.label
    clients = np.full(count, "site") if raw.client_id is None else raw.client_id
    kind = np.array(["normal", "anomaly"])[label]
    sites = _by_owner(clients, raw.records, kind, label, seed, overlap=_overlap(schema.window))
    return Federation(
        name=name,
        schema=schema,
        sites=sites,
        synthetic=False,
        note=f"Records of {name}.",
        check=found,
    )


def _by_owner(
    owner: NDArray[Any],
    rows: NDArray[Any],
    kind: NDArray[np.str_],
    role: NDArray[Any],
    seed: int,
    overlap: int = 0,
) -> tuple[SiteData, ...]:
    """One site for each owner of records, in the order of their names; see `split_site`."""
    rng = np.random.default_rng(seed)
    found = []
    for name in np.unique(owner):
        mine = owner == name
        found.append(
            split_site(str(name), rows[mine], kind[mine], role[mine], rng, overlap=overlap)
        )
    return tuple(found)


def _overlap(window: Window | None) -> int:
    """With how many windows after it a window shares rows."""
    return 0 if window is None else math.ceil(window.length / window.step) - 1


def _in_blocks(
    places: NDArray[np.intp], overlap: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """The places in ten blocks or more, long beside the overlap, in random order."""
    blocks = np.array_split(places, max(10, len(places) // (10 * (overlap + 1))))
    return np.concatenate([blocks[at] for at in rng.permutation(len(blocks))])


def _near(places: NDArray[np.intp], others: NDArray[np.intp], overlap: int) -> NDArray[np.bool_]:
    """Whether any of the others is at most ``overlap`` away from a place."""
    around = places[:, np.newaxis] + np.arange(-overlap, overlap + 1)
    return np.asarray(np.isin(around, others).any(axis=1))


def split_site(
    name: str,
    rows: NDArray[Any],
    kind: NDArray[np.str_],
    role: NDArray[Any],
    rng: np.random.Generator,
    *,
    classes: bool = False,
    overlap: int = 0,
) -> SiteData:
    """Train on 70 % of the normal rows; test on the others and on the anomalies.

    `role` [N] says for each row whether it is normal (0), an anomaly (1) or extra (2); `classes`
    says that normal rows are of several kinds, which `train_kind` then keeps. Where a row shares
    values with the ``overlap`` rows after it (windows of a series), normal rows are drawn in
    blocks, and none that shares values with one that is trained on is tested.
    """
    normal = np.flatnonzero(role == _NORMAL)
    normal = _in_blocks(normal, overlap, rng) if overlap else rng.permutation(normal)
    anomaly, extra = np.flatnonzero(role == _ANOMALY), np.flatnonzero(role == _EXTRA)
    first = int(len(normal) * TRAIN_FRACTION)
    trained, others = normal[:first], normal[first:]
    tested = np.concatenate([others[~_near(others, trained, overlap)], anomaly])
    return SiteData(
        name=name,
        train=rows[trained],
        test=rows[tested],
        test_label=(role[tested] == _ANOMALY).astype(np.uint8),
        test_kind=kind[tested],
        extra=rows[extra],
        extra_kind=kind[extra],
        train_kind=kind[trained] if classes else None,
    )


def _restyle(images: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw one writing style and redraw all images [N, 8, 8] (ink 0 to 16) in it.

    A style maps each target pixel to a source point by an affine map (bilinear sampling, blank
    outside) and raises the relative ink to a power: below 1 thickens the stroke.
    """
    slant, turn = rng.uniform(-0.25, 0.25), rng.uniform(-0.15, 0.15)
    stretch = rng.uniform(0.9, 1.15, 2)
    shift = rng.uniform(-0.4, 0.4, 2)
    weight = np.exp(rng.uniform(-0.5, 0.5))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    source_from_target = rotation @ np.array([[1.0, 0.0], [slant, 1.0]]) @ np.diag(1.0 / stretch)
    drawn = resample(images, affine_points(8, 8, source_from_target, shift))
    return np.asarray(16.0 * np.clip(drawn / 16.0, 0.0, 1.0) ** weight)
