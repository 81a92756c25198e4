#!/usr/bin/env bash
# One part of the work for a machine with a GPU, each inside nine minutes.
#
#   scripts/gpu.sh prove [MINUTES]            every kernel once against the reference, all compiled at the same time; then
#                                             kernels, eager and compiled beside each other at 64 clips
#   scripts/gpu.sh check                      the kernels against float64, on the GPU; the model on both paths
#   scripts/gpu.sh memcheck                   some tests under compute-sanitizer, where it starts
#   scripts/gpu.sh bench [MINUTES]            every operation and the model beside their rivals at every number of clips
#   scripts/gpu.sh bench-training [MINUTES]   the same with gradients, and the training step, with memory
#   scripts/gpu.sh pack                       decode the training data once, for all trainings to come
#   scripts/gpu.sh train [MINUTES] [options]  train dpt_complex, or the recipe that RECIPE names, at a held rate, or go
#                                             on with it; --branch .run is the release: the rate falls to 0
#
# A step that fails does not end a part: the others run, what failed is named at the end, and the exit code is 1.
#
# Nothing is downloaded. In the repository's root lie, ignored by git:
#   .whl/    wheels of what the machine lacks, by scripts/gpu_wheels.sh
#   .data/   the training data in pieces (scripts/cut_data.py), each with speech/ noise/ rir/; where a call carries
#            less than all, several carry one piece each (and run `true`), and what lies there stays
#   .run/    state.pt of an earlier part of the run, to go on from; a run on a CPU is gone on with likewise
#   .cache/  cache.tar.gz.* of an earlier part: what was compiled, and what the proof found
# What comes back lies in $OUT (default: out/), written as it is known, in at most 8 files: reports; results.json and
# training.json for benchmarks/results/; cache.tar.gz in pieces of 15 MiB; state.pt, best.safetensors, log.jsonl of a training.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:?usage: scripts/gpu.sh prove [MINUTES] | check | memcheck | bench [MINUTES] | bench-training [MINUTES] | pack | train [MINUTES]}
out=${OUT:-out}
mkdir -p "$out"

site=$(mktemp -d)
if compgen -G '.whl/*.whl' > /dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl
fi
export PYTHONPATH="$site:$PWD:$PWD/kernels" PYTHONUNBUFFERED=1

cache=$(mktemp -d)
export TRITON_CACHE_DIR="$cache/triton" FASTENH_CACHE="$cache/fastenh"
if compgen -G '.cache/cache.tar.gz.*' > /dev/null; then cat .cache/cache.tar.gz.* | tar -xzf - -C "$cache"; fi

failed=()
# say FILE COMMAND ...: what the command says goes to FILE, too; where it fails, the part goes on
say() {
  "${@:2}" 2>&1 | tee "$out/$1" || failed+=("$1")
}

case $part in
  prove)
    say proof.txt python3 -m benchmarks.proof -o "$out/proof.json"
    say info.txt python3 -m fastenh info
    # before anything else can end this part; a file that comes back has 16 MiB at most
    tar -czf - -C "$cache" . | split -b 15m - "$out/cache.tar.gz."
    say bench.txt python3 -m benchmarks.gpu --clips 64 --minutes "${2:-2}" -o "$out/results.json"
    ;;
  check)
    workers=()
    if python3 -c 'import xdist' 2> /dev/null; then workers=(-n 8); fi # they compile at the same time
    say gpu-tests.txt python3 -m pytest -q -m gpu "${workers[@]}" --continue-on-collection-errors tests
    audio=$(mktemp -d)
    for backend in reference triton; do
      say "enhance-$backend.txt" python3 -m fastenh enhance samples -o "$audio/$backend" --device cuda --dtype float32 \
        --backend "$backend" -v
    done
    say triton-against-reference.txt python3 -m fastenh evaluate "$audio/triton" "$audio/reference" --jobs 4
    ;;
  memcheck)
    # each tensor has an allocation of its own, or an access beyond it would hit its neighbour and be none
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    if ! compute-sanitizer python3 -c 'import torch; torch.zeros(1, device="cuda")' > "$out/sanitizer.txt" 2>&1; then
      echo "compute-sanitizer does not start here: sanitizer.txt" >&2
      exit 1
    fi
    for tool in racecheck memcheck; do
      say "$tool.txt" compute-sanitizer --tool "$tool" python3 -m pytest -q -m gpu tests/operations \
        -k "cuda-bfloat16 and 65 and not seventy"
    done
    ;;
  bench)
    say bench.txt python3 -m benchmarks.gpu --minutes "${2:-7}" -o "$out/results.json"
    ;;
  bench-training)
    say bench-training.txt python3 -m benchmarks.gpu --part training --minutes "${2:-6}" -o "$out/training.json"
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
    python3 -m fastenh train "${RECIPE:-dpt_complex}" -o "$run" "${corpora[@]}" --set run.epochs=1000000 \
      --set schedule.decay_epochs=0 --max-minutes "${2:-7.5}" "${start[@]}" "${@:3}"
    cp "$run/state.pt" "$run"/*.safetensors "$run/log.jsonl" "$out/"
    ;;
  *)
    echo "no part named $part: there are prove, check, memcheck, bench, bench-training, pack and train" >&2
    exit 2
    ;;
esac
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
