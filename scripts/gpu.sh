#!/usr/bin/env bash
# One part of the work for a machine with a GPU, each inside nine minutes.
#
#   scripts/gpu.sh prove                      every kernel once against the reference, all compiled at the same time
#   scripts/gpu.sh check                      the kernels against float64, on the GPU; the model on both paths
#   scripts/gpu.sh bench [MINUTES]            every operation and the model beside their rivals, the estimate beside the
#                                             measurement
#   scripts/gpu.sh bench-training [MINUTES]   the same with gradients, and the training step, with memory
#   scripts/gpu.sh pack                       decode the training data once, for all trainings to come
#   scripts/gpu.sh train [MINUTES] [options]  train dpt_complex at a held rate, or go on with it; --branch .run is the
#                                             release: the rate falls to 0
#
# Nothing is downloaded. In the repository's root lie, ignored by git:
#   .whl/    wheels of what the machine lacks (soundfile, cffi, pycparser, soxr, pesq, pystoi, scipy, safetensors, pytest, ...)
#   .data/   the training data in pieces (scripts/cut_data.py), each with speech/ noise/ rir/; where a call carries
#            less than all, several carry one piece each (and run `true`), and what lies there stays
#   .run/    state.pt of an earlier part of the run, to go on from; a run on a CPU is gone on with likewise
# What comes back lies in $OUT (default: out/): reports; results.json and training.json for benchmarks/results/; state.pt,
# best.safetensors, log.jsonl of a training.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:?usage: scripts/gpu.sh prove | check | bench [MINUTES] | bench-training [MINUTES] | pack | train [MINUTES]}
out=${OUT:-out}
mkdir -p "$out"

site=$(mktemp -d)
if compgen -G '.whl/*.whl' > /dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl
fi
export PYTHONPATH="$site:$PWD:$PWD/kernels" PYTHONUNBUFFERED=1

case $part in
  prove)
    python3 -m fastenh info | tee "$out/info.txt"
    python3 -m benchmarks.proof -o "$out/proof.json" | tee "$out/proof.txt"
    ;;
  check)
    python3 -m fastenh info | tee "$out/info.txt"
    python3 -m pytest -q -m gpu tests | tee "$out/gpu-tests.txt"
    audio=$(mktemp -d)
    for backend in reference triton; do
      python3 -m fastenh enhance samples -o "$audio/$backend" --device cuda --dtype float32 \
        --backend "$backend" -v
    done
    python3 -m fastenh evaluate "$audio/triton" "$audio/reference" --jobs 4 | tee "$out/triton-against-reference.txt"
    if command -v compute-sanitizer > /dev/null; then
      for tool in memcheck racecheck; do
        compute-sanitizer --tool "$tool" python3 -m pytest -q -m gpu tests/operations -k "not seventy" \
          | tee "$out/$tool.txt"
      done
    fi
    ;;
  bench)
    python3 -m benchmarks.gpu --minutes "${2:-7}" -o "$out/results.json" | tee "$out/bench.txt"
    ;;
  bench-training)
    python3 -m benchmarks.gpu --part training --minutes "${2:-6}" -o "$out/training.json" | tee "$out/bench-training.txt"
    ;;
  pack)
    for part in speech noise rir; do
      python3 -m fastenh data pack .data/[0-9]*/"$part" -o ".data/$part.safetensors"
    done
    ;;
  train)
    run=$(mktemp -d)
    start=()
    if [[ -f .run/state.pt && " ${*:3} " != *" --branch "* ]]; then
      cp .run/* "$run/"
      start=(--resume)
    fi
    corpora=()
    for part in clean:speech noise:noise rir:rir; do
      for source in ".data/${part#*:}.safetensors" .data/[0-9]*/"${part#*:}"; do
        [[ -e $source ]] && corpora+=("--${part%:*}" "$source")
        [[ -f $source ]] && break  # a pack holds all of them
      done
    done
    python3 -m fastenh train dpt_complex -o "$run" "${corpora[@]}" --set run.epochs=1000000 \
      --set schedule.decay_epochs=0 --max-minutes "${2:-7.5}" "${start[@]}" "${@:3}"
    cp "$run/state.pt" "$run"/*.safetensors "$run/log.jsonl" "$out/"
    ;;
  *)
    echo "no part named $part: there are prove, check, bench, bench-training, pack and train" >&2
    exit 2
    ;;
esac
