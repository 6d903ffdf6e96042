"""Keys and a bundle made once for all tests of the package."""

from pathlib import Path

import pytest

from fedlatent.shared.keys import SigningKey
from tests.shared.bundle import tiny


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    """A fresh release key."""
    return SigningKey.generate(tmp_path_factory.mktemp("keys") / "release.pem")


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory, signing_key: SigningKey) -> Path:
    """A global bundle signed by that key."""
    return tiny.write(tmp_path_factory.mktemp("bundle") / "tiny.fedlatent", signing_key)
