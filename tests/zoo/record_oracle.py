"""Records what tf.contrib.quantize does to each model of the zoo; runs on TensorFlow 1.15 only.

    python -m tests.zoo.record_oracle [--only NAME ...] [--check] [--graphs FOLDER]

Writes oracle/NAME.json, the same bytes each time on the same machine. `--check` records again in memory and
compares instead. `--graphs` keeps contrib's eval graphs and outputs for tests/zoo/across_versions.py; without
`--check` it does nothing else. A file:

    eval, training   what is in this graph only: "quants", "variables" (both lists), or contrib's "error"
    both             the quants that are in both graphs
    outputs          of the eval graph: see build.digest

A quant is a line "scope bits [narrow] <- the tensor it reads". Its op is scope/FakeQuantWithMinMaxVars and a
leading ./ stands for the scope around it. Variables are listed only where they are not what `variables_of`
says of the quants.
"""

import argparse
import gc
import json
import os
import sys
import time

import numpy as np

from tests.zoo import build

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "oracle")
# Of an output's spread. Another processor's kernels round otherwise, and single quantization steps flip.
_OTHER_PROCESSOR = 0.1


def rewritten(row, training, rewrite, run=True):
    """Builds a model and rewrites it.

    Args:
      row: of models.yaml.
      training: which of the two graphs.
      rewrite: called with the graph.
      run: whether the eval graph is run too.

    Returns:
      quant lines, sorted; the names of the variables that the rewriting added, sorted; the outputs of the
      eval graph as arrays, or None.
    """
    from od_qat.compat import tf

    with tf.Graph().as_default() as graph:
        images, outputs = (build.build_training(row), None) if training else build.build_eval(row)
        operations = {op.name for op in graph.get_operations()}
        variables = {v.op.name for v in tf.global_variables()}
        rewrite(graph)
        quants = sorted(
            quant_line(op)
            for op in graph.get_operations()
            if op.type == build.FAKE_QUANT and op.name not in operations
        )
        added = sorted({v.op.name for v in tf.global_variables()} - variables)
        arrays = None if training or not run else build.run_eval(row, images, outputs)
    return quants, added, arrays


def quant_line(op):
    """A fake quant as text."""
    scope, _, last = op.name.rpartition("/")
    name = scope if last == build.FAKE_QUANT else op.name + ":"
    around = scope.rpartition("/")[0] + "/"
    reads = op.inputs[0].name[: -len(":0")] if op.inputs[0].name.endswith(":0") else op.inputs[0].name
    if reads.startswith(around):
        reads = "./" + reads[len(around) :]
    narrow = " narrow" if op.get_attr("narrow_range") else ""
    return "{} {}{} <- {}".format(name, op.get_attr("num_bits"), narrow, reads)


def variables_of(quants, training):
    """The variables of quant lines: a range each and, where a moving average is kept, its helpers.

    The helpers' names repeat the scope: TensorFlow makes them inside it, by the full name of the variable.
    """
    names = []
    for line in quants:
        scope = line.split()[0]
        for end in ("min", "max"):
            names.append("{}/{}".format(scope, end))
            if training and " narrow " not in line:
                names += ["{0}/{0}/{1}/{2}".format(scope, end, one) for one in ("biased", "local_step")]
    return sorted(names)


def record(row, graphs=None, kinds=(False, True)):
    """What contrib does to a model, as the dictionary that is stored.

    Args:
      row: of models.yaml.
      graphs: a folder that its eval graph and outputs are kept in.
      kinds: False for the eval graph, True for the training graph.
    """
    from tensorflow.contrib import quantize

    result = {"name": row["name"]}
    quants = {}
    for training in kinds:
        kind = "training" if training else "eval"
        rewrite = quantize.create_training_graph if training else quantize.create_eval_graph
        called = []

        def call(graph, rewrite=rewrite, called=called, keep=graphs and not training):
            called.append(True)
            rewrite(graph)
            called.append(True)
            if keep:
                write_graph(graphs, row["name"], graph)

        try:
            quants[kind], variables, arrays = rewritten(row, training, call)
        except Exception as error:  # whatever contrib raises is what is recorded
            if len(called) != 1:
                raise
            first = (str(error).strip().splitlines() or [""])[0]
            result[kind] = {"error": "{}: {}".format(type(error).__name__, first)}
            continue
        result[kind] = {}
        if variables != variables_of(quants[kind], training):
            result[kind]["variables"] = variables
        if arrays is not None:
            if graphs:
                np.savez(os.path.join(graphs, row["name"] + ".npz"), **arrays)
            result["outputs"] = {name: build.digest(array) for name, array in arrays.items()}
    both = set.intersection(*map(set, quants.values())) if len(quants) == 2 else set()
    if both:
        result["both"] = sorted(both)
    for kind, lines in quants.items():
        # (A list, not a set: two lines may be the same.)
        result[kind]["quants"] = [line for line in lines if line not in both]
    return result


def write_graph(folder, name, graph):
    """Keeps a graph with its variables, without their values: folder/NAME.meta."""
    from od_qat.compat import tf

    os.makedirs(folder, exist_ok=True)
    tf.train.export_meta_graph(os.path.join(folder, name + ".meta"), graph=graph)


def load(name):
    """The stored record of a model."""
    with open(path_of(name), encoding="utf-8") as stream:
        return json.load(stream)


def path_of(name):
    """Where a model's record is stored."""
    return os.path.join(FOLDER, name + ".json")


def recorded_graph(stored, training):
    """(quant lines, variable names) of one of a record's graphs; None where contrib failed."""
    graph = stored["training" if training else "eval"]
    if "quants" not in graph:
        return None
    quants = sorted(graph["quants"] + stored.get("both", []))
    return quants, graph.get("variables", variables_of(quants, training))


def as_text(record_):
    """A record as it is stored: one line a quant, one an output."""
    fields = []
    for key in sorted(record_):
        value = record_[key]
        if isinstance(value, dict):
            rows = ["  {}: {}".format(json.dumps(k), _list_text(value[k], "   ")) for k in sorted(value)]
            text = "{\n" + ",\n".join(rows) + "\n }" if rows else "{}"
        else:
            text = _list_text(value, "  ")
        fields.append(' "{}": {}'.format(key, text))
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _list_text(value, indent):
    if isinstance(value, list) and value:
        inner = ",\n".join(indent + json.dumps(item) for item in value)
        return "[\n" + inner + "\n" + indent[:-1] + "]"
    return json.dumps(value, sort_keys=True)


def differences(stored, again):
    """Texts of what differs between two records; outputs may differ as another processor's do."""
    found = []
    outputs, outputs_again = stored.get("outputs", {}), again.get("outputs", {})
    for name in sorted(set(outputs) | set(outputs_again)):
        worst = output_difference(outputs.get(name), outputs_again.get(name))
        if worst > _OTHER_PROCESSOR:
            found.append("output {}: differs by {:.2g} of its spread".format(name, worst))
    lines = [
        as_text({k: v for k, v in one.items() if k != "outputs"}).splitlines() for one in (stored, again)
    ]
    found += ["only in the stored record: " + line.strip() for line in lines[0] if line not in lines[1]]
    found += ["only in the new record: " + line.strip() for line in lines[1] if line not in lines[0]]
    return found


def contrib_outputs(row):
    """Digests of contrib's eval outputs, computed here and now."""
    from tensorflow.contrib import quantize

    _, _, arrays = rewritten(row, False, quantize.create_eval_graph)
    return {name: build.digest(array) for name, array in arrays.items()}


def output_difference(one, other):
    """The largest difference between two digests, relative to the spread; infinite for another shape."""
    if one is None or other is None or one["shape"] != other["shape"]:
        return float("inf")
    spread = max(one["values"]) - min(one["values"]) if one["values"] else 0.0
    spread = max(spread, one["std"], 1e-6)
    pairs = list(zip(one["values"], other["values"])) + [(one[k], other[k]) for k in ("mean", "std")]
    return max(abs(a - b) for a, b in pairs) / spread


def _summary(record_, kind):
    recorded = recorded_graph(record_, kind == "training")
    if recorded is not None:
        return "{} quants".format(len(recorded[0]))
    return record_[kind]["error"]


def main(arguments=None) -> int:
    """Returns an exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="of a model; may be repeated")
    parser.add_argument("--check", action="store_true", help="compare with what is stored, write nothing")
    parser.add_argument("--graphs", metavar="FOLDER", help="keep contrib's eval graphs and outputs in there")
    options = parser.parse_args(arguments)
    from od_qat.compat import IS_TF1, tf

    tf.logging.set_verbosity(tf.logging.FATAL)  # (MnasFPN's extractor logs its layers as errors)
    if not IS_TF1:
        parser.error(
            "tf.contrib.quantize is in TensorFlow 1.15 only; run this in the environment of `make setup-tf1`"
        )
    rows = [row for row in build.models() if "skip" not in row]
    unknown = set(options.only or ()) - {row["name"] for row in rows}
    if unknown:
        parser.error("no such model: " + ", ".join(sorted(unknown)))
    if options.only:
        rows = [row for row in rows if row["name"] in options.only]
    elif options.check:
        names = {row["name"] for row in build.of_tier()}
        rows = [row for row in rows if row["name"] in names]
    only_graphs = options.graphs and not options.check
    failed = 0
    for number, row in enumerate(rows, 1):
        started = time.time()
        text = as_text(record(row, options.graphs, (False,) if only_graphs else (False, True)))
        result = json.loads(text)
        note = ", ".join(
            "{} {}".format(kind, _summary(result, kind)) for kind in ("eval", "training") if kind in result
        )
        if options.check:
            found = (
                differences(load(row["name"]), result)
                if os.path.exists(path_of(row["name"]))
                else ["no record"]
            )
            failed += bool(found)
            note = "; ".join(found[:5]) if found else "as recorded"
        elif not only_graphs:
            os.makedirs(FOLDER, exist_ok=True)
            with open(path_of(row["name"]), "w", encoding="utf-8", newline="\n") as stream:
                stream.write(text)
        print(
            "{}/{} {} {:.1f} s: {}".format(number, len(rows), row["name"], time.time() - started, note),
            flush=True,
        )
        gc.collect()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
