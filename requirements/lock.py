"""Resolves the lists of SOURCES for the Python that runs this, into lock/py3X.txt.

Nothing is installed: pip resolves and reports. TensorFlow itself is left out of the file, since its package
depends on the machine; what it needs is in. Run `make lock` for every Python at hand.
"""

import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
# From here. (tf.in is not among them: tensorflow.txt has the version that the locks are for.)
SOURCES = (
    "base.in",
    "../od_qat/od_api/requirements/needed.in",
    "demo.in",
    "protos.in",
    "dev.in",
    "tensorflow.txt",
)


def main() -> int:
    """Writes the lock of this interpreter; returns an exit status."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--only-binary", ":all:", "--report", report]
        for source in SOURCES:
            command += ["-r", os.path.join(HERE, source)]
        status = subprocess.call(command)
        if status:
            return status
        with open(report, encoding="utf-8") as stream:
            installed = json.load(stream)["install"]
    pins = sorted(
        "{}=={}".format(item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"])
        for item in installed
    )
    pins = [pin for pin in pins if not pin.startswith("tensorflow")]
    path = os.path.join(HERE, "lock", "py{}{}.txt".format(*sys.version_info[:2]))
    header = "# Written by requirements/lock.py from the lists that it names; do not edit.\n"
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(header + "\n".join(pins) + "\n")
    print("{}: {} packages".format(os.path.relpath(path), len(pins)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
