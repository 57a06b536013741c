#!/usr/bin/env bash
# Builds od_qat's sdist and wheel into dist/, without a network: requirements/dist.sh PYTHON
# The wheel is built from the sdist, so that what is missing there shows, and nothing of an older build is in it.
set -euo pipefail
PYTHON="$(command -v "$1")"
[[ "$PYTHON" = /* ]] || PYTHON="$PWD/$PYTHON"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rm -rf dist
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
{
  "$PYTHON" -c 'from setuptools import build_meta; build_meta.build_sdist("dist")' &&
    "$PYTHON" -m pip wheel --no-deps --no-index --no-build-isolation --wheel-dir dist dist/od_qat-*.tar.gz
} > "$log" 2>&1 || { tail -n 12 "$log" >&2; echo "dist: error: it cannot be built; the last lines are above" >&2; exit 1; }
ls dist/*
