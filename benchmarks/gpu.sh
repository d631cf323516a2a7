#!/usr/bin/env bash
# Run on a CUDA machine in stages: build, tests, sanitizers, times, profiles. benchmarks/gpu/README.md describes them.
#
#   benchmarks/gpu.sh [OUT] [--minutes 10] [--resume] [--stages a,b] [--list] [--rehearse --emulated FILE]
#
# Needs python3 (PYTHON=... for another) with torch >= 2.11, and nvcc; no network. Extra wheels are taken from
# .carry/*.whl where that folder exists.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-python3}") || { echo "no ${PYTHON:-python3} on PATH: set PYTHON=..." >&2; exit 2; }
if compgen -G "$root/.carry/*.whl" >/dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  # One by one: a wheel for another interpreter must not keep the others from being installed.
  for wheel in "$root"/.carry/*.whl; do
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" "$wheel" ||
      echo "not installed: $wheel" >&2
  done
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
"$python" -m benchmarks.gpu "$@"
