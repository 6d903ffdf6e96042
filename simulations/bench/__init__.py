"""Side by side with peers: the same work, one thread, systems taking turns."""
