#!/usr/bin/env bash
# Go on with the long run of dpt_complex, for as long as there are hours.
#
#   scripts/train_on.sh RUN DATA [options of fastenh train]
#
# RUN is the run's folder: where it has a state, training goes on from there, otherwise from the weights that are
# shipped. DATA holds speech/, noise/, rir/, their indexes and, in it or beside it, SOURCES.csv; what may go into
# release weights is selected into RUN-data. The learning rate is held. Ctrl-C saves and stops; give the command again
# to go on. Weights to be used or shipped come from a branch, whose learning rate falls to 0 while RUN stays as it is:
#
#   scripts/release.sh OUT RUN-data PAIRS... -- --branch RUN
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
usage='usage: scripts/train_on.sh RUN DATA [options of fastenh train]'
run=${1:?$usage}
data=${2:?$usage}
export PYTHONPATH="$repository:$repository/kernels${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}

if [[ ! -f $run-data/SOURCES.csv ]]; then
  "$python" "$repository/scripts/select_by_licence.py" "$data" "$run-data"
fi
corpora=()
for part in clean:speech noise:noise rir:rir; do
  pack=$run-data/${part#*:}.safetensors
  if [[ ! -f $pack && -d $run-data/${part#*:} ]]; then
    "$python" -m fastenh data pack "$run-data/${part#*:}" -o "$pack"
  fi
  if [[ -f $pack ]]; then
    corpora+=("--${part%:*}" "$pack")
  fi
done

start=(--set run.init=dpt_complex --set schedule.warmup_epochs=0.25)
if [[ -f $run/state.pt ]]; then
  start=(--resume)
fi
exec "$python" -m fastenh train dpt_complex -o "$run" "${corpora[@]}" "${start[@]}" \
  --set run.epochs=1000000 --set schedule.decay_epochs=0 "${@:3}"
