"""A node on private data, and the edge runtime."""
