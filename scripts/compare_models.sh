#!/usr/bin/env bash
# The four models, trained with one budget on the same mixtures and judged on the same pairs: the README's table.
#
#   scripts/compare_models.sh DATA PAIRS OUT [options of fastenh train]
#
# DATA holds speech/, noise/ and, if there are any, rir/; PAIRS holds noisy/ and clean/. The mixing, the loss and the
# optimiser are those of the release recipe. The budget below is a short one, for a CPU; options that come later win:
# --set run.epochs=100 --set run.steps_per_epoch=200 --set data.batch_size=8 is one for a GPU. Given again, it goes on
# where it was stopped. OUT gets a run a model, results.json and table.md.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
data=${1:?usage: scripts/compare_models.sh DATA PAIRS OUT [options of fastenh train]}
pairs=${2:?usage: scripts/compare_models.sh DATA PAIRS OUT [options of fastenh train]}
out=${3:?usage: scripts/compare_models.sh DATA PAIRS OUT [options of fastenh train]}
export PYTHONPATH="$repository:$repository/kernels${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}

rooms=()
if [[ -d $data/rir ]]; then
  rooms=(--rir "$data/rir")
fi
budget=(--set data.seconds=1.5 --set data.batch_size=4 --set run.steps_per_epoch=50 --set run.epochs=5
  --set schedule.warmup_epochs=0.5 --set schedule.decay_epochs=2 --set run.ema=0.97 --set run.scored_pairs=0)

mkdir -p "$out"
for model in crn dpt mel_transformer stft_transformer; do
  resume=()
  if [[ -f $out/$model/state.pt ]]; then
    resume=(--resume)
  fi
  "$python" -m fastenh train dpt-mix -o "$out/$model" --set model="$model" --clean "$data/speech" \
    --noise "$data/noise" "${rooms[@]}" "${budget[@]}" "${@:4}" "${resume[@]}"
done

weights=$out/weights
rm -rf "$weights" && mkdir "$weights"
judged=()
for model in crn dpt stft_transformer mel_transformer; do
  cp "$out/$model/best.safetensors" "$weights/$model.safetensors"
  judged+=(--model "$weights/$model.safetensors")
done
griffin=$weights/mel_transformer-griffin_lim.safetensors
"$python" -m fastenh checkpoint convert "$weights/mel_transformer.safetensors" -o "$griffin" \
  --set reconstruction=griffin_lim
"$python" -m fastenh evaluate "$pairs/noisy" "$pairs/clean" "${judged[@]}" --model "$griffin" --dtype float32 \
  --jobs "${JOBS:-1}" --out "$out/results.json"
"$python" "$repository/scripts/results_table.py" "$out/results.json" | tee "$out/table.md"
