#!/usr/bin/env bash
# Builds, checks and times everything on a machine with an NVIDIA GPU, in a quarter of an hour at most:
#
#     OUT=folder experiments/gpu_all.sh [FOLDER OF KODAK]
#
# Needs torch with CUDA, Triton, nvcc, setuptools, pybind11, ninja, safetensors, Pillow, scikit-image, typer, rich,
# hypothesis, pytest and pytest-benchmark; no network. Writes logs and
# bench.json to OUT (default runs/gpu); `python bench/performance.py OUT/bench.json --keep gpu` makes it the record.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu}
KODAK=${1:-}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD
mkdir -p "$OUT"
# The kernels lie beside the package; in place, without an installation, it finds them through this link.
[ -e l2c/kernels ] || ln -s ../kernels l2c/kernels

status=0
step() {  # name, seconds at most, command
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$OUT/$name.log" 2>&1
  local code=$?
  [ $code -eq 0 ] || status=1
  echo "$name: exit $code, $((SECONDS - start)) s"
  tail -3 "$OUT/$name.log"
}

# First without csrc/cuda, as most people have it: the range coder is Triton's then.
rm -f l2c/_cuda*.so
step build 90 "$PYTHON" setup.py build_ext --inplace
step tests-triton 190 "$PYTHON" -m pytest -q -x tests/test_kernels_integer.py tests/test_kernels_float.py \
  tests/test_exact_kernels.py
step build-cuda 80 env L2C_CUDA=1 "$PYTHON" setup.py build_ext --inplace
step tests-cuda 60 "$PYTHON" -m pytest -q -x tests/test_kernels_integer.py tests/test_cuda_rans.py
[ -z "$KODAK" ] || step devices 70 "$PYTHON" tests/checks/devices.py "$KODAK"
step bench 160 "$PYTHON" -m pytest -q bench -o python_files='bench_*.py' --benchmark-enable -k 'cuda or gpu' \
  --benchmark-json="$OUT/bench.json"
[ ! -s "$OUT/bench.json" ] || "$PYTHON" bench/performance.py "$OUT/bench.json"
# CompressAI's codecs, last: their kernels compile for a minute more. With csrc/cuda, then without.
step tests-hyperprior-cuda 150 "$PYTHON" -m pytest -q tests/test_hyperprior_kernels.py
hidden=$(mktemp -d)
mv l2c/_cuda*.so "$hidden"
step tests-hyperprior-triton 100 "$PYTHON" -m pytest -q tests/test_hyperprior_kernels.py
mv "$hidden"/_cuda*.so l2c
exit $status
