#!/usr/bin/env bash
# From data to weights, model card and results in one command.
#
#   scripts/release.sh OUT DATA PAIRS... [-- options of fastenh train]
#
# DATA holds speech/, noise/ and, if there are any, rir/, and a SOURCES.csv (set,source,licence,minutes) or has one
# beside it; each of PAIRS holds noisy/ and clean/. RECIPE (environment, dpt_complex by default; dpt-mix) says what is
# trained. OUT gets MODEL.safetensors (fp16), MODEL.md (the model card), the results and the run; given again, it goes
# on where it was stopped. Nothing that is shipped is touched: the last lines say how the new weights compare with it.
# Weights of a run that goes on (scripts/train_on.sh): -- --branch RUN. A short budget, to try it out:
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
recipe=${RECIPE:-dpt_complex}
model=${recipe%-mix}
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
"$python" -m fastenh train "$recipe" -o "$out/run" "${corpora[@]}" "$@" "${resume[@]}"
rm -f "$out/$model.safetensors"
"$python" -m fastenh checkpoint convert "$out/run/best.safetensors" -o "$out/$model.safetensors" --half

for folder in "${pairs[@]}"; do
  "$python" -m fastenh evaluate "$folder/noisy" "$folder/clean" --model "$model" --model "$out/$model.safetensors" \
    --dtype float32 --jobs "${JOBS:-0}" --out "$out/results/$(basename "$folder").json"
done
"$python" "$repository/scripts/model_card.py" "$out" "$model" "$data"
