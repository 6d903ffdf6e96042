"""The benchmark's work as a Flower app, for Flower's own simulation engine.

Plain federated averaging of the whole model. The server's side stops after each round until the
launcher (``fedlatent.simulations.bench.flower``) lets it go on, over a socket.
"""

import functools
import json
import socket
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedlatent.simulations.bench.plain import PlainVAE, Pool, Task, count_parameters

_ROUNDS = 10_000  # more than anybody measures

app = ServerApp()
client = ClientApp()


@functools.cache
def _pool(task: Task) -> Pool:
    """One pool for each of the engine's workers."""
    return Pool(task)


def _task(context: Context) -> Task:
    return Task.from_json(str(context.run_config["task"]))


@client.train()
def train(message: Message, context: Context) -> Message:
    """One pass of SGD over the client's records."""
    torch.set_num_threads(1)
    task = _task(context)
    records = _pool(task).of(int(context.node_config["partition-id"]))
    model = PlainVAE(task)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=task.rate)
    steps = 0
    for x in torch.split(records, task.batch):
        optimizer.zero_grad()
        torch.autograd.backward(model.loss(x))
        optimizer.step()
        steps += 1
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(records), "steps": steps}),
        }
    )
    return Message(content=content, reply_to=message)


class _Stepwise(FedAvg):
    """Federated averaging that waits after each round."""

    def __init__(self, context: Context, parameters: int) -> None:
        clients = _task(context).clients
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=clients)
        self._parameters = parameters
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(str(context.run_config["line"]))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of a round; before the first, say that the start-up is over."""
        if server_round == 1:
            self._wait_for_turn(b"begin")
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, say what was done, wait."""
        answers = list(replies)
        result = super().aggregate_train(server_round, answers)
        good = [answer.content.metric_records["metrics"] for answer in answers if answer.content]
        work = {
            "parameters": self._parameters,
            "clients": len(good),
            "records": max((metrics["num-examples"] for metrics in good), default=0),
            "steps": max((metrics["steps"] for metrics in good), default=0),
        }
        self._wait_for_turn(json.dumps(work).encode())
        return result

    def _wait_for_turn(self, said: bytes) -> None:
        self._line.sendall(said + b"\n")
        self._line.recv(16)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train until the launcher ends this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = PlainVAE(_task(context))
    strategy = _Stepwise(context, count_parameters(model))
    first = ArrayRecord(model.state_dict())
    strategy.start(grid=grid, initial_arrays=first, num_rounds=_ROUNDS)
