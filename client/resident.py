"""The long-lived node process: ``python -m fedlatent.client.resident --home DIR``.

Flower starts a fresh process for each message; this one loads PyTorch and the records once and
answers over a Unix socket, one request at a time. Answers leave at whole steps of time, and a
request that overruns its deadline, which is rounded up to whole steps, ends the process with
status 75, for its supervisor to start it again: a stuck computation cannot be stopped in any
gentler way, and the ledger and the store are made for it.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Self

import torch

from fedlatent.client.border import Border
from fedlatent.client.door import Outgoing
from fedlatent.client.home import ClientHome
from fedlatent.client.link import serve, whole_steps
from fedlatent.client.local import open_node
from fedlatent.client.node import Node
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.errors import ProtocolError, SignatureError, exit_code_of
from fedlatent.shared.files import telling
from fedlatent.shared.processes import hang_up_is_terminate
from fedlatent.shared.signing import digest_of
from fedlatent.shared.sockets import prepare_socket
from fedlatent.shared.wire import UNSIGNED, RequestHeader, deliver, unpack

OVERRUN_STATUS = 75
READY_LINE = "resident node ready"

_LOG = logging.getLogger("fedlatent.client.resident")


class Watchdog:
    """Ends the process when a guarded block lasts too long; used as ``with watchdog.limit(s)``."""

    def __init__(self) -> None:
        """Start the watching thread."""
        self._changed = threading.Condition()
        self._end: float | None = None
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def limit(self, seconds: float) -> Self:
        """Set the time that the next block may take."""
        self._set(time.monotonic() + seconds)
        return self

    def __enter__(self) -> Self:
        """Enter the guarded block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the guarded block in time."""
        self._set(None)

    def _set(self, end: float | None) -> None:
        with self._changed:
            self._end = end
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while True:
                left = None if self._end is None else self._end - time.monotonic()
                if left is not None and left <= 0:
                    os.write(2, b"request overran its deadline; the process ends\n")
                    os._exit(OVERRUN_STATUS)
                self._changed.wait(left)


def answer(node: Node, watchdog: Watchdog, data: bytes, border: Border | None = None) -> bytes:
    """Turn a packed request into the reply that the release door packed, and its delivery.

    With a ``border`` the request is checked before anything else, and the reply is signed. One to
    a request that cannot be read stays without a signature, since it can name none.
    """
    try:
        header, arrays = unpack(RequestHeader, data)
    except ProtocolError as error:
        return deliver(node.door.refusal(None, error).payload)
    started = time.monotonic()
    if border is None:
        outgoing, delivery = _handled(node, watchdog, header, arrays), UNSIGNED
    else:
        digest = digest_of(arrays)
        try:
            border.check(header, digest)
        except SignatureError as error:
            outgoing = node.door.refusal(header, error)
        else:
            outgoing = _handled(node, watchdog, header, arrays)
        delivery = border.sign(outgoing, header, digest)
    _LOG.info(
        "%s of round %d: %s, %.2f s",
        header.kind,
        header.round,
        outgoing.header.code or outgoing.header.status,
        time.monotonic() - started,
    )
    return deliver(outgoing.payload, delivery)


def _handled(node: Node, watchdog: Watchdog, header: RequestHeader, arrays: Arrays) -> Outgoing:
    limits = node.config.limits
    # A deadline between two steps would tell on which side of it the work ended.
    allowed_s = min(header.deadline_s, limits.max_request_s)
    with watchdog.limit(whole_steps(allowed_s, limits.answer_step_s)):
        return node.handle(header, arrays)


def run(home: ClientHome) -> None:
    """Load the node of ``home`` and answer until the process is told to stop.

    Raises:
        FedlatentError: the home, its data or its ledger is not usable, or another resident runs.
    """
    with telling():
        home.create()
    with home.alone():
        with telling():
            node = open_node(home)
            border = Border.of(home, node.config)
            path = prepare_socket(home.socket)
            path.unlink(missing_ok=True)  # of a resident that was killed; the lock says it is gone
        torch.set_flush_denormal(True)  # before the threads that take this over, see `steady`
        torch.set_num_threads(node.config.limits.threads)
        with socket.socket(socket.AF_UNIX) as listener:
            with telling():
                listener.bind(str(path))
                path.chmod(0o600)
            listener.listen()
            watchdog = Watchdog()
            print(READY_LINE, flush=True)
            try:
                step_s = node.config.limits.answer_step_s
                serve(listener, lambda data: answer(node, watchdog, data, border), step_s)
            finally:
                path.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the process; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="fedlatent.client.resident", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--home", required=True, help="client home directory")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    before = signal.signal(signal.SIGTERM, _stop)
    hang_up_is_terminate()
    try:
        return exit_code_of(lambda: run(ClientHome.find(options.home)))
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    """End cleanly: whatever is under way can be repeated."""
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
