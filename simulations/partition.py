"""Share a pool of records among clients, and the named federations as one would share them.

The `split_*` functions are pure: they return for each record the number of the client that gets
it, so every record goes to exactly one client, and equal arguments give equal shares. No client
stays empty: sizes are even, or every client gets one record before the others are shared out by
chance, and a pool with fewer records than clients (or shards) is a ConfigError.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlatent.shared.data import benchmarks, sources, tabular
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.data.transforms import Transform, draw_shift
from fedlatent.shared.errors import ConfigError

Kind = Literal["natural", "iid", "dirichlet", "shards", "quantity", "feature-shift"]
Owners = NDArray[np.int64]  # [N]: the client of each record

#: Hearts and digits are made for a number of clients: this many without one.
MADE_CLIENTS = 10
#: Patients or writers behind a pool that is shared anew among more clients.
MOST_POOLED = 100

LEAST_ALPHA, MOST_ALPHA = 1e-4, 1e6
MOST_COUNT = 1_000_000  # of clients and of shards
MOST_STRENGTH = 4.0

_NOTHING = 1e-290  # a mixture of less cannot be brought to sum 1

_SPLIT, _TESTS, _EXTRAS, _SHIFT, _CHOICE = range(1, 6)  # streams of one seed


@dataclass(frozen=True, kw_only=True)
class Partition:
    """How the records of a data set are shared among clients.

    Attributes:
        kind: "natural": the clients that the data have; "iid": at random, even sizes;
            "dirichlet": label skew; "shards": few labels a client; "quantity": sizes differ;
            "feature-shift": iid, and each client's records pass a transformation of its own.
        clients: How many. None: as the data have them, or 10 for made ones ("natural" only).
        alpha: Dirichlet concentration of "dirichlet" and "quantity"; less is more skew.
        shards: Shards that a client gets, of "shards".
        strength: Of the feature shift; 0 is none.

    Raises:
        ConfigError: If a value is outside its range.
    """

    kind: Kind = "natural"
    clients: int | None = None
    alpha: float = 0.5
    shards: int = 2
    strength: float = 0.5

    def __post_init__(self) -> None:
        """Check every field."""
        if self.kind not in get_args(Kind):
            raise _wrong("kind", f"one of {', '.join(get_args(Kind))}", self.kind, "choose one")
        if self.clients is None and self.kind != "natural":
            raise _wrong("clients", f"a number for kind {self.kind}", None, "say how many")
        if self.clients is not None and not _is_count(self.clients, MOST_COUNT):
            limits = f"a whole number from 1 to {MOST_COUNT}"
            raise _wrong("clients", limits, self.clients, "correct it")
        if not _is_number(self.alpha, LEAST_ALPHA, MOST_ALPHA):
            limits = f"a number from {LEAST_ALPHA:g} to {MOST_ALPHA:g}"
            raise _wrong("alpha", limits, self.alpha, "0.1 is much skew, 10 is little")
        if not _is_count(self.shards, MOST_COUNT):
            limits = f"a whole number from 1 to {MOST_COUNT}"
            raise _wrong("shards", limits, self.shards, "2 is usual")
        if not _is_number(self.strength, 0.0, MOST_STRENGTH):
            limits = f"a number from 0 to {MOST_STRENGTH:g}"
            raise _wrong("strength", limits, self.strength, "0 is no shift")

    def text(self) -> str:
        """Say the partition in a few words, for notes and reports."""
        detail = {
            "dirichlet": f"Dirichlet label skew, alpha {self.alpha:g}",
            "shards": f"{self.shards} label-sorted shards each",
            "quantity": f"Dirichlet sizes, alpha {self.alpha:g}",
            "feature-shift": f"at random with a feature shift of strength {self.strength:g}",
            "iid": "at random",
        }
        return detail.get(self.kind, "as the data have them")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A named data set: (folder, clients to make, seed) gives its natural federation."""

    load: Callable[[Path, int, int], Federation]
    images: bool  # otherwise series
    natural: bool = True  # whether the sites are clients, rather than one pool
    most: int = MOST_COUNT  # clients that can be made
    needs: tuple[str, ...] = ()  # data sets of the catalogue


_SOURCES = {
    "hearts": _Source(load=lambda _, n, seed: sources.hearts(n, seed), images=False),
    "digits": _Source(load=lambda _, n, seed: sources.digits(n, seed), images=True, most=100),
    "mitbih": _Source(
        load=lambda folder, _, seed: sources.mitbih(folder, seed), images=False, needs=("mitbih",)
    ),
    "smd": _Source(load=lambda folder, _, __: benchmarks.smd(folder), images=False, needs=("smd",)),
    "asd": _Source(load=lambda folder, _, __: benchmarks.asd(folder), images=False, needs=("asd",)),
    "omniglot": _Source(
        load=lambda folder, _, seed: benchmarks.omniglot(folder, seed),
        images=True,
        needs=("omniglot", "mnist"),
    ),
    "mnist": _Source(
        load=lambda folder, _, __: benchmarks.mnist(folder),
        images=True,
        natural=False,
        needs=("mnist",),
    ),
    "mnist_one": _Source(
        load=lambda folder, _, seed: benchmarks.mnist_one(folder, digit=seed % 10),
        images=True,
        natural=False,
        needs=("mnist",),
    ),
    "heart_disease": _Source(
        load=lambda folder, _, seed: tabular.heart_disease(folder, seed),
        images=False,
        needs=("heart_disease",),
    ),
    "nsl_kdd": _Source(
        load=lambda folder, _, __: tabular.nsl_kdd(folder), images=False, needs=("nsl_kdd",)
    ),
    "fashion": _Source(
        load=lambda folder, _, __: benchmarks.fashion(folder),
        images=True,
        natural=False,
        needs=("fashion",),
    ),
}
NAMES = tuple(_SOURCES)


def source_needs(name: str) -> tuple[str, ...]:
    """Data sets of the catalogue that a named federation reads; none where it is made."""
    return _SOURCES[name].needs if name in _SOURCES else ()


def split_iid(records: int, clients: int, seed: int) -> Owners:
    """Share at random; sizes differ by one at most.

    Raises:
        ConfigError: As every `split_*` function, if a value is outside the range that `Partition`
            gives it, or there are fewer records than clients or shards.
    """
    _check(records, Partition(kind="iid", clients=clients))
    return _rng(seed, _SPLIT).permutation(np.arange(records) % clients)


def split_dirichlet(labels: ArrayLike, clients: int, alpha: float, seed: int) -> Owners:
    """Give each client its own mixture of labels (Hsu, Qi and Brown 2019); sizes are even.

    One client after another, in random order, draws a mixture from Dir(alpha K p), where p are
    the K labels' shares of the pool, and its records by that mixture; a label that is used up
    leaves the mixture. For K even labels this is the symmetric Dir(alpha); the alpha of Hsu et
    al. is alpha K in these terms.

    Args:
        labels: [N], of any type that sorts.
        clients: How many.
        alpha: Concentration; less is more skew.
        seed: Draws order, mixtures and records.

    Returns:
        Client of each record [N].
    """
    label = _codes(labels)
    _check(len(label), Partition(kind="dirichlet", clients=clients, alpha=alpha))
    rng = _rng(seed, _SPLIT)
    left = np.bincount(label)
    concentration = alpha * len(left) * left / len(label)
    sizes = np.bincount(np.arange(len(label)) % clients)
    counts = np.zeros((clients, len(left)), dtype=np.int64)
    for client in rng.permutation(clients):
        counts[client] = _draw(left, sizes[client], rng.dirichlet(concentration), rng)
        left = left - counts[client]
    owner = np.empty(len(label), dtype=np.int64)
    for k in range(len(left)):
        mine = rng.permutation(np.flatnonzero(label == k))
        owner[mine] = np.repeat(np.arange(clients), counts[:, k])
    return owner


def split_shards(labels: ArrayLike, clients: int, shards: int, seed: int) -> Owners:
    """Sort by label, cut into even shards, give each client `shards` (McMahan et al. 2017)."""
    label = _codes(labels)
    _check(len(label), Partition(kind="shards", clients=clients, shards=shards))
    rng = _rng(seed, _SPLIT)
    order = np.lexsort((rng.random(len(label)), label))
    client_of_shard = rng.permutation(np.repeat(np.arange(clients), shards))
    owner = np.empty(len(label), dtype=np.int64)
    owner[order] = client_of_shard[np.arange(len(label)) * len(client_of_shard) // len(label)]
    return owner


def split_quantity(records: int, clients: int, alpha: float, seed: int) -> Owners:
    """Share at random with sizes by Dir(alpha), after each client got one record."""
    _check(records, Partition(kind="quantity", clients=clients, alpha=alpha))
    rng = _rng(seed, _SPLIT)
    sizes = 1 + rng.multinomial(records - clients, rng.dirichlet(np.full(clients, alpha)))
    return rng.permutation(np.repeat(np.arange(clients), sizes))


def split(labels: ArrayLike, partition: Partition, seed: int) -> Owners:
    """Share records with these labels as `partition` says.

    For "natural", the labels are the clients, numbered as they sort, and no `clients` is read.
    """
    labels, clients = np.asarray(labels), partition.clients
    if partition.kind == "natural" or clients is None:
        return _codes(labels)
    if partition.kind == "dirichlet":
        return split_dirichlet(labels, clients, partition.alpha, seed)
    if partition.kind == "shards":
        return split_shards(labels, clients, partition.shards, seed)
    if partition.kind == "quantity":
        return split_quantity(len(labels), clients, partition.alpha, seed)
    return split_iid(len(labels), clients, seed)


def client_names(clients: int) -> tuple[str, ...]:
    """Return client-0000, client-0001 and so on, as wide as needed to sort by number."""
    width = max(4, len(str(clients - 1)))
    return tuple(f"client-{number:0{width}d}" for number in range(clients))


def named_federation(name: str, data_dir: Path, partition: Partition, seed: int) -> Federation:
    """Load a named data set and share its records among clients.

    Natural clients: hearts and digits are made for `clients` (10 when None); of the others, with
    `clients` given, so many are drawn by `seed`. Other kinds pool all records: of as many patients
    or writers as clients (100 at most) for hearts and digits, of all clients for the others.

    Args:
        name: One of `NAMES`.
        data_dir: Folder of the real data sets.
        partition: How to share.
        seed: Draws whatever is drawn: records, training and test, shares.

    Raises:
        ConfigError: If there is no such name, or the partition does not fit the data.
        DataError: If a file is missing or is not as expected.
    """
    source = _SOURCES.get(name)
    if source is None:
        raise ConfigError(
            f"Expected a data set of {', '.join(NAMES)}, got {name!r}; choose one of them."
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(
            f"Expected seed as a whole number of at least 0, got {seed!r}; correct it."
        )
    clients, natural = partition.clients, partition.kind == "natural"
    if natural and not source.natural:
        fitting = ", ".join(kind for kind in get_args(Kind) if kind != "natural")
        limits = f"one of {fitting} for {name}, which has no natural clients"
        raise _wrong("kind", limits, partition.kind, "choose one")
    make = clients or MADE_CLIENTS
    if natural and make > source.most:
        limits = f"at most {source.most} natural clients of {name}"
        raise _wrong("clients", limits, clients, "ask for fewer")
    whole = source.load(Path(data_dir), make if natural else min(make, MOST_POOLED), seed)
    if natural:
        return chosen_clients(whole, clients, seed)
    return repartition(whole, partition, seed, images=source.images)


def repartition(
    federation: Federation, partition: Partition, seed: int, *, images: bool
) -> Federation:
    """Pool the records of all sites and share them anew among `partition.clients`.

    Labels are the classes of the normal training records, or their sites where these are of one
    class. Test records go where training records of their label went, in proportion and each to
    one client; where nobody trains on their label, in proportion to all training records. So with
    more clients than test records some clients have none.

    Args:
        federation: Whose records; natural partitions return it as it is.
        partition: How to share.
        seed: Draws the shares and the feature shift.
        images: Whether records are images, for the feature shift; otherwise they are series.

    Raises:
        ConfigError: If there are fewer training records than clients or shards.
    """
    sites, schema, clients = federation.sites, federation.schema, partition.clients
    if partition.kind == "natural" or clients is None:
        return federation
    classes = all(site.train_kind is not None for site in sites)
    label = _labels(sites, "train", classes)
    owner = split(label, partition, seed)
    owners = {"train": owner}
    for part, stream in (("test", _TESTS), ("extra", _EXTRAS)):
        wanted, kind = _labels(sites, part, classes), _join(sites, f"{part}_kind")
        owners[part] = _follow(wanted, kind, label, owner, clients, _rng(seed, stream))
    shared = _shares(sites, owners, clients, classes)
    if partition.kind == "feature-shift":
        shared = [
            _shifted(site, draw_shift(schema, partition.strength, _rng(seed, _SHIFT, i), images))
            for i, site in enumerate(shared)
        ]
    note = f"{federation.note} Records shared anew among {clients} clients: {partition.text()}."
    return replace(federation, sites=tuple(shared), note=note)


def chosen_clients(whole: Federation, clients: int | None, seed: int) -> Federation:
    """Draw so many of the natural clients, in their order; None takes all."""
    count = len(whole.sites)
    if clients is None or clients == count:
        return whole
    if clients > count:
        limits = f"at most {count} natural clients of {whole.name}"
        raise _wrong("clients", limits, clients, "ask for fewer or choose another kind")
    chosen = np.sort(_rng(seed, _CHOICE).permutation(count)[:clients])
    return replace(whole, sites=tuple(whole.sites[i] for i in chosen))


def _draw(
    left: NDArray[np.int64], size: int, mixture: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw how many of `size` records have each label, at most those that are left."""
    taken = np.zeros_like(left)
    while (missing := int(size - taken.sum())) > 0:  # each pass fills up or uses up a label
        free = left - taken
        weight = np.where(free > 0, mixture, 0.0)
        if weight.sum() < _NOTHING:  # none of the mixture's labels is left
            weight = free.astype(np.float64)
        taken += np.minimum(rng.multinomial(missing, weight / weight.sum()), free)
    return taken


def _follow(
    wanted: NDArray[np.str_],
    kind: NDArray[np.str_],
    label: NDArray[np.str_],
    owner: Owners,
    clients: int,
    rng: np.random.Generator,
) -> Owners:
    """Share records [M] in proportion to the training records [N] of the same label.

    Each label and kind is dealt systematically: of m records, a client that trains on a share s of
    the label gets m s, rounded down or up.
    """
    given = np.empty(len(wanted), dtype=np.int64)
    for one in np.unique(wanted):
        trained = owner[label == one]
        trained = trained if len(trained) else owner
        trained = trained[np.argsort(rng.permutation(clients)[trained], kind="stable")]
        for each in np.unique(kind[wanted == one]):
            mine = rng.permutation(np.flatnonzero((wanted == one) & (kind == each)))
            place = (np.arange(len(mine)) + rng.random()) * (len(trained) / len(mine))
            given[mine] = trained[np.minimum(place.astype(np.int64), len(trained) - 1)]
    return given


def _labels(sites: Sequence[SiteData], part: str, classes: bool) -> NDArray[np.str_]:
    """Return the label of each record of a part: its class, or its site's name."""
    if classes:
        return _join(sites, f"{part}_kind")
    return np.repeat([site.name for site in sites], [len(getattr(site, part)) for site in sites])


def _join(sites: Sequence[SiteData], key: str) -> NDArray[Any]:
    """Return one array of all sites, in their order."""
    return np.concatenate([getattr(site, key) for site in sites])


def _shares(
    sites: Sequence[SiteData], owners: Mapping[str, Owners], clients: int, classes: bool
) -> list[SiteData]:
    """Make the clients. Their arrays are slices of one sorted copy of the pool."""
    keys = ["train", "test", "test_label", "test_kind", "extra", "extra_kind"]
    shares = {}
    for key in [*keys, "train_kind"] if classes else keys:
        owner = owners[key.split("_")[0]]
        order = np.argsort(owner, kind="stable")
        ends = np.cumsum(np.bincount(owner, minlength=clients))
        shares[key] = np.split(_join(sites, key)[order], ends[:-1])
    return [
        SiteData(name=name, **{key: share[i] for key, share in shares.items()})
        for i, name in enumerate(client_names(clients))
    ]


def _shifted(site: SiteData, shift: Transform) -> SiteData:
    """Pass all records of a client through its transformation, in one go."""
    parts = (site.train, site.test, site.extra)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    train, test, extra = np.split(shift(np.concatenate(parts)), ends)
    return replace(site, train=train, test=test, extra=extra)


def _codes(labels: ArrayLike) -> NDArray[np.int64]:
    """Return labels [N] as numbers from 0, in the order in which they sort."""
    return np.asarray(np.unique(np.asarray(labels), return_inverse=True)[1], dtype=np.int64)


def _rng(seed: int, *stream: int) -> np.random.Generator:
    """Return a generator of its own for each purpose of a seed."""
    return np.random.default_rng([seed, *stream])


def _check(records: int, partition: Partition) -> None:
    """Raise ConfigError unless every client, or every shard, can get a record."""
    wanted, what = partition.clients or 1, "clients"
    if partition.kind == "shards":
        wanted, what = wanted * partition.shards, "clients times shards"
    if wanted > records:
        limits = f"at most {records}, the number of training records"
        advice = "ask for fewer, so that nobody is left without one"
        raise _wrong("clients", limits, wanted, advice, what)


def _wrong(key: str, expected: str, got: object, advice: str, what: str = "") -> ConfigError:
    """Say what is wrong with a key of a partition, or with ``what`` is made of it."""
    return ConfigError(
        f"Expected partition {what or key} to be {expected}, got {repr(got)[:80]}; {advice}.",
        field=key,
    )


def _is_count(value: object, most: int) -> bool:
    """Whether a value is a whole number from 1 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_number(value: object, least: float, most: float) -> bool:
    """Whether a value is a number from `least` to `most`; NaN is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
