"""One finished tiny study for all tests of this folder."""

import pytest

from fedlatent.simulations.study.results import Results
from tests.simulations.study.tiny import run, tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The tiny study, run without a break; tests leave it as it is."""
    return run(tiny(), tmp_path_factory.mktemp("studies") / "whole")
