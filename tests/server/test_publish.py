"""Release folders: what a publisher signs, in which order, and what is refused."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root

from client.edge.update import provision, update
from server.publish import Expiries, Release, Rollout
from shared.bundle.sealed import RecipientKey, RecipientPublic
from shared.errors import BundleError, ConfigError, DataError
from shared.keys import SigningKey
from tests.client.edge.powercut import cut, lose
from tests.client.edge.releases import MODEL, Publisher


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    """A release with version 1."""
    made = Publisher(tmp_path)
    made.publish(1)
    return made


def installs(publisher: Publisher, name: str) -> int | None:
    """What a new device gets from the release."""
    return update(publisher.device(name), publisher.source).version


def test_what_is_signed_beside_a_bundle(publisher: Publisher) -> None:
    """The custom part says what a device needs before it downloads, without floats."""
    rollout = Rollout(percent=5, cohorts=("b", "a"), devices=("one",))
    made = publisher.publish(2, rollout)
    raw = publisher.keys["bundle"].public.key.public_bytes_raw().hex()
    assert made.custom == {
        "format": 1,
        "model": MODEL,
        "version": 2,
        "kind": "global",
        "expires": None,
        "key": raw,
        "rollout": {"percent": 5, "cohorts": ["a", "b"], "devices": ["one"]},
        "downgrade_from": None,
        "recipient": None,
        "status": "offered",
    }
    path = publisher.source / "targets" / f"{made.sha256}.{made.path}"
    assert path.read_bytes() == publisher.bundle(2).read_bytes()
    assert Release.open(publisher.source).status() == publisher.release.status()


def test_lifetimes(tmp_path: Path) -> None:
    """Each role gets its own number of days, also after it is signed again."""
    publisher = Publisher(tmp_path)
    times = Expiries(root=100, targets=50, snapshot=9, timestamp=3)
    keys = publisher.keys
    release = Release.create(
        tmp_path / "other",
        root_keys=[keys["root-1"]],
        root_threshold=1,
        expiries=times,
        **publisher.signers,
    )
    assert release.expiries == times
    now = datetime.now(UTC)
    left = {role: one.days_left for role, one in release.status(now).roles.items()}
    assert left == {"root": 99, "targets": 49, "snapshot": 8, "timestamp": 2}
    release.refresh(keys["online"], now=now + timedelta(days=2))
    left = {role: one.days_left for role, one in release.status(now).roles.items()}
    assert left == {"root": 99, "targets": 49, "snapshot": 10, "timestamp": 4}
    release.refresh(keys["online"], targets_keys=[keys["targets"]], now=now + timedelta(days=2))
    assert release.status(now).roles["targets"].days_left == 51
    with pytest.raises(ConfigError, match="1 to 36500 days"):
        Expiries(timestamp=0).check()


def test_a_version_is_published_once(publisher: Publisher) -> None:
    """A version is never used twice, withdrawn or not; sealed to other keys it may come again."""
    with pytest.raises(ConfigError, match="never published"):
        publisher.publish(1)
    publisher.release.withdraw(MODEL, 1, **publisher.signers)
    assert not list((publisher.source / "targets").iterdir())
    with pytest.raises(ConfigError, match="never published"):
        publisher.publish(1)
    with pytest.raises(ConfigError, match="withdrawn"):
        publisher.release.set_rollout(MODEL, 1, Rollout(), **publisher.signers)
    paths = set()
    for name in ("a", "b"):
        RecipientKey.generate(publisher.folder / name)
        public = RecipientPublic.load(publisher.folder / f"{name}.pub")
        paths.add(publisher.publish(2, recipient=public).path)
    assert len(paths) == 2
    assert installs(publisher, "without-key") is None


def test_bad_arguments(publisher: Publisher, tmp_path: Path) -> None:
    """Wrong keys, bundles, rollouts and thresholds are refused before a file changes."""
    before = {path: path.read_bytes() for path in publisher.source.rglob("*") if path.is_file()}
    thief = SigningKey.generate(tmp_path / "thief.pem")
    bundle = publisher.bundle(2)
    good = publisher.keys["bundle"].public
    online = publisher.keys["online"]
    with pytest.raises(BundleError, match="unknown key"):
        publisher.release.publish(bundle, thief.public, **publisher.signers)
    with pytest.raises(ConfigError, match="Expected 1 of the 1 targets keys"):
        publisher.release.publish(bundle, good, targets_keys=[thief], online_key=online)
    with pytest.raises(ConfigError, match="Expected 1 of the 1 snapshot keys"):
        publisher.release.refresh(thief)
    for rollout in (Rollout(percent=101), Rollout(percent=-1), Rollout(cohorts=("a b",))):
        with pytest.raises(ConfigError, match="rollout"):
            publisher.release.set_rollout(MODEL, 1, rollout, **publisher.signers)
    with pytest.raises(ConfigError, match="Expected a published version"):
        publisher.release.withdraw(MODEL, 9, **publisher.signers)
    with pytest.raises(ConfigError, match="to come down from"):
        publisher.publish(2, downgrade_from=2)
    with pytest.raises(ConfigError, match="threshold of 1 to 1"):
        Release.create(tmp_path / "bad", root_keys=[thief], root_threshold=2, **publisher.signers)
    with pytest.raises(ConfigError, match="Expected no release"):
        Release.create(publisher.source, root_keys=[thief], root_threshold=1, **publisher.signers)
    after = {path: path.read_bytes() for path in publisher.source.rglob("*") if path.is_file()}
    assert after == before


def test_open_notices_damage(publisher: Publisher, tmp_path: Path) -> None:
    """A folder without a release, or with files that do not fit, is not opened."""
    with pytest.raises(DataError, match="Expected a release"):
        Release.open(tmp_path / "nothing")
    for name in ("timestamp.json", "2.snapshot.json", "2.targets.json", "1.root.json"):
        path = publisher.metadata / name
        data = path.read_bytes()
        path.write_bytes(data.replace(b'"version":2', b'"version":3').replace(b"tuf", b"tuv"))
        if path.read_bytes() == data:
            path.write_bytes(data[:-50])
        with pytest.raises(DataError, match="Expected release metadata"):
            Release.open(publisher.source)
        path.unlink()
        with pytest.raises(DataError, match="is missing"):
            Release.open(publisher.source)
        path.write_bytes(data)
    assert Release.open(publisher.source).status() == publisher.release.status()


def test_old_metadata_is_removed_but_roots_stay(publisher: Publisher) -> None:
    """Five old states stay for devices in the middle of an update; every root stays for ever."""
    for _ in range(12):
        publisher.release.refresh(
            publisher.keys["online"], targets_keys=[publisher.keys["targets"]]
        )
    names = {path.name for path in publisher.metadata.iterdir()}
    assert {"1.root.json", "timestamp.json", "14.targets.json", "10.snapshot.json"} <= names
    assert len(names) == 12
    assert installs(publisher, "new") == 1


def test_rotation_of_every_role(publisher: Publisher) -> None:
    """Devices follow a chain of new roots, from the oldest one on, to the newest bundle."""
    oldest = publisher.release.root_path.read_bytes()
    follower = publisher.device("follower")
    update(follower, publisher.source)
    keys = publisher.keys
    for number, role in enumerate(("targets", "online", "root"), start=2):
        new = SigningKey.generate(publisher.folder / "keys" / f"{role}-new")
        old = "root-2" if role == "root" else role
        version = publisher.release.rotate(
            role,  # type: ignore[arg-type]
            keys=[*keys.values(), new],
            add=[new.public],
            remove=[keys[old].public],
        )
        assert version == number
        keys[old] = new
    publisher.publish(2)
    late = publisher.folder / "late"
    provision(late, oldest, MODEL)
    for state in (follower, late):
        assert update(state, publisher.source).version == 2
    roles = Release.open(publisher.source).status().roles
    assert roles["root"].version == 4
    assert set(roles["root"].keys) == {keys["root-1"].key_id, keys["root-2"].key_id}


def test_rotation_needs_both_thresholds(publisher: Publisher) -> None:
    """A new root needs the old keys and the new ones; unknown keys and thresholds are refused."""
    keys = publisher.keys
    new = SigningKey.generate(publisher.folder / "keys" / "new")
    rotate = publisher.release.rotate
    for given in ([keys["root-1"], new], [keys["root-1"], keys["root-2"]]):
        with pytest.raises(ConfigError, match="root keys of root version"):
            rotate("root", keys=given, add=[new.public], remove=[keys["root-2"].public])
    with pytest.raises(ConfigError, match="Expected a key of role targets"):
        rotate("targets", keys=list(keys.values()), remove=[new.public])
    with pytest.raises(ConfigError, match="threshold of 1 to 1"):
        rotate("targets", keys=list(keys.values()), threshold=2)
    everything = [*keys.values(), new]
    assert rotate("root", keys=everything, add=[new.public], remove=[keys["root-2"].public]) == 2


def test_two_of_two_targets_keys(publisher: Publisher) -> None:
    """With a threshold of two, one targets key publishes nothing."""
    keys = publisher.keys
    second = SigningKey.generate(publisher.folder / "keys" / "second")
    publisher.release.rotate(
        "targets", keys=[*keys.values(), second], add=[second.public], threshold=2
    )
    with pytest.raises(ConfigError, match="Expected 2 of the 2 targets keys"):
        publisher.publish(2)
    publisher.release.publish(
        publisher.bundle(2),
        keys["bundle"].public,
        targets_keys=[keys["targets"], second],
        online_key=keys["online"],
    )
    assert installs(publisher, "new") == 2


def test_crash_of_the_publisher_at_every_step(publisher: Publisher, tmp_path: Path) -> None:
    """A cut before any step of publishing leaves the old release or the new one, valid."""
    bundle, notes = publisher.bundle(2), tmp_path / "notes"
    start = publisher.copy("start")
    state = publisher.device("state")
    key = publisher.keys["bundle"].public
    point = 0
    while True:
        point += 1
        folder = Path(shutil.copytree(start, tmp_path / "work" / str(point)))
        made = cut(
            folder,
            point,
            notes,
            lambda: Release.open(folder).publish(bundle, key, **publisher.signers),  # noqa: B023
        )
        if not made.killed:
            break
        for how in ("nothing", "names"):
            copy = Path(shutil.copytree(folder, tmp_path / "work" / f"{point}-{how}"))
            lose(copy, notes, made, how)
            seen = update(state, copy, check=True).available
            assert seen in (1, 2)
            if seen == 1:
                Release.open(copy).publish(bundle, key, **publisher.signers)
            shutil.rmtree(state)
            publisher.device("state")
            assert update(state, copy, check=True).available == 2
            shutil.rmtree(state)
            publisher.device("state")
    assert point > 20


@pytest.mark.parametrize("old_key", [True, False])
def test_crash_of_a_rotation_at_every_step(
    publisher: Publisher, tmp_path: Path, old_key: bool
) -> None:
    """With the old key a cut leaves a valid release; without it `repair` finishes the rotation."""
    keys = publisher.keys
    new = SigningKey.generate(publisher.folder / "keys" / "new")
    roots = [keys["root-1"], keys["root-2"]]
    given = [*roots, new, *([keys["online"]] if old_key else [])]
    start = publisher.copy("start")
    root = publisher.release.root_path.read_bytes()
    point = 0
    while True:
        point += 1
        folder = Path(shutil.copytree(start, tmp_path / "work" / str(point)))

        def rotate(folder: Path = folder) -> None:
            add, remove = [new.public], [keys["online"].public]
            Release.open(folder).rotate("online", keys=given, add=add, remove=remove)

        made = cut(folder, point, tmp_path / "notes", rotate)
        if not made.killed:
            break
        if not old_key:
            Release.repair(folder, [keys["online"], keys["targets"], new])
        Release.open(folder)
        state = tmp_path / "states" / str(point)
        provision(state, root, MODEL)
        assert update(state, folder).version == 1
    assert point > 10


def test_release_files_hold_no_private_key(publisher: Publisher) -> None:
    """Nothing of a private key is in the folder that is served."""
    secrets = [key.key.private_bytes_raw().hex().encode() for key in publisher.keys.values()]
    for path in publisher.source.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"PRIVATE" not in data
            assert not any(secret in data for secret in secrets)
    root: Metadata[Root] = Metadata.from_file(str(publisher.release.root_path))
    assert root.signed.consistent_snapshot
    assert root.signed.roles["root"].threshold == 2
