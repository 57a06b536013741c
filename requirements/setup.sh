#!/usr/bin/env bash
# Makes .venv (with `tf1` .venv-tf1, with `tf215` .venv-tf215) and installs what requirements/ pins. Does nothing
# when nothing changed.
#
#   requirements/setup.sh [main|tf1|tf215] [--find]
#
# --find installs nothing: its status says whether there is a Python for it.
#
# Environment:
#   PYTHON      the interpreter to make .venv with (Python 3.9 to 3.13); default: the first one found
#   OD_API      your own models/research folder; the OD API is then not installed
#   TENSORFLOW  the TensorFlow package, instead of the one chosen for this machine
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

KIND="${1:-main}"
case "$KIND" in
  main) VENV=.venv; PYTHONS="3.9 3.10 3.11 3.12 3.13" ;;
  tf1) VENV=.venv-tf1; PYTHONS="3.7" ;;
  tf215) VENV=.venv-tf215; PYTHONS="3.9 3.10 3.11" ;;
  *) echo "setup: unknown environment '$KIND'; allowed: main, tf1, tf215" >&2; exit 2 ;;
esac
LOG="$VENV/setup.log"

say() { echo "setup: $*"; }
fail() { echo "setup: error: $*" >&2; exit 1; }

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

supported() { [ -n "$1" ] && [[ " $PYTHONS " == *" $1 "* ]]; }

# Prints an interpreter that can make the environment. A pyenv shim may be on the PATH and still not run.
find_python() {
  local candidate names pyenv="${PYENV_ROOT:-$HOME/.pyenv}/versions"
  case "$KIND" in
    main) names=(python3 python3.12 python3.11 python3.13 python3.10 python3.9 python) ;;
    tf1) names=(python3.7 "$pyenv"/3.7*/bin/python) ;;
    tf215) names=(python3 python3.11 python3.10 python3.9 "$pyenv"/3.{11,10,9}.*/bin/python) ;;
  esac
  for candidate in "${names[@]}"; do
    if supported "$(version_of "$candidate")"; then echo "$candidate"; return 0; fi
  done
  return 1
}

if [ "${2:-}" = --find ]; then
  supported "$(version_of "$VENV/bin/python")" || find_python >/dev/null
  exit
fi

if [ "$KIND" = main ] && [ -n "${PYTHON:-}" ]; then
  CHOSEN="$PYTHON"
  VERSION="$(version_of "$CHOSEN")" || fail "cannot run PYTHON=$CHOSEN; allowed: Python 3.9 to 3.13"
  supported "$VERSION" || fail "PYTHON=$CHOSEN is Python $VERSION; allowed: 3.9 to 3.13"
elif VERSION="$(version_of "$VENV/bin/python")" && supported "$VERSION"; then
  CHOSEN=""  # the environment that is there decides
elif CHOSEN="$(find_python)"; then
  VERSION="$(version_of "$CHOSEN")"
elif [ "$KIND" = tf215 ]; then
  fail "no Python 3.9 to 3.11 found, which TensorFlow 2.15 needs; put a python3.11 on the PATH, or: pyenv install 3.11"
elif [ "$KIND" = tf1 ]; then
  fail "no Python 3.7 found, which TensorFlow 1.15 needs; put a python3.7 on the PATH, or: pyenv install 3.7"
else
  fail "no Python 3.9 to 3.13 found; install one, or name it: make setup PYTHON=/path/to/python3"
fi

if [ -n "${OD_API:-}" ]; then
  [ -f "$OD_API/object_detection/__init__.py" ] && [ -d "$OD_API/slim/nets" ] ||
    fail "OD_API=$OD_API is not a models/research folder (no object_detection/ and slim/nets/); fix the path"
  ls "$OD_API"/object_detection/protos/pipeline{_pb2.py,.proto} 2>/dev/null | grep -q . ||
    fail "OD_API=$OD_API has no protos, neither compiled nor as .proto files; restore it from its source"
fi

# tensorflow-cpu is a third of the size, and exists for this one platform.
if [ -z "${TENSORFLOW:-}" ]; then
  TENSORFLOW=tensorflow
  if [ "$(uname -s) $(uname -m)" = "Linux x86_64" ]; then
    TENSORFLOW=tensorflow-cpu
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
      TENSORFLOW="tensorflow[and-cuda]"
    fi
  fi
fi
case "$KIND" in
  tf1) TENSORFLOW="tensorflow 1.15" ;;
  # (For comparison, which needs no graphics card.)
  tf215) if [ "$(uname -s) $(uname -m)" = "Linux x86_64" ]; then TENSORFLOW=tensorflow-cpu; else TENSORFLOW=tensorflow; fi ;;
esac

HASH="$(
  { cat pyproject.toml requirements/setup.sh requirements/*.txt od_qat/od_api/requirements/* \
        "requirements/lock/py${VERSION/./}.txt" 2>/dev/null || true
    # An environment cannot be moved: its scripts name the folder it was made in.
    echo "$VERSION $TENSORFLOW own_od_api=${OD_API:+yes} $PWD"; } | cksum | tr ' ' '-'
)"
STAMP="$VENV/.installed-$HASH"
[ -f "$STAMP" ] && [ -x "$VENV/bin/python" ] && exit 0

# An environment whose making was interrupted has no pip.
if [ -z "$CHOSEN" ] && ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
  CHOSEN="$(find_python)" || fail "$VENV is broken; remove it and name a Python: make setup PYTHON=/path/to/python3"
  VERSION="$(version_of "$CHOSEN")"
  rm -f "$VENV/bin/python"
fi
if [ -n "$CHOSEN" ] && [ "$(version_of "$VENV/bin/python" || true)" != "$VERSION" ]; then
  say "new environment $VENV with Python $VERSION"
  "$CHOSEN" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "this Python has no venv module; on Debian and Ubuntu: apt install python3-venv"
  "$CHOSEN" -m venv --clear "$VENV" || fail "cannot make $VENV with $CHOSEN"
fi
rm -f "$VENV"/.installed-*
: > "$LOG"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

# step TEXT ARGS...: one line for the user, everything else into the log.
step() {
  say "$1"
  shift
  if ! "$VENV/bin/python" -m pip "$@" >> "$LOG" 2>&1; then
    echo "setup: error: pip failed; the last lines:" >&2
    tail -n 12 "$LOG" | sed 's/^/  /' >&2
    echo "setup: all of its output: $LOG. Run it again once the cause is removed; it goes on from here" >&2
    exit 1
  fi
}

if [ "$KIND" = tf1 ]; then
  step "TensorFlow 1.15 and what it needs (200 MB)" install -r requirements/tf1.txt
  # (It asks for a numpy that TensorFlow 1.15 refuses, and works with 1.15's.)
  step "the TFLite runtime" install --no-deps tflite-runtime==2.11.0
elif [ "$KIND" = tf215 ]; then
  sed "s/^tensorflow-cpu/$TENSORFLOW/" requirements/tf215.txt > "$VENV/tf215.txt"
  step "TensorFlow 2.15 and what it needs (about 500 MB, some minutes)" install -r "$VENV/tf215.txt"
else
  LOCK="requirements/lock/py${VERSION/./}.txt"
  sed "s/^tensorflow-cpu/$TENSORFLOW/" requirements/tensorflow.txt > "$VENV/tensorflow.txt"
  step "$TENSORFLOW and $(grep -c '==' "$LOCK") pinned packages (about 600 MB, some minutes)" \
    install -r "$LOCK" -r "$VENV/tensorflow.txt"
  step "od_qat itself" install --no-deps --no-build-isolation -e .
fi
# The way that users have, too. (--replace: this environment has the pinned versions.)
PYTHONPATH="$PWD" "$VENV/bin/python" -m od_qat install-od-api --replace | sed 's/^/setup: /' || exit 1
touch "$STAMP"
if [ "$KIND" != main ]; then say "done"; else say "done; next: make demo, or make doctor"; fi
