import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.keys import SigningKey, VerifyKey, generate_node_key


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_generated_key_loads_and_signs(tmp_path: Path) -> None:
    """A key read back from its files signs what the original's public half accepts."""
    made = SigningKey.generate(tmp_path / "release.pem")
    loaded = SigningKey.load(tmp_path / "release.pem")
    public = VerifyKey.load(tmp_path / "release.pem.pub")
    signature = loaded.sign(b"text")
    assert public.verify(b"text", signature)
    assert not public.verify(b"texT", signature)
    assert not public.verify(b"text", signature[:-1])
    assert made.key_id == loaded.key_id == public.key_id
    assert len(public.key_id) == 16
    assert VerifyKey.from_pem(public.to_pem()).key_id == public.key_id


def test_private_files_are_owner_only(tmp_path: Path) -> None:
    """Private halves are written with mode 0600, public halves are readable by all."""
    SigningKey.generate(tmp_path / "release.pem")
    generate_node_key(tmp_path / "node")
    assert _mode(tmp_path / "release.pem") == 0o600
    assert _mode(tmp_path / "node") == 0o600
    assert _mode(tmp_path / "release.pem.pub") == 0o644


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_key_readable_by_others_is_refused(tmp_path: Path, mode: int) -> None:
    """A private key that group or others can touch does not load, and the sentence says why."""
    path = tmp_path / "release.pem"
    SigningKey.generate(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"got {mode:04o}; run chmod 600"):
        SigningKey.load(path)


def test_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    """Generating over an existing private or public file is refused and leaves it as it was."""
    path = tmp_path / "release.pem"
    SigningKey.generate(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        SigningKey.generate(path)
    with pytest.raises(ConfigError, match="never overwritten"):
        generate_node_key(path)
    path.rename(tmp_path / "away")
    with pytest.raises(ConfigError, match=r"release\.pem\.pub"):
        SigningKey.generate(path)
    assert (tmp_path / "away").read_bytes() == before


def test_representation_hides_the_private_key(tmp_path: Path) -> None:
    """Printing a signing key shows no key material."""
    key = SigningKey.generate(tmp_path / "release.pem")
    raw = key.key.private_bytes_raw()
    assert raw.hex() not in repr(key)
    assert repr(raw) not in repr(key)


@pytest.mark.parametrize("content", [b"", b"hello", b"x" * 20_000])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no key, too large or absent gives a ConfigError from both loaders."""
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    for load in (SigningKey.load, VerifyKey.load):
        with pytest.raises(ConfigError, match="Expected"):
            load(path)
        with pytest.raises(ConfigError, match="FileNotFoundError"):
            load(tmp_path / "absent")


def test_halves_are_not_interchangeable(tmp_path: Path) -> None:
    """A private file is no public key, a public file no private key, a node key neither."""
    path = tmp_path / "release.pem"
    SigningKey.generate(path)
    path.with_name("release.pem.pub").chmod(0o600)
    generate_node_key(tmp_path / "node")
    with pytest.raises(ConfigError, match="Ed25519 public key"):
        VerifyKey.load(path)
    with pytest.raises(ConfigError, match="Ed25519 private key"):
        SigningKey.load(tmp_path / "release.pem.pub")
    with pytest.raises(ConfigError, match="Ed25519 private key"):
        SigningKey.load(tmp_path / "node")


def test_node_key_is_p384_in_openssh_format(tmp_path: Path) -> None:
    """A node key pair reads as OpenSSH keys on P-384 whose halves belong together."""
    public_path = generate_node_key(tmp_path / "node")
    private = load_ssh_private_key((tmp_path / "node").read_bytes(), password=None)
    public = load_ssh_public_key(public_path.read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public
