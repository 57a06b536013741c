"""Training: builds the graph with its clones, runs the steps in a session with hooks, joins a cluster."""
