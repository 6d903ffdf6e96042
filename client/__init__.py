"""A node on private data, and the edge runtime."""

import shared  # noqa: F401 - dependencies that would phone home are kept quiet from here on
