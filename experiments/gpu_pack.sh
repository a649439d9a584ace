#!/usr/bin/env bash
# Gathers what a short stay on a GPU machine without network needs, and prints the calls to make:
#
#     experiments/gpu_pack.sh RUN DATA...        RUN: folder of the trunk's run; DATA: folders of training pictures
#
# Writes .gpu/trunk (the packed checkpoint) and .gpu/data.0, .gpu/data.1 ... (pictures), each of at most PART MiB, so
# that one of them travels beside the tree in a call. `experiments/gpu_run.sh` is the other end.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
cd "$(dirname "$0")/.."
run=$1
shift
PART=${PART:-40}
PYTHON=${PYTHON:-.venv/bin/python}

rm -rf .gpu
mkdir -p .gpu/trunk
"$PYTHON" -m l2c train pack "$run" .gpu/trunk/trunk
number=0
room=$((PART << 20))
for folder in "$@"; do
  for file in "$folder"/*; do
    size=$(stat -c %s "$file")
    if [ "$size" -gt "$room" ]; then
      number=$((number + 1))
      room=$((PART << 20))
    fi
    room=$((room - size))
    mkdir -p ".gpu/data.$number/$(basename "$folder")"
    cp "$file" ".gpu/data.$number/$(basename "$folder")/"
  done
done

echo "one call each, without a pause of 30 s between them (carry: what travels beside the tree):"
for folder in .gpu/data.*; do
  echo "  carry $folder   bash experiments/gpu_run.sh unpack     ($(du -sm "$folder" | cut -f1) MiB)"
done
echo "  carry .gpu/trunk    bash experiments/gpu_run.sh first 590   (a first stay: all kernels checked, then training)"
echo "  carry .gpu/trunk    bash experiments/gpu_run.sh train 590   (any later one)"
echo "then here: python -m l2c train unpack FILES/trunk NEW_RUN"
