"""Writing files: whole or not at all, and what is said when it cannot be done."""

import errno
import os
import re

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


def test_files_that_are_replaced_together_are_all_as_they_were_when_one_cannot_be(tmp_path):
    old, new, folder = tmp_path / "old.py", tmp_path / "new.py", tmp_path / "folder"
    old.write_bytes(b"before")
    old.chmod(0o640)
    folder.mkdir()
    contents = {str(old): b"after", str(new): b"after"}
    with pytest.raises(OdQatError, match="at {}, found Is a directory".format(folder)):
        files.replace_together(dict(contents, **{str(folder): b"after"}), prefix=".aside-")
    assert sorted(os.listdir(str(tmp_path))) == ["folder", "old.py"]
    assert (old.read_bytes(), old.stat().st_mode & 0o777) == (b"before", 0o640)
    files.replace_together(contents, prefix=".aside-")
    assert sorted(os.listdir(str(tmp_path))) == ["folder", "new.py", "old.py"]
    assert (old.read_bytes(), old.stat().st_mode & 0o777) == (b"after", 0o640)


def test_what_stands_in_the_way_is_named(tmp_path):
    blocking, folder = tmp_path / "file", tmp_path / "folder"
    blocking.write_text("")
    (folder / "in").mkdir(parents=True)
    for path in (blocking / "a.json", blocking / "below" / "a.json"):
        with pytest.raises(OdQatError) as caught:
            files.write_atomically(str(path), b"text")
        wanted = "at {}, found a file, {}, where a folder is wanted. Fix: choose another".format(
            path, blocking
        )
        assert wanted in str(caught.value)
    with pytest.raises(OdQatError, match="found Is a directory. Fix: choose another folder, or move"):
        files.write_atomically(str(folder), b"text")
    with pytest.raises(OdQatError, match="found File name too long. Fix: choose a shorter name"):
        files.write_atomically(str(folder / ("a" * 300)), b"text")


def test_a_disk_that_is_full_or_read_only(small_disk):
    with pytest.raises(OdQatError, match="No space left on device. Fix: free 100,000 bytes there"):
        files.write_atomically(os.path.join(small_disk(16), "a"), b"b" * 100000)
    with pytest.raises(
        OdQatError, match="Read-only file system. Fix: allow writing there .it is mounted read"
    ):
        files.write_atomically(os.path.join(small_disk(16, read_only=True), "a"), b"")


def test_tensorflows_writers(small_disk, tmp_path):
    """Their errors are a resource that is exhausted, as memory is, or a failed precondition."""
    from od_qat.compat import tf

    full, read_only = small_disk(400), small_disk(16, read_only=True)
    (tmp_path / "file").write_text("")
    says = {
        full: "No space left on device. Fix: free space",
        read_only: "Read-only file system. Fix: allow writing",
        str(tmp_path / "file"): "a file, .*, where a folder is wanted. Fix: choose another folder",
    }
    with tf.Graph().as_default(), tf.Session() as session:
        tf.get_variable("v", [250000])
        session.run(tf.global_variables_initializer())
        saver = tf.train.Saver()
        for folder, text in says.items():
            # (A saver takes an existing file's parent for one that it may write to, on some versions.)
            with pytest.raises((tf.errors.OpError, ValueError)) as caught:
                saver.save(session, os.path.join(folder, "below", "model.ckpt"))
            if isinstance(caught.value, tf.errors.OpError):
                assert files.is_of_writing(caught.value, folder)
                assert not files.is_of_writing(caught.value, "/another")
                explained = files.cannot_write(os.path.join(folder, "below"), caught.value)
                assert re.search("cannot write the file: at {}.*{}".format(folder, text), str(explained))
    assert not files.is_of_writing(tf.errors.ResourceExhaustedError(None, None, "OOM in " + full), full)


def test_with_a_scheme_tensorflow_writes(tmp_path):
    one, two = ("file://" + str(tmp_path / name) for name in ("one", "two"))
    files.write_together({one: b"1", two: "2"})
    assert (files.read(one), files.read(two)) == (b"1", b"2")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "in").write_text("")
    with pytest.raises(OdQatError, match="cannot write the file: at .*three"):
        files.write_together({one: b"3", "file://" + str(tmp_path / "three"): b""})
    assert sorted(os.listdir(str(tmp_path))) == ["one", "three", "two"]
