"""Coordinates a federation: gateway, screening, strategies, rounds, registry."""
