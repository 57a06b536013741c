"""Scoring in several processes.

Each worker is started afresh (spawn) and loads the model once. A worker that scores a .tflite imports this
file, numpy, Pillow and LiteRT, and no TensorFlow, so it starts in a fraction of a second.
"""

import collections
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import sys
import types
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Sized, Tuple

from od_qat.errors import ConfigError, DataError, OdQatError
from od_qat.scoring import images, runners
from od_qat.scoring.description import ModelDescription, describe_model
from od_qat.scoring.runners import Detections

# Images handed to a worker at once: enough to hide the hand-over, few enough to keep all workers busy.
_CHUNK = 4
# Chunks under way for each worker; bounds the images that are in memory.
_CHUNKS_AHEAD = 3
# Images for which a worker of its own pays, unless the caller says how many workers: one that imports
# TensorFlow takes seconds to start.
_WORTH_TFLITE_WORKER = 16
_WORTH_TENSORFLOW_WORKER = 64

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
) -> Dict[Any, Detections]:
    """Runs a model over images.

    Args:
      model_path: a .tflite with TFLite_Detection_PostProcess, or a frozen GraphDef (.pb); the JSON beside it
        says how to feed it, see description.describe_model for what is assumed without.
      examples: an iterable of datasets.records.Example; only image_id and encoded are read, and not more
        than a few images at once.
      processes: default one per core, fewer for few images; 1 runs in this process.
      threads: of each process.
      max_images: stop after so many.
      progress: a progress bar on stderr, when that is a terminal.
      mean, std, class_id_offset: take precedence over the JSON.

    Returns:
      image_id -> Detections, in the order of the examples.

    Raises:
      ExportError: the model cannot be loaded or does not give detections.
      DataError: an image is damaged, or there twice.
      EnvironmentProblem: no LiteRT interpreter.
    """
    description = describe_model(model_path, mean, std, class_id_offset)
    total = len(examples) if isinstance(examples, Sized) else None
    if max_images is not None:
        if max_images < 1:
            raise ConfigError(
                "max_images leaves nothing to score", found=str(max_images), allowed="1 or more"
            )
        total = max_images if total is None else min(total, max_images)
    return run(description, itertools.islice(examples, max_images), total, processes, threads, progress)


def run(
    description: ModelDescription,
    examples: Iterable[Any],
    total: Optional[int],
    processes: Optional[int],
    threads: int,
    progress: bool,
) -> Dict[Any, Detections]:
    """As :func:`detect`, of a described model; `total` is for the progress bar and the number of workers."""
    from tqdm import tqdm

    if processes is not None and processes < 1:
        raise ConfigError("there must be a process to score in", found=str(processes), allowed="1 or more")
    least = _CHUNK
    if processes is None:
        processes = default_processes()
        least = _WORTH_TFLITE_WORKER if description.is_tflite else _WORTH_TENSORFLOW_WORKER
    if total is not None:
        processes = max(1, min(processes, -(-total // least)))
    results = {}  # type: Dict[Any, Detections]
    # `disable=None` is tqdm's "only on a terminal".
    with tqdm(
        total=total,
        desc=os.path.basename(description.path),
        unit="image",
        file=sys.stderr,
        disable=None if progress else True,
    ) as bar:
        chunks = _chunks(_checked(examples))
        with contextlib.closing(
            _in_this_process(description, threads, chunks)
            if processes == 1
            else _in_workers(description, threads, chunks, processes)
        ) as found:
            for chunk in found:
                results.update(chunk)
                bar.update(len(chunk))
    if not results:
        raise DataError("there are no images to score", where=description.path, fix="check the record file")
    return results


def default_processes() -> int:
    """The cores that this process may use."""
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


def _chunks(items: Iterator[_Image]) -> Iterator[List[_Image]]:
    while True:
        chunk = list(itertools.islice(items, _CHUNK))
        if not chunk:
            return
        yield chunk


def _detect_chunk(runner: Any, chunk: Sequence[_Image]) -> List[Tuple[Any, Detections]]:
    return [(image_id, runner.detect(images.decode(encoded, str(image_id)))) for image_id, encoded in chunk]


def _in_this_process(description, threads, chunks):
    runner = runners.open_runner(description, threads)
    with contextlib.closing(runner):
        for chunk in chunks:
            yield _detect_chunk(runner, chunk)


_runner_of_this_worker = None  # type: Any


def _work(
    description: ModelDescription, threads: int, chunk: Sequence[_Image]
) -> List[Tuple[Any, Detections]]:
    """Runs in a worker. The model is loaded here, so that an error in it reaches the caller as itself."""
    global _runner_of_this_worker
    if _runner_of_this_worker is None:
        _runner_of_this_worker = runners.open_runner(description, threads)
    return _detect_chunk(_runner_of_this_worker, chunk)


def _in_workers(description, threads, chunks, processes):
    executor = concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn")
    )
    pending = collections.deque()  # type: collections.deque
    try:
        for chunk in chunks:
            with _main_module_hidden():
                pending.append(executor.submit(_work, description, threads, chunk))
            if len(pending) >= processes * _CHUNKS_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise OdQatError(
            "a scoring process ended unexpectedly",
            where=description.path,
            found="{} processes".format(processes),
            fix="it probably ran out of memory: use fewer processes",
        ) from error
    finally:
        for future in pending:
            future.cancel()
        executor.shutdown()


@contextlib.contextmanager
def _main_module_hidden():
    """Keeps a new worker from importing the caller's main script.

    A spawned process imports it by default, to find functions defined there; ours are in this file. The
    script may import TensorFlow at its top, or run all over again when it has no __main__ guard.
    """
    main = sys.modules.get("__main__")
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        if main is None:
            del sys.modules["__main__"]
        else:
            sys.modules["__main__"] = main
