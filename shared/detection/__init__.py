"""Anomaly scores: how to combine them, how to measure them, what to compare them with."""
