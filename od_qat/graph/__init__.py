"""Reads and edits tf.Graphs: an index of producers and consumers, a draft of edits, and allowed ops."""
