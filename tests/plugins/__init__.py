"""Packages that are installed beside fedlatent and add to it."""
