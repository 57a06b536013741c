"""Which ops of a .tflite a device takes, by rules that are data; see rules.py."""
