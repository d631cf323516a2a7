#!/usr/bin/env bash
# One call on a bare CUDA machine: build, CUDA tests with skips as failures, compute-sanitizer, benchmarks.
#
#   benchmarks/gpu.sh [OUT]        OUT (default: benchmarks/results/gpu-<date>) receives the log, ptxas report and JSON
#
# Needs python3 (PYTHON=... for another) with torch >= 2.11, pybind11, pytest, pytest-benchmark, rich, cmake, ninja, and
# nvcc; no network. Extra wheels are taken from .carry/*.whl where that folder exists. Every stage has a time limit of its
# own, all together 9 minutes; a stage that fails does not keep the later ones from running, and the exit status says so.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
out=${1:-benchmarks/results/gpu-$(date +%Y%m%d)}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
out=$(cd "$out" && pwd)
failed=()

stage() { # stage NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  echo "=== $name (at most $limit s)"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee -a "$out/$name.log" | tail -n 25
  status=${PIPESTATUS[0]}
  echo "=== $name: exit $status after $((SECONDS - start)) s"
  [ "$status" -eq 0 ] || failed+=("$name")
}

# A copy, so that neither build products nor caches end up in the tree.
git ls-files -z --cached --others --exclude-standard 2>/dev/null | xargs -0 cp --parents -t "$work" 2>/dev/null || cp -r . "$work"
cd "$work" || exit 2
if compgen -G "$root/.carry/*.whl" >/dev/null; then
  "$python" -m pip install --quiet --no-index --no-deps --target "$work/site" "$root"/.carry/*.whl
fi
export PYTHONPATH="$work:$work/site${PYTHONPATH:+:$PYTHONPATH}"
export FASTOOD_CUDA=1 FASTOOD_REQUIRE_CUDA=1
export FASTOOD_GIT_SHA="${FASTOOD_GIT_SHA:-$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)}"

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/gpu.csv"
stage build 150 bash -c "cmake -S . -B build -G Ninja -DPython_EXECUTABLE=\"\$(command -v '$python')\" -DFASTOOD_VERSION=0 \
  -DFASTOOD_BUILD_TESTS=OFF -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=\"$work/fastood\" && cmake --build build"
grep -E "Function properties|registers|spill" "$out/build.log" >"$out/ptxas.txt" || true

# First of all: whether a static CUDA runtime beside torch's own sees torch's tensors and streams.
stage static-cudart 60 "$python" - <<'PY'
import torch
from fastood.ops import reference, weighted_uniformity
stream = torch.cuda.Stream()
with torch.cuda.stream(stream):
    x = torch.randn(4096, 1000, device="cuda").add(1)
    loss, _ = weighted_uniformity(x)
stream.synchronize()
want, _ = reference.weighted_uniformity(x)
assert abs(loss.item() - want.item()) <= 1e-5 * want.item(), (loss, want)
print("static cudart shares context and streams with torch", torch.__version__, torch.cuda.get_device_name())
PY

tests=(tests/test_weighted_uniformity.py tests/test_registration.py tests/test_losses.py)
stage tests 120 "$python" -m pytest -q -m needs_cuda -p no:cacheprovider -o addopts=--strict-markers "${tests[@]}"

sanitizer=$(command -v compute-sanitizer || true)
if [ -n "$sanitizer" ]; then
  # Small shapes of every layout; a graph capture and torch.compile are not the sanitizer's business.
  for tool in memcheck racecheck; do
    stage "$tool" 70 "$sanitizer" --tool "$tool" --error-exitcode 9 --target-processes all \
      "$python" -m pytest -q -m needs_cuda -p no:cacheprovider -o addopts=--strict-markers \
      tests/test_weighted_uniformity.py -k "gradcheck or special_rows or one_class or 7x1025 or 7x2049"
  done
else
  echo "=== compute-sanitizer is not on PATH"
  failed+=("compute-sanitizer missing")
fi

stage benchmarks 130 "$python" -m pytest -q benchmarks --device cuda --benchmark-disable-gc -p no:cacheprovider \
  -o addopts= --results "$out/benchmarks.json"

if [ ${#failed[@]} -gt 0 ]; then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "all stages passed in $SECONDS s; results in $out"
