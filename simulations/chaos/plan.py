"""Which faults a seed means, and in what company.

Every kind of fault has a deck of all its combinations, which is shuffled and dealt before any card
comes again: so few faults already touch everything once, and the same seed deals the same faults.
"""

import itertools
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from fedlatent.simulations.chaos.hostile import LIES
from fedlatent.simulations.chaos.stage import HONEST, HOSTILE, NODES, ROLES, SERVER, SIDES

Kind = Literal["signal", "side", "file", "disk", "read-only", "clock", "line", "lie"]

SHARES: Mapping[Kind, int] = {
    "signal": 13,
    "side": 2,
    "file": 2,
    "disk": 1,
    "read-only": 2,
    "clock": 1,
    "line": 2,
    "lie": 2,
}
"""How many of 25 faults are of each kind."""

KEEPERS = ("supervisor", "warden")
SIGNALS = ("KILL", "TERM", "HUP", "STOP")
CLOCKS = ("+3600", "-3600", "-300")  # seconds
DAMAGES = ("cut", "emptied", "junk", "gone")

#: Files below a home; of those that a pattern matches, the newest.
FILES: Mapping[str, tuple[str, ...]] = {
    "server": (
        "registry.db",
        "link.db",
        "sites.json",
        "server.toml",
        "tls/server.pem",
        "runs/*/submission.json",
        "runs/*/checkpoints/phase-*.json",
        "runs/*/checkpoints/phase-*.safetensors",
        "runs/*/config.json",
        "services/status.json",
        "services/quotas/*.json",
    ),
    "node": (
        "ledger.db",
        "ledger.db-wal",
        "releases.jsonl",
        "releases.log",
        "node.toml",
        "ca.crt",
        "beats.npz",
        "keys/node",
        "keys/records.salt",
        "store/*/round-*.safetensors",
        "outbox/*/train-*.bin",
        "services/status.json",
    ),
}

_T = TypeVar("_T")
_AT_ONCE = (3, 5)
_HOLD_S = (2.0, 5.0)
_DELAY_S = (0.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        kind: of what sort it is.
        side: whom it hits.
        what: the kind of process, the file or the folder; empty where that is the whole side.
        how: the signal, the damage, the state of the line, the lie, or the seconds of a clock.
        delay_s: pause before it strikes.
        hold_s: how long it lasts, where it lasts.
        seed: of the rest.
    """

    kind: Kind
    side: str
    what: str
    how: str
    delay_s: float = 0.0
    hold_s: float = 0.0
    seed: int = 0

    @property
    def group(self) -> str:
        """What recovery times are gathered by."""
        host = "server" if self.side == SERVER else "node"
        if self.kind == "signal":
            return f"{self.how} {self.what} ({host})"
        if self.kind == "file":
            return f"{self.what} {self.how} ({host})"
        return " ".join(filter(None, (self.kind, self.how, f"({host})")))

    def __str__(self) -> str:
        """For people."""
        return " ".join(filter(None, (self.kind, self.how, self.what, "of", self.side)))


def deal(seed: int, without: Collection[str] = ()) -> Iterator[list[Fault]]:
    """Volleys of up to five faults at once, for ever; kinds ``without`` are left out.

    Damage to a file comes alone, since what is said about it must be about it.
    """
    draw = random.Random(seed)
    volley: list[Fault] = []
    wanted = draw.randint(*_AT_ONCE)
    for fault in _faults(draw, [kind for kind in SHARES if kind not in without]):
        if fault.kind == "file":
            yield [fault]
            continue
        if len(volley) == wanted or not all(_apart(fault, one) for one in volley):
            yield volley
            volley, wanted = [], draw.randint(*_AT_ONCE)
        volley.append(fault)


def _faults(draw: random.Random, kinds: list[Kind]) -> Iterator[Fault]:
    """Single faults, for ever."""
    decks = {kind: _shuffled(draw, _cards(kind)) for kind in kinds}
    for kind in _shuffled(draw, [one for one in kinds for _ in range(SHARES[one])]):
        yield replace(
            next(decks[kind]),
            delay_s=draw.uniform(*_DELAY_S),
            hold_s=draw.uniform(*_HOLD_S),
            seed=draw.randrange(2**31),
        )


def _apart(one: Fault, other: Fault) -> bool:
    """Whether two faults can be struck and mended side by side."""
    if one.side != other.side:
        return True
    kinds, mounts = {one.kind, other.kind}, {"disk", "read-only"}
    return one.what != other.what if kinds == {"signal"} else len(kinds) == 2 and kinds != mounts


def _shuffled(draw: random.Random, cards: list[_T]) -> Iterator[_T]:
    """All cards in an order of chance, then again in another one."""
    while True:
        yield from draw.sample(cards, len(cards))


def _cards(kind: Kind) -> list[Fault]:
    """Every combination of a kind."""
    return [
        Fault(kind=kind, side=side, what=what, how=how) for side, what, how in _COMBINATIONS[kind]()
    ]


def _signals() -> Iterator[tuple[str, str, str]]:
    for host, roles in ROLES.items():
        for role, signal in itertools.product((*roles, *KEEPERS), SIGNALS):
            for side in (SERVER,) if host == "server" else HONEST:
                yield side, role, signal


def _files() -> Iterator[tuple[str, str, str]]:
    for host, names in FILES.items():
        for name, damage in itertools.product(names, DAMAGES):
            yield SERVER if host == "server" else HONEST[0], name, damage


def _folders() -> Iterator[tuple[str, str, str]]:
    yield from ((SERVER, what, "") for what in (".", "runs", "services"))
    yield from ((HONEST[0], what, "") for what in (".", "outbox", "store", "services"))


_Combinations = Callable[[], Iterator[tuple[str, str, str]]]
_COMBINATIONS: Mapping[Kind, _Combinations] = {
    "signal": _signals,
    "side": lambda: itertools.product(SIDES, ("",), SIGNALS),
    "file": _files,
    "disk": lambda: itertools.product(SIDES, ("",), ("full",)),
    "read-only": _folders,
    "clock": lambda: itertools.product(SIDES, ("",), CLOCKS),
    "line": lambda: itertools.product(NODES, ("",), ("slow", "lossy", "stalled", "cut")),
    "lie": lambda: itertools.product((HOSTILE,), ("",), LIES),
}
