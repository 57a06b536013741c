"""Draws what each model finds on an image, beside the ground truth.

Importing this file does not import Pillow.
"""

import io
import os
import re
from typing import Any, Iterable, List, Mapping, Sequence, Tuple

from od_qat.errors import ConfigError, DataError
from od_qat.files import write_atomically
from od_qat.scoring.metrics import ClassNames, names_by_id

# Colours that most people can tell apart on most photographs. The brightness of each decides whether text on
# it is white or black.
_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (170, 255, 195),
)
_PANEL_WIDTH = 480  # least width of a panel in pixels, so that labels are legible beside their boxes
_PANEL_LIMIT = 960  # greatest width and height of a panel in pixels
_GAP = 8
_BACKGROUND = (255, 255, 255)
_TITLE_COLOUR = (27, 31, 36)
_TITLE_SIZE, _LABEL_SIZE = 18, 13
GROUND_TRUTH = "ground truth"


def side_by_side(
    examples: Iterable[Any],
    detections: Mapping[str, Mapping[Any, Any]],
    class_names: ClassNames,
    output_path: str,
    min_score: float = 0.4,
) -> List[str]:
    """Writes a PNG for each image: the ground truth, then each model's detections.

    Args:
      examples: datasets.records.Example, with their encoded images.
      detections: title -> image_id -> scoring.Detections.
      class_names: names from id 1 on, or id -> name.
      output_path: a folder, for files named after the images; or, for a single example, a .png.
      min_score: detections that score less are not drawn.

    Returns:
      the paths, in the order of the examples.

    Raises:
      DataError: if an image cannot be decoded, or if a model was not run on it.
      ConfigError: if there are several examples and one .png.
      OdQatError: if a file cannot be written.
    """
    examples = list(examples)
    names = names_by_id(class_names)
    one_file = output_path.lower().endswith(".png")
    if one_file and len(examples) != 1:
        raise ConfigError(
            "one picture cannot show several images",
            where=output_path,
            found="{} examples".format(len(examples)),
            fix="give a folder, or one example",
        )
    _require_detections(examples, detections)
    paths, taken = [], set()
    for example in examples:
        stream = io.BytesIO()
        sheet_of(example, detections, names, min_score).save(stream, format="PNG")
        path = output_path if one_file else os.path.join(output_path, file_name(example.image_id, taken))
        write_atomically(path, stream.getvalue())
        paths.append(path)
    return paths


def _require_detections(examples: Sequence[Any], detections: Mapping[str, Mapping[Any, Any]]) -> None:
    for title, of_model in detections.items():
        missing = [example.image_id for example in examples if example.image_id not in of_model]
        if missing:
            raise DataError(
                "a model was not run on an image that is to be drawn",
                where=title,
                found="no detections for {!r}".format(missing[0]),
                fix="give examples that all models were run on",
            )


def drawn(encoded: bytes, image_id: str, boxes: Sequence[Tuple[Any, int, str]]) -> bytes:
    """A PNG of an image in its own size, with boxes [(normalised ymin, xmin, ymax, xmax; class id; label)].

    Raises:
      DataError: if the image cannot be decoded.
    """
    from PIL import Image

    from od_qat.scoring.images import decode

    photograph = Image.fromarray(decode(encoded, image_id))
    _draw_boxes(photograph, boxes)
    stream = io.BytesIO()
    photograph.save(stream, format="PNG")
    return stream.getvalue()


def file_name(image_id: Any, taken: set) -> str:
    """A file name, .png, for any image id, different from those taken, to which it is added."""
    stem = os.path.splitext(os.path.basename(str(image_id)))[0]
    stem = re.sub(r"[^\w.-]+", "_", stem).strip("._") or "image"
    name, number = stem, 1
    while name.lower() in taken:
        number += 1
        name = "{}-{}".format(stem, number)
    taken.add(name.lower())
    return name + ".png"


def sheet_of(
    example: Any,
    detections: Mapping[str, Mapping[Any, Any]],
    names: Mapping[int, str],
    min_score: float,
) -> Any:
    """A PIL image with the ground truth of an example, and what each model finds, side by side.

    Args and errors are those of side_by_side.
    """
    from od_qat.scoring.images import decode

    photograph = _enlarged(decode(example.encoded, str(example.image_id)))
    truth = [
        (box, int(class_id), names.get(int(class_id), str(class_id)))
        for box, class_id in zip(example.boxes, example.classes)
    ]
    panels = [("{} ({})".format(GROUND_TRUTH, len(truth)), truth)]
    for title, of_model in detections.items():
        found = of_model[example.image_id]
        drawn = [
            (box, int(class_id), "{} {:.2f}".format(names.get(int(class_id), str(class_id)), score))
            for box, class_id, score in zip(found.boxes, found.classes, found.scores)
            if score >= min_score
        ]
        panels.append(("{} ({} at {:g} or more)".format(title, len(drawn), min_score), drawn))
    return _sheet(photograph, panels)


def _enlarged(pixels: Any):
    """The photograph at the size of a panel."""
    from PIL import Image

    photograph = Image.fromarray(pixels)
    width, height = photograph.size
    factor = min(max(_PANEL_WIDTH / width, 1.0), _PANEL_LIMIT / width, _PANEL_LIMIT / height)
    size = (max(1, int(round(width * factor))), max(1, int(round(height * factor))))
    return photograph.resize(size, Image.BICUBIC)


def _sheet(photograph: Any, panels: Sequence[Tuple[str, Sequence[Tuple[Any, int, str]]]]):
    """The photograph once for each (title, boxes), side by side."""
    from PIL import Image, ImageDraw

    font = _font(_TITLE_SIZE)
    title_height = _TITLE_SIZE + 2 * _GAP
    panels = [(_drawable(font, title), boxes) for title, boxes in panels]
    # A tall, narrow image still needs room for its title.
    width = max([photograph.size[0]] + [_text_size(font, title)[0] for title, _ in panels])
    sheet = Image.new(
        "RGB",
        (len(panels) * (width + _GAP) + _GAP, title_height + photograph.size[1] + _GAP),
        _BACKGROUND,
    )
    for number, (title, boxes) in enumerate(panels):
        left = _GAP + number * (width + _GAP)
        ImageDraw.Draw(sheet).text((left, _GAP), title, fill=_TITLE_COLOUR, font=font)
        panel = photograph.copy()
        _draw_boxes(panel, boxes)
        sheet.paste(panel, (left, title_height))
    return sheet


def _draw_boxes(panel: Any, boxes: Sequence[Tuple[Any, int, str]]) -> None:
    """Draws boxes [(normalised ymin, xmin, ymax, xmax; class id; label)], best first, onto an image."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(panel)
    font = _font(_LABEL_SIZE)
    width, height = panel.size
    edges = []
    for box, class_id, label in boxes:
        ymin, xmin, ymax, xmax = [float(value) for value in box]
        edge = (
            int(round(min(max(xmin, 0.0), 1.0) * (width - 1))),
            int(round(min(max(ymin, 0.0), 1.0) * (height - 1))),
            int(round(min(max(xmax, 0.0), 1.0) * (width - 1))),
            int(round(min(max(ymax, 0.0), 1.0) * (height - 1))),
        )
        if edge[2] >= edge[0] and edge[3] >= edge[1]:
            edges.append((edge, _COLOURS[(class_id - 1) % len(_COLOURS)], label))
    for (left, top, right, bottom), colour, _ in reversed(edges):
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
    # Labels go on top of all boxes, each to the first of a few places beside its box that is still free.
    occupied = []  # type: List[Tuple[int, int, int, int]]
    for edge, colour, label in edges:
        label = _drawable(font, label)
        text_width, text_height = _text_size(font, label)
        place = _label_place(edge, (text_width + 5, text_height + 3), panel.size, occupied)
        occupied.append(place)
        draw.rectangle(place, fill=colour)
        dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        draw.text((place[0] + 3, place[1] + 1), label, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)


def _label_place(edge, size, panel_size, occupied) -> Tuple[int, int, int, int]:
    (left, top, right, bottom), (width, height) = edge, size
    candidates = (
        (left, top - height),  # above the box
        (left, bottom + 1),  # below it
        (left, top),  # inside, in a corner
        (right - width, bottom - height),
        (right - width, top - height),
        (right - width, bottom + 1),
        (right + 1, top),  # beside it
        (left - width, top),
    )
    best, least = None, None
    for x, y in candidates:
        x = min(max(x, 0), max(panel_size[0] - width - 1, 0))
        y = min(max(y, 0), max(panel_size[1] - height - 1, 0))
        place = (x, y, x + width, y + height)
        covered = sum(_overlap(place, other) for other in occupied)
        if least is None or covered < least:
            best, least = place, covered
        if not covered:
            break
    return best


def _overlap(first, second) -> int:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


def _font(size: int):
    """Pillow's own scalable font. Before Pillow 10.1, DejaVu Sans or else Pillow's small bitmap font."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError, ImportError):
        pass
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default()


def _drawable(font, text: str) -> str:
    """The text that a font can draw: the small bitmap font has only Latin-1, and fails on other letters."""
    from PIL import ImageFont

    if isinstance(font, ImageFont.FreeTypeFont):
        return text
    return text.encode("latin-1", "replace").decode("latin-1")


def _text_size(font, text: str) -> Tuple[int, int]:
    """The width and height of a text from the point where it is drawn, in pixels."""
    if hasattr(font, "getbbox"):
        _, _, right, bottom = font.getbbox(text)
        return int(right + 0.5), int(bottom + 0.5)
    return font.getsize(text)
