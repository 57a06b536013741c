"""Exports a checkpoint as a frozen graph or as a .tflite, and checks both."""
