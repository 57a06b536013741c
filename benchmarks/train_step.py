"""Time of a QAT training step against a float one, and of the rewriting itself, in one run.

    python benchmarks/train_step.py [--model ssd_mobilenet_v2] [--size 300] [--batch 4] [--blocks 4]

Builds the float and the rewritten training graph of the same detector (momentum optimizer, random images and
boxes, no input pipeline), runs them in turn (A B A B ...) and prints the medians' ratio. Only ratios mean
anything on a shared machine.
"""

import argparse
import json
import statistics
import time

import numpy as np


def model_config(feature_extractor: str, size: int):
    """The repository's main config with another feature extractor and input size."""
    import os

    from od_qat.od_api import pipeline

    path = os.path.join(os.path.dirname(__file__), "..", "configs", "ssd_mobilenet_v2_qat.config")
    resizer = "model.ssd.image_resizer.fixed_shape_resizer."
    return pipeline.load(
        path,
        [
            "model.ssd.feature_extractor.type={}".format(feature_extractor),
            resizer + "height={}".format(size),
            resizer + "width={}".format(size),
        ],
    ).model


def build(config, size: int, batch: int, rewrite):
    """A training graph on random data; returns its session, train op, rewriting seconds and op count."""
    from object_detection.builders import model_builder

    from od_qat.compat import tf

    graph = tf.Graph()
    with graph.as_default():
        tf.set_random_seed(1)
        rng = np.random.RandomState(0)
        images = tf.constant(rng.uniform(0, 255, [batch, size, size, 3]).astype(np.float32))
        model = model_builder.build(config, is_training=True)
        corners = rng.uniform(0, 0.5, [batch, 6, 2])
        boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.4, [batch, 6, 2])], 2)
        classes = np.eye(config.ssd.num_classes)[rng.randint(0, config.ssd.num_classes, [batch, 6])]
        model.provide_groundtruth(
            [tf.constant(b.astype(np.float32)) for b in boxes],
            [tf.constant(c.astype(np.float32)) for c in classes],
        )
        preprocessed, shapes = model.preprocess(images)
        losses = model.loss(model.predict(preprocessed, shapes), shapes)
        for loss in losses.values():
            tf.losses.add_loss(loss)
        started = time.time()
        operations = len(graph.get_operations())
        if rewrite:
            rewrite(graph)
        rewriting = time.time() - started
        optimizer = tf.train.MomentumOptimizer(0.001, 0.9)
        update = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        train = tf.group(optimizer.minimize(tf.losses.get_total_loss()), *update)
        session = tf.Session()
        session.run(tf.global_variables_initializer())
    return session, train, rewriting, operations


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ssd_mobilenet_v2")
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=4, help="of each graph, in turn")
    parser.add_argument("--steps", type=int, default=8, help="in a block")
    parser.add_argument("--json", help="write the figures to this file too")
    arguments = parser.parse_args()

    from od_qat import plugin, trainer  # noqa: F401
    from od_qat.rewrite import api

    trainer._keep_freed_memory()
    config = model_config(arguments.model, arguments.size)
    runs = {
        "float": build(config, arguments.size, arguments.batch, None),
        "qat": build(config, arguments.size, arguments.batch, api.create_training_graph),
    }
    times = {name: [] for name in runs}
    for block in range(arguments.blocks + 1):
        for name, (session, train, _, _) in runs.items():
            for _ in range(arguments.steps):
                started = time.time()
                session.run(train)
                if block:  # the first is warm-up
                    times[name].append(time.time() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "model": arguments.model,
        "size": arguments.size,
        "batch": arguments.batch,
        "step_seconds": medians,
        "qat_over_float": medians["qat"] / medians["float"],
        "rewriting_seconds": runs["qat"][2],
        "ops_before_rewriting": runs["qat"][3],
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        with open(arguments.json, "w") as stream:
            json.dump(result, stream, indent=2)


if __name__ == "__main__":
    main()
