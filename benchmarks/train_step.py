"""Time of a QAT training step against a float one, of the rewriting, and the memory of a step.

    python benchmarks/train_step.py [--model ssd_mobilenet_v2] [--size 300] [--batch 4] [--blocks 4]
        [--per_channel]

Builds the float and the rewritten training graph of the same detector of the test zoo
(tests/zoo/models.yaml, or one of upstream's TF 2 configs by its short name, such as
ssd_mobilenet_v2_fpnlite_320x320; momentum optimizer, random images and boxes, no input pipeline), runs them
in turn (A B A B ...) and prints the medians and their ratio. `--per_channel` adds a third, QAT with weights
per channel. `--only float` or `--only qat` builds one, to see its peak memory; `--only rewriting` rewrites
the training graph and runs nothing. With `--rewriter contrib` and a Python that has TensorFlow 1.15 it
measures tf.contrib.quantize instead. Only ratios mean anything on a shared machine, on a busy one only those
of processor time; against_contrib.py compares, and against_eager.py with upstream's loop of TF 2.
"""

import argparse
import functools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from typing import Optional

import numpy as np

# (steps.py names other working copies to measure.)
REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.environ.get("OD_QAT_TREE", REPOSITORY))

from benchmarks import tf2_samples  # noqa: E402


class OfZoo(object):
    """A model of the zoo at full size, a NASNet with so many cells; and what rewrites it."""

    def __init__(self, name: str, size: int, depth: float, cells: Optional[int], rewriter: str):
        from tests.zoo import build

        rows = {row["name"]: row for row in build.models()}
        if name not in rows:
            allowed = sorted(rows) + sorted(tf2_samples.names())
            sys.exit("train_step: no model {!r} in the zoo; allowed: {}".format(name, ", ".join(allowed)))
        if cells and "cells" not in rows[name]:
            sys.exit("train_step: --cells is for NASNets, {} has none".format(name))
        self._row = dict(rows[name], size=size, depth=depth, **({"cells": cells} if cells else {}))
        self._build, self.size = build, size
        if rewriter == "od_qat":
            from od_qat.rewrite import api as quantize
        else:
            from tensorflow.contrib import quantize
        self.rewrite_training, self.rewrite_eval = quantize.create_training_graph, quantize.create_eval_graph

    def build_training(self, batch: int) -> None:
        """Builds the training graph in the default graph."""
        self._build.build_training(self._row, batch)

    def build_eval(self) -> None:
        """Builds the eval graph in the default graph."""
        self._build.build_eval(self._row)


class OfTf2(object):
    """A model of one of upstream's TF 2 configs, and what rewrites it."""

    def __init__(self, name: str, size: int):
        from od_qat.od_api import pipeline

        with tempfile.TemporaryDirectory() as folder:
            self._config = pipeline.load(tf2_samples.write_config(folder, name, 1, 1, False, size))
        self.size = size
        self.rewrite_training, self.rewrite_eval = tf2_samples.rewriters()

    def build_training(self, batch: int) -> None:
        """Builds the training graph in the default graph."""
        tf2_samples.build_training(self._config, batch)

    def build_eval(self) -> None:
        """Builds the eval graph in the default graph."""
        tf2_samples.build_eval(self._config)


def build_training(model, batch: int, rewrite):
    """A training graph; returns its session, train op, what it is fed, rewriting times and op count.

    The times are seconds and processor seconds.
    """
    from od_qat.compat import tf

    graph = tf.Graph()
    with graph.as_default():
        model.build_training(batch)
        operations = len(graph.get_operations())
        started, processor_started = time.time(), time.process_time()
        if rewrite:
            rewrite(graph)
        rewriting = time.time() - started, time.process_time() - processor_started
        optimizer = tf.train.MomentumOptimizer(0.001, 0.9)
        update = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        train = tf.group(optimizer.minimize(tf.losses.get_total_loss()), *update)
        session = tf.Session()
        session.run(tf.global_variables_initializer())
    pixels = np.random.RandomState(0).uniform(0, 255, [batch, model.size, model.size, 3])
    feed = {graph.get_tensor_by_name("images:0"): pixels.astype(np.float32)}
    return session, train, feed, rewriting, operations


def rewrite_training(model, batch: int) -> dict:
    """What a training graph's rewriting takes, in all, for each op that was there and each that it adds.

    Processor time too, which does not count what else the machine does: rewriting is one thread's work.
    """
    from od_qat.compat import tf

    with tf.Graph().as_default() as graph:
        model.build_training(batch)
        operations = len(graph.get_operations())
        started, processor = time.time(), time.process_time()
        model.rewrite_training(graph)
        seconds, processor = time.time() - started, time.process_time() - processor
        added = len(graph.get_operations()) - operations
    return {
        "rewriting_seconds": seconds,
        "rewriting_processor_seconds": processor,
        "ops_before_rewriting": operations,
        "ops_added": added,
        "processor_microseconds_per_op": 1e6 * processor / operations,
        "processor_microseconds_per_added_op": 1e6 * processor / added,
    }


def rewrite_eval(model):
    """Seconds and processor seconds that the eval graph's rewriting takes, and that graph's op count."""
    from od_qat.compat import tf

    with tf.Graph().as_default() as graph:
        model.build_eval()
        operations = len(graph.get_operations())
        started, processor = time.time(), time.process_time()
        model.rewrite_eval(graph)
        return (time.time() - started, time.process_time() - processor), operations


def measure(arguments) -> dict:
    """Runs everything that the arguments ask for."""
    from od_qat import plugin  # noqa: F401
    from od_qat.training.memory import keep_freed_memory

    keep_freed_memory()
    if arguments.model in tf2_samples.names():
        model = OfTf2(arguments.model, arguments.size)
    else:
        model = OfZoo(arguments.model, arguments.size, arguments.depth, arguments.cells, arguments.rewriter)
    if arguments.only == "rewriting":
        found = rewrite_training(model, arguments.batch)
        settings = {name: getattr(arguments, name) for name in ("rewriter", "model", "size", "cells")}
        return dict(found, **settings)
    rewrites = {"float": None, "qat": model.rewrite_training}
    if arguments.per_channel:
        rewrites["qat_per_channel"] = functools.partial(model.rewrite_training, per_channel=True)
    if arguments.only:
        rewrites = {arguments.only: rewrites[arguments.only]}
    runs = {name: build_training(model, arguments.batch, rewrite) for name, rewrite in rewrites.items()}
    times = {name: [] for name in runs}
    processor_times = {name: [] for name in runs}
    for block in range(arguments.blocks + 1):
        for name, (session, train, feed, _, _) in runs.items():
            for _ in range(arguments.steps):
                started, processor_started = time.time(), time.process_time()
                session.run(train, feed)
                if block:  # the first is warm-up
                    times[name].append(time.time() - started)
                    processor_times[name].append(time.process_time() - processor_started)
    result = {
        "rewriter": arguments.rewriter,
        "model": arguments.model,
        "size": arguments.size,
        "batch": arguments.batch,
        "step_seconds": {name: statistics.median(values) for name, values in times.items()},
        "step_processor_seconds": {
            name: statistics.median(values) for name, values in processor_times.items()
        },
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
    }
    if "qat" in runs:
        (seconds, processor), result["ops_before_rewriting"] = runs["qat"][3:]
        result["rewriting_seconds"], result["rewriting_processor_seconds"] = seconds, processor
    if "qat_per_channel" in runs:
        for key, seconds in (("", "step_seconds"), ("_processor", "step_processor_seconds")):
            result["per_channel_over_per_tensor" + key] = (
                result[seconds]["qat_per_channel"] / result[seconds]["qat"]
            )
    if not arguments.only:
        result["qat_over_float"] = result["step_seconds"]["qat"] / result["step_seconds"]["float"]
        (seconds, processor), result["eval_ops_before_rewriting"] = rewrite_eval(model)
        result["eval_rewriting_seconds"], result["eval_rewriting_processor_seconds"] = seconds, processor
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="ssd_mobilenet_v2", help="a name in tests/zoo/models.yaml, or of a TF 2 config"
    )
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--depth", type=float, default=1.0, help="depth multiplier")
    parser.add_argument("--cells", type=int, help="of a NASNet; the zoo's number otherwise")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=4, help="of each graph, in turn")
    parser.add_argument("--steps", type=int, default=8, help="in a block")
    parser.add_argument("--rewriter", choices=("od_qat", "contrib"), default="od_qat")
    parser.add_argument("--per_channel", action="store_true", help="a third graph: weights per channel")
    parser.add_argument("--only", choices=("float", "qat", "rewriting"))
    parser.add_argument("--json", help="write the figures to this file too")
    arguments = parser.parse_args()
    if arguments.per_channel and (arguments.rewriter != "od_qat" or arguments.only):
        parser.error("--per_channel compares graphs of od_qat: not with --rewriter contrib, nor with --only")
    result = measure(arguments)
    print(json.dumps(result, indent=2))
    if arguments.json:
        with open(arguments.json, "w") as stream:
            json.dump(result, stream, indent=2)


if __name__ == "__main__":
    main()
