"""What the file of a model says of itself and beside itself, without running it."""
