"""Classifiers of slim's image classification library (TensorFlow models, research/slim), with QAT.

This is the only room that imports slim's `nets` and `preprocessing`. It shares rewriter, training,
checkpoints and export with the detectors, and imports nothing of them.
"""
