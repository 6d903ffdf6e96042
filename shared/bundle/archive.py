"""One signed file: a plain zip of stored entries in one canonical byte form.

Reading goes from cheap to trusted: length caps, the zip directory, the allow-list of names, the
signature over the exact manifest bytes, and only then the manifest's meaning and every file's
digest. Last, the file must equal, byte for byte, the archive that `pack` makes of its contents,
so that nothing can hide in zip fields that no digest covers. Sources: EDGE bundle design after
the TUF specification and OWASP AISVS C4.8 (verify before load).
"""

import base64
import binascii
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedlatent.shared.bundle.manifest import FileEntry, Manifest
from fedlatent.shared.bundle.strict import parse_object
from fedlatent.shared.errors import BundleError
from fedlatent.shared.files import canonical_json, sha256_hex, write_atomic
from fedlatent.shared.keys import SigningKey, VerifyKey

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
SCORER = "scorer.onnx"
SCORER_ORT = "scorer.ort"
DECODER = "decoder.onnx"
DENSITY = "density.npz"
GOLDEN = "golden.npz"
CARD = "card.md"

#: Every permitted name with its largest length in bytes, in archive order.
SIZE_CAPS: Mapping[str, int] = {
    MANIFEST: 65_536,
    SIGNATURE: 1_024,
    SCORER: 1 << 25,
    SCORER_ORT: 1 << 25,
    DECODER: 1 << 25,
    DENSITY: 1 << 24,
    GOLDEN: 1 << 24,
    CARD: 1 << 18,
}
REQUIRED = frozenset({DENSITY, GOLDEN, CARD})  # and the scorer, in the format that runtime says
MAX_BUNDLE_BYTES = sum(SIZE_CAPS.values()) + 4_096

#: The reason of a `BundleError` about a bundle that another publisher signed.
UNKNOWN_KEY = "unknown-key"
_ALGORITHM = "ed25519"
_MAX_DIRECTORY = 1024  # bytes of the zip's directory, 46 and a name for each entry
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_MODE = 0o100644 << 16


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle, wholly in memory.

    Attributes:
        manifest: its signed manifest.
        files: content by name, without manifest and signature.
        key_id: of the trusted key that signed it.
        digest: SHA-256 (hex) of the whole file.
    """

    manifest: Manifest
    files: Mapping[str, bytes]
    key_id: str
    digest: str


def write_bundle(
    path: Path, manifest: Manifest, files: Mapping[str, bytes], signing_key: SigningKey
) -> Manifest:
    """Sign and write a bundle, atomically; equal inputs give equal bytes.

    Args:
        path: target file.
        manifest: its ``files`` are filled here and must be empty.
        files: content by name: the `REQUIRED` ones, the scorer, and a decoder if it may be there.
        signing_key: makes the signature.

    Returns:
        The manifest as written.

    Raises:
        BundleError: a name is missing or not permitted, a file is too large, or the manifest is
            one that a reader would refuse.
    """
    if manifest.files:
        raise ValueError("Expected a manifest without files; write_bundle fills them.")
    _check_names(manifest, files)
    entries = {name: _entry(data) for name, data in files.items()}
    full = replace(manifest, files=entries)
    text = full.to_bytes()
    Manifest.from_bytes(text)
    signature = signature_file(signing_key.key_id, signing_key.sign(text))
    contents = {MANIFEST: text, SIGNATURE: signature, **files}
    for name, data in contents.items():
        _check_size(name, len(data))
    mode = 0o600 if manifest.kind == "site" else 0o644  # a site bundle is for its site alone
    write_atomic(path, pack(contents), mode)
    return full


def read_bundle(path: Path, trusted: Sequence[VerifyKey]) -> Bundle:
    """Read and verify a bundle file; see `parse_bundle`.

    Raises:
        BundleError: it cannot be read, or `parse_bundle` refuses it.
    """
    return parse_bundle(_read_capped(path), trusted, str(path))


def parse_bundle(
    data: bytes, trusted: Sequence[VerifyKey], where: str = "the given bytes"
) -> Bundle:
    """Verify a bundle; nothing of it is used before its signature holds.

    Args:
        data: the whole file.
        trusted: keys whose signature is accepted; at least one.
        where: it came from, for error sentences.

    Raises:
        BundleError: it is no bundle, signed by an unknown key, has a bad signature, a file that
            does not match its digest, or another format version; the sentence says which.
    """
    contents = _unpack(data, where)
    text = contents.pop(MANIFEST)
    key_id = _verify(text, contents.pop(SIGNATURE), trusted)
    manifest = Manifest.from_bytes(text)
    _check_names(manifest, contents)
    if set(manifest.files) != set(contents):
        raise BundleError(
            "Expected exactly the files that the manifest lists, got others; get the bundle again."
        )
    for name, content in contents.items():
        if manifest.files[name] != _entry(content):
            raise BundleError(
                f"Expected {name} to match its digest in the signed manifest, got other bytes; "
                "the bundle is damaged or was changed, so get it again."
            )
    return Bundle(manifest=manifest, files=contents, key_id=key_id, digest=sha256_hex(data))


def _read_capped(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            length = min(os.fstat(stream.fileno()).st_size, MAX_BUNDLE_BYTES)
            data = stream.read(length + 1)
    except OSError as error:
        raise BundleError(
            f"Expected a readable bundle at {path}, got {type(error).__name__}; check the path."
        ) from None
    if len(data) > MAX_BUNDLE_BYTES:
        raise BundleError(
            f"Expected a bundle of at most {MAX_BUNDLE_BYTES} bytes at {path}, got a larger file; "
            "check the path."
        )
    return data


def _unpack(data: bytes, where: str) -> dict[str, bytes]:
    """Contents by name, after checks of names, sizes and the canonical form."""
    not_bundle = BundleError(
        f"Expected an edge bundle in {where}, got something else or a damaged or cut file; "
        "get the bundle again."
    )
    # The end record of a zip without a comment: an attacker's long directory is not even parsed.
    entries, directory = (int.from_bytes(data[a:b], "little") for a, b in ((-12, -10), (-10, -6)))
    if data[-22:-18] != b"PK\5\6" or entries > len(SIZE_CAPS) or directory > _MAX_DIRECTORY:
        raise not_bundle
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            if len(set(names)) != len(names) or not {MANIFEST, SIGNATURE} <= set(names):
                raise not_bundle
            for info in infos:
                if info.filename not in SIZE_CAPS:
                    raise BundleError(
                        f"Expected only known file names in a bundle, got {info.filename[:40]!r}; "
                        "get the bundle again."
                    )
                _check_size(info.filename, info.file_size)
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits:
                    raise not_bundle
            contents = {info.filename: archive.read(info) for info in infos}
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, OSError):
        raise not_bundle from None
    if pack(contents) != data:
        raise not_bundle
    return contents


def pack(contents: Mapping[str, bytes]) -> bytes:
    """The one archive of ``contents``: fixed order, time, mode, no compression."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in SIZE_CAPS:
            if name in contents:
                info = zipfile.ZipInfo(name, _TIMESTAMP)
                info.create_system = _UNIX
                info.external_attr = _MODE
                archive.writestr(info, contents[name])
    return buffer.getvalue()


def signature_file(key_id: str, signature: bytes) -> bytes:
    """``manifest.sig``: canonical JSON, so that equal signatures have equal bytes."""
    encoded = base64.b64encode(signature).decode("ascii")
    return canonical_json({"algorithm": _ALGORITHM, "key_id": key_id, "signature": encoded})


def _verify(text: bytes, stored: bytes, trusted: Sequence[VerifyKey]) -> str:
    """Check the signature over ``text`` and return the id of the key that made it."""
    value = parse_object(stored, SIGNATURE, SIZE_CAPS[SIGNATURE])
    value.text("algorithm", _ALGORITHM)
    key_id = value.text("key_id", "[0-9a-f]{16}")
    encoded = value.text("signature", "[A-Za-z0-9+/]{86}==")
    value.close()
    try:
        signature = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        signature = b""
    keys = [key for key in trusted if key.key_id == key_id]
    if not keys:
        known = ", ".join(key.key_id for key in trusted) or "none"
        raise BundleError(
            f"Expected a bundle signed by a trusted key ({known}), got unknown key {key_id}; "
            "add the publisher's public key only after checking its id with the publisher.",
            reason=UNKNOWN_KEY,
        )
    canonical = signature_file(key_id, signature) == stored
    if not canonical or not any(key.verify(text, signature) for key in keys):
        raise BundleError(
            f"Expected a valid signature of key {key_id} over the manifest, got a bad one; "
            "the bundle is damaged or was changed, so get it again."
        )
    return key_id


def scorer_name(manifest: Manifest) -> str:
    """Name of the scorer graph in a bundle of this manifest."""
    return SCORER_ORT if manifest.runtime.format == "ort" else SCORER


def may_hold_decoder(manifest: Manifest) -> bool:
    """Whether a bundle of this manifest may hold a decoder: a site's own, or a released one."""
    return manifest.kind == "site" or manifest.training.sharing == "full"


def _check_names(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    required = REQUIRED | {scorer_name(manifest)}
    allowed = required | {DECODER} if may_hold_decoder(manifest) else required
    missing, extra = required - set(files), set(files) - allowed
    if missing or extra:
        raise BundleError(
            f"Expected the files of a {manifest.kind} bundle ({', '.join(sorted(allowed))}), got "
            f"missing: {', '.join(sorted(missing)) or 'none'}, "
            f"not permitted: {', '.join(sorted(extra)) or 'none'}."
        )


def _check_size(name: str, size: int) -> None:
    if size > SIZE_CAPS[name]:
        raise BundleError(
            f"Expected at most {SIZE_CAPS[name]} bytes in {name}, got {size}; use a smaller model "
            "or fewer test vectors."
        )


def _entry(data: bytes) -> FileEntry:
    return FileEntry(sha256=sha256_hex(data), bytes=len(data))
