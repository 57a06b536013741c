"""Writing files: whole or not at all, and what is said when it cannot be done."""

import errno
import os

import pytest

from od_qat import files
from od_qat.errors import OdQatError

pytestmark = pytest.mark.tf1


def _failing(monkeypatch, function, at, code):
    """Lets the `at`-th call of an os function end in an error, as no test can ask a disk to."""
    real, calls = getattr(os, function), []

    def call(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(os, function, call)


@pytest.mark.parametrize("code, fix", [(errno.ENOSPC, "free 3 bytes"), (errno.EROFS, "allow writing")])
def test_files_that_belong_together_are_written_together(tmp_path, monkeypatch, code, fix):
    one, two = str(tmp_path / "model.pb"), str(tmp_path / "model.json")
    files.write_together({one: b"old", two: "old"})
    _failing(monkeypatch, "fsync", 2, code)
    with pytest.raises(OdQatError, match="at {}, found .*Fix: {}".format(two, fix)):
        files.write_together({one: b"new", two: "new"})
    monkeypatch.undo()
    assert sorted(os.listdir(str(tmp_path))) == ["model.json", "model.pb"]
    assert files.read(one) == files.read(two) == b"old"
    files.write_together({one: b"new", two: "new"})
    assert files.read(one) == files.read(two) == b"new"


@pytest.mark.parametrize("at", [1, 2])
def test_a_name_that_cannot_be_given_leaves_nothing_beside_it(tmp_path, monkeypatch, at):
    paths = [str(tmp_path / name) for name in ("a", "b")]
    _failing(monkeypatch, "replace", at, errno.EACCES)
    with pytest.raises(OdQatError, match="at {}.*Permission denied".format(paths[at - 1])):
        files.write_together({path: b"" for path in paths})
    assert sorted(os.listdir(str(tmp_path))) == ["a", "b"][: at - 1]


def test_with_a_scheme_tensorflow_writes(tmp_path):
    one, two = ("file://" + str(tmp_path / name) for name in ("one", "two"))
    files.write_together({one: b"1", two: "2"})
    assert (files.read(one), files.read(two)) == (b"1", b"2")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "in").write_text("")
    with pytest.raises(OdQatError, match="cannot write the file: at .*three"):
        files.write_together({one: b"3", "file://" + str(tmp_path / "three"): b""})
    assert sorted(os.listdir(str(tmp_path))) == ["one", "three", "two"]
