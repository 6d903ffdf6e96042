"""Many clients on one machine: in-process grid, experiments, benchmarks."""
