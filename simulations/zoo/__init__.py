"""Experiments that hold every family of models against known numbers."""
