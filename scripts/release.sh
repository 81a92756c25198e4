#!/usr/bin/env bash
# From data to weights, model card and results in one command.
#
#   scripts/release.sh OUT DATA PAIRS... [-- options of fastenh train]
#
# DATA holds speech/, noise/ and, if there are any, rir/, and a SOURCES.csv (set,source,licence,minutes) or has one
# beside it; each of PAIRS holds noisy/ and clean/. OUT gets dpt.safetensors (fp16), dpt.md (the model card), the
# results and the run; given again, it goes on where it was stopped. Nothing that is shipped is touched: the last lines
# say how the new weights compare with it. A short budget, to try it out:
#   -- --set run.epochs=2 --set run.steps_per_epoch=20 --set schedule.decay_epochs=1
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
usage='usage: scripts/release.sh OUT DATA PAIRS... [-- options of fastenh train]'
out=${1:?$usage}
data=${2:?$usage}
: "${3:?$usage}"
shift 2
pairs=()
while (($#)) && [[ $1 != -- ]]; do
  pairs+=("$1")
  shift
done
if (($#)); then
  shift
fi
export PYTHONPATH="$repository:$repository/kernels${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}

mkdir -p "$out/packs" "$out/results"
corpora=()
for part in clean:speech noise:noise rir:rir; do
  folder=$data/${part#*:}
  pack=$out/packs/${part#*:}.safetensors
  if [[ ! -d $folder ]]; then
    continue
  fi
  if [[ ! -f $pack ]]; then
    "$python" -m fastenh data pack "$folder" -o "$pack"
  fi
  corpora+=("--${part%:*}" "$pack")
done

resume=()
if [[ -f $out/run/state.pt ]]; then
  resume=(--resume)
fi
"$python" -m fastenh train dpt-mix -o "$out/run" "${corpora[@]}" "$@" "${resume[@]}"
rm -f "$out/dpt.safetensors"
"$python" -m fastenh checkpoint convert "$out/run/best.safetensors" -o "$out/dpt.safetensors" --half

for folder in "${pairs[@]}"; do
  "$python" -m fastenh evaluate "$folder/noisy" "$folder/clean" --model dpt --model "$out/dpt.safetensors" \
    --dtype float32 --jobs "${JOBS:-0}" --out "$out/results/$(basename "$folder").json"
done
"$python" "$repository/scripts/model_card.py" "$out" "$data"
