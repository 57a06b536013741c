"""Reading and editing a tf.Graph: an index of producers and consumers, and the edits a rewrite is made of."""
