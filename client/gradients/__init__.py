"""Exact clipping: sums of per-record gradients whose very numbers were measured before."""
