#!/usr/bin/env bash
# `make test`: the tests on the current TensorFlow and, where there is a Python 3.7, those on TensorFlow 1.15.5. Three
# processes share the cores: half of the tests, the other half, and TensorFlow 1.15.5's. What the second and third print
# comes after the first. Says what ran, and fails if one failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# Half of the time: tests that train detectors.
TRAINING="doc_commands restore road run samples"

said() { if [ "$1" -eq 0 ]; then echo passed; else echo FAILED; fi; }

logs="$(mktemp -d)"
beside=()
trap 'rm -rf "$logs"' EXIT
trap 'kill "${beside[@]}" 2>/dev/null; rm -rf "$logs"; exit 130' INT TERM

older="not run, no Python 3.7 here (pyenv install 3.7)"
if bash requirements/setup.sh tf1 --find; then
  make --no-print-directory setup-tf1 || exit 1
  make --no-print-directory test-tf1 > "$logs/tf1" 2>&1 &
  beside+=($!)
  older=""
fi

current=0
if [ "${TESTS:-tests}" = tests ]; then
  files=()
  ignored=()
  for name in $TRAINING; do
    files+=("tests/test_$name.py")
    ignored+=("--ignore=tests/test_$name.py")
  done
  make --no-print-directory test-main TESTS="${files[*]}" > "$logs/training" 2>&1 &
  beside+=($!)
  training=$!
  make --no-print-directory test-main ARGS="${ARGS:-} ${ignored[*]}" || current=1
  wait "$training" || current=1
  echo "== the tests that train"
  cat "$logs/training"
else
  make --no-print-directory test-main || current=1
fi

failed=0
if [ -z "$older" ]; then
  wait "${beside[0]}" || failed=1
  echo "== TensorFlow 1.15.5"
  cat "$logs/tf1"
  older="$(said "$failed")"
fi
echo "test: current TensorFlow: $(said "$current"); TensorFlow 1.15.5: $older"
[ "$current" -eq 0 ] && [ "$failed" -eq 0 ]
