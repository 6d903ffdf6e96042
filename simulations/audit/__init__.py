"""Attacks on the privacy claim, and negative controls that show the attacks can bite."""
