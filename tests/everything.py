"""`make test-all`: everything there is, in parts that run alone and are not run twice for the same source.

    python -m tests.everything [--list] [--jobs 2] [PART ...]

A part is a file of tests on one TensorFlow, main/test_road.py or tf1/test_parity.py, or another; --list has
their names. What it prints goes to out/test-all/PART.log. Once it has passed, out/test-all/PART.json says for
which source, and the next call leaves it out. Its source is every file that git knows, but other files of
tests that it does not import, and pages that it does not name. PART may hold * for any text.
"""

import argparse
import fnmatch
import glob
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent import futures

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = os.path.join("out", "test-all")
ENVIRONMENTS = {"main": ".venv", "tf1": ".venv-tf1", "tf215": ".venv-tf215"}
# Seconds that one test may take here.
TIMEOUT = 6000
# What upstream's own code needs beside TensorFlow: an Estimator, TensorBoard. (Not in the environments, where
# TensorFlow is without these, as users' is.)
UPSTREAMS = os.path.join("out", "upstream")
_NEEDING = ("test_tf2_commands.py", "test_upstream.py")
# What EfficientDet needs.
OFFICIAL = os.path.join("out", "official")
_OF_EFFICIENT_NETS = ("test_tf2_zoo.py", "test_tf2_models.py", "test_samples_tf2.py")
# A Python with MediaPipe's task library, in an environment of its own.
MEDIAPIPE = os.path.join("out", "mediapipe", "bin", "python")
_OF_TASKS = ("test_metadata.py", "test_classifiers.py")
# What runs a notebook.
NOTEBOOK = os.path.join("out", "notebook")
# What the parts write, though git knows it.
_WRITTEN = ("tests/generations/matrix.json", "docs/commands.md")


def parts(generations):
    """Name of a part -> its command and what its environment has beside the usual."""
    found = {}
    for kind, environment in ENVIRONMENTS.items():
        python = os.path.join(environment, "bin", "python")
        for path in sorted(glob.glob("tests/test_*.py")):
            command = [python, "-m", "pytest", path, "--timeout={}".format(TIMEOUT)]
            command += ["-m", "tf1"] if kind == "tf1" else []
            # (2.15 is between the two ends: there, each capability once.)
            tier = "quick" if kind == "tf215" else "all"
            extra = {"OD_QAT_TESTS": tier}
            if kind == "main" and os.path.basename(path) in _NEEDING:
                extra["PYTHONPATH"] = UPSTREAMS
            if kind == "main" and os.path.basename(path) in _OF_EFFICIENT_NETS:
                extra["PYTHONPATH"] = OFFICIAL
            if kind == "main" and os.path.basename(path) in _OF_TASKS:
                extra["OD_QAT_MEDIAPIPE"] = os.path.abspath(MEDIAPIPE)
            if kind == "main" and os.path.basename(path) == "test_notebook.py":
                extra["PYTHONPATH"] = NOTEBOOK
            found["{}/{}".format(kind, os.path.basename(path))] = (command, extra)
        extra = {"PYTHONPATH": UPSTREAMS} if kind == "main" else {}
        found[kind + "/generations"] = ([python, "-m", "tests.generations.matrix", generations], extra)
    found["main/with_estimator"] = (
        [".venv/bin/python", "-m", "pytest", "tests/test_run.py", "--timeout={}".format(TIMEOUT)],
        {"PYTHONPATH": UPSTREAMS, "OD_QAT_TESTS": "all"},
    )
    found["main/oracle-check"] = (["make", "--no-print-directory", "oracle-check"], {"OD_QAT_TESTS": "all"})
    return found


_OF_TESTS = re.compile(r"tests/test_\w+\.py$")
_IMPORTED = re.compile(r"^(?:from tests\.(test_\w+) import|from tests import (test_\w+))", re.M)
_PAGES = re.compile(r"(docs/.*|README|CHANGELOG)(\.md)?$")


def digests():
    """File -> digest, of every file that git knows, as it is now, but of those that the parts write."""
    found = {}
    for name in subprocess.check_output(["git", "ls-files", "-z"]).decode("utf-8").split("\0"):
        if name and os.path.isfile(name) and name not in _WRITTEN:
            with open(name, "rb") as stream:
                found[name] = hashlib.sha1(stream.read()).hexdigest()
    return found


def source(command, known):
    """A digest of what a part depends on.

    Args:
      command: of the part.
      known: what digests() returned.
    """
    own, pending = set(), [name for name in command if _OF_TESTS.match(name)]
    named = "" if pending else "docs README"  # (what is no file of tests may read all pages)
    while pending:
        name = pending.pop()
        if name in own or name not in known:
            continue
        own.add(name)
        with open(name, encoding="utf-8") as stream:
            text = stream.read()
        named += text
        pending += ["tests/{}.py".format(one or other) for one, other in _IMPORTED.findall(text)]
    digest = hashlib.sha1()
    for name, content in sorted(known.items()):
        of_others = bool(_OF_TESTS.match(name)) and bool(own) and name not in own
        unread = bool(_PAGES.match(name)) and "docs" not in named and "README" not in named
        if not of_others and not unread:
            digest.update("{} {}\n".format(name, content).encode("utf-8"))
    return digest.hexdigest()


def run(name, command, extra):
    """Runs a part; returns whether it passed, and its seconds."""
    environment = dict(
        os.environ,
        OD_QAT_GENERATIONS=os.path.abspath(os.environ.get("OD_QAT_GENERATIONS") or "out/generations"),
    )
    environment.update(extra)
    paths = [REPOSITORY] + [os.path.abspath(path) for path in filter(None, [extra.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    environment["PATH"] = os.path.dirname(os.path.abspath(command[0])) + os.pathsep + environment["PATH"]
    log = os.path.join(OUT, name.replace("/", "-") + ".log")
    started = time.time()
    with open(log, "wb") as stream:
        status = subprocess.call(
            command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
    # (5: pytest found no test, since none of the file is marked tf1.)
    return status in (0, 5), time.time() - started


def main(arguments=None):
    """Returns an exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    parser.add_argument("--list", action="store_true", help="say which there are, and which have passed")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="parts at a time (default 2)")
    parser.add_argument(
        "--generations", default="out/generations", metavar="DIR", help="trees of the OD API of other years"
    )
    options = parser.parse_args(arguments)
    os.chdir(REPOSITORY)
    os.makedirs(OUT, exist_ok=True)
    known = parts(options.generations)
    wanted = [
        name
        for name in known
        if not options.parts or any(fnmatch.fnmatch(name, one) for one in options.parts)
    ]
    if not wanted:
        parser.error("no such part: {}; --list says which there are".format(", ".join(options.parts)))
    files = digests()
    now = {name: source(known[name][0], files) for name in wanted}
    passed = {name: _stamp(name) == now[name] for name in wanted}
    if options.list:
        for name in wanted:
            print("{}  {}".format("passed" if passed[name] else "      ", name))
        return 0
    failed, printing = [], threading.Lock()
    left = [name for name in wanted if not passed[name]]
    print(
        "{} parts, of which {} have passed already for this source".format(
            len(wanted), len(wanted) - len(left)
        )
    )

    def one(name):
        good, seconds = run(name, *known[name])
        if good:
            with open(_path(name), "w") as stream:
                json.dump({"source": now[name], "seconds": round(seconds)}, stream)
        with printing:
            print("{:6.0f} s  {}  {}".format(seconds, "passed" if good else "FAILED", name), flush=True)
            if not good:
                failed.append(name)

    with futures.ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, left))
    for name in failed:
        print("FAILED: {}; see {}".format(name, os.path.join(OUT, name.replace("/", "-") + ".log")))
    return 1 if failed else 0


def _path(name):
    return os.path.join(OUT, name.replace("/", "-") + ".json")


def _stamp(name):
    try:
        with open(_path(name)) as stream:
            return json.load(stream)["source"]
    except (OSError, ValueError, KeyError):
        return None


if __name__ == "__main__":
    sys.exit(main())
