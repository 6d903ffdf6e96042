"""A node whose answers are false, signed all the same with the key that its site was admitted with.

`python -m fedlatent.simulations.chaos.hostile --home DIR` is `fedlatent.client.service` but for its
resident, which reads with each answer what it shall send from a file beside its home, and sends the
truth where there is none. What its own ledger and log hold stays true; the server gets something
else.
"""

import argparse
import dataclasses
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from fedlatent.client import resident
from fedlatent.client.border import Border
from fedlatent.client.home import ClientHome
from fedlatent.client.node import Node
from fedlatent.client.resident import Watchdog
from fedlatent.client.service import ClientService
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.signing import digest_of, request_name
from fedlatent.shared.supervisor import Service
from fedlatent.shared.wire import (
    STORED_PROTOCOLS,
    ReplyHeader,
    RequestHeader,
    deliver,
    pack,
    split,
    unpack,
)

MODULE = "fedlatent.simulations.chaos.hostile"
"""Of this file, for ``python -m``."""

_SILENT_S = 15.0  # longer than a phase

_ARRAYS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "flipped": lambda one: -one,
    "zero": np.zeros_like,
    "hundredfold": lambda one: one * np.asarray(100, one.dtype),
    "not-a-number": lambda one: np.full_like(one, np.nan),
    "wrong-shape": lambda one: np.zeros((*one.shape, 2), one.dtype),
}
_BYTES: Mapping[str, Callable[[bytes], bytes]] = {
    "junk": lambda data: random.Random(len(data)).randbytes(len(data)),
    "torn": lambda data: data[: len(data) // 2],
}
LIES = (*_ARRAYS, *_BYTES, "silent", "false-count", "another-site")


def lie_of(home: Path) -> Path:
    """The file, beside a node's home, that names what its next answers are."""
    return home.with_name(f"{home.name}.lie")


class HostileService(ClientService):
    """The services of a node, with the resident below in the resident's place."""

    def _services(self) -> list[Service]:
        argv = (sys.executable, "-m", MODULE, "--resident", "--home", str(self.home.root))
        return [
            dataclasses.replace(one, argv=argv) if one.name == "resident" else one
            for one in super()._services()
        ]


def falsify(lie: str, answer: bytes, request: bytes, border: Border) -> bytes:
    """What is sent instead of a true answer."""
    if lie == "silent":
        time.sleep(_SILENT_S)
        return answer
    if lie in _BYTES:
        return _BYTES[lie](answer)
    asked, sent = unpack(RequestHeader, request)
    header, arrays = unpack(ReplyHeader, split(answer)[1], STORED_PROTOCOLS)
    if lie == "false-count":
        header = header.model_copy(update={"records": 10_000_000})
    elif lie == "another-site":
        header = header.model_copy(update={"site": "ward-1"})
    else:
        arrays = {key: _ARRAYS[lie](value) for key, value in arrays.items()}
    payload = pack(header, arrays)
    return deliver(payload, border.signer.sign(payload, request_name(asked, digest_of(sent))))


def _lying(home: Path) -> None:
    """Put a liar between the resident's answers and its socket."""
    truth = resident.answer

    def answer(node: Node, watchdog: Watchdog, data: bytes, border: Border | None = None) -> bytes:
        payload = truth(node, watchdog, data, border)
        try:
            lie = lie_of(home).read_text()
        except FileNotFoundError:
            return payload
        try:
            return payload if border is None else falsify(lie, payload, data, border)
        except ProtocolError:  # an answer that is none
            return payload

    resident.answer = answer


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--home", required=True)
    parser.add_argument("--resident", action="store_true")
    options = parser.parse_args()
    home = ClientHome.find(options.home)
    if options.resident:
        _lying(home.root)
        return resident.main(["--home", options.home])
    HostileService(home).run(check_server=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
