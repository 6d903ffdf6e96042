"""How the updates of one training round are brought together so that no few sites own the result.

An update is what a site changed: its reply less the weights that it was sent. First, every update
longer than ``federation.norm_factor`` times the median length of the round is drawn back to that
length, whatever the rule. Then ``strategy.robust`` says how the round's result comes about:

``none``
    The weighted mean. A hostile site moves it by ``norm_factor`` median lengths times its share of
    the weight at most, in a direction of its choice. Covers a reply 100 times too large; not many
    rounds of pulling against the others, which can undo much of what they learn.
``centred-clipping``
    Karimireddy et al. (2021): the weighted mean of the updates, each drawn to within a radius of a
    centre. Centre: the coordinates' medians, moved a few steps towards that very mean; radius: the
    median distance from the medians, that is where the typical honest update lies. Less than half
    of the sites move it by a radius times their share at most. It does not cover sites of which
    each has a kind of data of its own: their distances are the radius, so hostile ones hide in it.
``trimmed-mean``
    Yin et al. (2018), Flower's: in each coordinate the mean without the f largest and f smallest
    values. Withstands f hostile sites of 2 f + 1. Each site counts the same, however many records
    it has, and small hostile steps within the honest values' range add up over rounds.
``median``
    Yin et al. (2018), Flower's: in each coordinate the median. As ``trimmed-mean``, for less than
    half of the sites; it costs most accuracy where honest updates are noisy or skewed.
``krum``
    Blanchard et al. (2017), Flower's: the one update whose n - f - 2 nearest others are nearest.
    Withstands f hostile sites of 2 f + 3. All others' work is lost, and so is what averaging does
    against the noise of privacy; it follows the densest kind of data. A hostile update close to the
    honest ones may be the one that is taken: where noise outweighs what they learn, that of nothing
    is, in each round.
``multi-krum``
    Krum's n - f best updates, averaged by their weights. As ``krum``, with less lost: a hostile
    site that counts at all does so as one of n. With less than five sites it withstands none and is
    the weighted mean. With more than ``HELD`` the result of the first of them is a centre; all are
    drawn to within their median distance of it and averaged.

No rule covers a majority of hostile sites, a site that poisons its own records yet trains as it
should, or what a hostile site learns from the weights that it is sent.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, MultiKrum, Strategy
from flwr.serverapp.strategy.multikrum import select_multikrum
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fedlatent.server.strategies.flower import PASSED_OVER, RADIUS, aggregate
from fedlatent.server.strategies.mean import WeightedMean
from fedlatent.server.strategies.weighting import LARGEST_SHARE
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import STRATEGY, RunConfig
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.plugins import PluginTable, is_callable

_log = getLogger("fedlatent.server")

#: Updates that are held until the medians of the round are taken over them; with more, the mean
#: and centred clipping fold the others as they come, so that memory does not grow with the sites.
HELD = 101
_STEPS = 5  # of the centre of clipping
_ALL = "update"
_GIVEN = "given"  # a strategy from outside the run file


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """An update that was drawn back.

    Attributes:
        norm: its L2 norm as it came.
        bound: the largest of its round.
    """

    norm: float
    bound: float

    @property
    def sentence(self) -> str:
        """What was done, for people."""
        return (
            f"update of norm {self.norm:.4g} scaled down to {self.bound:.4g}, the largest next to "
            "the other sites' (federation.norm_factor)"
        )


@dataclass(frozen=True, kw_only=True)
class _Update:
    """One site's weights [P] as one row.

    Attributes:
        node: whose they are.
        row: the weights.
        norm: of what the site changed, as it came.
        weight: how much they weigh.
        fixed: whether that is beyond doubt.
    """

    node: int
    row: np.ndarray
    norm: float
    weight: float
    fixed: bool


class Pool:
    """The updates of one training round; the result does not depend on their order up to ``HELD``.

    Attributes:
        count: number of updates so far.
        weight: sum of the weights that counted, once there is a result.
        scaled: the updates that were drawn back, by node, once there is a result.
        passed_over: nodes whose update the rule did not choose, once there is a result.
        state: what a given strategy carries to the next round; at first that of the last one.
    """

    def __init__(
        self,
        config: RunConfig,
        sent: Mapping[str, np.ndarray],
        asked: int,
        *,
        strategy: Strategy | None = None,
        round: int = 1,
        state: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Start with nothing.

        Args:
            config: the run, which names the rule.
            sent: the weights that the sites were sent.
            asked: number of sites that were asked.
            strategy: the rule, in place of the one that the run names.
            round: of training, from 1.
            state: of the strategy, from the round before.
        """
        self.count = 0
        self.state = dict(state or {})
        self._strategy, self._round = strategy, round
        self.scaled: dict[int, Scaled] = {}
        self.passed_over: list[int] = []
        self._config, self._asked = config, asked
        self._rule = config.strategy.robust if strategy is None else _GIVEN
        self._shapes = {key: (value.shape, value.dtype) for key, value in sent.items()}
        self._sent = _row(sent)
        self._held: list[_Update] = []
        self._mean = WeightedMean()
        self._bound = self._heaviest = 0.0
        self._centre, self._radius = self._sent, np.inf  # of what is folded
        self._settled = False

    @property
    def weight(self) -> float:
        """Sum of the weights that counted."""
        return self._mean.weight

    def add(
        self, node: int, arrays: Mapping[str, np.ndarray], weight: float, *, fixed: bool = False
    ) -> None:
        """Take one site's weights; ``arrays`` may be changed or dropped afterwards.

        Args:
            node: whose they are.
            arrays: by name, as the site was sent them.
            weight: what they are to count.
            fixed: whether the operator has said so; else none counts more than twice the median.

        Raises:
            ValueError: other names or shapes than were sent, or a weight that is not positive.
        """
        if not weight > 0:
            raise ValueError(f"Expected a positive weight, got {weight}.")
        if {key: value.shape for key, value in arrays.items()} != {
            key: shape for key, (shape, _) in self._shapes.items()
        }:
            raise ValueError(f"Expected arrays {sorted(self._shapes)}, got {sorted(arrays)}.")
        row = _row({key: arrays[key] for key in self._shapes}).astype(self._sent.dtype)
        norm = _length(row, self._sent)
        update = _Update(node=node, row=row, norm=norm, weight=weight, fixed=fixed)
        self.count += 1
        if self._settled:
            self._fold(self._bounded(update))
            return
        self._held.append(update)
        if self.count == HELD and self._rule in _STREAMED:
            self._settle()

    def result(self) -> Arrays:
        """The shared weights after the round, each array in the type that was sent.

        Raises:
            ValueError: nothing was added.
        """
        if not self.count:
            raise ValueError("Expected at least one contribution, got none.")
        if not self._settled:
            self._settle()
        return _like(self._shapes, self._mean.result()[_ALL])

    def _settle(self) -> None:
        """Take the round's medians over what is held; fold that, and let the rest be folded."""
        held, self._held = sorted(self._held, key=lambda one: one.node), []
        norms = [one.norm for one in held]
        self._bound = self._config.federation.norm_factor * float(np.median(norms))
        held = [self._bounded(one) for one in held]
        self._heaviest = LARGEST_SHARE * float(np.median([one.weight for one in held]))
        self._settled = True
        if (strategy := self._strategy or self._named(len(held))) is not None:
            rows = [(self._arrays(one.row.astype(np.float64)), self._weight(one)) for one in held]
            found = aggregate(strategy, self._round, self._arrays(self._sent), rows, self.state)
            self.state = found.state
            self._centre, self._radius = _row(found.arrays), found.radius or 0.0
            if len(held) == HELD and self._rule == "multi-krum":
                apart = np.stack([one.row for one in held]) - self._centre
                self._radius = float(np.median(np.linalg.norm(apart, axis=1)))
            else:
                self.passed_over = [held[number].node for number in found.passed_over]
        for one in held:
            self._fold(one)

    def _named(self, good: int) -> Strategy | None:
        """The strategy that the run names, for so many good replies; None: the mean."""
        if self._rule == "none":
            return None
        hostile = self._borne(good)
        if self._rule == "multi-krum" and not hostile:  # takes all there are: their mean
            self._rule = "none"
            return None
        return RULES[self._rule](hostile, good)

    def _fold(self, update: _Update) -> None:
        row = update.row
        if self._radius < np.inf:
            row = _drawn(row, self._centre, self._radius)
        self._mean.add({_ALL: row}, self._weight(update))

    def _weight(self, update: _Update) -> float:
        """What an update counts; what nobody vouches for is held to twice the median."""
        trusted = update.fixed and self._rule == "none"
        return update.weight if trusted else min(update.weight, self._heaviest)

    def _bounded(self, update: _Update) -> _Update:
        """The update, drawn back to the bound of the round."""
        if update.norm <= self._bound:
            return update
        self.scaled[update.node] = Scaled(norm=update.norm, bound=self._bound)
        return replace(update, row=_drawn(update.row, self._sent, self._bound))

    def _borne(self, good: int) -> int:
        """Hostile sites that the rule withstands: as asked for, or what so few replies bear."""
        section = self._config.strategy
        wanted = section.hostile or max(1, min(self._asked, HELD) // 5)
        borne = max(0, (good - section.sites_needed(0)) // 2)
        meant = section.robust != "none" and self._asked >= section.sites_needed(1)
        if borne < wanted and (section.hostile or meant):
            _log.warning(
                "%d good replies of %d let strategy.robust %r withstand %d hostile sites, not %d",
                *(good, self._asked, section.robust, borne, wanted),
            )
        return min(wanted, borne)

    def _arrays(self, row: np.ndarray) -> Arrays:
        return _like({key: (shape, row.dtype) for key, (shape, _) in self._shapes.items()}, row)


#: Rules whose memory does not grow with the sites.
_STREAMED: frozenset[str] = frozenset(("none", "centred-clipping", "multi-krum"))


def clipping_centre(steps: np.ndarray, weights: Sequence[float]) -> tuple[np.ndarray, float]:
    """Where updates are clipped about, and how far from it.

    Args:
        steps: updates [n, P], float64.
        weights: of each.
    """
    centre = np.median(steps, axis=0)
    radius = float(np.median(np.linalg.norm(steps - centre, axis=1)))
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    for _ in range(_STEPS):
        apart = steps - centre
        lengths = np.linalg.norm(apart, axis=1)
        shrink = np.minimum(1.0, radius / np.maximum(lengths, np.finfo(np.float64).tiny))
        centre = centre + (shares * shrink) @ apart
    return centre, radius


class CentredClipping(FedAvg):
    """Centred clipping (Karimireddy et al. 2021): a centre, and the radius to which all are drawn.

    Replies carry ``arrays`` and their weight ``num-examples``, as Flower's strategies take them.
    """

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The centre, and how far from it the typical honest weights lie."""
        contents = [one.content for one in replies]
        named = [
            {key: array.numpy() for key, array in next(iter(one.array_records.values())).items()}
            for one in contents
        ]
        weights = [
            float(str(next(iter(one.metric_records.values()))[self.weighted_by_key]))
            for one in contents
        ]
        centre, radius = clipping_centre(np.stack([_row(one) for one in named]), weights)
        arrays = _like({key: (one.shape, one.dtype) for key, one in named[0].items()}, centre)
        record = ArrayRecord({key: Array(value) for key, value in arrays.items()})
        return record, MetricRecord({RADIUS: radius})


class ChosenByKrum(MultiKrum):
    """Flower's Krum and multi-Krum (Blanchard et al. 2017), which says whom it did not choose."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The weighted mean of the chosen, and the numbers of the others."""
        contents = [one.content for one in replies]
        chosen = select_multikrum(contents, self.num_malicious_nodes, self.num_nodes_to_select)
        taken = {id(content) for content in chosen}
        others = [number for number, one in enumerate(contents) if id(one) not in taken]
        record = aggregate_arrayrecords(chosen, self.weighted_by_key)
        return record, MetricRecord({PASSED_OVER: others})


def _trimmed(hostile: int, count: int) -> Strategy:
    # Flower cuts off the whole part of beta * n on each side; a quarter keeps rounding away.
    return FedTrimmedAvg(beta=(hostile + 0.25) / count if hostile else 0.0)


def _krum(hostile: int, chosen: int) -> Strategy:
    return ChosenByKrum(num_malicious_nodes=hostile, num_nodes_to_select=chosen)


#: The strategies that ``strategy.robust`` names beside the mean, each made for a number of hostile
#: sites among a number of good replies. `RULES` has those of plugins, too.
_OWN: dict[str, Callable[[int, int], Strategy]] = {
    "centred-clipping": lambda hostile, count: CentredClipping(),
    "trimmed-mean": _trimmed,
    "median": lambda hostile, count: FedMedian(),
    "krum": lambda hostile, count: _krum(hostile, 1),
    "multi-krum": lambda hostile, count: _krum(hostile, count - hostile),
}


def _wrong(name: str, value: object) -> str | None:
    """Why a plugin's strategy may not stand under its name."""
    if not re.fullmatch(STRATEGY, name):
        return "expected a name such as 'package/name' in lower case, got one that is not"
    return is_callable(name, value)


RULES: PluginTable[Callable[[int, int], Strategy]] = PluginTable("strategies", _OWN, _wrong)


def check_strategy(run: RunConfig) -> None:
    """See that the strategy that a run names is here.

    Raises:
        ConfigError: no installed package has it, or the one that does cannot be used.
    """
    name = run.strategy.robust
    if name == "none" or (name in RULES and callable(RULES[name])):
        return
    raise ConfigError(
        f"Expected strategy.robust to be none, {', '.join(RULES)}, got {name!r}; install the "
        "package that has it on the server.",
        field="strategy.robust",
    )


def _like(shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]], row: np.ndarray) -> Arrays:
    """A row of all entries [P] as arrays of these names, shapes and types."""
    found, start = {}, 0
    for key, (shape, dtype) in shapes.items():
        size = int(np.prod(shape, dtype=np.int64))
        found[key] = row[start : start + size].reshape(shape).astype(dtype)
        start += size
    return found


def _row(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """All entries as one row [P], a copy."""
    return np.concatenate([value.reshape(-1) for value in arrays.values()])


def _length(row: np.ndarray, centre: np.ndarray) -> float:
    return float(np.linalg.norm(row.astype(np.float64) - centre))


def _drawn(row: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """``row`` itself within ``radius`` of ``centre``; else the point there on the way to it."""
    length = _length(row, centre)
    if length <= radius:
        return row
    near: np.ndarray = centre + (row.astype(np.float64) - centre) * (radius / length)
    return near.astype(row.dtype)
