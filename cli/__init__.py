"""The command line: parsing, progress and printing, nothing else."""

import shared  # noqa: F401 - dependencies that would phone home are kept quiet from here on
