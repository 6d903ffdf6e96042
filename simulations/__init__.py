"""Many clients on one machine: in-process grid, experiments, benchmarks."""

import shared  # noqa: F401 - dependencies that would phone home are kept quiet from here on
