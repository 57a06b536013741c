"""Scores a detector with one layer alone quantized, and with one layer alone float."""

import dataclasses
import os
import shutil
import sys
import tempfile
from typing import Any, Collection, Dict, Optional, Set, Tuple

from od_qat.analysis import fake_quants, points
from od_qat.analysis.points import Point
from od_qat.model_files import nodes
from od_qat.model_files.description import json_path
from od_qat.report import table
from od_qat.report.layers import Layers
from od_qat.scoring import model_score


@dataclasses.dataclass(frozen=True)
class OfLayer:
    """The scores of one layer.

    Attributes:
      name: of its point.
      sqnr_db: of the error that it adds.
      alone_quantized: mAP with no other fake quants than its output's and its weights'.
      alone_float: mAP with all fake quants but these.
    """

    name: str
    sqnr_db: float
    alone_quantized: float
    alone_float: float


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """All scores.

    Attributes:
      all_float, all_quantized: mAP without fake quants, and with all.
      layers: those that were tried, the lowest signal-to-noise ratio first.
      left_out: how many were not tried.
    """

    all_float: float
    all_quantized: float
    layers: Tuple[OfLayer, ...]
    left_out: int


def score(
    found: Layers, record: str, label_map: str, count: int, max_images: Optional[int] = None
) -> LeaveOneOut:
    """Scores variants of a detector's graph, two for each of its worst layers.

    Args:
      found: of the graph; see layers.measure.
      record, label_map, max_images: as for scoring.score.
      count: how many layers are tried, those with the lowest signal-to-noise ratio.
    """
    from tqdm import tqdm

    graph_def = nodes.read_graph(found.path)
    every = {one.name for one in fake_quants.find(graph_def)}
    by_name = {point.name: point for point in points.find(graph_def)}
    worst = sorted(found.errors.points, key=lambda one: one.own.sqnr_db)[:count]
    folder = tempfile.mkdtemp()
    # (`disable=None` means "only on a terminal".)
    bar = tqdm(total=2 + 2 * len(worst), desc="variants", unit="score", file=sys.stderr, disable=None)

    def of(removed: Collection[str]) -> float:
        path = os.path.join(folder, "variant.pb")
        with open(path, "wb") as stream:
            stream.write(fake_quants.without(graph_def, removed).SerializeToString())
        if os.path.exists(json_path(found.path)):
            shutil.copy(json_path(found.path), json_path(path))
        result = model_score.score(path, record, label_map, max_images=max_images, progress=False)
        bar.update(1)
        return result.score.map

    try:
        with bar:
            all_float, all_quantized = of(every), of(())
            layers = tuple(
                OfLayer(point.name, point.own.sqnr_db, of(every - own), of(own))
                for point, own in ((one, _fake_quants_of(by_name[one.name])) for one in worst)
            )
    finally:
        shutil.rmtree(folder)
    return LeaveOneOut(all_float, all_quantized, layers, len(found.errors.points) - len(worst))


def _fake_quants_of(point: Point) -> Set[str]:
    return {point.fake_quant.name} | {one.name for one in point.weights}


def as_text(found: LeaveOneOut) -> str:
    """A table."""
    rows = [("layer", "alone quantized", "alone float")]
    rows += [
        (
            one.name,
            table.points(one.alone_quantized, found.all_float),
            table.points(one.alone_float, found.all_quantized),
        )
        for one in found.layers
    ]
    lines = table.aligned(rows)
    lines.append(
        "mAP: {:.1f} without fake quants, which the first column is compared with; {:.1f} with all of them, "
        "which the second is compared with".format(100 * found.all_float, 100 * found.all_quantized)
    )
    if found.left_out:
        lines.append("{} layers with higher signal-to-noise ratios were not tried".format(found.left_out))
    return "\n".join(lines)


def as_json(found: LeaveOneOut) -> Dict[str, Any]:
    """For json.dumps."""
    return dataclasses.asdict(found)
