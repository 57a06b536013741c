"""`od-qat export-tflite`: checkpoint -> detect.tflite."""

import argparse

from od_qat.cli import flags

NAME = "export-tflite"
HELP = "checkpoint -> detect.tflite"
DESCRIPTION = """\
Writes detect.tflite: a fully quantized model from a QAT checkpoint, checked before it is written.

Example:

  od-qat export-tflite --pipeline_config_path=out/qat/pipeline.config \\
      --trained_checkpoint_prefix=out/qat --output_directory=out/tflite

With --ptq, a float checkpoint is quantized without training, which is what QAT is compared with.
It says which score threshold the .tflite has; published configs have one that costs time and changes no mAP.
Next: od-qat score."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    flags.add_checkpoint_and_output(parser)
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
    flags.switch(parser, "--fast_nms", "TFLite's fast NMS instead of the config's own: quicker, lower mAP")
    parser.add_argument(
        "--score_threshold",
        type=flags.threshold,
        metavar="T",
        help="leave out detections that score less; default: 0.05 (a tenth of the best scores where they are "
        "low; the config's own if higher); 'config' takes the config's own, which can be slow",
    )
    parser.add_argument(
        "--max_detections",
        type=flags.positive,
        metavar="N",
        help="default: max_total_detections of the config",
    )
    flags.switch(
        parser, "--ptq", "post-training quantization of a float checkpoint, calibrated on training images"
    )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    flags.require_file(arguments.pipeline_config_path, "pipeline config")
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
