"""What the score threshold of a .tflite's non-maximum suppression costs: mAP and time, detector by detector.

    python benchmarks/nms.py --detector NAME detect.tflite val.record label_map.pbtxt [--detector ...]
        [--thresholds 0.02 0.05 0.1] [--max_images 128] [--rounds 5] [--json FILE]

Takes .tflite files that `od-qat export-tflite` wrote (`od-qat demo` leaves two). Each is run with the
config's own suppression at the config's own threshold, with higher thresholds, and with TFLite's fast
suppression as upstream's export script has it (10 detections); only the options of the op change, so that
all have one network. For each picture the variants take turns, A B A B, on one thread; a picture's time is
the median of its rounds, network included, and a detector's the median and the mean of its pictures. The
last table says how many detections a threshold leaves out that `max_detections` would not (of 1000 in a
picture), and how many of them are right (an object of their class, not found by a better one, with an
overlap of 0.5).
"""

import argparse
import itertools
import json
import os
import shutil
import tempfile
import time
from typing import Any, Dict, List

import numpy as np

FAST = "fast, 10 detections"
OWN = "config's own"


def with_options(model: bytes, options: Dict[str, Any]) -> bytes:
    """The same .tflite with other options of TFLite_Detection_PostProcess."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import flexbuffers

    content = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(bytearray(model), 0))
    (operation,) = [
        operation
        for operation in content.subgraphs[0].operators
        if content.operatorCodes[operation.opcodeIndex].customCode == b"TFLite_Detection_PostProcess"
    ]
    # (Floats of four bytes, which the op's kernel expects.)
    builder = flexbuffers.Builder()
    with builder.Map():
        changed = dict(flexbuffers.Loads(bytes(bytearray(operation.customOptions))), **options)
        for key, value in sorted(changed.items()):
            builder.Key(key)
            if isinstance(value, bool):
                builder.Bool(value)
            elif isinstance(value, int):
                builder.Int(value)
            else:
                builder.Float(value, 4)
    operation.customOptions = np.frombuffer(bytes(builder.Finish()), np.uint8)
    builder = flatbuffers.Builder(len(model))
    builder.Finish(content.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def variants(path: str, thresholds: List[float], folder: str) -> Dict[str, Any]:
    """Name -> runner of a variant of the .tflite, on one thread; the first is the reference."""
    from od_qat import scoring
    from od_qat.scoring import runners

    with open(os.path.splitext(path)[0] + ".json") as stream:
        nms = json.load(stream)["nms"]
    own = {
        "use_regular_nms": True,
        "nms_score_threshold": nms["score_threshold_of_config"],
        "max_detections": nms["max_detections"],
    }
    wanted = {
        OWN: own,
        FAST: dict(own, use_regular_nms=False, max_detections=10),
        "fast": dict(own, use_regular_nms=False),
    }
    for threshold in thresholds:
        wanted["{:g}".format(threshold)] = dict(own, nms_score_threshold=threshold)
    wanted["all"] = dict(own, max_detections=1000, detections_per_class=1000)
    with open(path, "rb") as stream:
        model = stream.read()
    opened = {}
    for number, (name, options) in enumerate(wanted.items()):
        file_name = os.path.join(folder, "{}.tflite".format(number))
        with open(file_name, "wb") as stream:
            stream.write(with_options(model, options))
        shutil.copy(os.path.splitext(path)[0] + ".json", os.path.splitext(file_name)[0] + ".json")
        opened[name] = runners.open_runner(scoring.describe_model(file_name), threads=1)
    return opened


def right(detections, example) -> np.ndarray:
    """Which detections find an object that no better one has found; bool [N]."""
    from od_qat.scoring.matching import iou_matrix

    found, result = set(), np.zeros(len(detections.scores), bool)
    overlaps = iou_matrix(detections.boxes, example.boxes)
    for row in np.argsort(-detections.scores, kind="stable"):
        for column in np.argsort(-overlaps[row]):
            if overlaps[row, column] < 0.5:
                break
            if column not in found and example.classes[column] == detections.classes[row]:
                found.add(column)
                result[row] = True
                break
    return result


def measure(path: str, record: str, label_map_path: str, arguments) -> Dict[str, Any]:
    """mAP and times of every variant, and what the thresholds leave out."""
    from od_qat import scoring
    from od_qat.datasets import label_map, records
    from od_qat.scoring import images

    names = label_map.read_label_map(label_map_path)
    examples = list(itertools.islice(records.read_examples(record), arguments.max_images))
    with tempfile.TemporaryDirectory() as folder:
        runners = variants(path, arguments.thresholds, folder)
        found = {name: {} for name in runners}
        times = {name: [] for name in runners if name != "all"}
        below = {threshold: [] for threshold in arguments.thresholds}
        for example in examples:
            value = runners[OWN].prepare(images.decode(example.encoded, str(example.image_id)))
            for name, runner in runners.items():
                found[name][example.image_id] = runner.detections(runner.run(value))
            every = found["all"][example.image_id]
            is_right = right(every, example)
            for threshold in arguments.thresholds:
                below[threshold].extend(is_right[every.scores < threshold])
            of_picture = {name: [] for name in times}
            for _ in range(arguments.rounds):
                for name in times:
                    start = time.perf_counter()
                    runners[name].run(value)
                    of_picture[name].append(time.perf_counter() - start)
            for name in times:
                times[name].append(1000.0 * float(np.median(of_picture[name])))
    rows = [
        {
            "suppression": name,
            "map": 100.0 * scoring.coco_metrics(examples, found[name], names).map,
            "median_ms": float(np.median(times[name])),
            "mean_ms": float(np.mean(times[name])),
        }
        for name in times
    ]
    left_out = {
        "{:g}".format(threshold): {
            "for_each_picture": len(of_all) / float(len(examples)),
            "right": float(np.mean(of_all)) if of_all else None,
        }
        for threshold, of_all in below.items()
    }
    return {"images": len(examples), "rows": rows, "left_out": left_out}


def show(name: str, result: Dict[str, Any]) -> None:
    rows = {row["suppression"]: row for row in result["rows"]}
    print("\n{}, {} images".format(name, result["images"]))
    print(
        "{:20} {:>6} {:>6}  {:>9} {:>7}  {:>7} {:>7}".format(
            "", "mAP", "", "median", "/ fast", "mean", "/ fast"
        )
    )
    for row in result["rows"]:
        print(
            "{:20} {:6.2f} {:+6.2f}  {:6.2f} ms {:7.2f}  {:7.2f} {:7.2f}".format(
                row["suppression"],
                row["map"],
                row["map"] - rows[OWN]["map"],
                row["median_ms"],
                row["median_ms"] / rows[FAST]["median_ms"],
                row["mean_ms"],
                row["mean_ms"] / rows[FAST]["mean_ms"],
            )
        )
    for threshold, of_all in result["left_out"].items():
        share = "none" if of_all["right"] is None else "{:.2f} % right".format(100.0 * of_all["right"])
        print("below {}: {:.0f} in a picture, {}".format(threshold, of_all["for_each_picture"], share))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--detector",
        nargs=4,
        action="append",
        required=True,
        metavar=("NAME", "MODEL", "RECORD", "LABEL_MAP"),
    )
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2])
    parser.add_argument("--max_images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write all figures there, too")
    arguments = parser.parse_args()

    results = {}
    for name, model, record, label_map_path in arguments.detector:
        results[name] = measure(model, record, label_map_path, arguments)
        show(name, results[name])
    if arguments.json:
        from od_qat.files import write_json

        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
