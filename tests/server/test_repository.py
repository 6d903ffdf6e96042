"""Release folders: what a publisher signs, in which order, and what is refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata, Root, Targets

from fedlatent.client.edge.update import provision, update
from fedlatent.server.metadata import Expiries
from fedlatent.server.repository import Repository
from fedlatent.shared.bundle.offer import Rollout
from fedlatent.shared.bundle.sealed import RecipientKey, RecipientPublic
from fedlatent.shared.errors import BundleError, ConfigError, DataError
from fedlatent.shared.keys import SigningKey
from tests.client.edge.powercut import cuts, fingerprint, load, lose, store
from tests.client.edge.releases import MODEL, Publisher, with_version_1


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    """A release with version 1."""
    return with_version_1(tmp_path)


def creation(publisher: Publisher, root: SigningKey, threshold: int) -> dict[str, Any]:
    """Arguments for another release, by the same publisher but for its root."""
    return {
        "root_keys": [root],
        "root_threshold": threshold,
        "targets_keys": [publisher.keys["targets"]],
        "online_key": publisher.keys["online"],
    }


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
    assert Repository.open(publisher.source).status() == publisher.release.status()


def test_lifetimes(tmp_path: Path) -> None:
    """Each role gets its own number of days, also after it is signed again."""
    publisher = Publisher(tmp_path)
    times = Expiries(root=100, targets=50, snapshot=9, timestamp=3)
    keys = publisher.keys
    release = Repository.create(
        tmp_path / "other", **creation(publisher, keys["root-1"], 1), expiries=times
    )
    assert release.expiries == times
    now = datetime.now(UTC)
    left = {role: one.days_left for role, one in release.status(now).roles.items()}
    assert left == {"root": 99, "targets": 49, "snapshot": 8, "timestamp": 2}
    release.refresh(now=now + timedelta(days=2))
    left = {role: one.days_left for role, one in release.status(now).roles.items()}
    assert left == {"root": 99, "targets": 49, "snapshot": 10, "timestamp": 4}
    release.refresh(targets=True, now=now + timedelta(days=2))
    assert release.status(now).roles["targets"].days_left == 51
    with pytest.raises(ConfigError, match="1 to 36500 days"):
        Expiries(timestamp=0).check()


def test_a_version_is_published_once(publisher: Publisher) -> None:
    """A version is never used twice, withdrawn or not; sealed to other keys it may come again."""
    with pytest.raises(ConfigError, match="never published"):
        publisher.publish(1)
    publisher.release.withdraw(MODEL, 1)
    assert not list((publisher.source / "targets").iterdir())
    with pytest.raises(ConfigError, match="never published"):
        publisher.publish(1)
    with pytest.raises(ConfigError, match="withdrawn"):
        publisher.release.set_rollout(MODEL, 1, Rollout())
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
    with pytest.raises(BundleError, match="unknown key"):
        publisher.release.publish(bundle, thief.public)
    with pytest.raises(ConfigError, match="Expected 1 of the 1 targets keys"):
        Repository.open(publisher.source, [thief, publisher.keys["online"]]).publish(bundle, good)
    with pytest.raises(ConfigError, match="Expected 1 of the 1 snapshot keys"):
        Repository.open(publisher.source, [thief, publisher.keys["targets"]]).refresh()
    for rollout in (Rollout(percent=101), Rollout(percent=-1), Rollout(cohorts=("a b",))):
        with pytest.raises(ConfigError, match="rollout"):
            publisher.release.set_rollout(MODEL, 1, rollout)
    with pytest.raises(ConfigError, match="Expected a published version"):
        publisher.release.withdraw(MODEL, 9)
    with pytest.raises(ConfigError, match="to come down from"):
        publisher.publish(2, downgrade_from=2)
    with pytest.raises(ConfigError, match="threshold of 1 to 1"):
        Repository.create(tmp_path / "bad", **creation(publisher, thief, 2))
    with pytest.raises(ConfigError, match="Expected no release"):
        Repository.create(publisher.source, **creation(publisher, thief, 1))
    after = {path: path.read_bytes() for path in publisher.source.rglob("*") if path.is_file()}
    assert after == before


def test_open_notices_damage(publisher: Publisher, tmp_path: Path) -> None:
    """A folder without a release, or with files that do not fit, is not opened."""
    with pytest.raises(DataError, match="Expected a release"):
        Repository.open(tmp_path / "nothing")
    for name in ("timestamp.json", "2.snapshot.json", "2.targets.json", "1.root.json"):
        path = publisher.metadata / name
        data = path.read_bytes()
        path.write_bytes(data.replace(b'"version":2', b'"version":3').replace(b"tuf", b"tuv"))
        if path.read_bytes() == data:
            path.write_bytes(data[:-50])
        with pytest.raises(DataError, match="Expected release metadata"):
            Repository.open(publisher.source)
        path.unlink()
        with pytest.raises(DataError, match="is missing"):
            Repository.open(publisher.source)
        path.write_bytes(data)
    assert Repository.open(publisher.source).status() == publisher.release.status()


def test_old_metadata_is_removed_but_roots_stay(publisher: Publisher) -> None:
    """Five old states stay for devices in the middle of an update; every root stays for ever."""
    for _ in range(12):
        publisher.release.refresh(targets=True)
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
        publisher.release.keys += (new,)
        version = publisher.release.rotate(
            role,  # type: ignore[arg-type]
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
    roles = Repository.open(publisher.source).status().roles
    assert roles["root"].version == 4
    assert set(roles["root"].keys) == {keys["root-1"].key_id, keys["root-2"].key_id}


def test_rotation_needs_both_thresholds(publisher: Publisher) -> None:
    """A new root needs the old keys and the new ones; unknown keys and thresholds are refused."""
    keys = publisher.keys
    new = SigningKey.generate(publisher.folder / "keys" / "new")
    changed = {"add": [new.public], "remove": [keys["root-2"].public]}
    for given in ([keys["root-1"], new], [keys["root-1"], keys["root-2"]]):
        with pytest.raises(ConfigError, match="root keys of root version"):
            Repository.open(publisher.source, given).rotate("root", **changed)
    with pytest.raises(ConfigError, match="Expected a key of role targets"):
        publisher.release.rotate("targets", remove=[new.public])
    with pytest.raises(ConfigError, match="threshold of 1 to 1"):
        publisher.release.rotate("targets", threshold=2)
    publisher.release.keys += (new,)
    assert publisher.release.rotate("root", **changed) == 2


def test_two_of_two_targets_keys(publisher: Publisher) -> None:
    """With a threshold of two, one targets key publishes nothing."""
    second = SigningKey.generate(publisher.folder / "keys" / "second")
    one = publisher.release.keys
    publisher.release.keys += (second,)
    publisher.release.rotate("targets", add=[second.public], threshold=2)
    publisher.release.keys = one
    with pytest.raises(ConfigError, match="Expected 2 of the 2 targets keys"):
        publisher.publish(2)
    publisher.release.keys = (*one, second)
    publisher.publish(2)
    assert installs(publisher, "new") == 2


def test_crash_of_the_publisher_at_every_step(publisher: Publisher, tmp_path: Path) -> None:
    """A cut before any step of publishing leaves the old release or the new one, valid."""
    bundle, folder = publisher.bundle(2), publisher.source
    state = load(publisher.device("state"))
    key, keys = publisher.keys["bundle"].public, publisher.release.keys
    points = cuts(
        folder, tmp_path / "notes", lambda: Repository.open(folder, keys).publish(bundle, key)
    )
    seen = set()
    for made in points:
        for how in ("nothing", "names"):
            left = lose(made, how)
            if fingerprint(left) in seen:
                continue
            seen.add(fingerprint(left))
            copy, device = store(left, tmp_path / "copy"), store(state, tmp_path / "device")
            found = update(device, copy, check=True).available
            assert found in (1, 2)
            if found == 1:
                Repository.open(copy, keys).publish(bundle, key)
            assert update(device, copy, check=True).available == 2
    assert len(points) > 20


@pytest.mark.parametrize("old_key", [True, False])
def test_crash_of_a_rotation_at_every_step(
    publisher: Publisher, tmp_path: Path, old_key: bool
) -> None:
    """With the old key a cut leaves a valid release; without it a refresh finishes the rotation."""
    keys, folder = publisher.keys, publisher.source
    new = SigningKey.generate(publisher.folder / "keys" / "new")
    given = [keys["root-1"], keys["root-2"], new, *([keys["online"]] if old_key else [])]
    state = load(publisher.device("state"))

    def rotate() -> None:
        add, remove = [new.public], [keys["online"].public]
        Repository.open(folder, given).rotate("online", add=add, remove=remove)

    points = cuts(folder, tmp_path / "notes", rotate)
    for made in points:
        copy = store(made.files, tmp_path / "copy")
        if not old_key:
            left = [keys["online"], keys["targets"], new]
            Repository.open(copy, left, unfinished=True).refresh(targets=True)
        Repository.open(copy)
        assert update(store(state, tmp_path / "device"), copy).version == 1
    assert len(points) > 10


# A folder that others can write ----------------------------------------------------------------


@pytest.fixture
def pinned(publisher: Publisher) -> Path:
    """A release in the publisher's folder, which pins it; version 1 is published."""
    own, keys = publisher.folder / "own", publisher.release.keys
    release = Repository.create(
        publisher.folder / "served",
        root_keys=keys[:2],
        root_threshold=2,
        targets_keys=[keys[2]],
        online_key=keys[3],
        pinned=own,
    )
    publisher.release = release
    publisher.publish(1)
    return own


def test_other_root_is_not_signed_under(publisher: Publisher, pinned: Path) -> None:
    """Metadata under a root that names the publisher's keys beside a thief's is not signed anew."""
    thief = SigningKey.generate(publisher.folder / "thief.pem")
    root: Metadata[Root] = Metadata.from_file(str(publisher.release.root_path))
    for role in ("root", "targets"):
        root.signed.add_key(SSlibKey.from_crypto(thief.public.key), role)
    root.signed.roles["root"].threshold = 1
    root.sign(CryptoSigner(thief.key))
    root.to_file(str(publisher.release.root_path))

    def own_bundle(signed: Targets) -> None:
        for target in signed.targets.values():
            target.custom["key"] = thief.public.key.public_bytes_raw().hex()

    publisher.keys["targets"] = thief
    publisher.forge(targets=own_bundle)
    Repository.open(publisher.source)  # fits, for those who trust the folder
    with pytest.raises(DataError, match="Expected release metadata"):
        Repository.open(publisher.source, pinned=pinned)


def test_older_list_is_not_signed_anew(publisher: Publisher, pinned: Path) -> None:
    """A folder that was put back, as before a withdrawal, is noticed by who withdrew."""
    publisher.publish(2)
    before = publisher.copy("before")
    publisher.release.withdraw(MODEL, 2)
    assert Repository.open(publisher.source, pinned=pinned).status() == publisher.release.status()
    with pytest.raises(DataError, match="as new as it was"):
        Repository.open(before, pinned=pinned)
    (pinned / "seen.json").write_text("null")
    with pytest.raises(DataError, match="Expected a number"):
        Repository.open(publisher.source, pinned=pinned)


def test_finishing_a_rotation_signs_nothing_foreign(publisher: Publisher, tmp_path: Path) -> None:
    """A list of bundles by other keys is refused also where a rotation is to be finished."""
    publisher.forge(key=SigningKey.generate(tmp_path / "thief.pem"))
    with pytest.raises(DataError, match="Expected release metadata"):
        Repository.open(publisher.source, publisher.release.keys, unfinished=True)


def test_two_changes_at_once(publisher: Publisher) -> None:
    """A change of a release that another process changed meanwhile is refused, and lost by none."""
    publisher.publish(2)
    first, second = (Repository.open(publisher.source, publisher.release.keys) for _ in range(2))
    first.withdraw(MODEL, 2)
    for change in (
        second.refresh,
        lambda: second.set_rollout(MODEL, 1, Rollout()),
        lambda: second.rotate("root"),
    ):
        with pytest.raises(ConfigError, match="run the command again"):
            change()
    assert Repository.open(publisher.source).status() == first.status()


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
