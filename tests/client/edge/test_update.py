"""Updates from a release folder: every attack is refused by name, and what runs keeps running."""

import argparse
import functools
import http.server
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import onnx
import onnxruntime
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from fedlatent.client.edge import slots
from fedlatent.client.edge import update as updates
from fedlatent.client.edge.commands import update as commands
from fedlatent.client.edge.commands.common import Commands
from fedlatent.client.edge.main import build_parser, main
from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.edge.update import Fetcher, choose, provision, update
from fedlatent.server.repository import Repository
from fedlatent.shared.bundle import manifest as manifests
from fedlatent.shared.bundle.archive import GOLDEN, SCORER, pack, parse_bundle, signature_file
from fedlatent.shared.bundle.arrays import pack_arrays, unpack_arrays
from fedlatent.shared.bundle.offer import Offer, Rollout, bucket
from fedlatent.shared.bundle.sealed import RecipientKey, RecipientPublic
from fedlatent.shared.errors import ConfigError, UpdateRefused
from fedlatent.shared.files import canonical_json, utc_text
from fedlatent.shared.keys import SigningKey
from tests.client.edge.releases import MODEL, Publisher, confirmed, past, with_version_1
from tests.shared.bundle import tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    """A release with version 1."""
    return with_version_1(tmp_path)


@pytest.fixture
def device(publisher: Publisher) -> Path:
    """A device that runs version 1, confirmed."""
    return confirmed(publisher)


def refused(state: Path, source: str | Path, reason: str, **options: bool) -> str:
    """Check that an update is refused for ``reason`` and that the same bundle still boots."""
    before = slots.read_record(state).current
    with pytest.raises(UpdateRefused, match=rf"^Refused \({reason}\): Expected ") as caught:
        update(state, source, **options)
    assert caught.value.reason == reason
    assert slots.read_record(state).current == before
    if before is not None:
        assert slots.boot(state).bundle.manifest.version == before.version
    return str(caught.value)


def version(state: Path) -> int:
    """The version that boots."""
    return slots.boot(state).bundle.manifest.version


# What updates do -------------------------------------------------------------------------------


def test_update_installs_the_newest_and_then_nothing(publisher: Publisher, device: Path) -> None:
    """A new version is installed once; the model scores like the bundle file does."""
    publisher.publish(2)
    checked = update(device, publisher.source, check=True)
    assert (checked.result, checked.version, checked.available) == ("available", 1, 2)
    assert version(device) == 1
    report = update(device, publisher.source)
    assert (report.result, report.before, report.version) == ("installed", 1, 2)
    again = update(device, publisher.source)
    assert (again.result, again.version, again.bytes) == ("current", 2, 0)
    direct = EdgeModel.load(publisher.bundle(2), [publisher.keys["bundle"].public])
    records = tiny.raw_records()
    assert (slots.boot(device).score(records).score == direct.score(records).score).all()


@contextmanager
def serving(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """A real HTTP server; gives its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(publisher: Publisher) -> Iterator[str]:
    """The release folder on a real HTTP server."""
    with serving(functools.partial(Quiet, directory=str(publisher.source))) as address:
        yield address


def test_update_over_http_and_file_addresses(publisher: Publisher, server: str) -> None:
    """The same release installs from a web server, a file address and a folder."""
    for name, source in (("a", server), ("b", publisher.source.as_uri()), ("c", publisher.source)):
        state = publisher.device(name)
        assert update(state, source).result == "installed"
        assert version(state) == 1
    target = next((publisher.source / "targets").iterdir())
    target.write_bytes(bytes(target.stat().st_size))
    refused(publisher.device("d"), server, "swapped-file")
    refused(publisher.device("e"), f"{server}/nothing-here", "unreachable")


def test_sources_that_are_no_release(publisher: Publisher, device: Path, tmp_path: Path) -> None:
    """A missing folder and a pipe in place of a file are unreachable, without delay."""
    refused(device, tmp_path / "nothing", "unreachable")
    (publisher.metadata / "timestamp.json").unlink()
    os.mkfifo(publisher.metadata / "timestamp.json")
    started = time.monotonic()
    refused(device, publisher.source, "unreachable")
    assert time.monotonic() - started < 60
    with pytest.raises(ConfigError, match="Expected a folder or an address"):
        update(device, "ftp://example/release")


def test_redirects_are_not_followed(device: Path) -> None:
    """A server cannot send a device to another address, such as one of its own network."""
    asked = []

    class Neighbour(Quiet):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with serving(Neighbour) as neighbour:

        class Elsewhere(Quiet):
            def do_GET(self) -> None:
                self.send_response(302)
                self.send_header("Location", f"{neighbour}/reboot")
                self.end_headers()

        with serving(Elsewhere) as address:
            assert "HTTP status 302" in refused(device, address, "unreachable")
    assert asked == []


@pytest.mark.parametrize("start", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nX: "])
def test_slow_server_is_given_up(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    """A server that drips bytes for ever, be it a header's, is given up after a file's time."""

    class Drip(Quiet):
        def do_GET(self) -> None:
            self.wfile.write(start)
            for _ in range(10):
                self.wfile.write(b"x")
                time.sleep(0.03)
            self.wfile.write(b"\r\n\r\n")

    monkeypatch.setattr(updates, "FETCH_SECONDS", 0.1)
    before = set(threading.enumerate())
    with serving(Drip) as address:
        with pytest.raises(DownloadError, match="TimeoutError"):
            Fetcher().download_bytes(f"{address}/timestamp.json", 10_000)
        for left in set(threading.enumerate()) - before:  # it ends here; the test waits for it
            if left.daemon:
                left.join()


def test_provisioning(publisher: Publisher, tmp_path: Path) -> None:
    """A folder is provisioned once, from a root that is signed by its own keys."""
    root = publisher.release.root_path.read_bytes()
    state = tmp_path / "new"
    for bad in (b"{}", root.replace(b'"version":1', b'"version":2'), b"[]"):
        with pytest.raises(ConfigError, match=r"Expected a release.s metadata"):
            provision(state, bad, MODEL)
    with pytest.raises(ConfigError, match="Expected names of at most 64"):
        provision(state, root, "no spaces please")
    made = provision(state, root, MODEL, cohorts=["pilot"])
    assert made == slots.read_device(state)
    assert len(made.device) == 32
    with pytest.raises(ConfigError, match="not provisioned"):
        provision(state, root, MODEL)
    with pytest.raises(ConfigError, match="Expected a provisioned state folder"):
        update(tmp_path / "other", publisher.source)


def test_rollout_by_percent_cohort_and_device(publisher: Publisher) -> None:
    """A version reaches a share of devices, a cohort or a named device; more percent only adds."""
    many = [f"device-{number}" for number in range(500)]
    reached: list[set[str]] = []
    for percent in (0, 5, 30, 100):
        reached.append({one for one in many if bucket(MODEL, 2, one) < percent})
    assert all(a <= b for a, b in itertools.pairwise(reached))
    assert not reached[0]
    assert 100 < len(reached[2]) < 200
    assert len(reached[3]) == 500

    publisher.publish(2, Rollout(percent=0, cohorts=("pilot",), devices=("chosen",)))
    plain = publisher.device("plain")
    pilot = publisher.device("pilot", cohorts=["pilot"])
    chosen = publisher.device("chosen", device="chosen")
    for state, expected in ((plain, 1), (pilot, 2), (chosen, 2)):
        assert update(state, publisher.source).version == expected
    publisher.release.set_rollout(MODEL, 2, Rollout(percent=100))
    assert update(plain, publisher.source).version == 2
    publisher.release.set_rollout(MODEL, 2, Rollout(percent=0))
    assert update(pilot, publisher.source).result == "current"  # nobody loses what it runs


def test_nothing_for_this_device_yet(publisher: Publisher) -> None:
    """A device outside every rollout installs nothing and is told so."""
    publisher.release.set_rollout(MODEL, 1, Rollout(percent=0))
    report = update(publisher.device(), publisher.source)
    assert (report.result, report.version) == ("none", None)
    other = publisher.folder / "other"
    provision(other, publisher.release.root_path.read_bytes(), "other-model")
    refused(other, publisher.source, "not-offered")


def test_withdrawn_version(publisher: Publisher, device: Path) -> None:
    """A withdrawn version is not installed; where it runs it stays, and a new one follows it."""
    publisher.publish(2)
    early = publisher.device("early")
    update(early, publisher.source)
    publisher.release.withdraw(MODEL, 2)
    assert update(device, publisher.source).result == "current"
    assert update(early, publisher.source).result == "withdrawn"
    assert version(early) == 2
    publisher.publish(3)
    assert update(early, publisher.source).version == 3


def test_signed_downgrade(publisher: Publisher, device: Path) -> None:
    """A version below the floor is installed only when it is signed as a downgrade from there."""
    publisher.publish(5)
    update(device, publisher.source)
    slots.confirm(device)
    publisher.release.withdraw(MODEL, 5)
    assert update(device, publisher.source).result == "withdrawn"

    def down(high: int) -> None:
        publisher.release.set_rollout(MODEL, 1, Rollout(), downgrade_from=high)

    down(4)
    assert update(device, publisher.source).result == "withdrawn"  # 4 does not reach up to 5
    down(5)
    assert update(device, publisher.source).version == 1
    assert slots.read_record(device).floor == 5  # until it has scored
    slots.confirm(device)
    assert slots.read_record(device).floor == 1
    assert update(device, publisher.source).result == "current"
    publisher.publish(6)
    update(device, publisher.source)
    slots.confirm(device)
    assert slots.read_record(device).floor == 6
    assert update(device, publisher.source).version == 6  # the old downgrade does not reach 6


def test_sealed_bundle(publisher: Publisher, tmp_path: Path) -> None:
    """A sealed bundle installs where its key is; elsewhere it is not offered or not opened."""
    RecipientKey.generate(tmp_path / "group.key", "mlkem768-x25519")
    public = RecipientPublic.load(tmp_path / "group.key.pub")
    publisher.publish(2, recipient=public)
    inside = publisher.device("inside")
    shutil.copy(tmp_path / "group.key", inside / "recipient.key")
    assert update(inside, publisher.source).version == 2
    model = slots.boot(inside)
    assert model.bundle.manifest.version == 2
    assert slots.confirm(inside, model.bundle.digest)
    stored = slots.slot_path(inside, "a").read_bytes()
    assert stored.startswith(b"FEDSEAL")
    assert b"scorer.onnx" not in stored
    assert b"manifest" not in next((publisher.source / "targets").glob("*-2-*")).read_bytes()
    outside = publisher.device("outside", new_recipient="x25519")
    assert update(outside, publisher.source).version == 1

    def for_all(signed: Targets) -> None:
        for target in signed.targets.values():
            if target.custom["version"] == 2:
                target.custom["recipient"] = RecipientKey.load(
                    outside / "recipient.key"
                ).public.key_id

    publisher.forge(targets=for_all)
    for _ in range(updates.MAX_CHECKS + 2):  # never set aside, since the key may be put right
        refused(outside, publisher.source, "wrong-recipient")


# Attacks ---------------------------------------------------------------------------------------


def test_replayed_release(publisher: Publisher, device: Path) -> None:
    """An old copy of the whole release, or of its timestamp alone, is a rollback."""
    old = publisher.copy("old")
    publisher.publish(2)
    update(device, publisher.source)
    refused(device, old, "rollback")
    shutil.copy(old / "metadata" / "timestamp.json", publisher.metadata)
    refused(device, publisher.source, "rollback")


def test_replayed_snapshot(publisher: Publisher, device: Path) -> None:
    """A fresh timestamp of an online key's thief that points to an old snapshot is a rollback."""
    first = json.loads((publisher.metadata / "timestamp.json").read_bytes())
    publisher.publish(2)
    update(device, publisher.source)

    def point_back(signed: Timestamp) -> None:
        signed.snapshot_meta.version = first["signed"]["meta"]["snapshot.json"]["version"]
        signed.snapshot_meta.hashes = first["signed"]["meta"]["snapshot.json"]["hashes"]

    publisher.forge(timestamp=point_back)
    refused(device, publisher.source, "rollback")


def test_replayed_targets_in_fresh_snapshot(publisher: Publisher, device: Path) -> None:
    """A fresh snapshot that names an old list of bundles is a rollback."""
    publisher.publish(2)
    update(device, publisher.source)

    def point_back(signed: Snapshot) -> None:
        signed.meta["targets.json"].version = 2

    publisher.forge(snapshot=point_back)
    refused(device, publisher.source, "rollback")


def test_older_bundle_in_fresh_metadata(publisher: Publisher, device: Path) -> None:
    """A list that offers only versions below what runs is a rollback, confirmed or not."""
    publisher.publish(2)
    update(device, publisher.source)

    def only_old(signed: Targets) -> None:
        signed.targets = {k: v for k, v in signed.targets.items() if v.custom["version"] == 1}

    publisher.forge(targets=only_old)
    refused(device, publisher.source, "rollback")
    slots.confirm(device)
    refused(device, publisher.source, "rollback")

    def down(signed: Targets) -> None:
        for target in signed.targets.values():
            target.custom["downgrade_from"] = 1

    publisher.forge(targets=down)
    refused(device, publisher.source, "downgrade")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_expired_metadata(publisher: Publisher, device: Path, role: str) -> None:
    """Expired metadata of any role blocks new installs; what runs keeps scoring and says so."""
    publisher.publish(2)
    publisher.forge(**{role: past})
    assert role in refused(device, publisher.source, "expired-metadata")
    slots.boot(device).score(tiny.raw_records())
    Repository.open(publisher.source, publisher.release.keys).refresh(targets=True)
    assert update(device, publisher.source).version == 2


def test_expired_root(tmp_path: Path) -> None:
    """An expired root blocks installs until the publisher renews it."""
    long_ago = datetime.now(UTC) - timedelta(days=400)
    publisher = Publisher(tmp_path, now=long_ago)
    publisher.publish(1)
    publisher.release.refresh()
    state = publisher.device()
    refused(state, publisher.source, "expired-metadata")
    publisher.release.rotate("root")
    assert update(state, publisher.source).version == 1


def test_freeze(publisher: Publisher, device: Path) -> None:
    """A device that is shown the same old release for ever refuses it once that has expired."""
    publisher.forge(timestamp=past, snapshot=past)
    refused(device, publisher.source, "expired-metadata")
    ages = slots.status(device).metadata
    assert not ages["timestamp"].expired  # what was refused is not stored
    assert ages["targets"].version == 2


def test_clock_that_was_set_back(publisher: Publisher, device: Path) -> None:
    """A clock behind the last update hides no expiry: that moment counts, and is kept."""
    publisher.publish(2)
    path = device / "trust" / "timestamp.json"
    soon, late = time.time() + 10 * 86_400, time.time() + 20 * 86_400  # metadata lasts 14 days
    os.utime(path, (soon, soon))
    assert update(device, publisher.source).version == 2
    assert path.stat().st_mtime == soon
    slots.confirm(device)
    publisher.publish(3)
    os.utime(path, (late, late))
    refused(device, publisher.source, "expired-metadata")


def test_impossible_date(publisher: Publisher, device: Path) -> None:
    """A signed date that is none, by a thief of the targets key, is a refusal like others."""

    def odd(signed: Targets) -> None:
        for target in signed.targets.values():
            target.custom["expires"] = "2999-99-99T00:00:00Z"

    publisher.publish(2)
    publisher.forge(targets=odd)
    refused(device, publisher.source, "mix-and-match")


def test_mixed_metadata(publisher: Publisher, device: Path) -> None:
    """Old signed parts under new names do not fit: mix-and-match."""
    publisher.publish(2)
    shutil.copy(publisher.metadata / "2.targets.json", publisher.metadata / "3.targets.json")
    refused(device, publisher.source, "mix-and-match")
    shutil.copy(publisher.metadata / "2.snapshot.json", publisher.metadata / "3.snapshot.json")
    refused(publisher.device("fresh"), publisher.source, "mix-and-match")


def test_damaged_metadata(publisher: Publisher, device: Path) -> None:
    """Metadata that is cut, no JSON, or describes a bundle wrongly is damaged."""
    publisher.publish(2)
    path = publisher.metadata / "3.targets.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    refused(device, publisher.source, "mix-and-match")
    path.write_bytes(whole)

    def no_key(signed: Targets) -> None:
        for target in signed.targets.values():
            target.custom["key"] = "short"

    publisher.forge(targets=no_key)
    refused(device, publisher.source, "damaged-metadata")
    (publisher.metadata / "timestamp.json").write_bytes(b"no json")
    refused(device, publisher.source, "damaged-metadata")


def test_metadata_by_other_keys(publisher: Publisher, device: Path, tmp_path: Path) -> None:
    """A look-alike release, and edited metadata, have too few signatures of trusted keys."""
    other = Publisher(tmp_path / "other")
    for number in range(1, 4):
        other.publish(number)
    refused(device, other.source, "wrong-key")
    publisher.forge(key=SigningKey.generate(tmp_path / "thief.pem"))
    refused(device, publisher.source, "wrong-key")


def test_edited_metadata(publisher: Publisher, device: Path) -> None:
    """Metadata edited without signing has no valid signature."""
    publisher.publish(2)
    path = publisher.metadata / "timestamp.json"
    value = json.loads(path.read_bytes())
    value["signed"]["version"] += 7
    path.write_text(json.dumps(value))
    refused(device, publisher.source, "wrong-key")


def test_root_rotation_needs_the_threshold(publisher: Publisher, device: Path) -> None:
    """A new root with both signatures is followed; one with a single signature is refused."""
    keys = publisher.keys
    keys["online-2"] = SigningKey.generate(publisher.folder / "keys" / "online-2")
    publisher.release.keys += (keys["online-2"],)
    publisher.release.rotate(
        "online", add=[keys["online-2"].public], remove=[keys["online"].public]
    )
    keys["online"] = keys["online-2"]
    publisher.publish(2)
    assert update(device, publisher.source).version == 2

    root: Metadata[Root] = Metadata.from_file(str(publisher.release.root_path))
    root.signed.version += 1
    root.signed.roles["root"].threshold = 1
    root.sign(CryptoSigner(keys["root-1"].key))
    root.to_file(str(publisher.metadata / f"{root.signed.version}.root.json"))
    publisher.publish(3)
    refused(device, publisher.source, "wrong-key")


def test_old_online_key_is_worthless_after_rotation(publisher: Publisher, device: Path) -> None:
    """After a rotation the stolen online key signs nothing that a device accepts."""
    keys = publisher.keys
    fresh = SigningKey.generate(publisher.folder / "keys" / "fresh")
    publisher.release.keys = (keys["root-1"], keys["root-2"], fresh)
    publisher.release.rotate("online", add=[fresh.public], remove=[keys["online"].public])
    assert update(device, publisher.source).result == "current"
    publisher.forge()  # by the old key
    refused(device, publisher.source, "wrong-key")


def test_changed_bundle_file(publisher: Publisher, device: Path) -> None:
    """A swapped, cut or grown bundle file is refused, each by its name, and a repair installs."""
    made = publisher.publish(2)
    path = publisher.source / "targets" / f"{made.sha256}.{made.path}"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(device, publisher.source, "swapped-file")
    path.write_bytes(whole[:-1])
    refused(device, publisher.source, "truncated")
    path.write_bytes(whole + b"\0")
    refused(device, publisher.source, "oversized")
    path.unlink()
    refused(device, publisher.source, "unreachable")
    path.write_bytes(whole)
    assert update(device, publisher.source).version == 2


def test_oversized_metadata_and_targets(publisher: Publisher, device: Path) -> None:
    """Endless metadata and a target beyond the largest bundle are refused before they are read."""

    def huge(signed: Targets) -> None:
        for target in signed.targets.values():
            target.custom["version"] = 2
            target.length = 1 << 40

    publisher.forge(targets=huge)
    refused(device, publisher.source, "oversized")
    path = publisher.metadata / "timestamp.json"
    path.write_bytes(path.read_bytes() + b" " * 20_000)
    refused(device, publisher.source, "oversized")


def add_target(publisher: Publisher, version: int, data: bytes, **custom: object) -> None:
    """Sign a target without a publisher's checks, as a thief of the targets key could."""
    manifest = replace(tiny.manifest(), version=version)
    target = TargetFile.from_data(f"{MODEL}-{version}.fedlatent", data, ["sha256"])
    offer = Offer(
        path=target.path,
        digest=target.hashes["sha256"],
        bytes=target.length,
        model=manifest.name,
        version=manifest.version,
        kind=manifest.kind,
        expires=manifest.expires,
        key=publisher.keys["bundle"].public.key.public_bytes_raw().hex(),
    )
    target.unrecognized_fields["custom"] = {**offer.custom(), **custom}
    name = target.get_prefixed_paths()[0]
    (publisher.source / "targets" / name).write_bytes(data)

    def add(signed: Targets) -> None:
        signed.targets[target.path] = target

    publisher.forge(targets=add)


def test_bundle_by_another_key(publisher: Publisher, device: Path, tmp_path: Path) -> None:
    """A bundle signed by another key than the release states is refused and not tried again."""
    thief = SigningKey.generate(tmp_path / "thief.pem")
    add_target(publisher, 2, publisher.bundle(2, key=thief).read_bytes())
    refused(device, publisher.source, "wrong-key")
    report = update(device, publisher.source)
    assert (report.result, report.set_aside) == ("current", (2,))


def test_bundle_of_another_version(publisher: Publisher, device: Path) -> None:
    """A rightly signed bundle under another version than its own is mix-and-match."""
    add_target(publisher, 2, publisher.bundle(1).read_bytes())
    refused(device, publisher.source, "mix-and-match")


def test_bundle_with_swapped_part(publisher: Publisher, device: Path) -> None:
    """A bundle with a part of another bundle does not match its own signed manifest."""
    key = publisher.keys["bundle"]
    data = publisher.bundle(2).read_bytes()
    files = dict(parse_bundle(data, [key.public]).files)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        signed = {name: archive.read(name) for name in ("manifest.json", "manifest.sig")}
    add_target(publisher, 2, pack({**signed, **files, SCORER: tiny.scorer(site=True)}))
    refused(device, publisher.source, "damaged-bundle")
    add_target(publisher, 3, b"no bundle at all")
    refused(device, publisher.source, "damaged-bundle")


def wrong_golden() -> bytes:
    """Golden vectors that the tiny scorer does not give."""
    arrays = unpack_arrays(tiny.files(tiny.manifest())[GOLDEN], GOLDEN)
    return pack_arrays({name: one + (name != "records") for name, one in arrays.items()})


def test_unhealthy_bundle(publisher: Publisher, device: Path) -> None:
    """A rightly signed bundle that computes otherwise here is refused, and the old one runs on."""
    publisher.publish(2, replaced={GOLDEN: wrong_golden()})
    sentence = refused(device, publisher.source, "unhealthy")
    assert "golden" in sentence
    assert update(device, publisher.source).set_aside == (2,)
    refused(device, publisher.source, "unhealthy", retry=True)
    publisher.publish(3)
    assert update(device, publisher.source).version == 3


def test_bundle_for_a_newer_runtime_is_installed_after_the_upgrade(
    publisher: Publisher, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that needs an upgrade is a refusal each time until that, and then it is installed.

    It is not fetched again before, and a version that runs on the old software is taken meanwhile.
    """
    publisher.publish(2)
    made = publisher.publish(3, needs="99.1")
    assert "99.1" in refused(device, publisher.source, "needs-upgrade")
    assert update(device, publisher.source).version == 2
    slots.confirm(device)
    path = publisher.source / "targets" / f"{made.sha256}.{made.path}"
    away = path.rename(path.with_suffix(".away"))
    for _ in range(2):
        assert onnxruntime.__version__ in refused(device, publisher.source, "needs-upgrade")
    assert slots.status(device).set_aside[0].reason == "needs-upgrade"
    assert main(["update", str(publisher.source), "--state", str(device)]) == 11
    away.rename(path)
    monkeypatch.setattr(onnxruntime, "__version__", "99.1.0")
    assert update(device, publisher.source).version == 3


def test_bundle_for_a_newer_program_is_installed_after_the_upgrade(
    publisher: Publisher, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle in a format of tomorrow waits for the program that reads it."""
    key = publisher.keys["bundle"]
    with zipfile.ZipFile(publisher.bundle(2)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    newer = manifests.FORMAT_VERSION + 1
    text = canonical_json({**json.loads(files["manifest.json"]), "format_version": newer})
    signed = signature_file(key.key_id, key.sign(text))
    add_target(publisher, 2, pack({**files, "manifest.json": text, "manifest.sig": signed}))
    for _ in range(2):
        refused(device, publisher.source, "needs-upgrade")
    monkeypatch.setattr(manifests, "FORMAT_VERSION", newer)
    assert update(device, publisher.source).version == 2


def test_what_failed_on_other_software_has_another_try(
    publisher: Publisher, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was set aside by software that is gone is judged anew, but not what was left by hand."""
    publisher.publish(2, replaced={GOLDEN: wrong_golden()})
    refused(device, publisher.source, "unhealthy")
    assert update(device, publisher.source).set_aside == (2,)
    record = slots.read_record(device)
    other = replace(record.set_aside[0], software="")  # as programs before wrote it
    slots.edit(device, lambda it: replace(it, set_aside=(other,)))
    refused(device, publisher.source, "unhealthy")
    by_hand = slots.set_aside(record, record.set_aside[0].digest, 2, "by-hand")
    slots.edit(device, lambda it: replace(it, set_aside=by_hand.set_aside))
    monkeypatch.setattr(onnxruntime, "__version__", "99.1.0")
    assert update(device, publisher.source).set_aside == (2,)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs whose loading in the background, as in an update, does not end."""
    end, real = threading.Event(), onnxruntime.InferenceSession
    before = set(threading.enumerate())

    def session(*arguments: object, **options: object) -> object:
        if threading.current_thread().daemon:
            end.wait()
        return real(*arguments, **options)

    monkeypatch.setattr(updates, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    yield
    end.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10.0)
        assert not thread.is_alive()


def test_slow_bundle_may_come_again(publisher: Publisher, device: Path) -> None:
    """A bundle whose check was begun and did not end is tried again, and installed."""
    made = publisher.publish(2)
    slots.edit(device, lambda found: replace(found, checking=made.sha256, checks=2))
    assert update(device, publisher.source).version == 2
    record = slots.read_record(device)
    assert (record.checking, record.checks) == (None, 0)


def test_slow_bundle(publisher: Publisher, device: Path, stuck: None) -> None:
    """A bundle that does not load in time is refused, and the fourth time it is set aside."""
    publisher.publish(2)
    for _ in range(updates.MAX_CHECKS):
        assert "within 0.01 s" in refused(device, publisher.source, "unhealthy")
        assert slots.status(device).set_aside == ()
    assert "3 that did not" in refused(device, publisher.source, "unhealthy")
    assert update(device, publisher.source).set_aside == (2,)


def test_bundle_that_kills_the_check(publisher: Publisher, device: Path) -> None:
    """A bundle whose check never ended three times (a crash each time) is set aside."""
    made = publisher.publish(2)
    slots.edit(device, lambda found: replace(found, checking=made.sha256, checks=3))
    assert "3 that did not" in refused(device, publisher.source, "unhealthy")
    assert update(device, publisher.source).set_aside == (2,)


def test_bundle_with_external_data(publisher: Publisher, device: Path) -> None:
    """A rightly signed graph that refers to a file outside is refused; that file is not read."""
    model = onnx.load_from_string(tiny.scorer())
    tensor = next(one for one in model.graph.initializer if one.name == "W")
    size = len(tensor.raw_data)
    secret = publisher.folder / "secret.bin"
    secret.write_bytes(bytes(size))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", f"../{secret.name}"), ("offset", "0"), ("length", str(size))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    publisher.publish(2, replaced={SCORER: model.SerializeToString()})
    refused(device, publisher.source, "unhealthy")


def test_expired_bundle(publisher: Publisher, device: Path) -> None:
    """An expired bundle is not installed anew; where it runs it keeps running."""
    soon = datetime.now(UTC) - timedelta(days=1)
    earlier = soon - timedelta(days=1)
    publisher.publish(2, expires=f"{soon:%Y-%m-%dT%H:%M:%SZ}", now=earlier)
    refused(device, publisher.source, "expired-bundle")
    with pytest.raises(ConfigError, match="has not expired"):
        publisher.publish(3, expires=f"{soon:%Y-%m-%dT%H:%M:%SZ}")
    offer = Offer(
        path="p",
        digest="0",
        bytes=1,
        model=MODEL,
        version=2,
        kind="global",
        expires=None,
        key="",
    )
    device_facts, record = slots.read_device(device), slots.read_record(device)
    ended = replace(offer, expires=f"{soon:%Y-%m-%dT%H:%M:%SZ}")
    assert choose([offer], device_facts, record, None, utc_text()) == offer
    assert record.current is not None
    running = replace(record, current=replace(record.current, version=2))
    assert choose([ended], device_facts, running, None, utc_text()) is None


# The state folder ------------------------------------------------------------------------------


def test_storage_and_lock(publisher: Publisher, device: Path) -> None:
    """A folder that cannot be written, and a second update at once, are refused by name."""
    publisher.publish(2)
    with slots.locked(device, "update.lock"):
        refused(device, publisher.source, "busy")
    slots.slot_path(device, "b").mkdir()
    (slots.slot_path(device, "b") / "in-the-way").touch()
    for _ in range(updates.MAX_CHECKS + 2):  # the bundle is not at fault
        refused(device, publisher.source, "storage")
    shutil.rmtree(slots.slot_path(device, "b"))
    assert update(device, publisher.source).version == 2


def test_refused_metadata_leaves_nothing_behind(publisher: Publisher, device: Path) -> None:
    """Verified metadata of a refused update is kept; scratch files are not."""
    publisher.publish(2)
    made = publisher.publish(3)
    (publisher.source / "targets" / f"{made.sha256}.{made.path}").unlink()
    refused(device, publisher.source, "unreachable")
    assert slots.status(device).metadata["targets"].version == 4
    assert not [path for path in device.rglob("*") if path.name.startswith(".")]
    assert {path.name for path in device.iterdir()} == {
        "current.json",
        "device.json",
        "lock",
        "log.jsonl",
        "slots",
        "trust",
        "update.lock",
    }


def test_log_says_what_happened(publisher: Publisher, device: Path) -> None:
    """Installs, confirmations and refusals are in the log, by name."""
    publisher.forge(timestamp=past)
    refused(device, publisher.source, "expired-metadata")
    lines = [json.loads(line) for line in (device / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["installed", "confirmed", "refused"]
    assert lines[-1]["reason"] == "expired-metadata"


def test_scoring_never_imports_tuf(publisher: Publisher, device: Path) -> None:
    """A process that boots, scores and confirms loads no tuf, no HTTP and no second OpenSSL."""
    program = """
import sys
from pathlib import Path
import numpy as np
from fedlatent.client.edge import slots
state = Path(sys.argv[1])
model = slots.boot(state)
model.score(np.zeros((1, 6)))
assert slots.confirm(state, model.bundle.digest)
slots.status(state)
heavy = {"tuf", "securesystemslib", "urllib3", "_ssl", "_hashlib", "http", "logging"}
print(sorted(heavy & {n.split(".")[0] for n in sys.modules}), "urllib.request" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(device)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[] False"


def test_update_that_finds_nothing_is_small(publisher: Publisher, device: Path) -> None:
    """An update without a new version loads neither the runtime nor numpy."""
    program = """
import sys
from pathlib import Path
from fedlatent.client.edge.update import update
assert update(Path(sys.argv[1]), sys.argv[2]).result == "current"
print(sorted({"numpy", "onnxruntime"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(device), str(publisher.source)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# The commands ----------------------------------------------------------------------------------


def call(*arguments: object) -> int:
    """Run one of the device's commands in this process."""
    parser = argparse.ArgumentParser(prog="fedlatent-edge")
    commands.register(Commands(parser))
    args = parser.parse_args(list(map(str, arguments)))
    status: int = args.run(args)
    return status


def test_commands(publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    """The device's commands provision, update, show and go back, for people and as JSON."""
    state, root = publisher.folder / "commands", publisher.release.root_path
    base = ("--state", state)
    provisioned = (
        "provision",
        *base,
        "--root",
        root,
        "--model",
        MODEL,
        "--new-recipient",
        "x25519",
    )
    assert call(*provisioned) == 0
    assert "compare it" in capsys.readouterr().out
    assert call("update", publisher.source, *base, "--check", "--json") == 0
    assert json.loads(capsys.readouterr().out)["result"] == "available"
    assert call("update", publisher.source, *base) == 0
    assert "installed version 1" in capsys.readouterr().out
    slots.confirm(state)
    publisher.publish(2)
    call("update", publisher.source, *base)
    assert call("status", *base, "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["current"]["version"], found["previous"]["version"]) == (2, 1)
    assert found["current"]["status"] == "trial"
    assert call("rollback", *base) == 0
    assert "version 1" in capsys.readouterr().out
    assert call("status", *base) == 0
    assert "set aside: version 2 (by-hand" in capsys.readouterr().out
    call("update", publisher.source, *base)
    assert "passed over, since they failed here: 2" in capsys.readouterr().out


def test_commands_are_registered() -> None:
    """Each of the four commands is part of the device's command line."""
    names = set(build_parser()[1].parsers)
    assert {"provision", "update", "status", "rollback"} <= names
