"""Sealed bundles: only the holder of the key reads them, and only as what they were sealed as."""

import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.shared.bundle.sealed import (
    MAX_OVERHEAD,
    SUITES,
    RecipientKey,
    RecipientPublic,
    SuiteName,
    open_sealed,
    seal,
)
from fedlatent.shared.errors import BundleError, ConfigError
from fedlatent.shared.keys import SigningKey

INFO = ("hearts", 3)
PLAIN = b"the whole signed bundle" * 100


@pytest.fixture(scope="module", params=SUITES)
def key(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RecipientKey:
    """A recipient key of each suite."""
    suite: SuiteName = request.param
    return RecipientKey.generate(tmp_path_factory.mktemp("keys") / "recipient.key", suite)


def test_round_trip(key: RecipientKey) -> None:
    """What was sealed opens with the key and the same info, and shows nothing before."""
    sealed = seal(PLAIN, key.public, *INFO)
    assert open_sealed(sealed, key, *INFO) == PLAIN
    assert PLAIN[:16] not in sealed
    assert len(sealed) - len(PLAIN) <= MAX_OVERHEAD
    assert seal(PLAIN, key.public, *INFO) != sealed  # fresh randomness each time


def test_files(tmp_path: Path, key: RecipientKey) -> None:
    """Both halves are written and read back; the private one is for its owner alone."""
    path = tmp_path / "recipient.key"
    made = RecipientKey.generate(path, key.public.suite)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded, public = RecipientKey.load(path), RecipientPublic.load(tmp_path / "recipient.key.pub")
    assert loaded.public.key_id == public.key_id == made.public.key_id != key.public.key_id
    assert open_sealed(seal(PLAIN, public, *INFO), loaded, *INFO) == PLAIN
    assert path.read_text().splitlines()[1] not in repr(loaded)
    with pytest.raises(ConfigError, match="Expected no file"):
        RecipientKey.generate(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="Expected mode 0600"):
        RecipientKey.load(path)


def test_other_key_or_info_does_not_open(tmp_path: Path, key: RecipientKey) -> None:
    """Another key, another model or another version gets one sentence and no plain text."""
    sealed = seal(PLAIN, key.public, *INFO)
    other = RecipientKey.generate(tmp_path / "other.key", key.public.suite)
    for recipient, info in ((other, INFO), (key, ("hearts", 4)), (key, ("heart", 3))):
        with pytest.raises(BundleError, match="Expected a bundle sealed to key"):
            open_sealed(sealed, recipient, *info)
    suite: SuiteName = "x25519" if key.public.suite != "x25519" else "mlkem768-x25519"
    wrong = RecipientKey.generate(tmp_path / "wrong.key", suite)
    with pytest.raises(BundleError, match=f"suite {suite}"):
        open_sealed(sealed, wrong, *INFO)
    with pytest.raises(BundleError, match="got another or none"):
        open_sealed(PLAIN, key, *INFO)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_change_is_noticed(key: RecipientKey, data: st.DataObject) -> None:
    """Every flipped bit and every cut is refused in one sentence."""
    sealed = seal(b"short", key.public, *INFO)
    place = data.draw(st.integers(0, len(sealed) * 8 - 1))
    flipped = bytearray(sealed)
    flipped[place // 8] ^= 1 << place % 8
    for changed in (bytes(flipped), sealed[: place // 8], sealed + b"\0"):
        with pytest.raises(BundleError, match=r"^Expected [^\n]*\.$"):
            open_sealed(changed, key, *INFO)


def test_other_files_are_no_recipient_keys(tmp_path: Path, key: RecipientKey) -> None:
    """Signing keys, halves of a key and noise are refused by name."""
    SigningKey.generate(tmp_path / "signing.pem")
    for name, load in (("signing.pem", RecipientKey), ("signing.pem.pub", RecipientPublic)):
        with pytest.raises(ConfigError, match="Expected a recipient's"):
            load.load(tmp_path / name)  # type: ignore[attr-defined]
    RecipientKey.generate(tmp_path / "good.key", key.public.suite)
    pem = (tmp_path / "good.key").read_bytes()
    for number, bad in enumerate((b"", b"noise", pem + pem, pem[:-40], b"x" * 40_000)):
        path = tmp_path / f"{number}.key"
        path.write_bytes(bad)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="Expected a recipient's PrivateKey"):
            RecipientKey.load(path)
    with pytest.raises(ConfigError, match="got none"):
        RecipientKey.load(tmp_path / "absent")
