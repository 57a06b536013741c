#!/usr/bin/env bash
# `make test`: the tests on the current TensorFlow and, where there is a Python 3.7, those on TensorFlow 1.15.5. Three
# processes share the cores: half of the tests on the current TensorFlow, nearly the other half, and TensorFlow 1.15.5's
# with the rest. What the second and third print comes after the first. Says what ran, and fails if one failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# Half of the time: tests that train detectors. And those that run behind TensorFlow 1.15.5's: of Keras models, and of
# upstream's commands.
TRAINING="doc_commands restore road tf2_commands"
BEHIND="tf2_half object_based keras_graphs run classifiers slim_commands"

said() { if [ "$1" -eq 0 ]; then echo passed; else echo FAILED; fi; }

logs="$(mktemp -d)"
beside=()
trap 'rm -rf "$logs"' EXIT
trap 'kill "${beside[@]}" 2>/dev/null; rm -rf "$logs"; exit 130' INT TERM

# files NAME...: of tests.
files() { printf 'tests/test_%s.py ' "$@"; }

has_older=no
if bash requirements/setup.sh tf1 --find; then
  make --no-print-directory setup-tf1 || exit 1
  has_older=yes
fi
split=no
[ "${TESTS:-tests}" = tests ] && split=yes

{
  if [ "$has_older" = yes ]; then
    make --no-print-directory test-tf1 > "$logs/tf1" 2>&1
    echo $? > "$logs/tf1.status"
  fi
  if [ "$split" = yes ]; then
    # shellcheck disable=SC2086
    make --no-print-directory test-main TESTS="$(files $BEHIND)" > "$logs/behind" 2>&1
  fi
} &
beside+=($!)

current=0
if [ "$split" = yes ]; then
  # shellcheck disable=SC2086
  make --no-print-directory test-main TESTS="$(files $TRAINING)" > "$logs/training" 2>&1 &
  beside+=($!)
  # shellcheck disable=SC2086
  make --no-print-directory test-main \
    ARGS="${ARGS:-} $(printf -- '--ignore=%s ' $(files $TRAINING $BEHIND))" || current=1
  wait "${beside[1]}" || current=1
  echo "== the tests that train"
  cat "$logs/training"
else
  make --no-print-directory test-main || current=1
fi

wait "${beside[0]}" || current=1
if [ "$split" = yes ]; then
  echo "== the tests of Keras models and of upstream's commands"
  cat "$logs/behind"
fi
failed=0
older="not run, no Python 3.7 here (pyenv install 3.7)"
if [ "$has_older" = yes ]; then
  failed="$(cat "$logs/tf1.status" 2>/dev/null || echo 1)"
  echo "== TensorFlow 1.15.5"
  cat "$logs/tf1"
  older="$(said "$failed")"
fi
echo "test: current TensorFlow: $(said "$current"); TensorFlow 1.15.5: $older"
[ "$current" -eq 0 ] && [ "$failed" -eq 0 ]
