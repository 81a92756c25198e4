#!/usr/bin/env bash
# One part of the work for a machine with a GPU, each inside nine minutes.
#
#   scripts/gpu.sh train [MINUTES]   train the release recipe, or go on with it
#
# Nothing is downloaded. In the repository's root lie, ignored by git:
#   .whl/    wheels of what the machine lacks (soundfile, cffi, pycparser, soxr, pesq, pystoi, scipy, safetensors, ...)
#   .data/   speech/ noise/ rir/ of the training data
#   .run/    state.pt of an earlier part of the run, to go on from
# What comes back lies in $OUT (default: out/): state.pt, best.safetensors, log.jsonl.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:?usage: scripts/gpu.sh train [MINUTES]}
out=${OUT:-out}
mkdir -p "$out"

site=$(mktemp -d)
if compgen -G '.whl/*.whl' > /dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl
fi
export PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1

case $part in
  train)
    run=$(mktemp -d)
    resume=()
    if [[ -f .run/state.pt ]]; then
      cp .run/* "$run/"
      resume=(--resume)
    fi
    python3 -m fastenh train dpt-mix -o "$run" --clean .data/speech --noise .data/noise --rir .data/rir \
      --max-minutes "${2:-7.5}" "${resume[@]}" "${@:3}"
    cp "$run/state.pt" "$run/best.safetensors" "$run/log.jsonl" "$out/"
    ;;
  *)
    echo "no part named $part: train is the one there is" >&2
    exit 2
    ;;
esac
