"""Aggregation rules, as Flower strategies on the Message API."""
