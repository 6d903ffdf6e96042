"""What a deployed node claims, each claim by itself, through ``Node.handle`` with secure noise.

Each test is named for what it protects; ``tests/mutants`` breaks the code in that very way and
expects the test to fail. Chances that a sound node fails a test are below one in ten thousand.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedlatent.shared.arrays import Arrays
from fedlatent.shared.privacy.accounting import GaussianEvent, epsilon_of
from fedlatent.shared.privacy.summaries import Form
from fedlatent.shared.schedule import Kind, phases
from fedlatent.simulations.audit import checks
from fedlatent.simulations.audit.hostile import ROUNDING, hostile_records, hostile_run, search
from fedlatent.simulations.audit.node_checks import (
    OFTEN,
    SELDOM,
    diagonal_run,
    full_run,
    largest_share,
    ledger_checks,
    training_run,
)
from fedlatent.simulations.audit.nodes import (
    Noise,
    Rounds,
    ask,
    audit_config,
    audit_node,
    audit_records,
    first_weights,
    summary_noise,
    training_rounds,
)

HOMES, RUNS = 2, 3

SUMMARIES: list[tuple[Form, Kind]] = [
    ("full", "data"),
    ("full", "moments"),
    ("full", "mixture"),
    ("full", "scores"),
    ("full", "threshold"),
    ("diagonal", "data"),
    ("diagonal", "moments"),
    ("diagonal", "threshold"),
]


@pytest.fixture(scope="module")
def often(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """Twelve rounds of four steps, with three records in ten in each."""
    return training_rounds(tmp_path_factory.mktemp("often"), training_run(OFTEN), HOMES, RUNS)


@pytest.fixture(scope="module")
def seldom(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """Twelve rounds of four steps, half of them without any record."""
    return training_rounds(tmp_path_factory.mktemp("seldom"), training_run(SELDOM), HOMES, RUNS)


Summaries = Callable[[Form], dict[Kind, Noise]]


@pytest.fixture(scope="module")
def summaries(tmp_path_factory: pytest.TempPathFactory) -> Summaries:
    """Noise of all summaries of six runs of a form, drawn when asked for."""

    @functools.cache
    def drawn(form: Form) -> dict[Kind, Noise]:
        run = full_run() if form == "full" else diagonal_run()
        return summary_noise(tmp_path_factory.mktemp(form), run, form, HOMES, RUNS)

    return drawn


@pytest.fixture(scope="module")
def one_record(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """A step's noisy sum in clips, by weight: one record alone, with a gradient of many clips."""
    run = audit_config(
        name="alone",
        sharing="full",
        privacy={"epsilon": 1e4, "sample_rate": 1.0},
        training={"rounds": 1, "steps_per_round": 1},
    )
    records = audit_records()
    records[1:] = np.nan  # null records: they count in N and have no gradient
    node = audit_node(tmp_path_factory.mktemp("alone"), run, records)
    sent = first_weights(run, whole=True)
    got = ask(node, run, "alone", phases(run)[0], "full", sent).arrays
    unit = len(records) / run.training.learning_rate / run.privacy.clip
    return {key: unit * (sent[key] - got[key]).astype(np.float64) for key in sent}


def norm(parts: list[np.ndarray]) -> float:
    """Of all numbers together."""
    return float(np.sqrt(sum(np.square(part).sum() for part in parts)))


def test_biases_are_clipped(one_record: Arrays) -> None:
    """All biases together move by a clip and little noise."""
    assert norm([value for key, value in one_record.items() if key.endswith("bias")]) < 2.0


def test_the_last_layer_is_clipped(one_record: Arrays) -> None:
    """Weights and biases of the decoder's last layer move by a clip and little noise."""
    last = list(one_record)[-1].rpartition(".")[0]
    assert norm([value for key, value in one_record.items() if key.startswith(last)]) < 2.0


def test_a_clipped_record_moves_the_sum_by_one_clip(one_record: Arrays) -> None:
    """Neither the root of its norm nor less than a clip: one, and noise."""
    assert 0.7 < norm(list(one_record.values())) < 2.0


def test_no_record_moves_a_round_by_more_than_its_clip(often: Rounds) -> None:
    """Over several steps on Poisson samples."""
    assert largest_share("often", often).good


def test_hostile_weights_do_not_escape_the_clip() -> None:
    """Weights whose gradients cancel exactly keep a record within its clip."""
    largest, constants = search(hostile_run(), hostile_records(0)[0], 30, 0)
    assert 0.5 < largest <= 1.0 + ROUNDING, constants


def test_training_noise_has_its_full_deviation(often: Rounds) -> None:
    """No more and no less than sigma times the clip, to two per cent."""
    assert checks.deviation("noise", often.noise).good


def test_secure_training_is_noised(often: Rounds) -> None:
    """No number of a round leaves as it is."""
    assert np.abs(often.noise).min(axis=0).all()
    assert checks.spread("noise", often.noise).good


def test_noise_covers_the_decoder(often: Rounds) -> None:
    """The decoder gets the noise that the encoder gets; without it neither has a guarantee."""
    assert checks.deviation("decoder", often.noise[:, ~often.encoder]).good


def test_an_empty_sample_is_noised(seldom: Rounds) -> None:
    """Steps without any record are steps of pure noise."""
    assert (seldom.counts.sum(axis=1) < 4).any()
    assert checks.deviation("noise", seldom.noise).good
    assert checks.spread("noise", seldom.noise).good


def test_every_step_draws_its_own_noise(often: Rounds) -> None:
    """Noise drawn once for a round of four steps would have twice the deviation."""
    assert often.entries[0].steps == 4
    assert checks.deviation("noise", often.noise).good


def test_samples_are_drawn_by_chance(often: Rounds) -> None:
    """How often records took part is binomial, and no two rounds took the same."""
    law = (often.entries[0].steps, OFTEN)
    assert checks.sampling_law("law", often.counts, *law).good
    assert checks.sample_repeats("repeats", often.counts, *law).good


def test_samples_have_no_fixed_size(often: Rounds) -> None:
    """The size of a Poisson sample varies; shuffled batches of one size are no such sample."""
    law = (often.entries[0].steps, OFTEN)
    assert checks.sample_sizes("sizes", often.counts, *law).good


def test_every_step_draws_its_own_sample(often: Rounds) -> None:
    """A sample reused for a round would take each record in no step or in all."""
    assert checks.sampling_law("law", often.counts, often.entries[0].steps, OFTEN).good


def test_samples_have_the_rate_of_the_run(often: Rounds) -> None:
    """Records take part at the rate that server and node agreed on."""
    assert checks.sampling_rate("rate", often.counts, 4, OFTEN).good


def test_the_accounted_rate_is_that_of_the_samples(often: Rounds) -> None:
    """The ledger charges for the rate at which records take part."""
    rates = {entry.sample_rate for entry in often.entries}
    assert rates == {OFTEN}
    assert checks.sampling_rate("rate", often.counts, 4, rates.pop()).good


def test_every_step_of_a_round_is_accounted(often: Rounds) -> None:
    """The ledger's entry of a round holds all of its steps."""
    run = training_run(OFTEN)
    assert {entry.steps for entry in often.entries} == {run.training.steps_per_round}


def test_sums_are_divided_by_the_public_constant(often: Rounds) -> None:
    """By q * N: divided by the size of the sample, shares of records are no whole numbers."""
    size = often.counts.shape[1]
    assert checks.deviation("last bias", often.noise[:, -size:]).good


@pytest.mark.parametrize(("form", "kind"), SUMMARIES)
def test_every_secure_summary_is_noised(summaries: Summaries, form: Form, kind: Kind) -> None:
    """Each summary of a deployed node has the noise that its ledger pays for."""
    assert checks.deviation(kind, summaries(form)[kind].rows).good
    assert checks.spread(kind, summaries(form)[kind].rows).good


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_histogram_noise_covers_every_histogram(summaries: Summaries, form: Form) -> None:
    """A record counts once in each of two or three histograms: a sensitivity of their root."""
    assert checks.deviation("threshold", summaries(form)["threshold"].rows).good


@pytest.mark.parametrize("kind", ["data", "moments", "mixture", "scores"])
def test_noise_off_the_diagonal_has_its_full_deviation(summaries: Summaries, kind: Kind) -> None:
    """Symmetric noise is isotropic among symmetric matrices."""
    noise = summaries("full")[kind]
    assert noise.diagonal is not None
    assert checks.deviation(kind, noise.rows[:, ~noise.diagonal]).good


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_thresholds_are_centred_on_the_released_mean(summaries: Summaries, form: Form) -> None:
    """Neither on the exact mean nor on that of a private model: bins would be others."""
    assert checks.deviation("threshold", summaries(form)["threshold"].rows).good


def test_summaries_look_through_the_received_encoder(
    summaries: Summaries,
) -> None:
    """A personal model that stays with the node has no part in what leaves."""
    for kind in ("moments", "threshold"):
        assert checks.deviation(kind, summaries("diagonal")[kind].rows).good


def test_no_two_rounds_share_noise(often: Rounds) -> None:
    """Neither in one home nor in two homes that got the same requests."""
    assert checks.releases("noise", often.noise).good
    assert checks.correlation("homes", *np.split(often.noise, HOMES)).good
    assert checks.correlation("neighbours", often.noise[:-1], often.noise[1:]).good


@pytest.mark.parametrize(("form", "kind"), SUMMARIES)
def test_no_two_summaries_share_noise(summaries: Summaries, form: Form, kind: Kind) -> None:
    """Neither in one home nor in two homes that got the same requests."""
    rows = summaries(form)[kind].rows
    assert checks.releases(kind, rows).good
    assert checks.correlation("homes", *np.split(rows, HOMES)).good


def test_halves_of_the_noise_are_independent(often: Rounds) -> None:
    """A stream that repeats half of each draw would tell the other half."""
    assert checks.correlation("halves", *np.split(often.noise, 2, axis=1)).good


def test_epsilon_adds_up_over_all_releases(tmp_path: Path) -> None:
    """The ledger composes every entry of every run, and not the largest alone."""
    run = diagonal_run()
    summary_noise(tmp_path, run, "diagonal", 1, 2)
    assert all(one.good for one in ledger_checks("ledger", tmp_path, run, 2))


def test_a_reserved_entry_counts_before_anything_left(tmp_path: Path) -> None:
    """Noise that was drawn is spent: a charge stands from its reservation on."""
    run = diagonal_run()
    ledger = audit_node(tmp_path, run).ledger
    event = GaussianEvent(noise_multiplier=1.0)
    entry = ledger.reserve("run", 1, "moments", "digest", event, "secure")
    assert entry.state == "reserved"
    assert ledger.epsilon() == pytest.approx(epsilon_of([event], ledger.delta))
    again = ledger.reserve("run", 2, "moments", "digest", event, "secure")
    assert again.epsilon_after == pytest.approx(epsilon_of([event] * 2, ledger.delta))
