"""One quick audit for all tests of this folder."""

import pytest
import torch

from fedlatent.simulations.audit.run import QUICK, Audit, run_audit


def unwatched(sentence: str, share: float) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="session")
def audit() -> Audit:
    """The audit as ``fedlatent audit --quick`` does it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = run_audit(QUICK, 0, unwatched)
    torch.set_num_threads(threads)
    return found
