#!/usr/bin/env bash
# The four models of the origin, each trained for the same time on the same mixtures and judged on the same pairs.
#
#   [MINUTES=15] scripts/compare_models.sh DATA PAIRS OUT [options of fastenh train]
#
# DATA holds speech/, noise/ and, if there are any, rir/; PAIRS holds noisy/ and clean/. The mixing and the loss are
# those of the recipe dpt-mix, matrices learn by Muon. Of its MINUTES a model takes five sixths at a held learning rate,
# and a branch of a fifth as many steps, over which the rate falls to 0, the rest. Given again, it goes on with the model
# where it was stopped. Options that come later win: --set data.batch_size=8. OUT gets two runs a model, results.json
# and table.md. Set OMP_NUM_THREADS=1 for one core.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
usage='usage: [MINUTES=15] scripts/compare_models.sh DATA PAIRS OUT [options of fastenh train]'
data=${1:?$usage}
pairs=${2:?$usage}
out=${3:?$usage}
export PYTHONPATH="$repository:$repository/kernels${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
held=$("$python" -c 'import sys; print(float(sys.argv[1]) * 5 / 6)' "${MINUTES:-15}")

rooms=()
if [[ -d $data/rir ]]; then
  rooms=(--rir "$data/rir")
fi
budget=(--set optimiser.kind=muon --set data.seconds=1.5 --set data.batch_size=4 --set run.steps_per_epoch=20
  --set run.epochs=1000000 --set schedule.warmup_epochs=1 --set schedule.decay_epochs=0 --set run.ema=0.97
  --set run.validation_pairs=8 --set run.scored_pairs=0)

train() { # RUN MODEL OPTIONS...: mixed from DATA
  "$python" -m fastenh train dpt-mix -o "$1" --set model="$2" --clean "$data/speech" --noise "$data/noise" \
    "${rooms[@]}" "${budget[@]}" "${@:3}"
}

mkdir -p "$out"
for model in crn dpt mel_transformer stft_transformer; do
  trunk=$out/$model-held
  if [[ ! -f $trunk/state.pt ]]; then
    rm -rf "$trunk"
    train "$trunk" "$model" --max-minutes "$held" "${@:4}"
  fi
  if [[ ! -f $out/$model/finished ]]; then
    rm -rf "${out:?}/$model"
    train "$out/$model" "$model" --branch "$trunk" "${@:4}"
    touch "$out/$model/finished"
  fi
done

weights=$out/weights
rm -rf "$weights" && mkdir "$weights"
judged=()
for model in crn dpt stft_transformer mel_transformer; do
  cp "$out/$model/last.safetensors" "$weights/$model.safetensors"
  judged+=(--model "$weights/$model.safetensors")
done
griffin=$weights/mel_transformer-griffin_lim.safetensors
"$python" -m fastenh checkpoint convert "$weights/mel_transformer.safetensors" -o "$griffin" \
  --set reconstruction=griffin_lim
"$python" -m fastenh evaluate "$pairs/noisy" "$pairs/clean" "${judged[@]}" --model "$griffin" --dtype float32 \
  --jobs "${JOBS:-1}" --out "$out/results.json"
"$python" "$repository/scripts/results_table.py" "$out/results.json" | tee "$out/table.md"
for model in crn dpt stft_transformer mel_transformer; do
  "$python" -m fastenh checkpoint info "$weights/$model.safetensors" | grep -o '"steps": [0-9]*' | sed "s/^/$model /"
done
