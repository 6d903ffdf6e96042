"""A signed tiny bundle and a loader for variants of it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.shared.bundle.manifest import Manifest
from fedlatent.shared.keys import SigningKey
from tests.shared.bundle import tiny

Load = Callable[..., EdgeModel]


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    """A fresh release key."""
    return SigningKey.generate(tmp_path_factory.mktemp("keys") / "release.pem")


@pytest.fixture
def load(tmp_path: Path, signing_key: SigningKey) -> Load:
    """Write a bundle of this manifest, with some files replaced, and load it."""

    def make(
        manifest: Manifest | None = None, replaced: Mapping[str, bytes] | None = None
    ) -> EdgeModel:
        path = tiny.write(tmp_path / "tiny.fedlatent", signing_key, manifest, replaced)
        return EdgeModel.load(path, [signing_key.public])

    return make
