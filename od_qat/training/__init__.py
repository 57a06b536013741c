"""Training: the graph with its towers, the steps, the session and its hooks, several processes."""
