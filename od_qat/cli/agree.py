"""`od-qat agree`: how far the detections of two models agree, and where they do not."""

import argparse
import os
from typing import Any, List

from od_qat.cli import flags, measured

NAME = "agree"
HELP = "show where the detections of two models differ"
DESCRIPTION = """\
Runs two models on the same records, matches their detections one to one, and prints which share agrees, by
how much scores and boxes of the others differ, what only one of them finds, and where they differ most.
Of two classifiers it compares the classes that they find; --record may then be a folder of folders.

Example:

  od-qat agree out/qat/eval/frozen_eval_graph.pb out/tflite/detect.tflite \\
      --record=out/data/val.record --label_map=out/data/label_map.pbtxt --pictures=out/agree

Next: look at the pictures. Boxes of the same object with nearly the same score are what quantization changes
first: the suppression of overlapping boxes then keeps another one of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    parser.add_argument("a", metavar="A", help="a .tflite or a frozen .pb")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument(
        "--record", required=True, metavar="FILE", help="the records; for shards a pattern, 'val.record-*'"
    )
    parser.add_argument("--label_map", metavar="FILE", help="their label map, for the names in the pictures")
    parser.add_argument(
        "--iou", type=_share, default=0.9, metavar="X", help="least overlap of a match (default 0.9)"
    )
    parser.add_argument(
        "--score_tolerance",
        type=_share,
        default=0.1,
        metavar="X",
        help="greatest difference of the scores of a match (default 0.1)",
    )
    parser.add_argument(
        "--min_score", type=_share, default=0.3, metavar="X", help="count detections from this score on (0.3)"
    )
    parser.add_argument("--max_images", type=flags.positive, metavar="N", help="run on the first N images")
    parser.add_argument("--processes", type=flags.positive, metavar="N", help="default: one for each core")
    parser.add_argument(
        "--worst", type=flags.positive, default=10, metavar="N", help="how many images to show (default 10)"
    )
    parser.add_argument("--pictures", metavar="DIR", help="draw these images into this folder")
    parser.add_argument("--json", metavar="FILE", help="also write all images to this file, as JSON")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError("found {!r}, allowed: a number, 0 to 1".format(text))
    return value


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    if measured.require_one_kind([arguments.a, arguments.b]):
        return _handle_classifiers(arguments)
    from od_qat import files, scoring
    from od_qat.datasets import label_map, records
    from od_qat.report import before_suppression, disagreement

    if not records.is_pattern(arguments.record):
        flags.require_file(arguments.record, "record file")
    names = label_map.read_label_map(arguments.label_map) if arguments.label_map else {}
    found = [
        scoring.detect(
            path,
            records.read_examples(arguments.record),
            processes=arguments.processes,
            max_images=arguments.max_images,
        )
        for path in (arguments.a, arguments.b)
    ]
    result = disagreement.disagreement(
        found[0], found[1], arguments.iou, arguments.score_tolerance, arguments.min_score
    )
    differing = [image.image_id for image in result.images if image.alone]
    looked_at = set(differing[: before_suppression.MOST_IMAGES])
    shares = before_suppression.shares(
        result,
        {"a": arguments.a, "b": arguments.b},
        {
            example.image_id: example
            for example in records.read_examples(arguments.record)
            if example.image_id in looked_at
        },
        arguments.iou,
        arguments.score_tolerance,
    )
    if arguments.json:
        content = disagreement.as_json(result)
        content["before_suppression"] = None if shares is None else shares._asdict()
        files.write_json(arguments.json, content)
    print("A  {}\nB  {}\n".format(arguments.a, arguments.b))
    print(disagreement.as_text(result, arguments.worst))
    if shares is not None:
        print("\n" + shares.as_text())
    if arguments.pictures:
        _draw(arguments, names, found, differing)
    return 0


def _handle_classifiers(arguments: argparse.Namespace) -> int:
    measured.require_label_map(arguments.label_map, classifies=True)
    from od_qat import files
    from od_qat.report import class_disagreement

    measure = measured.open_measure(arguments.a, arguments.record, None, arguments.max_images)
    found = [measure.run(path, arguments.processes) for path in (arguments.a, arguments.b)]
    result = class_disagreement.compare(*found, measure.examples)
    if arguments.json:
        files.write_json(arguments.json, class_disagreement.as_json(result))
    print("A  {}\nB  {}\n".format(arguments.a, arguments.b))
    print(class_disagreement.as_text(result, measure.names, arguments.worst))
    if arguments.pictures:
        _write(arguments, measure, [image.image_id for image in result.images])
    return 0


def _write(arguments: argparse.Namespace, measure: Any, order: List[str]) -> None:
    """Writes the first images of the order as they are, named by their place in it."""
    from od_qat import files
    from od_qat.report import pictures

    by_id = measure.images.by_id(order[: arguments.worst])
    for place, image_id in enumerate(order[: arguments.worst], 1):
        name = "{:03}-{}".format(place, pictures.file_name(image_id, set()))
        encoded = pictures.drawn(by_id[image_id].encoded, image_id, [])
        files.write_atomically(os.path.join(arguments.pictures, name), encoded)
    _say_pictures(arguments, len(order))


def _say_pictures(arguments: argparse.Namespace, count: int) -> None:
    if not count:
        print("no image differs, so none is drawn")
    else:
        print("pictures of the first {}: {}".format(min(count, arguments.worst), arguments.pictures))


def _draw(arguments: argparse.Namespace, names, found, order) -> None:
    """Draws the first images of the order, named by their place in it."""
    from od_qat.datasets import records
    from od_qat.report import pictures

    wanted = {image_id: place for place, image_id in enumerate(order[: arguments.worst], 1)}
    for example in records.read_examples(arguments.record):
        if example.image_id not in wanted:
            continue
        place = wanted.pop(example.image_id)
        name = "{:03}-{}".format(place, pictures.file_name(example.image_id, set()))
        pictures.side_by_side(
            [example],
            {"A": found[0], "B": found[1]},
            names,
            os.path.join(arguments.pictures, name),
            arguments.min_score,
        )
        if not wanted:
            break
    _say_pictures(arguments, len(order))
