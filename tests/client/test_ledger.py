"""The privacy ledger."""

import math
import sqlite3
import threading
from multiprocessing import get_context
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.rdp import RdpAccountant

from fedlatent.client.ledger import Entry, Ledger
from fedlatent.shared.errors import BudgetExceeded, PolicyRefusal, ReleaseRefused, ServiceError
from fedlatent.shared.privacy.accounting import ORDERS, GaussianEvent
from fedlatent.shared.privacy.plan import PrivacyPlan
from tests.client.support import tiny_run

STEP = GaussianEvent(noise_multiplier=2.0, sample_rate=0.1, steps=20)


def reference_epsilon(entries: list[Entry], delta: float) -> float:
    """Epsilon of ledger entries by an accountant of another project."""
    accountant = RdpAccountant(list(ORDERS), dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for entry in entries:
        gaussian = dp_accounting.GaussianDpEvent(entry.noise_multiplier)
        event = dp_accounting.PoissonSampledDpEvent(entry.sample_rate, gaussian)
        accountant.compose(event, entry.steps)
    return float(accountant.get_epsilon(delta))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """An empty ledger with a budget of 5."""
    return Ledger(tmp_path / "ledger.db", "records", 5.0, 1e-5)


def reserve(ledger: Ledger, round: int = 1, digest: str = "a", run: str = "r") -> Entry:
    """Reserve 20 steps of training."""
    return ledger.reserve(run, round, "train", digest, STEP, "secure")


def test_epsilon_composes_over_rounds_and_runs(ledger: Ledger) -> None:
    """Epsilon of all rounds of all runs equals that of an independent accountant."""
    for number in range(1, 6):
        reserve(ledger, number)
    ledger.reserve("r", 6, "moments", "m", GaussianEvent(noise_multiplier=6.0), "secure")
    other = GaussianEvent(noise_multiplier=1.7, sample_rate=0.05, steps=30)
    ledger.reserve("other", 1, "train", "a", other, "secure")
    expected = reference_epsilon(ledger.entries(), 1e-5)
    assert ledger.epsilon() == pytest.approx(expected, abs=1e-6)
    assert ledger.entries()[-1].epsilon_after == pytest.approx(expected, abs=1e-6)


def test_same_request_is_charged_once(ledger: Ledger) -> None:
    """A repeated request meets its own entry, in whatever state that is."""
    first = reserve(ledger)
    assert reserve(ledger) == first
    ledger.released(first.id, "f" * 64, 10)
    again = reserve(ledger)
    assert (again.id, again.state, again.sha256) == (first.id, "released", "f" * 64)
    assert len(ledger.entries()) == 1


def test_other_request_of_the_same_round_is_charged(ledger: Ledger) -> None:
    """Another digest in the same round is another release and costs again."""
    first = reserve(ledger)
    second = reserve(ledger, digest="b")
    assert second.id != first.id
    assert second.epsilon_after > first.epsilon_after


def test_budget_refuses_before_charging(ledger: Ledger) -> None:
    """A spend beyond the budget is refused and leaves the ledger as it was."""
    while ledger.spent_if([STEP]) <= 5.0:
        reserve(ledger, len(ledger.entries()) + 1)
    count = len(ledger.entries())
    with pytest.raises(BudgetExceeded, match="at most 5 over the life"):
        reserve(ledger, count + 1)
    assert len(ledger.entries()) == count
    assert ledger.epsilon() <= 5.0
    assert ledger.spent_if([STEP]) > 5.0


def test_whole_run_must_fit_at_its_start(ledger: Ledger) -> None:
    """A run whose plan does not fit what is left is refused at its first request."""
    events = PrivacyPlan.from_config(tiny_run(privacy={"epsilon": 4.9})).events()
    ledger.open_run("first", "d", events)
    for number, event in enumerate(events, 1):
        ledger.reserve("first", number, "train", "a", event, "secure")
    ledger.open_run("first", "d", events)
    with pytest.raises(BudgetExceeded, match="'second'"):
        ledger.open_run("second", "d", events)
    ledger.open_run("small", "d", [GaussianEvent(noise_multiplier=50.0)])


def test_run_keeps_its_configuration(ledger: Ledger) -> None:
    """A run that comes back with another configuration is refused."""
    ledger.open_run("r", "digest", [STEP])
    with pytest.raises(PolicyRefusal, match="another one"):
        ledger.open_run("r", "other digest", [STEP])


def test_budget_survives_a_new_process(tmp_path: Path, ledger: Ledger) -> None:
    """What was spent is spent for whoever opens the file next, at any later delta."""
    reserve(ledger)
    again = Ledger(tmp_path / "ledger.db", "records", 5.0, 1e-5)
    assert again.entries() == ledger.entries()
    assert Ledger(tmp_path / "ledger.db", "records", 5.0, 1e-7).epsilon() > ledger.epsilon()


def test_data_sets_have_own_budgets(tmp_path: Path, ledger: Ledger) -> None:
    """Two data sets in one file do not pay for each other."""
    reserve(ledger)
    other = Ledger(tmp_path / "ledger.db", "other-people", 5.0, 1e-5)
    assert other.epsilon() == 0.0
    with pytest.raises(ReleaseRefused):
        other.released(1, "f" * 64, 1)


def test_release_without_noise_ends_privacy(ledger: Ledger) -> None:
    """After a release without noise epsilon is infinite and private releases are refused."""
    entry = ledger.reserve("open", 1, "train", "a", None, "secure")
    assert entry.epsilon_after == math.inf
    assert ledger.epsilon() == math.inf
    with pytest.raises(BudgetExceeded):
        reserve(ledger)
    assert ledger.reserve("open", 2, "train", "a", None, "secure").id == 2


def test_entry_is_released_once(ledger: Ledger) -> None:
    """An entry that is unknown or already released cannot be released."""
    entry = reserve(ledger)
    ledger.released(entry.id, "f" * 64, 10)
    for number in (entry.id, entry.id + 1):
        with pytest.raises(ReleaseRefused):
            ledger.released(number, "f" * 64, 10)


def _awake() -> None:
    """Calling this in another process makes it import this module first."""


def _spend(path: Path, worker: int) -> int:
    ledger = Ledger(path, "records", 5.0, 1e-5)
    done = 0
    for number in range(1, 100):
        try:
            ledger.reserve(f"run-{worker}", number, "train", "a", STEP, "secure")
        except BudgetExceeded:
            break
        done += 1
    return done


def test_processes_share_one_budget(tmp_path: Path, ledger: Ledger) -> None:
    """Two processes that spend at once never pass the budget together."""
    path = tmp_path / "ledger.db"
    with get_context("forkserver").Pool(1) as pool:
        pool.apply(_awake)
        other = pool.apply_async(_spend, (path, 0))
        mine = _spend(path, 1)
        assert mine + other.get() == len(ledger.entries())
    assert ledger.epsilon() <= 5.0 < ledger.spent_if([STEP])


def test_one_request_at_a_time(ledger: Ledger) -> None:
    """While one request works on the data, another one waits, and gives up in time."""
    with ledger.exclusive(1.0):
        failures: list[ServiceError] = []

        def intrude() -> None:
            try:
                with ledger.exclusive(0.1):
                    pass
            except ServiceError as error:
                failures.append(error)

        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        assert len(failures) == 1
    with ledger.exclusive(0.1):
        assert ledger.entries() == []


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    """A file that is no ledger, or of another version, is refused and left alone."""
    path = tmp_path / "ledger.db"
    path.write_bytes(b"no database at all, but long enough to look at" * 50)
    with pytest.raises(ServiceError, match="privacy ledger"):
        Ledger(path, "records", 5.0, 1e-5)
    newer = tmp_path / "newer.db"
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(ServiceError, match="version 2"):
        Ledger(newer, "records", 5.0, 1e-5)


def test_the_budget_is_a_filter_at_an_order_fixed_before_the_first_release(tmp_path: Path) -> None:
    """A later run of another shape is judged at the first run's order, not at one in hindsight.

    The theorem on releases that are chosen after earlier answers needs a fixed order.
    """
    ledger = Ledger(tmp_path / "ledger.db", "records", 4.0, 1e-5)
    ledger.open_run("first", "1", [GaussianEvent(noise_multiplier=6.0)])
    ledger.reserve("first", 1, "moments", "m", GaussianEvent(noise_multiplier=6.0), "secure")
    other = GaussianEvent(noise_multiplier=0.8, sample_rate=0.02, steps=100)
    assert ledger.spent_if([other]) < 4.0
    with pytest.raises(BudgetExceeded):
        ledger.open_run("second", "2", [other])
    again = Ledger(tmp_path / "ledger.db", "records", 4.0, 1e-5)
    with pytest.raises(BudgetExceeded):
        again.reserve("second", 1, "train", "a", other, "secure")
    assert len(ledger.entries()) == 1


def test_a_run_that_fills_the_budget_fits_it_and_its_repetition_does_not(tmp_path: Path) -> None:
    """The order that guards is that at which the first run fits most often: none is lost to it."""
    plan = PrivacyPlan.from_config(tiny_run())
    budget = plan.epsilon()
    whole = Ledger(tmp_path / "one.db", "records", budget, plan.delta)
    whole.open_run("r", "1", plan.events())
    for number, event in enumerate(plan.events(), 1):
        whole.reserve("r", number, "train", str(number), event, "secure")
    assert whole.epsilon() == pytest.approx(budget)
    with pytest.raises(BudgetExceeded):
        whole.open_run("s", "2", plan.events())


def test_a_refused_run_fixes_no_order(tmp_path: Path) -> None:
    """A run that does not fit leaves the ledger as it was, so it cannot choose how others count."""
    ledger = Ledger(tmp_path / "ledger.db", "records", 4.0, 1e-5)
    with pytest.raises(BudgetExceeded):
        ledger.open_run("large", "1", [GaussianEvent(noise_multiplier=0.1)])
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute("SELECT COUNT(*) FROM orders").fetchone() == (0,)


def test_the_figure_by_loss_distributions_stands_beside_the_guard(ledger: Ledger) -> None:
    """It is smaller, decides nothing, and is infinite when the epsilon is."""
    reserve(ledger)
    assert 0 < ledger.pld_epsilon() < ledger.epsilon()
    ledger.reserve("r", 2, "moments", "m", None, "secure")
    assert ledger.pld_epsilon() == math.inf
