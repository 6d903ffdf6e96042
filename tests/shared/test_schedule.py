"""The phases of every sharing mode."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.shared.config import RunConfig
from fedlatent.shared.schedule import (
    EVERY,
    count_phases,
    last_phase,
    phase_of,
    phases,
    training_round,
    training_rounds,
)
from fedlatent.shared.summaries import SUMMARIES

SHORT = {"T": "train", "M": "moments", "E": "mixture", "D": "data", "S": "scores", "H": "threshold"}


def run_of(
    sharing: str = "encoder",
    rounds: int = 3,
    *,
    combined: bool = False,
    **summaries: Any,  # noqa: ANN401
) -> RunConfig:
    """A run of some mode."""
    return RunConfig.parse(
        {
            "name": "schedule",
            "sharing": sharing,
            "data": {"name": "ecg", "shape": [8]},
            "training": {"rounds": rounds},
            "summaries": summaries,
            "scoring": {"combined": combined},
        },
        "test",
    )


def kinds(run: RunConfig) -> str:
    """The phases as letters."""
    letter = {kind: short for short, kind in SHORT.items()}
    return "".join(letter[phase.kind] for phase in phases(run))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (run_of("encoder"), "TTTMH"),
        (run_of("full"), "TTTMH"),
        (run_of("summary"), "MH"),
        (run_of("encoder+summary"), "TTTMH"),
        (run_of("encoder+summary", every=1), "TMTMTMH"),
        (run_of("encoder+summary", rounds=5, every=2), "TTMTTMTMH"),
        (run_of("encoder+summary", rounds=4, every=2), "TTMTTMH"),
        (run_of("encoder+summary", rounds=2 * EVERY + 1), "TTTTTMTTTTTMTMH"),
        (run_of("encoder", every=1), "TTTMH"),
        (run_of("encoder", components=2), "TTTMEEEH"),
        (run_of("encoder", components=2, em_rounds=1), "TTTMEH"),
        (run_of("summary", components=2, em_rounds=2, data="scaling"), "DMEEH"),
        (run_of("encoder", data="gaussian", combined=True), "DTTTMSH"),
        (run_of("full", data="scaling", combined=True, components=1, em_rounds=1), "DTTTMESH"),
        (
            run_of("encoder+summary", every=2, prior="gaussian", components=2, em_rounds=1),
            "TTMTMEH",
        ),
        (
            run_of("encoder+summary", every=1, prior="mixture", components=2, em_rounds=1),
            "TMETMETMEH",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_phases_of_a_mode(run: RunConfig, expected: str) -> None:
    """Data first, then training with moments in between where asked, then the summaries."""
    assert kinds(run) == expected


RUNS = st.builds(
    run_of,
    st.sampled_from(["encoder", "summary", "encoder+summary", "full"]),
    st.integers(1, 14),
    combined=st.booleans(),
    every=st.integers(0, 4),
    components=st.sampled_from([0, 3]),
    em_rounds=st.integers(1, 3),
    data=st.sampled_from(["none", "scaling", "gaussian"]),
)


@settings(max_examples=80, deadline=None)
@given(RUNS)
def test_any_schedule_is_well_formed(run: RunConfig) -> None:
    """Numbers count from 1, rounds are as many as trained, and what a phase needs came before."""
    found = phases(run)
    assert [phase.number for phase in found] == list(range(1, len(found) + 1))
    trained = 0
    for phase in found:
        assert phase.trained == trained
        trained += phase.kind == "train"
    assert trained == training_rounds(run)
    assert trained == (0 if run.sharing == "summary" else run.training.rounds)
    order = [phase.kind for phase in found]
    assert order[-1] == "threshold"
    assert order.count("threshold") == 1
    assert order.count("scores") == run.scoring.combined
    assert order.count("data") == (run.summaries.data != "none")
    assert "data" not in order[1:]
    # The last moments are of the final encoder: nothing trains after them.
    last = len(order) - 1 - order[::-1].index("moments")
    assert "train" not in order[last:]
    if "mixture" in order:
        assert order.index("moments") < order.index("mixture")
    assert set(order) <= {"train", *SUMMARIES}


@settings(max_examples=60, deadline=None)
@given(RUNS)
def test_phases_are_found_by_number(run: RunConfig) -> None:
    """A number gives its phase; zero, negative and later ones give none."""
    found = phases(run)
    assert [phase_of(run, phase.number) for phase in found] == list(found)
    for number in (-1, 0, len(found) + 1):
        assert phase_of(run, number) is None
        assert training_round(run, number) == 0


@settings(max_examples=60, deadline=None)
@given(RUNS)
def test_training_rounds_count_apart_from_phases(run: RunConfig) -> None:
    """Training phases are rounds 1, 2, 3 and so on; another phase belongs to the one before it."""
    count = 0
    for phase in phases(run):
        count += phase.kind == "train"
        assert training_round(run, phase.number) == count


@settings(max_examples=60, deadline=None)
@given(RUNS, st.integers(1, 40))
def test_the_last_moments_before_a_phase(run: RunConfig, before: int) -> None:
    """The newest moments phase with a smaller number, or none."""
    earlier = [one for one in phases(run) if one.kind == "moments" and one.number < before]
    assert last_phase(run, "moments", before) == (earlier[-1] if earlier else None)


def test_the_last_moments_in_words() -> None:
    """Nothing before the first; a moments phase does not count as before itself."""
    run = run_of("encoder+summary", every=1)  # TMTMTMH
    found = [last_phase(run, "moments", number) for number in range(1, 8)]
    assert [one.number if one else None for one in found] == [None, None, 2, 2, 4, 4, 6]


@pytest.mark.parametrize("sharing", ["encoder", "summary", "encoder+summary", "full"])
@pytest.mark.parametrize("components", [0, 2])
@pytest.mark.parametrize("every", [0, 1, 3])
@pytest.mark.parametrize("rounds", [1, 3, 5, 7])
def test_phases_are_counted_without_being_made(
    sharing: str, components: int, every: int, rounds: int
) -> None:
    """The count of phases is their number, for every mode."""
    prior = "mixture" if components and sharing == "encoder+summary" else "none"
    for data in ("none", "scaling"):
        run = run_of(
            sharing,
            rounds,
            combined=data == "scaling",
            components=components,
            em_rounds=2,
            every=every,
            prior=prior,
            data=data,
        )
        assert count_phases(run) == len(phases(run))
