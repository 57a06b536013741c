"""Chooses the score threshold of TFLite_Detection_PostProcess, and says why.

The op suppresses overlapping boxes class by class, as the OD API does. Its candidates are the boxes that
score at least the threshold in a class. It sorts them and compares each with those that it keeps, so its time
grows with their number. The 1e-8 of published configs makes nearly every anchor a candidate in every class.
(A quantized score is a multiple of 1/256, so a threshold up to that leaves out the zeros and nothing else.)

A higher threshold changes no detection that scores above it, since only a better box suppresses another. It
leaves out the end of the list, which `max_detections` cuts anyway. `LARGEST` is the usual threshold for
scoring a detector. On the detectors of benchmarks/nms.py it costs no accuracy, since the best 100 boxes of a
picture score more.

mAP depends only on the order of the scores. Some detectors have low scores, because of their loss or early in
training. They need a lower threshold: at most a tenth of what the best box of a picture scores. That is
measured on images of the config, if they are there.
"""

import math
from typing import Iterable, List, NamedTuple, Sequence, Union

import numpy as np

from od_qat.compat import tf
from od_qat.errors import ConfigError, DataError
from od_qat.graph import session_config
from od_qat.model_files import tflite_file

LARGEST = 0.05
OF_BEST_SCORE = 0.1
# Number of images to look at. Only the median of their best scores is needed.
IMAGES = 16
# The value of --score_threshold that is not a number.
OF_CONFIG = "config"


def warning_of_threads(regular: bool, num_classes: int) -> str:
    """What a user of a .tflite has to know of LiteRT's threads; empty if all is well with them."""
    options = {"use_regular_nms": regular, "num_classes": num_classes}
    if tflite_file.class_lost_to_threads(options, threads=2) is None:
        return ""
    return (
        "warning: with several threads LiteRT detects no object of one class, with 2 threads of that of "
        "index 2 (label map id 3), with 4 of that of index 4 (tensorflow issue 56058). Fix: run the .tflite "
        "with one thread, or export it with the fast suppression (--fast_nms, --ssd_use_regular_nms=false)"
    )


class Threshold(NamedTuple):
    """A score threshold and its origin.

    Attributes:
      value: detections that score less are not reported.
      of_config: the config's own threshold.
      reason: where the value comes from, as a clause of a message.
    """

    value: float
    of_config: float
    reason: str

    def __str__(self) -> str:
        text = "score threshold {:.3g} ({}".format(self.value, self.reason)
        if not self.value > self.of_config:
            return text + ")"
        text += (
            "; the config's own is {:.3g}): detections that score less are left out of the .tflite".format(
                self.of_config
            )
        )
        if self.value <= LARGEST:
            text += (
                ". On three detectors fewer than 1 in 10,000 of those was right, and no mAP changed by 0.1 "
                "points; keeping them took 1.3 to 9 times as long"
            )
        return text + " (--score_threshold={} keeps them)".format(OF_CONFIG)


def require_threshold(asked: Union[float, str, None]) -> None:
    """Raises ConfigError unless `asked` is a score threshold.

    Args:
      asked: a number, 0 <= asked < 1; 'config' for the config's own; None for the rule above.

    Raises:
      ConfigError: if it is something else.
    """
    if asked is None or asked == OF_CONFIG:
        return
    # (The comparison is False for NaN too.)
    if not isinstance(asked, (int, float)) or isinstance(asked, bool) or not 0.0 <= asked < 1.0:
        raise ConfigError(
            "no score threshold",
            where="--score_threshold",
            found=str(asked),
            allowed="a number, 0 <= t < 1, or {} for the config's own".format(OF_CONFIG),
        )


def choose(
    of_config: float, asked: Union[float, str, None] = None, best_scores: Sequence[float] = ()
) -> Threshold:
    """Chooses the threshold for a .tflite.

    Args:
      of_config: the config's own threshold.
      asked: what the user asked for, as in require_threshold.
      best_scores: the scores of the best boxes of some images.

    Raises:
      ConfigError: if `asked` is no threshold.
    """
    require_threshold(asked)
    if asked == OF_CONFIG:
        return Threshold(of_config, of_config, "the config's own")
    if asked is not None:
        return Threshold(float(asked), of_config, "as asked for")
    if of_config >= LARGEST:
        return Threshold(of_config, of_config, "the config's own")
    if not best_scores:
        return Threshold(LARGEST, of_config, "the default; no image of the config is here to compare with")
    best = float(np.median(best_scores))
    if OF_BEST_SCORE * best >= LARGEST:
        return Threshold(LARGEST, of_config, "the default")
    low = max(OF_BEST_SCORE * best, of_config) if math.isfinite(best) else of_config
    return Threshold(
        low,
        of_config,
        "lower than the default of {:g}, as this detector's scores are low: the best of a picture is {:.2g}, "
        "median of {} images".format(LARGEST, best, len(best_scores)),
    )


def best_scores(heads, input_name: str, scores: str, images: Iterable[np.ndarray]) -> List[float]:
    """The score of the best box of each image, up to the first image that cannot be read.

    (An unreadable image is no error, since an export of trained ranges needs no images.)

    Args:
      heads: frozen GraphDef of the raw heads.
      input_name: op name of its input.
      scores: op name of the scores [1, anchors, classes + 1], background first.
      images: float32 [1, height, width, 3], normalised.
    """
    with tf.Graph().as_default(), tf.Session(config=session_config.for_many_runs()) as session:
        (best,) = tf.import_graph_def(heads, return_elements=[scores + ":0"], name="")
        best = tf.reduce_max(best[:, :, 1:])
        found = []
        try:
            for image in images:
                found.append(float(session.run(best, {input_name + ":0": image})))
        except (DataError, tf.errors.OpError):
            pass
        return found
