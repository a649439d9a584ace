#!/usr/bin/env bash
# A short stay on a GPU machine without network, in the repository's root there:
#
#     experiments/gpu_run.sh unpack           take the pictures that travelled with this call out of the tree
#     experiments/gpu_run.sh train SECONDS    self-test, then train until SECONDS after the start, and leave a pack
#     experiments/gpu_run.sh first SECONDS    experiments/gpu_all.sh before that, for at most 300 of the SECONDS
#
# Results go to $OUT: trunk.000, trunk.001 ... (renewed every minute, so that nothing is lost if the machine goes),
# journal.jsonl and logs. What must outlive a call on the same machine lies in $STORE: pictures and the run, which a
# second `train` resumes exactly. Needs torch with CUDA, Triton, Pillow with AVIF, safetensors, typer, rich, matplotlib.
#
# RECIPE, DEVICE, PARTS, MARGIN and MINUTE (seconds between two packs) are for rehearsals: tests/test_gpu_run.py.
set -uo pipefail
cd "$(dirname "$0")/.."
began=$SECONDS
STORE=${STORE:-/tmp/l2c-store}
OUT=${OUT:-runs/gpu}
RECIPE=${RECIPE:-configs/train/gpu.json}
PARTS=${PARTS:-.gpu}
DEVICE=${DEVICE:-cuda}
MINUTE=${MINUTE:-60}
PYTHON=${PYTHON:-python3}
mode=${1:-}
limit=${2:-0}
mkdir -p "$STORE/data" "$OUT"

if [ "$mode" = unpack ]; then
  for folder in "$PARTS"/data.*; do
    [ -d "$folder" ] && cp -r "$folder"/. "$STORE/data/"
  done
  echo "$(find "$STORE/data" -type f | wc -l) pictures, $(du -sm "$STORE/data" | cut -f1) MiB"
  exit 0
fi
if { [ "$mode" != train ] && [ "$mode" != first ]; } || [ "$limit" -lt 1 ]; then
  sed -n '2,15s/^# \{0,1\}//p' "$0"
  exit 2
fi

# The code runs from a copy, so that a later call that lays the tree anew does not pull it away from under a run.
code=$STORE/code
rm -rf "$code"
mkdir -p "$code"
cp -r l2c configs experiments "$code/"
rm -rf "$code/l2c/kernels"
cp -r kernels "$code/l2c/kernels"
[ "${RECIPE#/}" != "$RECIPE" ] || RECIPE=$code/$RECIPE
export PYTHONPATH=$code PYTHONUNBUFFERED=1

if [ "$mode" = first ]; then
  OUT=$OUT timeout 300 bash experiments/gpu_all.sh >"$OUT/gpu_all.log" 2>&1
  echo "gpu_all: exit $?, $((SECONDS - began)) s"
  tail -30 "$OUT/gpu_all.log"
fi

timeout 90 "$PYTHON" "$code/experiments/gpu_selftest.py" "$DEVICE" 2>&1 | tee "$OUT/selftest.log"
if [ "${PIPESTATUS[0]}" -ne 0 ]; then
  echo "the self-test failed: training goes on with PyTorch's own operators alone"
  export L2C_BACKEND=torch
fi

run=$STORE/run
if [ ! -e "$run/pretrain/checkpoint.pt" ] && ls "$PARTS"/trunk/trunk.* >/dev/null 2>&1; then
  "$PYTHON" -m l2c train unpack "$PARTS/trunk/trunk" "$run" || exit 1
fi

leave() {  # a pack in $OUT; whoever kills this script meanwhile finds the pack before it whole
  [ -e "$run/pretrain/checkpoint.pt" ] || return 0
  rm -rf "$STORE/pack"
  "$PYTHON" -m l2c train pack "$run" "$STORE/pack/trunk" >"$OUT/pack.log" 2>&1 || return 1
  rm -f "$OUT"/trunk.*
  mv "$STORE/pack"/trunk.* "$OUT/"
  cp "$run/pretrain/journal.jsonl" "$OUT/" 2>/dev/null || true
}

sources=()
for folder in "$STORE"/data/*/; do
  case $(basename "$folder") in val*) ;; *) sources+=(--data "$folder") ;; esac
done
validation=()
for folder in "$STORE"/data/val*/; do validation+=(--val "$folder"); done

# The end: one step, a checkpoint, a validation and a pack must fit behind the signal.
margin=${MARGIN:-45}
left=$((limit - (SECONDS - began) - margin))
if [ "$left" -lt 5 ]; then
  echo "no time is left to train"
  exit 1
fi
timeout --signal=INT --kill-after=30 "$left" "$PYTHON" -m l2c train pretrain "$RECIPE" --out "$run" \
  "${sources[@]}" "${validation[@]}" --device "$DEVICE" --set save_minutes="$(awk "BEGIN {print $MINUTE / 60}")" \
  >"$OUT/train.log" 2>&1 &
trainer=$!
while kill -0 "$trainer" 2>/dev/null; do
  for ((i = 0; i < MINUTE; i++)); do
    kill -0 "$trainer" 2>/dev/null || break
    sleep 1
  done
  kill -0 "$trainer" 2>/dev/null && leave
done
wait "$trainer"
code=$?
leave
tail -25 "$OUT/train.log"
echo "training: exit $code (124, 130: stopped in time), $((SECONDS - began)) of $limit s"
ls -l "$OUT"
ls "$OUT"/trunk.000 >/dev/null 2>&1
