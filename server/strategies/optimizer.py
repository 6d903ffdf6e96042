"""Server optimisers (Reddi et al. 2021): Flower's own, one step at a time on the weighted mean."""

from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi, Strategy

from fedlatent.server.strategies.flower import aggregate
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import StrategySection

_MOMENTUM = 0.9
_ADAPTIVE = {"adam": FedAdam, "yogi": FedYogi, "adagrad": FedAdagrad}


def server_step(
    section: StrategySection, round: int, before: Arrays, mean: Arrays, state: Arrays
) -> tuple[Arrays, Arrays]:
    """The shared arrays after a round, and the optimiser's state.

    Args:
        section: names the optimiser; "none" takes the mean as it is.
        round: training round, from 1.
        before: what the clients were sent.
        mean: the weighted mean of what they answered.
        state: what the last step returned, or nothing.
    """
    if section.server_optimizer == "none":
        return mean, {}
    after = aggregate(_optimizer(section), round, before, [(mean, 1.0)], state)
    arrays = {key: after.arrays[key].astype(value.dtype) for key, value in before.items()}
    return arrays, after.state


def _optimizer(section: StrategySection) -> Strategy:
    rate = section.server_learning_rate
    if section.server_optimizer == "momentum":
        return FedAvgM(server_learning_rate=rate, server_momentum=_MOMENTUM)
    adaptive: Strategy = _ADAPTIVE[section.server_optimizer](eta=rate)
    return adaptive
