"""Trains a classifier with tf.contrib.quantize, on TensorFlow 1.15 in a process of its own.

    python -m tests.helpers.contrib_classifier DATA.npz FOLDER STEPS

DATA has `images`, preprocessed, and `labels`. FOLDER gets the checkpoint and probabilities.npy, what the eval
graph of contrib says of the images.
"""

import os
import sys

import numpy as np


def main(data, folder, steps):
    """Trains and evaluates."""
    from od_qat.compat import tf

    import tf_slim as slim  # isort: skip
    from nets import mobilenet_v1  # isort: skip
    from tensorflow.contrib import quantize  # isort: skip

    with np.load(data) as stream:
        images, labels = stream["images"], stream["labels"]

    def logits(training):
        scope = mobilenet_v1.mobilenet_v1_arg_scope(is_training=training, batch_norm_decay=0.5)
        with slim.arg_scope(scope):
            return mobilenet_v1.mobilenet_v1_025(
                tf.placeholder(tf.float32, [None] + list(images.shape[1:]), "input"), 3, is_training=training
            )

    with tf.Graph().as_default(), tf.Session() as session:
        wanted = tf.placeholder(tf.int64, [None])
        tf.losses.sparse_softmax_cross_entropy(wanted, logits(True)[0])
        quantize.create_training_graph(quant_delay=0)
        step = tf.train.get_or_create_global_step()
        train = slim.learning.create_train_op(
            tf.losses.get_total_loss(), tf.train.MomentumOptimizer(0.02, 0.9), global_step=step
        )
        tf.set_random_seed(0)
        session.run(tf.global_variables_initializer())
        for number in range(steps):
            picked = np.random.RandomState(number).randint(0, len(labels), 8)
            session.run(train, {"input:0": images[picked], wanted: labels[picked]})
        path = tf.train.Saver().save(session, os.path.join(folder, "model.ckpt"), global_step=steps)
    with tf.Graph().as_default(), tf.Session() as session:
        _, end_points = logits(False)
        quantize.create_eval_graph()
        tf.train.Saver().restore(session, path)
        found = session.run(end_points["Predictions"], {"input:0": images})
    np.save(os.path.join(folder, "probabilities.npy"), found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
