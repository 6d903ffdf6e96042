"""What hostile sites can do to a run: a table of attacks beside the honest sites alone."""
