"""Which layer of a quantized model adds the error: of_graph.py and of_tflite.py measure it."""
