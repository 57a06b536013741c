"""`od-qat detect`: runs a model on pictures, draws what it finds, and writes it as JSON or CSV."""

import argparse
import sys
from typing import Any, Dict

from od_qat.cli import flags
from od_qat.errors import ConfigError, DataError, ExportError

NAME = "detect"
HELP = "run a .tflite or .pb on pictures and draw what it finds"
DESCRIPTION = """\
Runs a .tflite or a frozen .pb on pictures, or on all pictures of a folder (the frames of a video, for
example), prints what it finds, and draws it. Of a classifier it prints the best class.

Example:

  od-qat detect out/tflite/detect.tflite photos --label_map=out/data/label_map.pbtxt --output_dir=out/detected

Next: od-qat score, on records with the right boxes, says how good that is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    parser.add_argument("model", metavar="MODEL", help="a .tflite or a frozen .pb")
    parser.add_argument("pictures", metavar="PICTURE", nargs="+", help="a JPEG or PNG, or a folder of these")
    parser.add_argument(
        "--label_map",
        metavar="FILE",
        help="the label map, for the names of the classes; by default those in the metadata of a .tflite",
    )
    parser.add_argument("--output_dir", metavar="DIR", help="draw into this folder, as PNG")
    parser.add_argument(
        "--min_score",
        type=float,
        default=0.5,
        metavar="X",
        help="leave out detections that score less (default 0.5)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write what is shown to this file, as JSON")
    parser.add_argument("--csv", metavar="FILE", help="also write what is shown to this file, as CSV")
    parser.add_argument("--processes", type=flags.positive, metavar="N", help="default: one for each core")


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    from od_qat import files
    from od_qat.datasets import label_map
    from od_qat.model_files import description
    from od_qat.report import found_in_pictures
    from od_qat.scoring import workers

    flags.require_file(arguments.model, "model")
    if not 0.0 <= arguments.min_score <= 1.0:
        raise ConfigError(
            "a score is from 0 to 1",
            where="--min_score",
            found=str(arguments.min_score),
            allowed="a number, 0 to 1",
        )
    paths = found_in_pictures.paths_of(arguments.pictures)
    described = description.describe_model(arguments.model)
    names = label_map.read_label_map(arguments.label_map) if arguments.label_map else {}
    if described.is_classifier:
        names = dict(enumerate(described.labels, described.class_id_offset)) or names
    if not names and described.is_tflite:
        names = _labels_of(described)
    places = {}
    if arguments.output_dir:
        files.require_folder_possible(arguments.output_dir)
        places = found_in_pictures.places_of(paths, arguments.output_dir)
    left_out = []

    def leave_out(path: str, error: DataError) -> None:
        left_out.append(path)
        print("warning: {}".format(error), file=sys.stderr)

    with workers.Pool(described) as pool:
        photographs = (found_in_pictures.Photograph.read(path) for path in paths)
        results = pool.detect(
            photographs, len(paths), arguments.processes, True, leave_out if len(paths) > 1 else None
        )
    found = [
        found_in_pictures.found(described, path, result, names, arguments.min_score)
        for path, result in results.items()
    ]
    for picture in found:
        print(picture.as_text())
    if arguments.json:
        files.write_json(arguments.json, [picture.as_json() for picture in found])
    if arguments.csv:
        files.write_atomically(arguments.csv, found_in_pictures.as_csv(found))
    if arguments.output_dir:
        for picture in found:
            found_in_pictures.draw(picture, places[picture.path])
            print("drew {}".format(places[picture.path]))
    if left_out:
        print("od-qat: {} of {} pictures cannot be read".format(len(left_out), len(paths)), file=sys.stderr)
    return 1 if left_out else 0


def _labels_of(described: Any) -> Dict[int, str]:
    """Class id -> label, from the metadata of a .tflite; a warning where that is damaged."""
    from od_qat.model_files import tflite_metadata

    try:
        labels = tflite_metadata.read(described.path).labels
    except ExportError as error:
        print("warning: classes are shown by number: {}".format(error), file=sys.stderr)
        labels = ()
    return dict(enumerate(labels, described.class_id_offset))
