"""Bundles as models; needs neither PyTorch nor Flower, and imports nothing before it is called."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fedlatent.shared.errors import ConfigError

if TYPE_CHECKING:
    from fedlatent.client.edge.runtime import EdgeModel
    from fedlatent.shared.keys import VerifyKey


def load(
    path: str | Path,
    key: "str | Path | bytes | VerifyKey | Iterable[str | Path | bytes | VerifyKey]",
) -> "EdgeModel":
    """Verify a bundle, check it on this machine, and make it ready to score.

    Signature and hashes are looked at first, then the graphs are loaded, then records that came
    with the bundle must give the numbers that came with them.

    Args:
        path: the bundle.
        key: whose signature is trusted: a public key's file or PEM bytes, or several of them.

    Returns:
        A model whose `score`, `encode`, `recentre` and `calibrate` take raw records.

    Raises:
        BundleError: it is damaged, signed by another key, or computes otherwise here.
        ConfigError: the key is a private one, or none.

    Examples:
        >>> import fedlatent as fl
        >>> model = fl.load("patients.fedlatent", key="publisher.pem.pub")
        >>> model.score(records).flag.shape
        (5,)
        >>> model.encode(records).shape
        (5, 3)
    """
    from fedlatent.client.edge.runtime import EdgeModel
    from fedlatent.shared.keys import VerifyKey

    keys = [key] if isinstance(key, (str, Path, bytes, VerifyKey)) else [*key]
    if not keys:
        raise ConfigError("Expected a public key to verify the bundle with, got none; give one.")
    trusted = [
        one
        if isinstance(one, VerifyKey)
        else VerifyKey.from_pem(one)
        if isinstance(one, bytes)
        else VerifyKey.load(Path(one))
        for one in keys
    ]
    return EdgeModel.load(Path(path), trusted)
