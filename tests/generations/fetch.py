"""Fetches and unpacks the trees of trees.txt (make generations):

    python -m tests.generations.fetch FOLDER

pip finds and downloads the archives, from the index that the user's pip is configured for. It is asked for
the files only: `pip download` would run the setup.py of each to read its metadata.
"""

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from typing import Iterator, List, NamedTuple

_PINS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "trees.txt")


class Pin(NamedTuple):
    """One line of trees.txt."""

    name: str
    version: str
    sha256: str

    @property
    def folder(self) -> str:
        return "{}-{}".format(self.name, self.version)


def pins() -> List[Pin]:
    """What trees.txt names."""
    with open(_PINS, encoding="utf-8") as stream:
        lines = [line.split() for line in stream if line.strip() and not line.startswith("#")]
    return [Pin(*spec.split("=="), sha256=pin.partition("sha256:")[2]) for spec, pin in lines]


def download(wanted: List[Pin]) -> Iterator[bytes]:
    """The archives' bytes, in order, with pip's index, certificates, proxy and credentials."""
    from pip._internal.commands.download import DownloadCommand

    command = DownloadCommand("download", "")
    options, _ = command.parse_args(["--no-deps", "--no-binary", ":all:"] + [pin.name for pin in wanted])
    with command.main_context():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        for pin in wanted:
            links = [
                candidate.link
                for candidate in finder.find_all_candidates(pin.name)
                if str(candidate.version) == pin.version and candidate.link.filename.endswith(".tar.gz")
            ]
            if not links:
                raise SystemExit("generations: error: the index has no {0.name}=={0.version}".format(pin))
            answer = session.get(links[0].url.partition("#")[0])
            answer.raise_for_status()
            yield answer.content


def unpack(archive: bytes, folder: str) -> None:
    """Writes the files of a .tar.gz below its one top folder; links and paths that lead out are left out."""
    os.makedirs(folder)
    with tempfile.TemporaryFile() as stream:
        stream.write(archive)
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:gz") as members:
            for member in members:
                parts = member.name.split("/")[1:]
                if not member.isfile() or not parts or ".." in parts or parts[0].startswith("/"):
                    continue
                path = os.path.join(folder, *parts)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as target:
                    shutil.copyfileobj(members.extractfile(member), target)


def main(folder: str) -> None:
    """Fills `folder` with a folder for each line; those that are there are kept."""
    os.makedirs(folder, exist_ok=True)
    missing = [pin for pin in pins() if not os.path.isdir(os.path.join(folder, pin.folder))]
    for pin, archive in zip(missing, download(missing) if missing else ()):
        found = hashlib.sha256(archive).hexdigest()
        if found != pin.sha256:
            raise SystemExit(
                "generations: error: {} has sha256 {}, allowed: {}".format(pin.folder, found, pin.sha256)
            )
        aside = tempfile.mkdtemp(dir=folder, prefix=".unpacking-")
        try:
            unpack(archive, os.path.join(aside, "tree"))
            os.rename(os.path.join(aside, "tree"), os.path.join(folder, pin.folder))
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        print("generations: {}".format(pin.folder), flush=True)
    print("generations: all {} in {}".format(len(pins()), folder))


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(sys.argv[1])
