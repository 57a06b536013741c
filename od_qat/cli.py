"""The command line: arguments in, exit status out; the work is done elsewhere.

Flags have the names of the OD API's scripts. TensorFlow takes seconds to import, so each handler imports
what it needs and `--help` is instant.

Exit status: 0 done, 1 an error that is reported in one line, 2 wrong usage, 130 interrupted, 143 ended by
SIGTERM.
"""

import argparse
import errno
import math
import os
import sys
import traceback
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import od_qat
from od_qat.errors import ConfigError, OdQatError

_INTERRUPTED = 130

_DESCRIPTION = """\
Quantization-aware training (QAT) for detectors of the TensorFlow Object Detection API.

The road, from nothing to an int8 .tflite:

  od-qat doctor          is everything installed?
  od-qat data ...        images and boxes -> records and a label map
  od-qat train ...       a float training, then a QAT one that starts from its checkpoint
  od-qat eval ...        COCO metrics of a checkpoint, and a frozen eval graph
  od-qat export-tflite   checkpoint -> detect.tflite
  od-qat score ...       COCO metrics, size and latency of the .tflite itself

`od-qat demo` goes all of it on a built-in data set. `od-qat COMMAND --help` has an example of each."""


class _Parser(argparse.ArgumentParser):
    """No abbreviations, which would change meaning when a flag is added; usage errors in one line."""

    def __init__(self, **kwargs: Any) -> None:
        super(_Parser, self).__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )

    def error(self, message: str) -> None:
        sys.stderr.write("od-qat: error: {}; see `{} --help`\n".format(message, self.prog))
        raise SystemExit(2)


def _boolean(text: str) -> bool:
    """A flag's value in absl's manner, for users of upstream's scripts: --run_once, --run_once=false."""
    value = text.lower()
    if value in ("true", "t", "1", "yes"):
        return True
    if value in ("false", "f", "0", "no"):
        return False
    raise argparse.ArgumentTypeError("found {!r}, allowed: true or false".format(text))


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError("found {!r}, allowed: a whole number from 1".format(text))
    return value


def _threshold(text: str) -> Any:
    if text == "config":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1.0:  # NaN included
        raise argparse.ArgumentTypeError("found {!r}, allowed: a number, 0 <= t < 1, or config".format(text))
    return value


def _override(text: str) -> str:
    if not text.partition("=")[0].strip() or "=" not in text:
        raise argparse.ArgumentTypeError(
            "found {!r}, allowed: dotted.path=value, train_config.batch_size=8 for example".format(text)
        )
    return text


def _switch(parser: argparse.ArgumentParser, name: str, help_text: str) -> None:
    parser.add_argument(
        name, nargs="?", const=True, default=False, type=_boolean, metavar="BOOL", help=help_text
    )


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pipeline_config_path", required=True, metavar="FILE", help="the pipeline config")
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        type=_override,
        metavar="KEY=VALUE",
        help="change a field of the config: train_config.num_steps=500, eval_input_reader[0].shuffle=false; "
        "train_config.fine_tune_checkpoint= clears one; repeatable",
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("--train_dir", required=True, metavar="DIR", help="checkpoints and events go here")
    parser.add_argument(
        "--num_clones", type=_positive, default=1, metavar="N", help="GPUs to use (default 1)"
    )
    _switch(parser, "--clone_on_cpu", "put the clones on CPUs")
    parser.add_argument(
        "--save_interval_secs",
        type=_positive,
        default=600,
        metavar="SECONDS",
        help="seconds between checkpoints (default 600)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="a run that can be repeated: seeds all, one input thread"
    )


def _train(arguments: argparse.Namespace) -> int:
    _require_file(arguments.pipeline_config_path, "pipeline config")
    from od_qat import commands

    result = commands.train(
        arguments.pipeline_config_path,
        arguments.train_dir,
        overrides=arguments.override,
        num_clones=arguments.num_clones,
        clone_on_cpu=arguments.clone_on_cpu,
        save_interval_secs=arguments.save_interval_secs,
        seed=arguments.seed,
    )
    checkpoint = getattr(result, "checkpoint", None)
    if checkpoint:
        # (No loss where training had ended already.)
        loss = "" if math.isnan(result.loss) else ", loss {:.4f}".format(result.loss)
        print("step {}{}: {}".format(result.global_step, loss, checkpoint))
    return 0


def _add_eval(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--checkpoint_dir", required=True, metavar="DIR", help="the --train_dir of the training"
    )
    parser.add_argument(
        "--eval_dir", required=True, metavar="DIR", help="metrics and the frozen graph go here"
    )
    _switch(parser, "--run_once", "evaluate the newest checkpoint, then end")
    _switch(parser, "--eval_training_data", "evaluate on the training records")


def _eval(arguments: argparse.Namespace) -> int:
    _require_file(arguments.pipeline_config_path, "pipeline config")
    from od_qat import commands

    metrics = commands.evaluate(
        arguments.pipeline_config_path,
        arguments.checkpoint_dir,
        arguments.eval_dir,
        run_once=arguments.run_once,
        eval_training_data=arguments.eval_training_data,
        overrides=arguments.override,
    )
    _print_metrics(metrics or {})
    return 0


def _print_metrics(metrics: Dict[str, Any]) -> None:
    if metrics:
        width = max(len(name) for name in metrics)
        for name in sorted(metrics):
            print("{}  {:.4f}".format(name.ljust(width), float(metrics[name])))


def _add_checkpoint_and_output(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--trained_checkpoint_prefix",
        required=True,
        metavar="PREFIX",
        help="train_dir/model.ckpt-N, or a train_dir for its newest checkpoint",
    )
    parser.add_argument("--output_directory", required=True, metavar="DIR", help="the model goes here")


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint_and_output(parser)
    # Upstream's script requires it, so commands that were written for that one have it.
    parser.add_argument(
        "--input_type", choices=["image_tensor"], default="image_tensor", help=argparse.SUPPRESS
    )


def _export(arguments: argparse.Namespace) -> int:
    _require_file(arguments.pipeline_config_path, "pipeline config")
    from od_qat import commands

    path = commands.export(
        arguments.pipeline_config_path,
        arguments.trained_checkpoint_prefix,
        arguments.output_directory,
        overrides=arguments.override,
    )
    print(path)
    return 0


def _add_export_tflite(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint_and_output(parser)
    parser.add_argument(
        "--inference_type",
        choices=["int8", "uint8"],
        default="int8",
        help="int8 for CPUs (the default, twice as fast there), uint8 for devices that want it",
    )
    parser.add_argument(
        "--input_type",
        choices=["uint8", "int8"],
        default="uint8",
        help="of the image: uint8 as cameras give it (the default), int8 (less 128) for an int8 network",
    )
    _switch(parser, "--fast_nms", "TFLite's fast NMS instead of the config's own: quicker, lower mAP")
    parser.add_argument(
        "--score_threshold",
        type=_threshold,
        metavar="T",
        help="leave out detections that score less; default: 0.05 (a tenth of the best scores where they are "
        "low; the config's own if higher); 'config' takes the config's own, which can be slow",
    )
    parser.add_argument(
        "--max_detections", type=_positive, metavar="N", help="default: max_total_detections of the config"
    )
    _switch(
        parser, "--ptq", "post-training quantization of a float checkpoint, calibrated on training images"
    )


def _export_tflite(arguments: argparse.Namespace) -> int:
    _require_file(arguments.pipeline_config_path, "pipeline config")
    from od_qat import commands

    path = commands.export_tflite(
        arguments.pipeline_config_path,
        arguments.trained_checkpoint_prefix,
        arguments.output_directory,
        inference_type=arguments.inference_type,
        fast_nms=arguments.fast_nms,
        max_detections=arguments.max_detections,
        overrides=arguments.override,
        ptq=arguments.ptq,
        input_type=arguments.input_type,
        score_threshold=arguments.score_threshold,
    )
    print(path)
    return 0


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="FILE", help="a .tflite or a frozen .pb")
    parser.add_argument(
        "--record", required=True, metavar="FILE", help="the records to score on; 'val.record-*' for shards"
    )
    parser.add_argument("--label_map", required=True, metavar="FILE", help="the label map of the records")
    parser.add_argument("--processes", type=_positive, metavar="N", help="default: one a core")
    parser.add_argument("--max_images", type=_positive, metavar="N", help="score the first N images only")
    parser.add_argument("--json", metavar="FILE", help="write the scores as JSON too")
    parser.add_argument(
        "--time_limit",
        type=float,
        metavar="SECONDS",
        help="for loading the model and for each image; what takes longer is an error (default 60)",
    )


def _score(arguments: argparse.Namespace) -> int:
    import dataclasses

    from od_qat import files, report, scoring, tflite_file
    from od_qat.datasets import records

    _require_file(arguments.model, "model")
    if not records.is_pattern(arguments.record):
        _require_file(arguments.record, "record file")
    _require_file(arguments.label_map, "label map")

    result = scoring.score(
        arguments.model,
        arguments.record,
        arguments.label_map,
        processes=arguments.processes,
        max_images=arguments.max_images,
        time_limit=scoring.TIME_LIMIT if arguments.time_limit is None else arguments.time_limit,
    )
    # (Of the file itself: a mAP is one of this threshold, whatever a JSON says.)
    options = tflite_file.read(arguments.model).options if arguments.model.endswith(".tflite") else {}
    if arguments.json:
        content = {"model": arguments.model, "size_bytes": result.size_bytes, "latency_ms": result.latency_ms}
        content["warnings"] = list(result.warnings)
        content.update(dataclasses.asdict(result.score))
        if options:
            content["post_processing"] = options
        files.write_json(arguments.json, content)
    report.print_table([report.row(os.path.basename(arguments.model), result)])
    if options:
        print("scored with " + tflite_file.suppression(options))
    return 0


def _add_nodes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a .pb, .pbtxt or .meta graph, a .tflite, or the folder of a SavedModel",
    )


def _nodes(arguments: argparse.Namespace) -> int:
    if not os.path.isdir(arguments.model):
        _require_file(arguments.model, "model")
    from od_qat import model_nodes

    found = model_nodes.find(arguments.model)
    # The names alone go to standard output, for `$(od-qat nodes ...)`.
    print(",".join(found.names))
    sys.stdout.flush()
    model_nodes.print_table(found.nodes, sys.stderr)
    print("{}: {}".format(found.kind, found.reason), file=sys.stderr)
    return 0


def _add_data(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="{builtin,voc,coco}")
    kinds.required = True  # as a parameter only from Python 3.7.1 on
    builtin = _subparser(kinds, "builtin", "digits on photographs, made here, no download", _DATA_BUILTIN)
    builtin.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other pictures")
    builtin.add_argument("--train_images", type=_positive, metavar="N", help="number of training images")
    builtin.add_argument("--val_images", type=_positive, metavar="N", help="number of validation images")
    voc = _subparser(kinds, "voc", "a folder in PASCAL VOC layout", _DATA_VOC)
    voc.add_argument("folder", metavar="FOLDER", help="has JPEGImages, Annotations and ImageSets/Main")
    voc.add_argument("--train_list", default="train", metavar="NAME", help="of ImageSets/Main (train)")
    voc.add_argument("--val_list", default="val", metavar="NAME", help="of ImageSets/Main (val)")
    voc.add_argument("--label_map", metavar="FILE", help="use these classes and ids")
    coco = _subparser(kinds, "coco", "COCO annotations and their images", _DATA_COCO)
    for name in ("train_images", "train_annotations", "val_images", "val_annotations"):
        metavar = "FOLDER" if name.endswith("images") else "FILE"
        coco.add_argument("--" + name, required=True, metavar=metavar)
    _switch(coco, "--include_crowd", "train on the boxes around crowds too; validation has them in any case")
    _switch(
        coco,
        "--renumber_categories",
        "number the categories from 1 without gaps; otherwise they keep their ids, as published COCO "
        "detectors have them, and num_classes is the highest id",
    )
    for kind in (voc, coco):
        _add_skip_invalid(kind)
    for kind in (builtin, voc, coco):
        kind.add_argument("--output_dir", required=True, metavar="DIR", help="records and label map go here")


def _add_skip_invalid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip_invalid",
        action="store_true",
        help="leave out invalid objects, and images that cannot be read or whose annotation cannot, list and "
        "count them, instead of stopping",
    )


def _data(arguments: argparse.Namespace) -> int:
    if arguments.kind == "builtin":
        from od_qat.datasets import builtin

        sizes = {"train_images": arguments.train_images, "val_images": arguments.val_images}
        sizes = {name: value for name, value in sizes.items() if value is not None}
        info = builtin.build(arguments.output_dir, seed=arguments.seed, **sizes)
    elif arguments.kind == "voc":
        from od_qat.datasets import voc

        info = voc.convert(
            arguments.folder,
            arguments.output_dir,
            train_list=arguments.train_list,
            val_list=arguments.val_list,
            label_map=arguments.label_map,
            skip_invalid=arguments.skip_invalid,
        )
    else:
        from od_qat.datasets import coco

        info = coco.convert(
            arguments.train_images,
            arguments.train_annotations,
            arguments.val_images,
            arguments.val_annotations,
            arguments.output_dir,
            skip_invalid=arguments.skip_invalid,
            include_crowd=arguments.include_crowd,
            renumber_categories=arguments.renumber_categories,
        )
    print(info.summary())
    for path in (info.train_record, info.val_record, info.label_map):
        print(path)
    return 0


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--od_api", metavar="DIR", help="a models/research folder to look at")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    _switch(parser, "--quick", "leave out the import of TensorFlow and the OD API, which takes some seconds")


def _doctor(arguments: argparse.Namespace) -> int:
    from od_qat import doctor

    checks = doctor.examine(arguments.od_api, quick=arguments.quick)
    doctor.print_checks(checks, as_json=arguments.json)
    return 0 if doctor.is_healthy(checks) else 1


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", default="builtin", metavar="DATA", help="builtin (the default), voc:FOLDER or coco:FOLDER"
    )
    parser.add_argument("--work_dir", default="demo_out", metavar="DIR", help="default: demo_out")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--train_list", default="train", metavar="NAME", help="for voc: list to train on")
    parser.add_argument("--val_list", default="val", metavar="NAME", help="for voc: list to score on")
    parser.add_argument("--float_steps", type=_positive, metavar="N", help="length of the float training")
    parser.add_argument(
        "--qat_steps", type=_positive, metavar="N", help="length of QAT, and of the training beside it"
    )
    parser.add_argument("--processes", type=_positive, metavar="N", help="for scoring; default: one a core")
    _add_skip_invalid(parser)


def _demo(arguments: argparse.Namespace) -> int:
    kind, _, folder = arguments.data.partition(":")
    if kind in ("voc", "coco") and folder and not os.path.isdir(folder):
        raise ConfigError(
            "no such folder", where=folder, fix="give the folder of the data set after " + kind + ":"
        )
    from od_qat import demo

    demo.run(
        data=arguments.data,
        work_dir=arguments.work_dir,
        seed=arguments.seed,
        float_steps=arguments.float_steps,
        qat_steps=arguments.qat_steps,
        train_list=arguments.train_list,
        val_list=arguments.val_list,
        processes=arguments.processes,
        skip_invalid=arguments.skip_invalid,
    )
    return 0


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="MODULE|SCRIPT", help="object_detection.legacy.train for example")
    # (For the usage line: main() takes them off before argparse sees them.)
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENTS", help="its own, after --")


def _run(arguments: argparse.Namespace) -> int:
    from od_qat import run

    return run.run(arguments.target, arguments.program_arguments)


def _add_tree(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--od_api",
        default=os.environ.get("OD_API"),
        metavar="DIR",
        help="the models/research folder (default: the environment's OD_API)",
    )
    _switch(parser, "--check", "say what would be done, and do nothing")


def _add_patch(parser: argparse.ArgumentParser) -> None:
    _add_tree(parser)
    _switch(
        parser,
        "--accept_unknown",
        "take files that are as no known tree has them (another commit, your edits), if every hunk matches",
    )
    _switch(
        parser, "--compile_protos", "make the *_pb2.py that are missing, in the tree (needs grpcio-tools)"
    )


def _patch(arguments: argparse.Namespace) -> int:
    from od_qat.od_api import patching

    outcome = patching.patch(
        arguments.od_api, arguments.check, arguments.accept_unknown, arguments.compile_protos
    )
    status = _print_outcome(outcome)
    if outcome.files and not arguments.check:
        # (The Python that runs this need not be the one that runs the tree's commands.)
        source = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        what = source if os.path.isfile(os.path.join(source, "pyproject.toml")) else "od_qat"
        print("The Python that runs the tree's commands needs od_qat: pip install --no-deps {}".format(what))
    return status


def _unpatch(arguments: argparse.Namespace) -> int:
    from od_qat.od_api import patching

    return _print_outcome(patching.unpatch(arguments.od_api, arguments.check))


def _print_outcome(outcome: Any) -> int:
    for name in outcome.files:
        print(name)
    print(outcome.message)
    return 0


_TRAIN = """\
Trains what a pipeline config describes; with a graph_rewriter block in it, with quantization.

Example, 300 steps of QAT from a float checkpoint:

  od-qat train --pipeline_config_path=my_qat.config --train_dir=out/qat \\
      --override train_config.fine_tune_checkpoint=out/float/model.ckpt-900

A run that stopped goes on from its newest checkpoint. SIGTERM and Ctrl-C end it with all saved, a second one
at once. Next: od-qat eval."""

_EVAL = """\
Evaluates a training's checkpoints and freezes each as frozen_eval_graph.pb.

Example:

  od-qat eval --pipeline_config_path=out/qat/pipeline.config --checkpoint_dir=out/qat \\
      --eval_dir=out/eval --run_once

Without --run_once it waits for further checkpoints, beside a training. Next: od-qat export-tflite."""

_EXPORT = """\
Writes frozen_inference_graph.pb, with fake quants when the config has a graph_rewriter block.

Example:

  od-qat export --pipeline_config_path=out/qat/pipeline.config \\
      --trained_checkpoint_prefix=out/qat/model.ckpt-300 --output_directory=out/export

Next: od-qat score, with the .pb as the model."""

_EXPORT_TFLITE = """\
Writes detect.tflite: a fully quantized model from a QAT checkpoint, checked before it is written.

Example:

  od-qat export-tflite --pipeline_config_path=out/qat/pipeline.config \\
      --trained_checkpoint_prefix=out/qat --output_directory=out/tflite

With --ptq, a float checkpoint is quantized without training, which is what QAT is compared with.
It says which score threshold the .tflite has; published configs have one that costs time and changes no mAP.
Next: od-qat score."""

_SCORE = """\
COCO metrics, size and latency of a .tflite or a frozen .pb, on records.

Example:

  od-qat score --model=out/tflite/detect.tflite --record=out/data/val.record \\
      --label_map=out/data/label_map.pbtxt

Next: compare with the float model's score; 0.3 points of mAP less is usual, several are not."""

_NODES = """\
What goes into a model and what comes out: names, shapes, types, scale and zero point, roles. Of a graph it
finds the output nodes, the names that freezing and conversion ask for; of a SavedModel it reads the
signatures; a .tflite is read without being run.

Example:

  od-qat nodes frozen_inference_graph.pb
  od-qat nodes detect.tflite

Prints the outputs' names, with commas, and on standard error a table and how they were found."""

_DATA = """\
Makes train.record, val.record, label_map.pbtxt and dataset.json.

Example:

  od-qat data builtin --output_dir=out/data

Next: od-qat train, with these files in the config's input readers."""

_DATA_BUILTIN = """\
Makes a small data set: handwritten digits on photographs, from installed packages, in seconds.

Example:

  od-qat data builtin --output_dir=out/data

Next: od-qat train, with these files in the config's input readers."""

_DATA_VOC = """\
Converts a folder in PASCAL VOC layout.

Example:

  od-qat data voc VOCdevkit/VOC2012 --output_dir=out/data --train_list=train --val_list=val

Next: od-qat train, with these files in the config's input readers."""

_DATA_COCO = """\
Converts COCO annotations. The categories keep their ids: COCO's 80 have ids up to 90, and so have published
detectors, whose configs say num_classes: 90.

Example:

  od-qat data coco --train_images=train2017 --train_annotations=annotations/instances_train2017.json \\
      --val_images=val2017 --val_annotations=annotations/instances_val2017.json --output_dir=out/data

Next: od-qat train, with these files in the config's input readers."""

_DOCTOR = """\
Lists what is installed, what is missing and how to get it. Exit status 1 if something needed is missing.
Of an OD API tree it says which generation it is, what differs from upstream, whether it is patched and what
will work.

Example:

  od-qat doctor --od_api=models/research

Next: od-qat demo."""

_DEMO = """\
The whole road on a small data set: float training, QAT, evaluation, .tflite, scores, pictures. From the same
float checkpoint the float model is trained on for as long as QAT, so that the table compares equal training.

Example:

  od-qat demo --work_dir=demo_out
  od-qat demo --data=voc:VOCdevkit/VOC2012 --work_dir=voc_out

A second run goes on from what the first has finished. Next: the same steps with your own config."""

_RUN = """\
Runs a command of the OD API, or a script of your own that uses it, as it is: on this TensorFlow, with
quantization when its config has a graph_rewriter block. Nothing on disk is changed.

Example:

  od-qat run object_detection.legacy.train -- --pipeline_config_path=my.config --train_dir=out/train
  od-qat run models/research/object_detection/export_inference_graph.py -- --input_type=image_tensor ...

The exit status is the command's own. In a notebook, `import od_qat.plugin` at its top does the same."""

_PATCH = """\
Puts od_qat into an OD API tree: your own commands (legacy/train.py, legacy/eval.py,
export_inference_graph.py, export_tflite_ssd_graph.py, model_main.py) then quantise as their config's
graph_rewriter block says, on TensorFlow 1.15 and 2, with the command lines that they always had. od_qat must
be installed where they run.

Example:

  od-qat patch --od_api=models/research --check
  od-qat patch --od_api=models/research

All files change or none does; a tree with edits in one of them is refused, by name. The patches are in
patches/, with a README. Next: od-qat doctor --od_api=models/research; od-qat unpatch takes it all back."""

_UNPATCH = """\
Takes od_qat's patches out of an OD API tree: every byte is as it was before od-qat patch.

Example:

  od-qat unpatch --od_api=models/research

A tree whose patched files were edited since is refused, by name."""

# name, one line, description, arguments, handler
_COMMANDS = (
    ("demo", "the whole road on a small data set", _DEMO, _add_demo, _demo),
    ("doctor", "what is installed and what is missing", _DOCTOR, _add_doctor, _doctor),
    ("data", "images and boxes -> records and label map", _DATA, _add_data, _data),
    ("train", "train a float model or, with quantization, a QAT model", _TRAIN, _add_train, _train),
    ("eval", "metrics of checkpoints, and a frozen eval graph", _EVAL, _add_eval, _eval),
    ("export", "checkpoint -> frozen_inference_graph.pb", _EXPORT, _add_export, _export),
    ("export-tflite", "checkpoint -> detect.tflite", _EXPORT_TFLITE, _add_export_tflite, _export_tflite),
    ("score", "metrics, size and latency of a .tflite or .pb", _SCORE, _add_score, _score),
    ("nodes", "inputs and outputs of a graph or a .tflite", _NODES, _add_nodes, _nodes),
    ("patch", "put od_qat into an OD API tree of yours", _PATCH, _add_patch, _patch),
    ("unpatch", "take it out again, to the byte", _UNPATCH, _add_tree, _unpatch),
    ("run", "a command of the OD API or a script of yours, as it is", _RUN, _add_run, _run),
)


def _subparser(subparsers: Any, name: str, help_text: str, description: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=help_text, description=description)
    # Not set by default: the value given before the subcommand would be overwritten.
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; parsed arguments carry their handler as `handler`."""
    parser = _Parser(prog="od-qat", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version="od-qat " + od_qat.__version__)
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    subparsers.required = True
    for name, help_text, description, add_arguments, handler in _COMMANDS:
        subparser = _subparser(subparsers, name, help_text, description)
        add_arguments(subparser)
        subparser.set_defaults(handler=handler)
    return parser


def _split_program(argv: Sequence[str]) -> Tuple[List[str], List[str]]:
    """`run MODULE -- --flag=a-b` -> what is for od-qat, and what is for the program and stays as it is."""
    argv = list(argv)
    words = [position for position, argument in enumerate(argv) if not argument.startswith("-")]
    if not words or argv[words[0]] != "run" or len(words) < 2:
        return argv, []
    end = words[1] + 1
    program = argv[end:]
    return argv[:end], program[1:] if program[:1] == ["--"] else program


def _with_underscores(argv: Iterable[str]) -> List[str]:
    """--train-dir=a-b -> --train_dir=a-b: both spellings of a flag are accepted."""
    result = []
    for argument in argv:
        if argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument[2:].partition("=")
            argument = "--" + name.replace("-", "_") + equals + value
        result.append(argument)
    return result


def _require_file(path: str, what: str) -> None:
    """Before TensorFlow is imported, so that a wrong path is answered at once (not of gs:// and the like)."""
    if "://" not in path and not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "no such file"
        raise ConfigError("cannot read the {}".format(what), where=path, found=found, fix="correct the path")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command line.

    Args:
      argv: arguments; default is the process's own.

    Returns:
      the exit status. argparse's own SystemExit (help, usage errors) is turned into one, too.
    """
    argv, program_arguments = _split_program(sys.argv[1:] if argv is None else argv)
    try:
        arguments = build_parser().parse_args(_with_underscores(argv))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    arguments.program_arguments = program_arguments
    if arguments.debug:
        os.environ.setdefault("OD_QAT_DEBUG", "1")
    try:
        status = arguments.handler(arguments)
        sys.stdout.flush()  # here, so that a reader who has gone is noticed below
        return status
    except SystemExit as end:  # of a training that SIGTERM has ended
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        print("od-qat: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`od-qat ... | head`). Python would complain at exit, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  (the one place where everything ends up)
        if arguments.debug:
            traceback.print_exc()
        print("od-qat: error: " + describe_error(error, arguments.debug), file=sys.stderr)
        return 1


def describe_error(error: BaseException, debug: bool = False) -> str:
    """One line about an error: what it is and what to do."""
    if isinstance(error, OdQatError):
        return _one_line(str(error))
    known = _known_error(error)
    if known is not None:
        return _one_line(known)
    hint = "" if debug else "; run again with --debug for the traceback"
    return "{}: {}{}".format(type(error).__name__, _one_line(str(error), 300) or "no message", hint)


def _known_error(error: BaseException) -> Optional[str]:
    """What TensorFlow and the system call it -> what it means here. None for everything else."""
    message = _one_line(str(error), 300)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full: at {}. Fix: free space there and run again".format(
            error.filename or "the output"
        )
    if isinstance(error, MemoryError):
        return "out of memory. Fix: lower train_config.batch_size or the input size, or close other programs"
    if isinstance(error, ModuleNotFoundError):
        return (
            "the package {} is not installed. Fix: make setup (od-qat doctor lists what is missing)".format(
                (error.name or "?").split(".")[0]
            )
        )
    if isinstance(error, OSError) and error.filename and error.strerror:
        return "{}: at {}. Fix: correct the path or its permissions".format(
            error.strerror.lower(), error.filename
        )
    name = _tensorflow_error_name(error)
    explained = {
        "NotFoundError": (
            "a file or a variable of the checkpoint was not found",
            "check the paths of the config",
        ),
        "DataLossError": (
            "a checkpoint or record file is damaged",
            "use another checkpoint, or make it again",
        ),
        "PermissionDeniedError": ("a file cannot be read or written", "correct its permissions"),
    }
    if name == "ResourceExhaustedError":
        # (The whole text is looked at: since TensorFlow 2.12 it begins with where the op was made.)
        if os.strerror(errno.ENOSPC) in str(error):
            return "the disk is full: {}. Fix: free space and run again".format(message)
        return "out of memory: {}. Fix: lower train_config.batch_size or the input size".format(message)
    if name in explained:
        what, fix = explained[name]
        return "{}: {}. Fix: {}".format(what, message, fix)
    return None


def _tensorflow_error_name(error: BaseException) -> Optional[str]:
    """Name of the tf.errors class, by its module: TensorFlow need not be imported to ask."""
    for kind in type(error).__mro__:
        if kind.__module__.startswith("tensorflow.") and kind.__name__.endswith("Error"):
            return kind.__name__
    return None


def _one_line(text: str, limit: Optional[int] = None) -> str:
    line = " ".join(text.split())
    return line if limit is None or len(line) <= limit else line[: limit - 3] + "..."
