"""Checkpoints change hands: trained with tf.contrib.quantize on TensorFlow 1.15, used by od_qat, and back.

    make setup setup-tf1 demo
    .venv/bin/python benchmarks/exchange_with_contrib.py [--demo demo_out] [--steps 250]

From the demo's float checkpoint, with the demo's QAT config, two trainings: the OD API's own trainer with
contrib on TensorFlow 1.15 (`object_detection.legacy.train`, in a process that cannot import od_qat), and
od_qat with placement 'contrib' on this TensorFlow. Each checkpoint is then evaluated and frozen by contrib's
road (the OD API's own evaluator and exporter), by od_qat on TensorFlow 1.15 and by od_qat here. The table has
each evaluator's mAP, the mAP of each frozen graph (all scored by one scorer, `od-qat score`, here), the
differences from the trainer's own road, and the share of detections that both have. Ends with status 1 when a
difference is beyond --tolerance.
"""

import argparse
import glob
import json
import os
import subprocess
import sys
from typing import Any, Dict, List, NamedTuple, Optional

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if REPOSITORY not in sys.path:
    sys.path.insert(0, REPOSITORY)  # for an environment that od_qat is not installed in

PLACEMENT = 'graph_rewriter.[od_qat.layers].placement="contrib"'
CONTRIB, OD_QAT_TF1, OD_QAT = "contrib, TF 1.15", "od_qat, TF 1.15", "od_qat, this TF"
# Detections that two graphs share: nearly the same box, within one step of an 8-bit score.
AGREEMENT_IOU = 0.95
SCORE_STEP = 1.0 / 256


class CommandFailed(Exception):
    """A command's end of output."""


class Evaluated(NamedTuple):
    """The evaluator's own mAP (None where only an export was made) and the frozen graph."""

    map: Optional[float]
    frozen: str


def run(python: str, arguments: List[str], log: str, with_od_qat: bool) -> str:
    """`python ARGUMENTS`; what it prints goes into a file.

    Args:
      python: an interpreter; its folder comes first on the PATH, where TensorFlow 1.15's tools lie.
      arguments: of the interpreter.
      log: the file.
      with_od_qat: whether the process can import od_qat from here.

    Returns:
      what it printed.

    Raises:
      CommandFailed: with the last lines.
    """
    environment = dict(os.environ)
    # TensorFlow 2 sets it when it is imported, and TensorFlow 1.15 would take itself for 2.
    environment.pop("TF2_BEHAVIOR", None)
    environment["PATH"] = os.path.dirname(os.path.abspath(python)) + os.pathsep + environment["PATH"]
    research = os.environ.get("OD_API")
    paths = [REPOSITORY] if with_od_qat else []
    paths += [os.path.join(research, "slim"), research] if research else []
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    os.makedirs(os.path.dirname(log), exist_ok=True)
    with open(log, "wb") as stream:
        # In the log's folder: Python puts the working folder on its import path.
        done = subprocess.run(
            [python] + arguments,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=os.path.dirname(log),
        )
    with open(log, "rb") as stream:
        output = stream.read().decode("utf-8", "replace")
    if done.returncode:
        raise CommandFailed(
            "{}: status {}; {}:\n{}".format(
                os.path.basename(log), done.returncode, log, "\n".join(output.splitlines()[-15:])
            )
        )
    return output


class Contrib(object):
    """The OD API's own commands on TensorFlow 1.15, od_qat out of reach."""

    def __init__(self, python: str, config: str) -> None:
        self._python, self._config = os.path.abspath(python), config

    def _run(self, module: str, folder: str, *flags: str) -> None:
        command = ["-c", _WITH_KERAS, "object_detection." + module]
        flags = ("--pipeline_config_path=" + self._config,) + flags
        run(self._python, command + list(flags), folder + ".log", with_od_qat=False)

    def train(self, train_dir: str) -> None:
        self._run("legacy.train", train_dir, "--train_dir=" + train_dir)

    def export(self, checkpoint: str, folder: str) -> Evaluated:
        self._run(
            "export_inference_graph",
            folder,
            "--trained_checkpoint_prefix=" + checkpoint,
            "--output_directory=" + folder,
        )
        return Evaluated(None, os.path.join(folder, "frozen_inference_graph.pb"))

    def evaluate(self, checkpoint: str, folder: str) -> Evaluated:
        self._run(
            "legacy.eval",
            folder,
            "--checkpoint_dir=" + os.path.dirname(checkpoint),
            "--eval_dir=" + folder,
            "--run_once",
        )
        exported = self.export(checkpoint, os.path.join(folder, "export"))
        return exported._replace(map=_map_of_events(folder))


class OdQat(object):
    """od_qat's commands, placement 'contrib' unless another is asked for."""

    def __init__(self, python: str, config: str, overrides=(PLACEMENT,)) -> None:
        self._python, self._config, self._overrides = os.path.abspath(python), config, overrides

    def _run(self, command: str, folder: str, *flags: str) -> None:
        arguments = ["-m", "od_qat", command, "--pipeline_config_path=" + self._config] + list(flags)
        for override in self._overrides:
            arguments += ["--override", override]
        run(self._python, arguments, folder + ".log", with_od_qat=True)

    def train(self, train_dir: str) -> None:
        self._run("train", train_dir, "--train_dir=" + train_dir, "--seed=0")

    def evaluate(self, checkpoint: str, folder: str) -> Evaluated:
        self._run(
            "eval",
            folder,
            "--checkpoint_dir=" + os.path.dirname(checkpoint),
            "--eval_dir=" + folder,
            "--run_once",
        )
        (metrics,) = glob.glob(os.path.join(folder, "metrics-*.json"))
        with open(metrics) as stream:
            value = json.load(stream)["DetectionBoxes_Precision/mAP"]
        return Evaluated(value, os.path.join(folder, "frozen_eval_graph.pb"))


def _map_of_events(folder: str) -> float:
    """The mAP that the OD API's evaluator left in its newest TensorBoard file."""
    from od_qat.compat import tf

    found = None
    for path in sorted(glob.glob(os.path.join(folder, "events.*")), key=os.path.getmtime):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                if value.tag == "DetectionBoxes_Precision/mAP":
                    found = value.simple_value
    if found is None:
        raise CommandFailed("no mAP in the events of {}".format(folder))
    return found


def write_config(source: str, path: str, dataset, steps: int, overrides=()) -> str:
    """A QAT config that both roads take: with num_examples, of `steps` steps, without [od_qat.layers].

    Args:
      source: the config to start from, with the demo's optimizer.
      path: where to.
      dataset: DatasetInfo.
      steps: of the training and of its learning rate's decay.
      overrides: further `dotted.path=value` edits.
    """
    from od_qat import plugin  # noqa: F401
    from od_qat.files import write_atomically
    from od_qat.od_api import layers_proto, pipeline

    rate = "train_config.optimizer.adam_optimizer.learning_rate.cosine_decay_learning_rate."
    config = pipeline.load(
        source,
        [
            "train_config.num_steps={}".format(steps),
            rate + "total_steps={}".format(steps),
            rate + "warmup_steps={}".format(max(1, steps // 20)),
            # (Absolute: the commands run in folders of their own.)
            "train_input_reader.label_map_path=" + os.path.abspath(dataset.label_map),
            "train_input_reader.tf_record_input_reader.input_path=" + os.path.abspath(dataset.train_record),
            "eval_input_reader.0.label_map_path=" + os.path.abspath(dataset.label_map),
            "eval_input_reader.0.tf_record_input_reader.input_path=" + os.path.abspath(dataset.val_record),
            "eval_config.num_examples={}".format(dataset.val_images),
            "eval_config.num_visualizations=0",
        ]
        + list(overrides),
    )
    config.graph_rewriter.ClearExtension(layers_proto.extension())
    write_atomically(path, pipeline.to_text(config))
    return path


def require_contrib(python: str, log: str) -> str:
    """The version of that interpreter's TensorFlow.

    Raises:
      CommandFailed: when it has no tf.contrib.quantize or no OD API, or can import od_qat.
    """
    output = run(os.path.abspath(python), ["-c", _LOOK_FOR_CONTRIB], log, with_od_qat=False)
    return next(line.split()[1] for line in output.splitlines() if line.startswith("tensorflow: "))


# `python -c _WITH_KERAS MODULE FLAGS`. The OD API's newest trees import the stand-alone Keras for a detector
# that has no part here; TensorFlow 1.15's own has what they look for.
_WITH_KERAS = """
import runpy
import sys
try:
    import keras.applications.resnet
except ImportError:
    from tensorflow import keras
    sys.modules["keras"], sys.modules["keras.applications"] = keras, keras.applications
sys.argv.pop(0)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""

_LOOK_FOR_CONTRIB = """
import importlib.util
import tensorflow
from tensorflow.contrib import quantize
from object_detection.builders import graph_rewriter_builder
assert graph_rewriter_builder.contrib_quantize is quantize
assert importlib.util.find_spec("od_qat") is None, "od_qat is installed there"
print("tensorflow:", tensorflow.__version__)
"""


def exchange(demo: str, work_dir: str, tf1_python: str, steps: int) -> Dict[str, Any]:
    """Both trainings, each used by all three.

    Args:
      demo: a finished demo's folder.
      work_dir: everything goes here; a training that has ended is not repeated.
      tf1_python: the interpreter with TensorFlow 1.15.
      steps: of either QAT training.

    Returns:
      what the JSON holds.
    """
    from od_qat import scoring
    from od_qat.compat import TF_VERSION
    from od_qat.datasets.info import DatasetInfo

    dataset = DatasetInfo.load(os.path.join(demo, "data"))
    work_dir = os.path.abspath(work_dir)
    tf1 = require_contrib(tf1_python, os.path.join(work_dir, "tf1.log"))
    config = write_config(
        os.path.join(demo, "qat.config"), os.path.join(work_dir, "qat.config"), dataset, steps
    )
    users = {
        CONTRIB: Contrib(tf1_python, config),
        OD_QAT_TF1: OdQat(tf1_python, config),
        OD_QAT: OdQat(sys.executable, config),
    }
    rows = []
    for trainer in (CONTRIB, OD_QAT):
        folder = os.path.join(work_dir, _as_name(trainer))
        checkpoint = os.path.join(folder, "train", "model.ckpt-{}".format(steps))
        if not os.path.exists(checkpoint + ".index"):
            _say("training, {} steps: {}".format(steps, trainer))
            users[trainer].train(os.path.dirname(checkpoint))
        own, own_map = None, 0.0  # of the trainer's own road
        for user in [trainer] + [one for one in users if one != trainer]:
            _say("  used by {}".format(user))
            made = users[user].evaluate(checkpoint, os.path.join(folder, "used-by-" + _as_name(user)))
            scored = scoring.score(
                made.frozen, dataset.val_record, class_names=list(dataset.class_names), progress=False
            )
            if user == trainer:
                own, own_map = scored, made.map
            rows.append(
                {
                    "trained": trainer,
                    "used": user,
                    "evaluator_map": made.map,
                    "evaluator_difference": made.map - own_map,
                    "frozen_map": scored.score.map,
                    "frozen_difference": scored.score.map - own.score.map,
                    "agreement": agreement(own.detections, scored.detections),
                }
            )
    return {
        "tensorflow": ["{}.{}".format(*TF_VERSION), tf1],
        "steps": steps,
        "validation_images": dataset.val_images,
        "rows": rows,
    }


def agreement(a, b) -> float:
    """The share of detections above .3 that two graphs have in common."""
    from od_qat import scoring

    return scoring.agreement(a, b, iou=AGREEMENT_IOU, score_tolerance=SCORE_STEP).share


def _as_name(label: str) -> str:
    return label.replace(", ", "-").replace(" ", "-")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(rows) -> str:
    """Markdown; mAP in points."""
    lines = [
        "| trained with | used by | evaluator's mAP | difference | frozen .pb's mAP | difference "
        "| detections shared |",
        "| --- " * 7 + "|",
    ]
    figures = ("evaluator_map", "evaluator_difference", "frozen_map", "frozen_difference", "agreement")
    for row in rows:
        lines.append(
            "| {} | {} | {:.2f} | {:+.2f} | {:.2f} | {:+.2f} | {:.1f} % |".format(
                row["trained"], row["used"], *(100 * row[figure] for figure in figures)
            )
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", default="demo_out", help="a finished demo's folder")
    parser.add_argument("--tf1_python", default=os.path.join(".venv-tf1", "bin", "python"))
    parser.add_argument("--work_dir", default="exchange_out")
    parser.add_argument("--steps", type=int, default=250, help="of either QAT training")
    parser.add_argument("--tolerance", type=float, default=0.003, help="of the mAPs, from 0 to 1")
    arguments = parser.parse_args()
    for path, target in (
        (arguments.tf1_python, "setup-tf1"),
        (os.path.join(arguments.demo, "qat.config"), "demo"),
    ):
        if not os.path.exists(path):
            sys.exit("exchange_with_contrib: no {}; make {} makes it".format(path, target))
    result = exchange(arguments.demo, arguments.work_dir, arguments.tf1_python, arguments.steps)
    with open(os.path.join(arguments.work_dir, "exchange.json"), "w") as stream:
        json.dump(result, stream, indent=2)
    print(table(result["rows"]))
    beyond = [
        row
        for row in result["rows"]
        if max(abs(row["frozen_difference"]), abs(row["evaluator_difference"])) > arguments.tolerance
    ]
    if beyond:
        sys.exit("exchange_with_contrib: beyond {}:\n{}".format(arguments.tolerance, table(beyond)))


if __name__ == "__main__":
    main()
