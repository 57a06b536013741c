"""Files damaged at random, and what may come of them: one clear line or a right result, and soon.

20 damaged files of each kind normally, 1,000 in `make test-all`.
"""

import signal
import warnings

import numpy as np

from od_qat.errors import OdQatError
from tests import tiers

COUNT = 1000 if tiers.ALL else 20
SECONDS = 60
# What a file of text or of JSON breaks with, beside chance.
TOKENS = [
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"NaN",
    b"Infinity",
    b"-1",
    b"0",
    b"1e400",
    b"9" * 400,
    b"null",
    b"true",
] + [
    b'"\\ud800"',
    b"[" * 2000,
    b"{",
    b"}",
    b"<",
    b">",
    b"&x;",
    b"<!DOCTYPE a>",
    b"'",
    b'"',
    b"\\",
    b"..",
    b"/",
]


def damaged(random, data):
    """A copy that is cut, flipped in bits, or has bytes put in, swapped or doubled, once or a few times."""
    data = bytearray(data)
    for _ in range(random.randint(1, 4)):
        place = random.randint(len(data) + 1)
        kind = random.randint(6)
        if kind == 0:
            del data[place:]
        elif kind == 1 and data:
            flip(random, data)
        elif kind == 2:
            data[place:place] = bytes(random.randint(0, 256, random.randint(1, 20)).astype(np.uint8))
        elif kind == 3:
            data[place:place] = TOKENS[random.randint(len(TOKENS))]
        elif kind == 4:
            token = TOKENS[random.randint(len(TOKENS))]
            data[place : place + random.randint(1, 8)] = token
        else:
            first, second = sorted(random.randint(0, len(data) + 1, 2))
            length = random.randint(1, 40)
            one, other = data[first : first + length], data[second : second + length]
            data[second : second + length] = one
            data[first : first + length] = other
    return bytes(data)


def damaged_in_place(random, data):
    """As bad storage leaves a binary file: bits flipped, a range of zeros; now and then one cut or shifted.

    Libraries refuse most files whose offsets have moved, so that few would get past the door otherwise.
    """
    data = bytearray(data)
    kind = random.randint(10)
    place = random.randint(len(data))
    if kind == 0:
        del data[place:]
    elif kind == 1:
        data[place:place] = bytes(random.randint(0, 256, random.randint(1, 20)).astype(np.uint8))
    elif kind < 4:
        length = min(random.randint(1, 40), len(data) - place)
        data[place : place + length] = bytes(length)
    else:
        flip(random, data)
    return bytes(data)


def flip(random, data):
    """Flips one bit to nine of a bytearray."""
    for _ in range(random.randint(1, 10)):
        data[random.randint(len(data))] ^= 1 << random.randint(8)


def _too_long(*_):
    raise AssertionError("nothing for {} s".format(SECONDS))


def try_all(path, use, refuses=True, damage=damaged):
    """Runs `use` with the file damaged in COUNT ways; what it may raise is OdQatError, on one line.

    Where the damaged file is left out instead, nothing is refused. `damage` makes the damaged bytes, of a
    random state and of the whole.
    """
    with open(str(path), "rb") as stream:
        whole = stream.read()
    use()  # the whole file is good
    refused = 0
    former = signal.signal(signal.SIGALRM, _too_long)
    try:
        for seed in range(COUNT):
            content = damage(np.random.RandomState(seed), whole)
            with open(str(path), "wb") as stream:
                stream.write(content)
            signal.alarm(SECONDS)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # (Pillow's, of files that it can read none the less)
                    use()
            except OdQatError as error:
                refused += 1
                text = str(error)
                assert "\n" not in text and "\0" not in text and len(text) < 2000, (seed, text)
                text.encode("utf-8")
            except Exception as error:
                raise AssertionError("damaged by seed {}: {!r}".format(seed, error)) from error
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, former)
    assert refused > COUNT // 10 or not refuses
