"""Reads what the file of a model and the JSON beside it say about the model, without running it."""
