"""`od-qat data`: converts images and boxes to records and a label map."""

import argparse

from od_qat.cli import flags

NAME = "data"
HELP = "convert images and boxes to records and a label map"
DESCRIPTION = """\
Converts images and boxes to train.record, val.record, label_map.pbtxt and dataset.json.

Example:

  od-qat data builtin --output_dir=out/data

Next: od-qat train, with these files in the config's input readers."""

_DATA_BUILTIN = """\
Makes a small data set, handwritten digits on photographs, in seconds. It downloads nothing.

Example:

  od-qat data builtin --output_dir=out/data

Next: od-qat train, with these files in the config's input readers."""

_DATA_VOC = """\
Converts a folder in PASCAL VOC layout.

Example:

  od-qat data voc VOCdevkit/VOC2012 --output_dir=out/data --train_list=train --val_list=val

Next: od-qat train, with these files in the config's input readers."""

_DATA_COCO = """\
Converts COCO annotations. The categories keep their ids. COCO's 80 categories have ids up to 90, and configs
of published detectors say num_classes: 90.

Example:

  od-qat data coco --train_images=train2017 --train_annotations=annotations/instances_train2017.json \\
      --val_images=val2017 --val_annotations=annotations/instances_val2017.json --output_dir=out/data

Next: od-qat train, with these files in the config's input readers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    kinds = parser.add_subparsers(dest="kind", metavar="{builtin,voc,coco}")
    kinds.required = True  # as a parameter only from Python 3.7.1 on
    builtin = flags.subparser(kinds, "builtin", "make digits on photographs", _DATA_BUILTIN)
    builtin.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the pictures (default 0)")
    builtin.add_argument("--train_images", type=flags.positive, metavar="N", help="number of training images")
    builtin.add_argument("--val_images", type=flags.positive, metavar="N", help="number of validation images")
    voc = flags.subparser(kinds, "voc", "convert a folder in PASCAL VOC layout", _DATA_VOC)
    voc.add_argument(
        "folder", metavar="FOLDER", help="the folder with JPEGImages, Annotations and ImageSets/Main"
    )
    voc.add_argument(
        "--train_list",
        default="train",
        metavar="NAME",
        help="the list in ImageSets/Main to train on (default train)",
    )
    voc.add_argument(
        "--val_list",
        default="val",
        metavar="NAME",
        help="the list in ImageSets/Main to validate on (default val)",
    )
    voc.add_argument("--label_map", metavar="FILE", help="take the classes and ids from this label map")
    coco = flags.subparser(kinds, "coco", "convert COCO annotations and their images", _DATA_COCO)
    for part, purpose in (("train", "to train on"), ("val", "to validate on")):
        coco.add_argument(
            "--{}_images".format(part), required=True, metavar="FOLDER", help="images " + purpose
        )
        coco.add_argument(
            "--{}_annotations".format(part), required=True, metavar="FILE", help="their annotations, as JSON"
        )
    flags.switch(
        coco, "--include_crowd", "train on boxes around crowds too; the validation records always have them"
    )
    flags.switch(
        coco,
        "--renumber_categories",
        "number the categories from 1 without gaps. Without this flag they keep their ids, as published COCO "
        "detectors have them, and num_classes is the highest id",
    )
    for kind in (voc, coco):
        flags.add_skip_invalid(kind)
    for kind in (builtin, voc, coco):
        kind.add_argument(
            "--output_dir", required=True, metavar="DIR", help="folder for the records and the label map"
        )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
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
