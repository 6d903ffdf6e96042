"""Each topic sees the data sets alone that it says it needs."""

from pathlib import Path

import pytest

from fedlatent.simulations.study.works import TOPICS
from tests.simulations.support import folder_of


@pytest.fixture(scope="module")
def data_dir(
    request: pytest.FixtureRequest, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of what the topic of this module needs, and no more."""
    topic = request.module.__name__.rpartition("test_")[2]
    return folder_of(data_dir, TOPICS[topic], tmp_path_factory.mktemp(topic))
