"""What clients keep between rounds, on disk: one row of numbers each, for any number of clients."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedlatent.shared.errors import DataError


class ClientStates:
    """Rows of float32 in one sparse file; memory is that of the rows in use.

    Every client has two places and writes them in turn, by the number of times it has trained. So
    the state before an interrupted round is still there when the round is done again. What is
    written survives the death of the process, not that of the machine.
    """

    def __init__(self, path: Path, width: int) -> None:
        """Use the file ``path``, making it when absent.

        Args:
            path: the file.
            width: numbers that a client keeps.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._width = width
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def read(self, client: int, trained: int, parts: Sequence[np.ndarray]) -> None:
        """Fill ``parts`` with the row after a client's round number ``trained`` of its own.

        Args:
            client: its place among all.
            trained: the number of the round, from 1.
            parts: contiguous float32 vectors that make up the row.

        Raises:
            DataError: the file is shorter than it must be.
        """
        size = sum(part.nbytes for part in parts)
        views = [part.view(np.uint8).data for part in parts]
        got = os.preadv(self._file, views, self._place(client, trained))
        if got != size:
            raise DataError(
                f"Expected {size} bytes of client {client}'s state, got {got}; the file of states "
                "is damaged, so start the simulation anew."
            )

    def write(self, client: int, trained: int, parts: Sequence[np.ndarray]) -> None:
        """Keep the row after a client's round number ``trained`` of its own.

        Args:
            client: its place among all.
            trained: the number of the round.
            parts: contiguous float32 vectors that make up the row.

        Raises:
            DataError: the disk is full.
        """
        size = sum(part.nbytes for part in parts)
        views = [part.view(np.uint8).data for part in parts]
        if os.pwritev(self._file, views, self._place(client, trained)) != size:
            raise DataError(
                "Expected room on the disk for the clients' states, got a full one; free some "
                "space and run the simulation again, which goes on from its last round."
            )

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _place(self, client: int, trained: int) -> int:
        return (2 * client + trained % 2) * self._width * 4
