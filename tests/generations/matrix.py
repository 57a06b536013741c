"""Upstream's commands in a patched copy of every tree, float and QAT, on this Python's TensorFlow.

    python -m tests.generations.matrix FOLDER [--only TREE ...] [--kinds float qat tf2_float tf2_qat slim]

FOLDER is what `make generations` filled; `make test-all` calls this for each TensorFlow. Results are added
to matrix.json beside this file, what was there of other TensorFlows and trees stays, and the table in
docs/commands.md is made anew from it (`python -m tests.doc_tables` makes it without running anything):

    {tree: {TensorFlow: {kind: {command: "ok", or why not}}}}

Kinds are those of road.KINDS, for detectors, and slim_road's, for slim's classifiers with --quantize.
"""

import argparse
import fcntl
import functools
import json
import os
import re
import shutil
import sys
import tempfile

from tests.generations import fetch, record, road, slim_road

RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "matrix.json")
_LONGEST_REASON = 160  # characters


def main(arguments=None) -> int:
    """Returns an exit status: 1 when a cell failed without a reason that is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--only", action="append", metavar="TREE", help="a folder's name; may be repeated")
    kinds = sorted(road.KINDS) + [slim_road.KIND]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    options = parser.parse_args(arguments)
    from od_qat.compat import tf
    from tests import doc_tables  # (which reads this module's results)

    failed = 0
    for pin in fetch.pins():
        if options.only and pin.folder not in options.only:
            continue
        source = record.find(options.folder, pin.folder)
        for kind in options.kinds:
            if not _commands(source, kind):
                continue
            try:
                cells = _run(source, options.folder, kind)
            except Exception as error:  # noqa: BLE001  (no cell is to stay as if it had been run)
                cells = {command: repr(error)[:_LONGEST_REASON] for command in _commands(source, kind)}
            _keep(pin.folder, tf.__version__, kind, cells)
            bad = [command for command, said in cells.items() if said != "ok"]
            failed += sum(not said.startswith("- ") for said in cells.values() if said != "ok")
            print(pin.folder, tf.__version__, kind, {c: cells[c] for c in bad} or "all ok", flush=True)
    doc_tables.write()
    return 1 if failed else 0


def _commands(source, kind):
    return slim_road.commands(source) if kind == slim_road.KIND else road.commands(kind)


def _run(source, folder, kind):
    """{command: 'ok', '- reason' of what cannot be had, or the last line of what went wrong}."""
    reason = road.cannot(source)
    if reason:
        return {command: "- " + reason for command in _commands(source, kind)}
    work = tempfile.mkdtemp()
    try:
        if kind == slim_road.KIND:
            tree = slim_road.prepare(source, work)
            run = functools.partial(slim_road.run, tree, work)
            wrong = functools.partial(slim_road.wrong_graph, work)
        else:
            tree, slim, config = road.prepare(source, folder, work, kind)
            run = functools.partial(road.run, tree, slim, work, config=config)
            wrong = functools.partial(road.wrong_graph, work, quantised=road.KINDS[kind][1])
        cells = {}
        for command in _commands(source, kind):
            known = slim_road.cannot(tree, command) if kind == slim_road.KIND else None
            status, text = (1, "- " + known) if known else run(command)
            cells[command] = _last_line(text, work) if status != 0 else wrong(command) or "ok"
        return cells
    finally:
        shutil.rmtree(work)


def _last_line(text, work):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|error|Exception)\b", line)), "")
    return (said or (lines or ["no output"])[-1]).replace(work, "WORK")[:_LONGEST_REASON]


def _keep(tree, tensorflow, kind, cells):
    # (`make test-all` runs this for several TensorFlows at a time.)
    with open(os.path.join(tempfile.gettempdir(), "od_qat_matrix.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = load()
        found.setdefault(tree, {}).setdefault(tensorflow, {})[kind] = cells
        with open(RESULTS + ".tmp", "w", encoding="utf-8") as stream:
            json.dump(found, stream, indent=1, sort_keys=True)
            stream.write("\n")
        os.replace(RESULTS + ".tmp", RESULTS)


def load():
    """What has been run so far."""
    if not os.path.exists(RESULTS):
        return {}
    with open(RESULTS, encoding="utf-8") as stream:
        return json.load(stream)


def table(found) -> str:
    """The results as a table: a row a tree, a column a TensorFlow, and notes for what is not ok."""
    versions = sorted({v for of_tree in found.values() for v in of_tree}, key=_as_numbers)
    notes = []
    rows = ["| tree | " + " | ".join(versions) + " |", "| --- " * (len(versions) + 1) + "|"]
    for pin in fetch.pins():
        cells = [_cell(found.get(pin.folder, {}).get(version, {}), notes) for version in versions]
        rows.append("| {} {} | {} |".format(pin.name, pin.version, " | ".join(cells)))
    return "\n".join(rows + [""] + ["{}. {}".format(n, text) for n, text in enumerate(notes, 1)]).rstrip()


def _as_numbers(version):
    return [int(part) for part in re.findall(r"\d+", version)]


def _cell(kinds, notes):
    texts = []
    for kind, cells in sorted(kinds.items()):
        bad = {command: said for command, said in cells.items() if said != "ok"}
        if len(bad) == len(cells) and len(set(bad.values())) == 1:
            texts.append("{}: no ({})".format(_NAMES[kind], _note(next(iter(bad.values())), notes)))
        elif bad:
            marks = ", ".join("{} ({})".format(c, _note(bad[c], notes)) for c in sorted(bad))
            texts.append("{}: all but {}".format(_NAMES[kind], marks))
        else:
            texts.append("{}: all".format(_NAMES[kind]))
    return "; ".join(texts) if texts else "not run"


_NAMES = {
    "float": "float",
    "qat": "QAT",
    "tf2_float": "TF 2 float",
    "tf2_qat": "TF 2 QAT",
    "slim": "classifiers",
}


def _note(said, notes):
    """The number of a reason's note, a new one where there is none yet."""
    text = said[2:] if said.startswith("- ") else said
    if text not in notes:
        notes.append(text)
    return notes.index(text) + 1


if __name__ == "__main__":
    sys.exit(main())
