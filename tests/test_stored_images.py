"""Images that are read again, so that memory does not hold them."""

from od_qat.scoring.stored_images import StoredImages
from tests.test_scoring import EXAMPLES


def test_examples_are_whole_but_for_the_image():
    stored = StoredImages(EXAMPLES.__iter__)
    assert len(stored) == len(EXAMPLES)
    for kept, given in zip(stored.examples, EXAMPLES):
        assert kept.encoded == b"" and given.encoded
        assert kept.image_id == given.image_id and kept.boxes is given.boxes


def test_images_come_from_the_reader_each_time():
    stored = StoredImages(EXAMPLES.__iter__)
    assert [one.encoded for one in stored] == [one.encoded for one in EXAMPLES]
    assert [one.encoded for one in stored] == [one.encoded for one in EXAMPLES]
    (pixels,) = stored.pixels(1)
    assert pixels.shape == (EXAMPLES[0].height, EXAMPLES[0].width, 3)


def test_those_that_are_wanted_are_read_and_no_more_than_needed():
    read = []

    def reader():
        for one in EXAMPLES:
            read.append(one.image_id)
            yield one

    stored = StoredImages(reader)
    ids = [one.image_id for one in EXAMPLES]
    del read[:]
    found = stored.by_id([ids[2], ids[0]])
    assert list(found) == [ids[0], ids[2]] and found[ids[2]].encoded == EXAMPLES[2].encoded
    assert read == ids[:3]
    assert stored.by_id([]) == {} and stored.by_id(["none"]) == {}
