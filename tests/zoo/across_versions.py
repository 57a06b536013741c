"""Holds od_qat on this TensorFlow against contrib's own graphs, as contrib rewrote them on TensorFlow 1.15.

    .venv-tf1/bin/python -m tests.zoo.record_oracle --graphs FOLDER [--check]
    .venv/bin/python -m tests.zoo.across_versions FOLDER [--only NAME ...] [--record]

`make oracle-check` runs both. The first leaves in FOLDER, for each model of the zoo, contrib's eval graph
(NAME.meta) and what it gave there (NAME.npz). The second runs that graph on this TensorFlow with the same
variable values and picture, builds od_qat's graph of the model, and compares the two: every value of every
output is equal to LIMIT of the output's spread, or the command fails. OD_QAT_TESTS
leaves models out, as it does for tests: see tests/tiers.py.

On the way it measures the noise: by how much contrib's graph here differs from itself there. Kernels of
another version or another processor round otherwise, and where a value lies on the edge between two
quantization steps that is a whole step, which the layers behind it carry on. `--record` writes the noise of
this TensorFlow into noise.json, which tests/test_parity.py reads:

    {model: {TensorFlow and its kernels: largest difference of all outputs}}

A difference is that of two digests (see record_oracle.output_difference), relative to the output's spread.
The noise of a model is the largest of what is recorded for it: of all outputs, since a step may flip in front
of any of them, and of all kernels, since the machine that runs the test may have any of them.
"""

import argparse
import gc
import json
import os
import sys
import time

import numpy as np

from tests.zoo import build, record_oracle

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "noise.json")
# Of an output's spread. Both graphs run on the same kernels; what is left is the order of folded products.
LIMIT = 1e-5


def contrib_here(folder, row):
    """{output name: array} of contrib's graph, run on this TensorFlow."""
    from od_qat.compat import tf

    with np.load(os.path.join(folder, row["name"] + ".npz")) as stored:
        names = sorted(stored.files)
    with tf.Graph().as_default() as graph:
        tf.train.import_meta_graph(os.path.join(folder, row["name"] + ".meta"))
        outputs = {name: graph.get_tensor_by_name("zoo_output/{}:0".format(name)) for name in names}
        return build.run_eval(row, graph.get_tensor_by_name("images:0"), outputs)


def contrib_there(folder, row):
    """{output name: array} of contrib's graph as TensorFlow 1.15 ran it."""
    with np.load(os.path.join(folder, row["name"] + ".npz")) as stored:
        return {name: stored[name] for name in stored.files}


def ours_here(row):
    """{output name: array} of od_qat's graph with contrib's placement, run on this TensorFlow."""
    from od_qat.rewrite import api

    return record_oracle.rewritten(
        row, False, lambda graph: api.create_eval_graph(graph, placement="contrib")
    )[2]


def difference(one, other):
    """The largest difference of all outputs' values, relative to each output's spread."""
    if set(one) != set(other):
        return float("inf")
    worst = 0.0
    for name, array in one.items():
        if np.shape(array) != np.shape(other[name]):
            return float("inf")
        if np.size(array):
            spread = max(float(np.ptp(array)), 1e-6)
            worst = max(worst, float(np.max(np.abs(array - other[name]))) / spread)
    return worst


def digest_difference(one, other):
    """The same of their digests, which is what a record holds."""
    return max(
        record_oracle.output_difference(build.digest(one[name]), build.digest(other[name])) for name in one
    )


def kernels():
    """Name of this TensorFlow's kernels in noise.json."""
    from od_qat.compat import TF_VERSION

    without = os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0"
    return "{}.{}{}".format(*(TF_VERSION + (" without oneDNN" if without else "",)))


def load():
    """noise.json; empty where there is none."""
    if not os.path.exists(PATH):
        return {}
    with open(PATH, encoding="utf-8") as stream:
        return json.load(stream)


def noise_of(model):
    """The noise of a model, as above; 0 where none is recorded."""
    return max(load().get(model, {}).values(), default=0.0)


def record(model, noise):
    """Writes one model's noise on these kernels."""
    stored = load()
    stored.setdefault(model, {})[kernels()] = float("{:.3g}".format(noise))
    lines = [' "{}": {}'.format(name, json.dumps(stored[name], sort_keys=True)) for name in sorted(stored)]
    with open(PATH, "w", encoding="utf-8", newline="\n") as stream:
        stream.write("{\n" + ",\n".join(lines) + "\n}\n")


def check(folder, row):
    """Compares one model.

    Returns:
      whether the two agree, the difference to contrib's graph here, and the noise.
    """
    theirs = contrib_here(folder, row)
    found = difference(theirs, ours_here(row))
    return found <= LIMIT, found, digest_difference(contrib_there(folder, row), theirs)


def main(arguments=None) -> int:
    """Returns an exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="what record_oracle --graphs wrote")
    parser.add_argument("--only", action="append", metavar="NAME", help="of a model; may be repeated")
    parser.add_argument("--record", action="store_true", help="write this TensorFlow's noise into noise.json")
    options = parser.parse_args(arguments)
    from od_qat.compat import tf

    tf.logging.set_verbosity(tf.logging.FATAL)
    rows = build.models() if options.only else build.of_tier()
    rows = [row for row in rows if os.path.exists(os.path.join(options.folder, row["name"] + ".npz"))]
    missing = set(options.only or ()) - {row["name"] for row in rows}
    if missing or not rows:
        parser.error("not in {}: {}".format(options.folder, ", ".join(sorted(missing)) or "any model"))
    rows = [row for row in rows if not options.only or row["name"] in options.only]
    failed = 0
    for number, row in enumerate(rows, 1):
        started = time.time()
        agrees, found, noise = check(options.folder, row)
        if options.record:
            record(row["name"], noise)
        failed += not agrees
        print(
            "{}/{} {} {:.1f} s: {:.2g} of the spread from contrib's graph here{}; its noise {:.2g}".format(
                number,
                len(rows),
                row["name"],
                time.time() - started,
                found,
                "" if agrees else ", which is too much",
                noise,
            ),
            flush=True,
        )
        gc.collect()
    print("{} models on TensorFlow {}: {} too far from contrib".format(len(rows), kernels(), failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
