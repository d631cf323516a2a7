#!/usr/bin/env bash
# One call on a bare CUDA machine: build, CUDA tests with skips as failures, benchmarks, compute-sanitizer.
#
#   benchmarks/gpu.sh [OUT]        OUT (default: benchmarks/results/gpu-<date>) receives the logs, ptxas report and JSON
#
# Needs python3 (PYTHON=... for another) with torch >= 2.11, pybind11, pytest, pytest-benchmark, hypothesis, scipy, rich,
# safetensors, cmake, ninja, and nvcc; no network. Extra wheels are taken from .carry/*.whl where that folder exists. All
# stages together end within LIMIT seconds (default 530); one that fails does not keep the later ones from running, and
# the exit status says so.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
out=${1:-benchmarks/results/gpu-$(date +%Y%m%d)}
python=$(command -v "${PYTHON:-python3}") || { echo "no ${PYTHON:-python3} on PATH"; exit 2; }
limit=${LIMIT:-530}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
out=$(cd "$out" && pwd)
failed=()

stage() { # stage NAME SECONDS COMMAND...
  local name=$1 seconds=$2 start=$SECONDS left=$((limit - SECONDS)) status
  shift 2
  [ "$seconds" -lt "$left" ] || seconds=$left
  if [ "$seconds" -le 5 ]; then
    echo "=== $name: no time left"
    failed+=("$name (no time left)")
    return
  fi
  echo "=== $name (at most $seconds s)"
  timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$out/$name.log" | tail -n 25
  status=${PIPESTATUS[0]}
  echo "=== $name: exit $status after $((SECONDS - start)) s"
  [ "$status" -eq 0 ] || failed+=("$name")
}

# A copy, so that neither build products nor caches end up in the tree.
tar --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./runs --exclude='*.so' -cf - . | tar -xf - -C "$work"
export FASTOOD_GIT_SHA="${FASTOOD_GIT_SHA:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}"
[ -z "$(git status --porcelain -uno 2>/dev/null)" ] || export FASTOOD_GIT_DIRTY=1
cd "$work" || exit 2
if compgen -G "$root/.carry/*.whl" >/dev/null; then
  "$python" -m pip install --quiet --no-index --no-deps --target "$work/site" "$root"/.carry/*.whl
fi
export PYTHONPATH="$work:$work/site${PYTHONPATH:+:$PYTHONPATH}"
export FASTOOD_CUDA=1 FASTOOD_REQUIRE_CUDA=1

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/gpu.csv"
# For this machine's GPU alone: four architectures take four times as long.
export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)}"
configure=(cmake -S . -B gpu-build -G Ninja "-DPython_EXECUTABLE=$python" -DFASTOOD_VERSION=0 -DFASTOOD_BUILD_TESTS=OFF
  "-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$work/fastood")
stage configure 60 "${configure[@]}"
stage build 150 cmake --build gpu-build
grep -E "Function properties|registers|spill" "$out/build.log" >"$out/ptxas.txt" || true

# First of all: whether a static CUDA runtime beside torch's own sees torch's tensors and streams.
stage static-cudart 60 "$python" -m pytest -q -p no:cacheprovider -o addopts=--strict-markers \
  tests/ops/test_registration.py -k "current_stream or cuda_equals_cpu"

pytest=("$python" -m pytest -q -m needs_cuda -p no:cacheprovider -o addopts=--strict-markers)
stage tests 180 "${pytest[@]}" tests/ops/test_outlier_loss.py tests/ops/test_weighted_uniformity.py tests/losses/test_losses.py \
  tests/ops/test_logit_scores.py tests/ops/test_registration.py tests/samplers/test_pool.py tests/ops/test_background_pool_cuda.py \
  tests/ops/test_mahalanobis_logits.py tests/ops/test_mahalanobis_cuda.py tests/ops/test_class_l1_nearest.py tests/ops/test_detection_metrics_cuda.py \
  tests/ops/test_augment_images.py

benchmark=("$python" -m pytest -q --device cuda -p no:cacheprovider -o addopts= --benchmark-disable)
# Graph replay beside an empty launch first: short, and not in the other file.
stage benchmarks-graph 40 "${benchmark[@]}" benchmarks/test_outlier_losses_cuda.py --seconds 0.5 \
  --results "$out/graph.json"
stage benchmarks 150 "${benchmark[@]}" benchmarks/test_background_pool.py benchmarks/test_outlier_losses.py \
  benchmarks/test_logit_scores.py benchmarks/test_mahalanobis_logits.py benchmarks/test_class_l1_nearest.py --seconds 0.3 --results "$out/benchmarks.json"

sanitizer=
for candidate in "$(command -v compute-sanitizer)" "${CUDA_HOME:-}/bin/compute-sanitizer" \
  /usr/local/cuda/bin/compute-sanitizer; do
  [ -x "$candidate" ] && sanitizer=$candidate && break
done
if [ -n "$sanitizer" ]; then
  # Small shapes of every group width (4, 16, 32 lanes, a block). Without torch's cache each tensor is an allocation of
  # its own, so that a write past its end is seen.
  small="33x2- or 33x10 or 7x129 or 7x1025 or 0x10- or top100"
  small="special_rows or background_pool or (float32 and (value_and_grad or float64_reference) and ($small))"
  # A warp's rows of one and two, tiles of 32, every edge of a block of columns; near pairs.
  # Tied scores of every count, and replicates of more than a tile.
  small="$small or (statistics_are_those_of_the_cpu and float32 and tied) or (replicates and 700)"
  small="$small or near_pairs or bad_row or (float32 and (17x5x or (equals_the_cpu and 1100)))"
  # Lanes past the last feature, and keys past the last one.
  small="$small or what_has_no_key or (float32 and 20x70x33)"
  for tool in memcheck racecheck; do
    stage "$tool" 70 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 9 \
      --target-processes all "${pytest[@]}" tests/ops/test_outlier_loss.py tests/ops/test_logit_scores.py \
      tests/ops/test_background_pool_cuda.py tests/ops/test_mahalanobis_logits.py tests/ops/test_mahalanobis_cuda.py \
      tests/ops/test_class_l1_nearest.py tests/ops/test_detection_metrics_cuda.py -k "$small"
  done
else
  echo "=== compute-sanitizer is neither on PATH nor in the toolkit"
  failed+=("compute-sanitizer missing")
fi

if [ ${#failed[@]} -gt 0 ]; then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "all stages passed in $SECONDS s; results in $out"
