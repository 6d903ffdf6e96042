"""Tests of fedlatent.shared.privacy."""
