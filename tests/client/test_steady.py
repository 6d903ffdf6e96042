"""Subnormal numbers count as zero wherever a node computes on records, in every thread."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fedlatent.client import compute
from fedlatent.client.compute import Request, view_of
from fedlatent.client.gradients.sums import steady
from fedlatent.shared.models import build_model
from fedlatent.shared.privacy.summaries import LatentDensity
from fedlatent.shared.summaries import Federated
from tests.client.support import tiny_run

SMALL = torch.ones(200_000, dtype=torch.int32).view(torch.float32)  # enough for several threads


def left_over() -> int:
    """How many of some subnormal numbers are still there after a step of arithmetic."""
    return int((SMALL * 1.0).view(torch.int32).count_nonzero())


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads for each operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_helpers_that_were_there_before_do_not_compute_with_subnormal_numbers() -> None:
    """The setting is one of a thread, so those of its helpers that lack it stay out."""
    assert left_over() == len(SMALL)  # starts the helpers
    with steady():
        assert left_over() == 0
    assert torch.get_num_threads() == 2
    assert left_over() == len(SMALL)


@pytest.mark.usefixtures("two_threads")
def test_helpers_that_take_the_setting_over_are_used() -> None:
    """As in a resident node, which sets it before it starts them."""
    found: list[tuple[int, int]] = []

    def work() -> None:
        torch.set_flush_denormal(True)
        torch.set_num_threads(2)
        with steady():
            found.append((torch.get_num_threads(), left_over()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(2, 0)]


def failing() -> None:
    """Leave a nested computation by an error."""
    with steady():
        with steady():
            pass
        assert left_over() == 0
        raise ValueError("within")


def test_it_is_undone_after_an_error_and_nests() -> None:
    """An inner one leaves the outer one as it is."""
    with pytest.raises(ValueError, match="within"):
        failing()
    assert left_over() == len(SMALL)


def test_the_parts_of_a_score_are_computed_without_subnormal_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Like latents: what a server chooses must not make one record take longer."""
    run = tiny_run(scoring={"combined": True})
    one = np.eye(2)
    density = LatentDensity(count=1.0, mean=np.zeros(2), covariance=one, within=one)
    monkeypatch.setattr(compute, "score_parts", lambda *_: {"left": np.array([left_over()])})
    request = Request(weights={}, state=Federated().having("density", density))
    view = view_of(run, build_model(run), torch.zeros(1, 12), request, np.zeros((1, 2)))
    assert view.score_parts["left"][0] == 0
