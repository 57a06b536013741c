#!/usr/bin/env bash
# `make test`: the tests on the current TensorFlow, and beside them, where there is a Python 3.7, those on TensorFlow
# 1.15.5, whose output comes after. (Building graphs keeps one core busy.) Says what ran; fails if one failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

said() { if [ "$1" -eq 0 ]; then echo passed; else echo FAILED; fi; }

older="not run, no Python 3.7 here (pyenv install 3.7)"
failed=0
if bash requirements/setup.sh tf1 --find; then
  make --no-print-directory setup-tf1 || exit 1
  log="$(mktemp)"
  trap 'rm -f "$log"' EXIT
  make --no-print-directory test-tf1 > "$log" 2>&1 &
  beside=$!
  trap 'kill "$beside" 2>/dev/null; rm -f "$log"; exit 130' INT TERM
fi
make --no-print-directory test-main
status=$?
if [ -n "${beside:-}" ]; then
  wait "$beside"
  failed=$?
  echo "== TensorFlow 1.15.5"
  cat "$log"
  older="$(said "$failed")"
fi
echo "test: current TensorFlow: $(said "$status"); TensorFlow 1.15.5: $older"
[ "$status" -eq 0 ] && [ "$failed" -eq 0 ]
