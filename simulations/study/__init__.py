"""Named experiments on real data; each is a module with a command of its own."""
