import hashlib
import io
import json
import random
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlatent.shared.bundle.archive import (
    CARD,
    DECODER,
    DENSITY,
    GOLDEN,
    MANIFEST,
    REQUIRED,
    SCORER,
    SIGNATURE,
    SIZE_CAPS,
    pack,
    read_bundle,
    signature_file,
    write_bundle,
)
from fedlatent.shared.bundle.manifest import FileEntry
from fedlatent.shared.errors import BundleError
from fedlatent.shared.keys import SigningKey
from tests.shared.bundle import tiny

FROZEN_DIGEST = "3427d64e9b5857254edc217fd0f41fcd178f089ef9cab13732b9e984ed6378bf"


def _contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _repacked(source: Path, target: Path, changes: Mapping[str, bytes | None]) -> Path:
    """Copy a bundle in canonical form with members replaced, added or (None) dropped."""
    merged = {**_contents(source), **changes}
    target.write_bytes(pack({k: v for k, v in merged.items() if v is not None}))
    return target


def _resigned(source: Path, target: Path, key: SigningKey, manifest: bytes) -> Path:
    """Copy a bundle with another manifest, rightly signed."""
    signature = signature_file(key.key_id, key.sign(manifest))
    return _repacked(source, target, {MANIFEST: manifest, SIGNATURE: signature})


def test_round_trip(bundle_path: Path, signing_key: SigningKey) -> None:
    """What is written is read back: every file, the filled manifest, the signer and the digest."""
    bundle = read_bundle(bundle_path, [signing_key.public])
    assert bundle.files == tiny.files(tiny.manifest())
    assert replace(bundle.manifest, files={}) == tiny.manifest()
    assert set(bundle.manifest.files) == REQUIRED | {SCORER}
    assert bundle.key_id == signing_key.key_id
    assert bundle.digest == hashlib.sha256(bundle_path.read_bytes()).hexdigest()


def test_any_trusted_key_will_do(
    bundle_path: Path, signing_key: SigningKey, tmp_path: Path
) -> None:
    """A device that trusts several publishers accepts a bundle of any of them."""
    other = SigningKey.generate(tmp_path / "other")
    bundle = read_bundle(bundle_path, [other.public, signing_key.public])
    assert bundle.key_id == signing_key.key_id


def test_bytes_are_frozen(tmp_path: Path) -> None:
    """Equal inputs give equal bytes on every machine and version; a change is a format change."""
    key = SigningKey(key=Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    files = {name: name.encode() for name in (*REQUIRED, SCORER)}
    write_bundle(tmp_path / "a", tiny.manifest(), files, key)
    write_bundle(tmp_path / "b", tiny.manifest(), dict(reversed(files.items())), key)
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes()
    assert hashlib.sha256(data).hexdigest() == FROZEN_DIGEST


def _accepted(target: Path, data: bytes, key: SigningKey) -> bool:
    """Whether ``data`` reads as a bundle; any exception but BundleError passes through."""
    target.write_bytes(data)
    try:
        read_bundle(target, [key.public])
    except BundleError:
        return False
    return True


def test_every_flipped_byte_is_rejected(
    bundle_path: Path, signing_key: SigningKey, tmp_path: Path
) -> None:
    """A flipped bit in any byte of the file, zip fields included, is a BundleError."""
    data = bundle_path.read_bytes()
    generator = random.Random(0)
    accepted = []
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << generator.randrange(8)
        if _accepted(tmp_path / "flipped", bytes(flipped), signing_key):
            accepted.append(position)
    assert accepted == []


def test_every_truncation_is_rejected(
    bundle_path: Path, signing_key: SigningKey, tmp_path: Path
) -> None:
    """A file cut at any length, or with a byte more, is a BundleError."""
    data = bundle_path.read_bytes()
    damaged = [data[:length] for length in range(len(data))] + [data + b"\0", b"\0" + data]
    accepted = [d for d in damaged if _accepted(tmp_path / "cut", d, signing_key)]
    assert accepted == []
    assert _accepted(tmp_path / "whole", data, signing_key)


def test_unknown_key_is_named(bundle_path: Path, signing_key: SigningKey, tmp_path: Path) -> None:
    """A bundle of a publisher who is not trusted is refused with both key ids."""
    other = SigningKey.generate(tmp_path / "other")
    with pytest.raises(BundleError, match=rf"{other.key_id}.*unknown key {signing_key.key_id}"):
        read_bundle(bundle_path, [other.public])
    with pytest.raises(BundleError, match="none"):
        read_bundle(bundle_path, [])


def test_forged_signature_is_refused(
    bundle_path: Path, signing_key: SigningKey, tmp_path: Path
) -> None:
    """Another key's signature under a trusted key's id is a bad signature."""
    other = SigningKey.generate(tmp_path / "other")
    manifest = _contents(bundle_path)[MANIFEST]
    forged = signature_file(signing_key.key_id, other.sign(manifest))
    path = _repacked(bundle_path, tmp_path / "forged", {SIGNATURE: forged})
    with pytest.raises(BundleError, match="got a bad one"):
        read_bundle(path, [signing_key.public])


def test_signature_is_checked_before_the_manifest_is_parsed(
    bundle_path: Path, signing_key: SigningKey, tmp_path: Path
) -> None:
    """Text that is no manifest gives the signature's error, so no parser saw it."""
    changed = _contents(bundle_path)[MANIFEST].replace(b'"version":3', b'"version":9')
    for text in (changed, b"{" * 1000, b""):
        path = _repacked(bundle_path, tmp_path / "changed", {MANIFEST: text})
        with pytest.raises(BundleError, match="got a bad one"):
            read_bundle(path, [signing_key.public])


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda data: data.replace(b'"algorithm":"ed25519"', b'"algorithm":"none"'),
        lambda data: data.replace(b"==", b""),
        lambda data: json.dumps(json.loads(data), indent=1).encode(),
        lambda data: data[:-1] + b',"more":1}',
        lambda data: b"{}",
        lambda data: b"x" * 2000,
    ],
    ids=["algorithm", "base64", "spaces", "extra-key", "empty", "long"],
)
def test_other_spellings_of_the_signature_are_refused(
    bundle_path: Path,
    signing_key: SigningKey,
    tmp_path: Path,
    rewrite: Callable[[bytes], bytes],
) -> None:
    """The signature file has one spelling; every other is refused."""
    changes = {SIGNATURE: rewrite(_contents(bundle_path)[SIGNATURE])}
    path = _repacked(bundle_path, tmp_path / "spelt", changes)
    with pytest.raises(BundleError, match="Expected"):
        read_bundle(path, [signing_key.public])


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_changed_file_is_named(
    bundle_path: Path, signing_key: SigningKey, tmp_path: Path, name: str
) -> None:
    """A file that differs from its signed digest is refused by name; so is a missing one."""
    content = bytearray(_contents(bundle_path)[name])
    content[0] ^= 1
    path = _repacked(bundle_path, tmp_path / "changed", {name: bytes(content)})
    with pytest.raises(BundleError, match=f"Expected {name} to match its digest"):
        read_bundle(path, [signing_key.public])
    path = _repacked(bundle_path, tmp_path / "missing", {name: None})
    with pytest.raises(BundleError, match=f"missing: {name}"):
        read_bundle(path, [signing_key.public])


def test_format_version_is_named(
    bundle_path: Path, signing_key: SigningKey, tmp_path: Path
) -> None:
    """A rightly signed bundle of another format is refused by its version."""
    manifest = _contents(bundle_path)[MANIFEST]
    newer = manifest.replace(b'"format_version":2', b'"format_version":3')
    path = _resigned(bundle_path, tmp_path / "newer", signing_key, newer)
    with pytest.raises(BundleError, match="format version 2, got 3"):
        read_bundle(path, [signing_key.public])


def test_manifest_must_list_every_file(
    bundle_path: Path, signing_key: SigningKey, tmp_path: Path
) -> None:
    """A file that the signed manifest does not list is refused."""
    manifest = json.loads(_contents(bundle_path)[MANIFEST])
    del manifest["files"][CARD]
    path = _resigned(bundle_path, tmp_path / "less", signing_key, json.dumps(manifest).encode())
    with pytest.raises(BundleError, match="the files that the manifest lists"):
        read_bundle(path, [signing_key.public])


def test_decoder_only_in_site_bundles(signing_key: SigningKey, tmp_path: Path) -> None:
    """A site bundle may carry its decoder; a global one is neither written nor read with it."""
    path = tmp_path / "site"
    tiny.write(path, signing_key, tiny.manifest(kind="site"), {DECODER: b"decoder"})
    assert read_bundle(path, [signing_key.public]).files[DECODER] == b"decoder"
    with pytest.raises(BundleError, match=rf"not permitted: {DECODER}"):
        tiny.write(tmp_path / "global", signing_key, replaced={DECODER: b"decoder"})
    assert not (tmp_path / "global").exists()


def test_writer_refuses_what_a_reader_would(signing_key: SigningKey, tmp_path: Path) -> None:
    """Missing, unknown or oversized files and a bad manifest leave no file behind."""
    path, manifest = tmp_path / "bundle", tiny.manifest()
    files = {name: b"data" for name in (*REQUIRED, SCORER)}
    less = {name: data for name, data in files.items() if name != CARD}
    for bad in (less, {**files, "extra.md": b""}, {**files, CARD: bytes(SIZE_CAPS[CARD] + 1)}):
        with pytest.raises(BundleError, match="Expected"):
            write_bundle(path, manifest, bad, signing_key)
    with pytest.raises(BundleError, match="'name'"):
        write_bundle(path, replace(manifest, name="../x"), files, signing_key)
    filled = replace(manifest, files={CARD: FileEntry(sha256="0" * 64, bytes=0)})
    with pytest.raises(ValueError, match="without files"):
        write_bundle(path, filled, files, signing_key)
    assert not path.exists()


def _zip(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_irregular_archives_are_refused(
    bundle_path: Path, signing_key: SigningKey, tmp_path: Path
) -> None:
    """Other names, duplicates, compression, comments, other order and no zip at all are refused."""
    members = list(_contents(bundle_path).items())
    commented = bytearray(bundle_path.read_bytes())
    commented[-2:] = (3).to_bytes(2, "little")
    bomb = bytes(SIZE_CAPS[CARD] + 1)
    cases = {
        "traversal": _zip([*members, ("../evil.onnx", b"x")]),
        "unknown": _zip([*members, ("setup.py", b"x")]),
        "duplicate": _zip([*members, (SCORER, b"x")]),
        "compressed": _zip(members, zipfile.ZIP_DEFLATED),
        "bomb": _zip([*members[:-1], (CARD, bomb)], zipfile.ZIP_DEFLATED),
        "order": _zip(list(reversed(members))),
        "comment": bytes(commented) + b"abc",
        "no manifest": _zip([m for m in members if m[0] != MANIFEST]),
        "no zip": b"MZ" + b"\0" * 1000,
        "empty": b"",
        "empty zip": _zip([]),
    }
    target = tmp_path / "irregular"
    for name, data in cases.items():
        target.write_bytes(data)
        with pytest.raises(BundleError, match="Expected") as caught:
            read_bundle(target, [signing_key.public])
        assert "signature" not in str(caught.value), name


def test_oversized_file_is_refused_unread(signing_key: SigningKey, tmp_path: Path) -> None:
    """A file above the cap, an absent one and a folder are BundleErrors."""
    huge = tmp_path / "huge"
    with huge.open("wb") as stream:
        stream.truncate(sum(SIZE_CAPS.values()) + 1_000_000)
    with pytest.raises(BundleError, match="larger file"):
        read_bundle(huge, [signing_key.public])
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(BundleError, match="readable bundle"):
            read_bundle(path, [signing_key.public])


def test_swapped_files_are_refused(
    bundle_path: Path, signing_key: SigningKey, tmp_path: Path
) -> None:
    """Files of one signed bundle cannot be exchanged within it or with those of another."""
    contents = _contents(bundle_path)
    other = tiny.write(tmp_path / "other", signing_key, replaced={GOLDEN: b"other"})
    swaps: list[dict[str, bytes]] = [
        {DENSITY: contents[GOLDEN], GOLDEN: contents[DENSITY]},
        {GOLDEN: _contents(other)[GOLDEN]},
    ]
    for changes in swaps:
        path = _repacked(bundle_path, tmp_path / "swapped", dict(changes))
        with pytest.raises(BundleError, match="to match its digest"):
            read_bundle(path, [signing_key.public])


def test_long_directories_are_refused_before_they_are_parsed(
    signing_key: SigningKey, tmp_path: Path
) -> None:
    """An archive of very many entries costs neither time nor memory before it is refused."""
    path = tmp_path / "many"
    path.write_bytes(_zip([(f"f{i}", b"") for i in range(20_000)]))
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match="Expected an edge bundle"):
            read_bundle(path, [signing_key.public])
        assert tracemalloc.get_traced_memory()[1] < 4 * path.stat().st_size
    finally:
        tracemalloc.stop()
