"""Coordinates a federation: gateway, screening, strategies, rounds, registry."""

import shared  # noqa: F401 - dependencies that would phone home are kept quiet from here on
