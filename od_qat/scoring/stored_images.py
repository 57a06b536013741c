"""Images that stay where they are stored."""

import itertools
from typing import Any, Callable, Dict, Iterable, Iterator, List

import numpy as np

from od_qat.scoring.images import decode


class StoredImages(object):
    """The images of a data set, which are read again each time, so that memory does not hold them.

    Attributes:
      examples: of every image what belongs to it, without the image: `encoded` is empty.
    """

    def __init__(self, read: Callable[[], Iterator[Any]]) -> None:
        """Reads everything once.

        Args:
          read: gives all images from the first one on, each time the same: datasets.records.Example, or
            another named tuple with `image_id` and `encoded`.
        """
        self._read = read
        self.examples = [example._replace(encoded=b"") for example in read()]

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Any]:
        return self._read()

    def by_id(self, wanted: Iterable[Any]) -> Dict[Any, Any]:
        """image_id -> example, with its image, in the order of the data set."""
        left, found = set(wanted), {}
        for example in self if left else ():
            if example.image_id in left:
                left.remove(example.image_id)
                found[example.image_id] = example
                if not left:
                    break
        return found

    def pixels(self, count: int) -> List[np.ndarray]:
        """The first `count` images, uint8 [height, width, 3] each."""
        return [decode(example.encoded, str(example.image_id)) for example in itertools.islice(self, count)]
