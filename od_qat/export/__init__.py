"""From a checkpoint to a frozen graph or a .tflite, and what is checked on the way."""
