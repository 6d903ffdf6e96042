"""Slots of a device: trials, going back, and power cuts at every step of an update."""

import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fedlatent.client.edge import slots
from fedlatent.client.edge.update import update
from fedlatent.shared.bundle.archive import GOLDEN
from fedlatent.shared.bundle.arrays import pack_arrays, unpack_arrays
from fedlatent.shared.bundle.offer import Rollout, bucket
from fedlatent.shared.bundle.sealed import RecipientKey, RecipientPublic
from fedlatent.shared.errors import BundleError, UpdateRefused
from tests.client.edge.powercut import Cut, cut, cuts, fingerprint, load, lose, store
from tests.client.edge.releases import MODEL, Publisher, confirmed, with_version_1
from tests.shared.bundle import tiny


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    """A release with version 1."""
    return with_version_1(tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one, since these tests copy thousands of files."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as made:
        yield Path(made)


@pytest.fixture
def device(publisher: Publisher) -> Path:
    """A device that runs version 1, confirmed."""
    return confirmed(publisher)


@pytest.fixture
def trial(publisher: Publisher, device: Path) -> Path:
    """A device that runs version 2 on trial and has version 1 to go back to."""
    publisher.publish(2)
    update(device, publisher.source)
    return device


def boots(state: Path) -> int:
    """The version that a start gives."""
    return slots.boot(state).bundle.manifest.version


def events(state: Path, event: str = "") -> list[dict[str, str]]:
    """The lines of the log, or those of one event."""
    path = state / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]  # a cut may tear the last
    return [one for one in found if event in ("", one["event"])]


def last_log(state: Path) -> dict[str, str]:
    """The last line of the log."""
    return events(state)[-1]


# Starting, confirming, going back --------------------------------------------------------------


def test_nothing_installed(publisher: Publisher) -> None:
    """A provisioned device without a bundle says so."""
    state = publisher.device("empty")
    with pytest.raises(BundleError, match="got none yet"):
        slots.boot(state)
    assert not slots.confirm(state)
    with pytest.raises(BundleError, match="Expected a bundle to go back to"):
        slots.rollback(state)


def test_trial_is_confirmed_once(trial: Path) -> None:
    """Confirming ends the trial and raises the floor; again it writes nothing."""
    assert slots.status(trial).floor == 1
    assert slots.confirm(trial)
    record = slots.read_record(trial)
    assert (record.floor, record.current.status) == (2, "confirmed")  # type: ignore[union-attr]
    before = (trial / "current.json").stat().st_mtime_ns
    assert slots.confirm(trial)
    assert (trial / "current.json").stat().st_mtime_ns == before


def test_only_the_running_bundle_is_confirmed(publisher: Publisher, device: Path) -> None:
    """A process that still runs the old bundle does not confirm the new one."""
    old = slots.boot(device)
    publisher.publish(2)
    update(device, publisher.source)
    assert not slots.confirm(device, old.bundle.digest)
    assert slots.status(device).current.status == "trial"  # type: ignore[union-attr]
    assert slots.confirm(device, slots.boot(device).bundle.digest)


def test_unconfirmed_trial_goes_back_after_three_starts(trial: Path, publisher: Publisher) -> None:
    """The fourth start of a trial that was never confirmed runs the bundle before, for good."""
    for _ in range(slots.MAX_BOOTS):
        assert boots(trial) == 2
    assert boots(trial) == 1
    assert "Refused (unconfirmed)" in last_log(trial)["sentence"]
    assert boots(trial) == 1
    assert len(events(trial, "rolled-back")) == 1
    assert [one.reason for one in slots.status(trial).set_aside] == ["unconfirmed"]
    assert update(trial, publisher.source).set_aside == (2,)
    assert boots(trial) == 1
    assert update(trial, publisher.source, retry=True).version == 2


def test_unconfirmed_trial_runs_on_when_the_other_is_damaged(trial: Path) -> None:
    """A trial that was never confirmed still runs where the bundle before is no good any more."""
    slots.slot_path(trial, "a").write_bytes(b"broken")
    for _ in range(slots.MAX_BOOTS + 3):
        assert boots(trial) == 2
    assert slots.confirm(trial)


def test_first_bundle_has_nothing_to_go_back_to(publisher: Publisher) -> None:
    """The first bundle stays on trial as long as it is not confirmed."""
    state = publisher.device("first")
    update(state, publisher.source)
    for _ in range(slots.MAX_BOOTS + 2):
        assert boots(state) == 1
    assert slots.confirm(state)


def test_new_version_in_a_trial_keeps_the_good_one(trial: Path, publisher: Publisher) -> None:
    """A version that comes during a trial takes the trial's slot, not that of the good bundle."""
    publisher.publish(3)
    assert update(trial, publisher.source).version == 3
    record = slots.read_record(trial)
    assert record.previous is not None
    assert (record.previous.version, record.previous.status) == (1, "confirmed")
    slots.slot_path(trial, "b").write_bytes(b"broken")
    assert boots(trial) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "gone", "empty"])
def test_damaged_slot_goes_back_and_can_be_updated_again(
    trial: Path, publisher: Publisher, damage: str
) -> None:
    """A slot whose file changed is not run; the same version can be installed again."""
    path = slots.slot_path(trial, "b")
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    changed = {"flip": flipped, "cut": data[:-1], "grow": data + b"\0", "empty": b""}
    path.unlink()
    if damage != "gone":
        path.write_bytes(changed[damage])
    assert boots(trial) == 1
    assert "Refused (damaged-slot)" in last_log(trial)["sentence"]
    assert slots.status(trial).set_aside == ()
    assert update(trial, publisher.source).version == 2


def test_update_repairs_damaged_slots(trial: Path, publisher: Publisher) -> None:
    """An update notices a damaged slot before it installs, and never overwrites the good one."""
    slots.slot_path(trial, "b").write_bytes(b"broken")
    assert update(trial, publisher.source).version == 2
    record = slots.read_record(trial)
    assert record.previous is not None
    assert record.previous.version == 1
    for slot in "ab":
        slots.slot_path(trial, slot).write_bytes(b"broken")
    with pytest.raises(BundleError, match="in one of two slots, got none"):
        slots.boot(trial)
    assert update(trial, publisher.source).version == 2
    assert boots(trial) == 2


def test_bundle_that_computes_otherwise_now_goes_back(trial: Path, publisher: Publisher) -> None:
    """A bundle that fails its golden vectors at a start, as after an upgrade, is set aside."""
    arrays = unpack_arrays(tiny.files(tiny.manifest())[GOLDEN], GOLDEN)
    wrong = pack_arrays({name: one + (name != "records") for name, one in arrays.items()})
    data = publisher.bundle(2, replaced={GOLDEN: wrong}).read_bytes()
    slots.slot_path(trial, "b").write_bytes(data)
    digest = slots.sha256_hex(data)

    def as_installed(record: slots.Record) -> slots.Record:
        assert record.current is not None
        made = replace(record.current, digest=digest, bundle=digest, bytes=len(data))
        return replace(record, current=made)

    slots.edit(trial, as_installed)
    assert boots(trial) == 1
    assert "golden" in last_log(trial)["sentence"]
    assert [one.digest for one in slots.status(trial).set_aside] == [digest]


def test_rollback_by_hand(trial: Path, publisher: Publisher) -> None:
    """Going back by hand runs the bundle before, and the next update leaves the other one alone."""
    slots.confirm(trial)
    with (
        slots.locked(trial, "update.lock"),
        pytest.raises(BundleError, match="no update that runs"),
    ):
        slots.rollback(trial)
    assert slots.rollback(trial).version == 1
    assert boots(trial) == 1
    assert slots.status(trial).floor == 2
    assert update(trial, publisher.source).set_aside == (2,)
    with pytest.raises(BundleError, match="Expected a bundle to go back to"):
        slots.rollback(trial)


def test_other_recipient_key_is_not_the_bundles_fault(publisher: Publisher, device: Path) -> None:
    """When the key that opens the bundle was swapped, the one before runs; nothing is set aside."""
    publisher.publish(2, recipient=make_recipient(device))
    update(device, publisher.source)
    key = slots.recipient_path(device)
    kept = key.read_bytes()
    for path in (key, key.with_name("recipient.key.pub")):
        path.unlink()
    make_recipient(device)
    assert boots(device) == 1
    assert "Refused (wrong-recipient)" in last_log(device)["sentence"]
    assert slots.status(device).set_aside == ()
    key.write_bytes(kept)
    assert update(device, publisher.source).version == 2
    assert boots(device) == 2


def make_recipient(state: Path) -> RecipientPublic:
    """Give a device a new key for sealed bundles."""
    return RecipientKey.generate(slots.recipient_path(state)).public


def test_read_only_folder_still_boots(trial: Path, tmp_path: Path) -> None:
    """Where nothing can be written, the same bundle loads again and again, and that is said."""
    frozen = {path: path.stat().st_mtime_ns for path in trial.rglob("*")}
    (trial / "lock").unlink()
    (trial / "lock").mkdir()  # as root every file is writable; a lock that cannot be taken is not
    for _ in range(slots.MAX_BOOTS + 2):
        assert boots(trial) == 2
    assert not slots.confirm(trial)
    slots.slot_path(trial, "b").write_bytes(b"broken")
    assert boots(trial) == 1
    assert (trial / "current.json").stat().st_mtime_ns == frozen[trial / "current.json"]


@pytest.mark.parametrize("text", [b"", b"{}", b"no json", b'{"format": 2}', b"[" * 5000])
def test_damaged_record_is_refused(device: Path, text: bytes) -> None:
    """A current.json that is not what this program wrote is refused in one sentence."""
    (device / "current.json").write_bytes(text)
    with pytest.raises(BundleError, match="Expected"):
        slots.boot(device)


def test_log_is_bounded(device: Path) -> None:
    """The log is turned over at 256 kB, and one old file is kept."""
    for number in range(600):
        slots.log(device, "test", number=number, filler="x" * 1_000)
    sizes = [(device / name).stat().st_size for name in ("log.jsonl", "log.1.jsonl")]
    assert max(sizes) <= slots.MAX_LOG_BYTES
    last = (device / "log.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["number"] == 599


def test_set_aside_is_bounded() -> None:
    """The oldest of many bundles that failed is forgotten."""
    record = slots.Record()
    for number in range(1, slots.MAX_SET_ASIDE + 3):
        record = slots.set_aside(record, f"{number:064x}", number, "unhealthy")
    assert [one.version for one in record.set_aside][:2] == [3, 4]
    assert len(record.set_aside) == slots.MAX_SET_ASIDE


# Power cuts ------------------------------------------------------------------------------------


def possible(made: Cut) -> list[str]:
    """The losses that can follow a cut."""
    folder = any(name.startswith("slots") for name, _ in made.pending)
    return [
        "nothing",
        *(["empty", "half"] if made.dirty else []),
        *(["names"] if made.pending else []),
        *(["slots"] if folder else []),
    ]


def run_all(state: Path, source: Path) -> None:
    """What a device does: update, start, score, confirm."""
    update(state, source)
    model = slots.boot(state)
    model.score(tiny.raw_records())
    slots.confirm(state, model.bundle.digest)


def check_whole(state: Path, allowed: set[int], before: dict[str, int]) -> None:
    """After one power cut nothing that is recorded is damaged, lost or older than before.

    Args:
        state: the folder after the cut.
        allowed: versions that may run.
        before: versions of the verified metadata before the cut, by role.
    """
    record = slots.read_record(state)
    for installed in (record.current, record.previous):
        assert installed is None or slots.slot_is_intact(state, installed)
    if record.current is not None:
        gone_back = len(events(state, "rolled-back"))
        assert boots(state) == record.current.version
        assert len(events(state, "rolled-back")) == gone_back
    if allowed:
        assert record.current is not None
        assert record.current.version in allowed
    now = {role: age.version for role, age in slots.status(state).metadata.items()}
    assert all(now[role] >= version for role, version in before.items())
    for path in (state / "trust").rglob("*.json"):
        json.loads(path.read_bytes())


def check_recovery(state: Path, source: Path, newest: int, *, retry: bool = False) -> None:
    """An update after a power cut brings the newest version."""
    assert update(state, source, retry=retry).version == newest
    model = slots.boot(state)
    assert model.bundle.manifest.version == newest
    assert slots.confirm(state, model.bundle.digest)
    assert slots.status(state).set_aside == ()


def prepared(publisher: Publisher, scenario: str) -> tuple[Path, set[int], int]:
    """A device before an update, what may run after a power cut in it, and the newest version."""
    state = publisher.device(scenario)
    if scenario == "first":
        return state, set(), 1
    update(state, publisher.source)
    slots.confirm(state)
    publisher.publish(2)
    if scenario == "next":
        return state, {1, 2}, 2
    update(state, publisher.source)  # version 2 stays on trial
    publisher.publish(3)
    return state, {1, 2, 3}, 3


@pytest.mark.parametrize("scenario", ["first", "next", "in-trial"])
def test_power_cut_at_every_step(
    memory: Path,
    scenario: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A cut before any step, with any loss of what was not synced, leaves a bundle that runs."""
    publisher = with_version_1(memory)
    state, allowed, newest = prepared(publisher, scenario)
    before = {role: age.version for role, age in slots.status(state).metadata.items()}
    points = cuts(state, memory / "notes", lambda: run_all(state, publisher.source))
    seen, losses = set(), 0
    for made in points:
        for how in possible(made):
            left = lose(made, how)
            losses += 1
            if fingerprint(left) not in seen:  # equal files recover equally
                seen.add(fingerprint(left))
                copy = store(left, memory / "copy")
                check_whole(copy, allowed, before)
                check_recovery(copy, publisher.source, newest)
    with capsys.disabled():
        print(
            f"\npower cuts, {scenario} update: {len(points)} points, {losses} losses, "
            f"{len(seen)} different states, all recovered"
        )
    assert len(points) >= 40


def test_second_power_cut_while_recovering(memory: Path) -> None:
    """Real kills one after the other, at random steps with random losses, never leave nothing."""
    publisher = with_version_1(memory)
    start, allowed, newest = prepared(publisher, "next")
    files = load(start)
    for seed in range(20):
        chance = random.Random(seed)
        state = store(files, memory / "state")
        for _ in range(chance.randint(2, 4)):
            made = cut(
                state,
                chance.randint(1, 80),
                memory / "notes",
                lambda: run_all(state, publisher.source),  # noqa: B023
            )
            if made is not None:
                store(lose(made, "mixed", seed), state)
            assert boots(state) in allowed
        if boots(state) == newest:
            slots.confirm(state)
        # many cuts in a trial look like a bundle that crashes the device: it may be set aside
        check_recovery(state, publisher.source, newest, retry=True)


# All semantics at once -------------------------------------------------------------------------


class DeviceMachine(RuleBasedStateMachine):
    """A publisher and one device, step by step, beside a plain model of what must hold."""

    folder: Path  # set by the test; every run takes a fresh subfolder

    @initialize(percent=st.sampled_from([0, 100]))
    def begin(self, percent: int) -> None:
        """A release with version 1 and a new device."""
        count = len(list(self.folder.iterdir()))
        self.publisher = Publisher(self.folder / str(count))
        self.state = self.publisher.device(device="machine-0")
        self.offered: dict[int, dict[str, int | None]] = {}
        self.bad: set[int] = set()
        self.aside: set[int] = set()
        self.withdrawn: set[int] = set()
        self.running: int | None = None
        self.previous: int | None = None
        self.floor = 0
        self.down = False
        self.confirmed = self.previous_confirmed = False
        self.starts = 0
        self.publish(percent)

    @rule(percent=st.sampled_from([0, 30, 70, 100]))
    def publish(self, percent: int) -> None:
        """The next version, to some devices."""
        if len(self.offered) < 5:
            version = len(self.offered) + 1
            self.publisher.publish(version, Rollout(percent=percent))
            self.offered[version] = {"percent": percent, "down": None}

    @rule(version=st.integers(1, 5), percent=st.sampled_from([0, 50, 100]))
    def roll_out(self, version: int, percent: int) -> None:
        """Change a rollout."""
        if version in self.offered and version not in self.withdrawn:
            self.publisher.release.set_rollout(MODEL, version, Rollout(percent=percent))
            self.offered[version]["percent"] = percent

    @rule(version=st.integers(1, 4), high=st.integers(2, 5))
    def allow_downgrade(self, version: int, high: int) -> None:
        """Let devices come down to a version."""
        if version in self.offered and version not in self.withdrawn and high > version:
            percent = self.offered[version]["percent"] or 0
            rollout = Rollout(percent=percent)
            self.publisher.release.set_rollout(MODEL, version, rollout, downgrade_from=high)
            self.offered[version]["down"] = high

    @rule(version=st.integers(1, 5))
    def withdraw(self, version: int) -> None:
        """Offer a version no longer."""
        if version in self.offered:
            self.publisher.release.withdraw(MODEL, version)
            self.withdrawn.add(version)

    def expected(self) -> int | str | None:
        """What an update must do by the rules as they are documented."""
        barrier = max(self.floor, self.running or 0)

        def reaches(version: int) -> bool:
            down = self.offered[version]["down"]
            return version >= barrier or (down is not None and down >= barrier)

        if not any(map(reaches, self.offered)):
            return "refused"
        for version in sorted(self.offered, reverse=True):
            if version in self.withdrawn or not reaches(version):
                continue
            if version == self.running:
                return None
            inside = bucket(MODEL, version, "machine-0") < (self.offered[version]["percent"] or 0)
            if inside and version not in self.aside:
                return version
        return None

    @rule()
    def update(self) -> None:
        """The device updates; the result equals that of the rules."""
        expected = self.expected()
        if expected == "refused":
            with pytest.raises(UpdateRefused, match=r"rollback|downgrade"):
                update(self.state, self.publisher.source)
            return
        report = update(self.state, self.publisher.source)
        if expected is None:
            assert report.result in ("current", "withdrawn", "none")
            return
        assert report.version == expected
        assert isinstance(expected, int)
        self.down = expected < max(self.floor, self.running or 0)
        if self.confirmed or self.previous is None:  # else the trial is given up
            self.previous, self.previous_confirmed = self.running, self.confirmed
        self.running, self.confirmed, self.starts = expected, False, 0

    @precondition(lambda self: self.running is not None)
    @rule()
    def start(self) -> None:
        """The device starts; a trial that was never confirmed goes back at its fourth start."""
        booted = boots(self.state)
        if not self.confirmed:
            self.starts += 1
        if not self.confirmed and self.starts > slots.MAX_BOOTS and self.previous is not None:
            self.go_back()
        assert booted == self.running

    @precondition(lambda self: self.running is not None)
    @rule()
    def confirm(self) -> None:
        """The running bundle has scored well."""
        assert slots.confirm(self.state)
        if not self.confirmed:
            assert self.running is not None
            self.floor = self.running if self.down else max(self.floor, self.running)
            self.confirmed, self.down = True, False

    @precondition(lambda self: self.previous is not None)
    @rule()
    def rollback(self) -> None:
        """A person goes back."""
        slots.rollback(self.state)
        self.go_back()

    def go_back(self) -> None:
        """What going back means for the model."""
        assert self.running is not None
        self.aside.add(self.running)
        self.running, self.previous = self.previous, None
        self.confirmed, self.down = self.previous_confirmed, False
        self.starts = 0

    @invariant()
    def record_equals_the_model(self) -> None:
        """What is on disk is what the rules say."""
        if not hasattr(self, "state"):
            return
        record = slots.read_record(self.state)
        current = record.current.version if record.current else None
        previous = record.previous.version if record.previous else None
        assert (current, previous, record.floor) == (self.running, self.previous, self.floor)
        assert {one.version for one in record.set_aside} == self.aside


def test_rules_of_rollouts_floors_and_downgrades(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Any order of publishing, updating, starting, confirming and going back follows the rules."""
    machine: Callable[[], RuleBasedStateMachine] = type(
        "Machine", (DeviceMachine,), {"folder": tmp_path / "machines"}
    )
    (tmp_path / "machines").mkdir()
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert os.listdir(tmp_path / "machines")
