"""Runs a .tflite with MediaPipe's task library, in an environment of its own.

    python tests/helpers/mediapipe_tasks.py detector|classifier MODEL PICTURE.npy ...

prints a JSON list: for each picture a list of [label, score], of a detector with left, top, width and height.
"""

import json
import os
import subprocess
import sys

import numpy as np

# A Python with mediapipe; `make test-all` has one.
PYTHON = os.environ.get("OD_QAT_MEDIAPIPE")
MISSING = "OD_QAT_MEDIAPIPE names no Python with mediapipe"


def run_task(task, model, pictures, folder):
    """What the library finds in pictures, uint8 [height, width, 3]; folder is for files between."""
    paths = []
    for number, picture in enumerate(pictures):
        paths.append(str(folder / "{}.npy".format(number)))
        np.save(paths[-1], picture)
    command = [PYTHON, os.path.abspath(__file__), task, model] + paths
    return json.loads(subprocess.check_output(command).decode("utf-8"))


def main(task, model, *pictures):
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    base = BaseOptions(model_asset_path=model)
    if task == "detector":
        options = vision.ObjectDetectorOptions(base_options=base, max_results=-1)
        made = vision.ObjectDetector.create_from_options(options)
    else:
        made = vision.ImageClassifier.create_from_options(vision.ImageClassifierOptions(base_options=base))
    found = []
    for path in pictures:
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.load(path))
        if task == "detector":
            rows = [_of_detection(one) for one in made.detect(image).detections]
        else:
            (of_head,) = made.classify(image).classifications
            rows = [[one.category_name, one.score] for one in of_head.categories]
        found.append(rows)
    made.close()
    print(json.dumps(found))


def _of_detection(one):
    box, category = one.bounding_box, one.categories[0]
    return [category.category_name, category.score, box.origin_x, box.origin_y, box.width, box.height]


if __name__ == "__main__":
    main(*sys.argv[1:])
