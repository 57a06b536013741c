"""`od-qat export-tflite`: converts a checkpoint to detect.tflite."""

import argparse

from od_qat.cli import flags, kinds

NAME = "export-tflite"
HELP = "convert a checkpoint to detect.tflite"
DESCRIPTION = """\
Converts a QAT checkpoint to detect.tflite, that of a classifier to classifier.tflite, and checks that it is
fully quantized before it is written.

Example:

  od-qat export-tflite --pipeline_config_path=out/qat/pipeline.config \\
      --trained_checkpoint_prefix=out/qat --output_directory=out/tflite

With --ptq it quantizes a float checkpoint without training. Compare QAT with that.
It says which score threshold the .tflite has. Those of published configs cost time and change no mAP.
Next: od-qat score."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    flags.add_checkpoint_and_output(parser)
    parser.add_argument(
        "--inference_type",
        choices=["int8", "uint8"],
        default="int8",
        help="int8 (the default) for CPUs, where it is twice as fast; uint8 for devices that ask for it",
    )
    parser.add_argument(
        "--input_type",
        choices=["uint8", "int8"],
        default="uint8",
        help="type of the image: uint8, pixels as cameras give them (the default); int8, pixels less 128, "
        "for an int8 network",
    )
    flags.switch(
        parser, "--fast_nms", "use TFLite's fast suppression instead of the config's own; it lowers the mAP"
    )
    parser.add_argument(
        "--score_threshold",
        type=flags.threshold,
        metavar="T",
        help="leave out detections that score less than T. The default is 0.05, or the config's own "
        "threshold if that is higher, or a tenth of the best scores if those are low. 'config' takes the "
        "config's own, which can be slow",
    )
    parser.add_argument(
        "--max_detections",
        type=flags.positive,
        metavar="N",
        help="report at most N detections (default: the config's max_total_detections)",
    )
    flags.switch(
        parser, "--ptq", "quantize a float checkpoint without training, calibrated on training images"
    )
    flags.switch(
        parser,
        "--metadata",
        "put TFLite's metadata and the labels into the .tflite, for task libraries (MediaPipe's), and write "
        "labels.txt beside it",
    )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    flags.require_file(arguments.pipeline_config_path, "pipeline config")
    commands = kinds.commands_for(arguments.pipeline_config_path)
    options = dict(
        inference_type=arguments.inference_type,
        overrides=arguments.override,
        ptq=arguments.ptq,
        input_type=arguments.input_type,
        metadata=arguments.metadata,
    )
    of_detections = dict(
        fast_nms=arguments.fast_nms,
        max_detections=arguments.max_detections,
        score_threshold=arguments.score_threshold,
    )
    if kinds.is_of_classifiers(commands):
        given = {"--" + name: value for name, value in of_detections.items()}
        kinds.refuse(given, "a classifier has no detections")
    else:
        options.update(of_detections)
    path = commands.export_tflite(
        arguments.pipeline_config_path,
        arguments.trained_checkpoint_prefix,
        arguments.output_directory,
        **options,
    )
    print(path)
    return 0
