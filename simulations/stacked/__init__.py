"""Clients as a leading tensor axis: a round of many clients as one program on one device."""
