"""What both sides of a federation must agree on; imports nothing of the other packages."""
