"""Training: the graph with its towers, the session, what watches it, several processes."""
