"""Reading and editing a tf.Graph: an index of producers and consumers, and a draft of what will change."""
