"""Runs a model on many images, in several processes. (model_process says why the model needs its own.)

A process that scores a .tflite imports this package, numpy, Pillow and LiteRT, and no TensorFlow, so it
starts in a fraction of a second.
"""

import atexit
import collections
import itertools
import os
import sys
from multiprocessing.connection import wait
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sized, Tuple

import numpy as np

from od_qat.errors import ConfigError, DataError, OdQatError
from od_qat.model_files import tflite_file
from od_qat.model_files.description import ModelDescription, describe_model
from od_qat.scoring.model_process import TIME_LIMIT, ModelProcess, require_time_limit
from od_qat.scoring.runners import Detections

# With fewer images for each process, starting another one takes longer than it saves, unless the caller says
# how many to start. A process that imports TensorFlow takes seconds.
_WORTH_A_PROCESS = 4
_WORTH_TFLITE_PROCESS = 16
_WORTH_TENSORFLOW_PROCESS = 64

# Each process has the image that it works on, and the next one.
_IMAGES_AHEAD = 2
_OPENING = object()

_Image = Tuple[Any, bytes]


def detect(
    model_path: str,
    examples: Iterable[Any],
    processes: Optional[int] = None,
    threads: int = 1,
    max_images: Optional[int] = None,
    progress: bool = True,
    mean: Optional[float] = None,
    std: Optional[float] = None,
    class_id_offset: Optional[int] = None,
    time_limit: float = TIME_LIMIT,
) -> Dict[Any, Detections]:
    """Runs a model over images.

    Args:
      model_path: a .tflite with TFLite_Detection_PostProcess, or a frozen GraphDef (.pb); the JSON beside it
        says how to feed it, see description.describe_model for what is assumed without.
      examples: an iterable of datasets.records.Example; only image_id and encoded are read, and not more
        than a few images at once.
      processes: by default one for each core, and fewer for few images. The model never runs in the caller.
      threads: number of threads in each process. With several, LiteRT may lose a class, of which it warns;
        see tflite_file.class_lost_to_threads.
      max_images: stop after so many.
      progress: whether to show a progress bar on stderr, if that is a terminal.
      mean, std, class_id_offset: take precedence over the JSON.
      time_limit: seconds for loading the model and for each image.

    Returns:
      image_id -> Detections, in the order of the examples.

    Raises:
      ExportError: the model cannot be loaded, crashes, takes too long or does not give detections.
      DataError: an image is damaged, or occurs twice.
      EnvironmentProblem: there is no LiteRT interpreter.
    """
    description = describe_model(model_path, mean, std, class_id_offset)
    _warn_of_threads(description, threads)
    total = len(examples) if isinstance(examples, Sized) else None
    if max_images is not None:
        if max_images < 1:
            raise ConfigError(
                "max_images leaves nothing to score", found=str(max_images), allowed="1 or more"
            )
        total = max_images if total is None else min(total, max_images)
    with Pool(description, threads, time_limit) as pool:
        return pool.detect(itertools.islice(examples, max_images), total, processes, progress)


def class_lost_to_threads(description: ModelDescription, threads: int) -> Optional[int]:
    """The label map id of the class that LiteRT detects nowhere with so many threads; None if there is none.

    See tflite_file.class_lost_to_threads.
    """
    if threads < 2 or not description.is_tflite or description.is_classifier:
        return None
    lost = tflite_file.class_lost_to_threads(tflite_file.read(description.path).options, threads)
    return None if lost is None else lost + description.class_id_offset


def _warn_of_threads(description: ModelDescription, threads: int) -> None:
    lost = class_lost_to_threads(description, threads)
    if lost is not None:
        print(
            "warning: with {} threads LiteRT detects no object of the class {} of {} (tensorflow issue "
            "56058). Fix: run it with one".format(threads, lost, description.path),
            file=sys.stderr,
        )


class Pool(object):
    """The processes that run a model. The first one starts at once, the others when images wait."""

    def __init__(
        self, description: ModelDescription, threads: int = 1, time_limit: float = TIME_LIMIT
    ) -> None:
        require_time_limit(time_limit)
        self._description, self._threads, self._time_limit = description, threads, time_limit
        # Process -> the images that it was given, and _OPENING while it loads the model.
        self._asked = {}  # type: Dict[ModelProcess, Deque[Any]]

    def __enter__(self) -> "Pool":
        self._start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        for process, asked in self._asked.items():
            if asked:
                process.kill()
            elif not _keep(process, self._description, self._threads):
                process.end()

    def pids(self) -> List[int]:
        """The process ids."""
        return [process.pid for process in self._asked]

    def detect(
        self,
        examples: Iterable[Any],
        total: Optional[int],
        processes: Optional[int],
        progress: bool,
        unreadable: Optional[Callable[[Any, DataError], None]] = None,
    ) -> Dict[Any, Detections]:
        """Does what :func:`detect` does. `total` is for the progress bar and for the number of processes.

        `unreadable` takes the id and the error of an image that cannot be read, which is then left out.
        """
        from tqdm import tqdm

        if processes is not None and processes < 1:
            raise ConfigError(
                "there must be a process to score in", found=str(processes), allowed="1 or more"
            )
        least = _WORTH_A_PROCESS
        if processes is None:
            processes = default_processes()
            least = _WORTH_TFLITE_PROCESS if self._description.is_tflite else _WORTH_TENSORFLOW_PROCESS
        if total is not None:
            processes = max(1, min(processes, -(-total // least)))
        # For tqdm, `disable=None` means "only on a terminal".
        with tqdm(
            total=total,
            desc=os.path.basename(self._description.path),
            unit="image",
            file=sys.stderr,
            disable=None if progress else True,
        ) as bar:
            results = self._detect(_checked(examples), processes, bar.update, unreadable)
        if not results:
            raise DataError(
                "there are no images to score", where=self._description.path, fix="check the record file"
            )
        return results

    def _detect(
        self, images: Iterator[_Image], processes: int, done: Any, unreadable: Any
    ) -> Dict[Any, Detections]:
        results = {}  # type: Dict[Any, Any]
        missing = 0
        # One image is read ahead, so that a process that answers gets its next one at once.
        waiting = next(images, None)
        while waiting is not None or missing:
            process = self._with_room(processes) if waiting is not None else None
            if process is not None:
                image_id, encoded = waiting
                results[image_id] = None  # keeps the order of the examples
                missing += 1
                self._asked[process].append(image_id)
                process.detect(image_id, encoded)
                waiting = next(images, None)
                continue
            for image_id, answer in self._answers(unreadable is not None):
                if image_id is _OPENING:
                    continue
                if isinstance(answer, DataError):
                    del results[image_id]
                    unreadable(image_id, answer)
                else:
                    results[image_id] = answer
                missing -= 1
                done(1)
        return results

    def _with_room(self, processes: int) -> Optional[ModelProcess]:
        """A process that may get another image. It starts one if all are busy and more are allowed."""
        opened = [process for process, asked in self._asked.items() if _OPENING not in asked]
        least = min(opened, key=lambda process: len(self._asked[process])) if opened else None
        if least is not None and not self._asked[least]:
            return least
        if len(self._asked) < processes:
            self._start()
        if least is not None and len(self._asked[least]) < _IMAGES_AHEAD:
            return least
        return None

    def _answers(self, with_errors: bool = False) -> Iterator[Tuple[Any, Any]]:
        """Waits for at least one answer: (image id, Detections), or (_OPENING, None).

        With errors, a DataError takes the place of Detections; otherwise it is raised, as all others are.
        """
        by_connection = {process.connection: process for process, asked in self._asked.items() if asked}
        for connection in wait(list(by_connection)):
            process = by_connection[connection]
            try:
                answer = process.answer()
            except Exception as error:  # (not KeyboardInterrupt: the answer may be half read)
                image_id = self._asked[process].popleft()
                if with_errors and isinstance(error, DataError):
                    yield image_id, error
                    continue
                if not process.is_alive():
                    del self._asked[process]
                raise
            yield self._asked[process].popleft(), answer

    def latency(self, image: Optional[np.ndarray], runs: int) -> float:
        """The median milliseconds of one image; see :func:`model_score.latency`."""
        if runs < 1:
            raise ConfigError("latency needs a run to measure", found=str(runs), allowed="1 or more")
        while any(self._asked.values()):
            for _ in self._answers():
                pass
        process = next(iter(self._asked))
        self._asked[process].append("latency")
        process.latency(image, runs)
        ((_, milliseconds),) = list(self._answers())
        return milliseconds

    def _start(self) -> None:
        process = _kept(self._description, self._threads)
        if process is None:
            process = ModelProcess(self._description, self._threads, self._time_limit)
        else:
            process.open(self._description, self._threads, self._time_limit)
        self._asked[process] = collections.deque([_OPENING])


# Importing TensorFlow takes seconds, so one process that has done so is kept for the next .pb. A process of a
# .tflite is not kept, since a damaged file may have changed its memory. A fork of the caller has none of
# these.
_spare = {}  # type: Dict[Tuple[int, int], ModelProcess]


def _key(threads: int) -> Tuple[int, int]:
    return os.getpid(), threads


def _kept(description: ModelDescription, threads: int) -> Optional[ModelProcess]:
    process = None if description.is_tflite else _spare.pop(_key(threads), None)
    return process if process is not None and process.is_alive() else None


def _keep(process: ModelProcess, description: ModelDescription, threads: int) -> bool:
    if description.is_tflite or _key(threads) in _spare:
        return False
    try:
        process.close_model()
        process.answer()
    except OdQatError:
        return False
    _spare[_key(threads)] = process
    return True


@atexit.register
def _end_kept() -> None:
    for (pid, _), process in _spare.items():
        if pid == os.getpid():
            process.kill()
    _spare.clear()


def default_processes() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _checked(examples: Iterable[Any]) -> Iterator[_Image]:
    seen = set()
    for example in examples:
        if example.image_id in seen:
            raise DataError(
                "two examples have the same image id", found=repr(example.image_id), fix="give each its own"
            )
        seen.add(example.image_id)
        yield example.image_id, example.encoded
