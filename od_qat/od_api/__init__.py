"""The only room that imports the TensorFlow Object Detection API (`object_detection`, and slim's `nets`)."""
