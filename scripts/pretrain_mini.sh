#!/usr/bin/env bash
# Make the small CLIP's weights and its model card from a folder of real images.
#   bash scripts/pretrain_mini.sh PATH [MINUTES]      PATH holds images/ and emoji/ (see the model card)
set -euo pipefail
cd "$(dirname "$0")/.."

data=${1:?usage: pretrain_mini.sh PATH [MINUTES]}
minutes=${2:-52}
python=.venv/bin/python
[ -x "$python" ] || python=python

export OMP_WAIT_POLICY=passive # two threads that spin for each other lose half of a shared machine
echo "Pre-training for $minutes minutes; checkpoint, log and weights go to results/pretrain."
"$python" -m randlora_core.models.pretraining.train --data "$data" --minutes "$minutes" --folder results/pretrain
cp results/pretrain/mini_clip.safetensors randlora_core/models/mini_clip.safetensors
echo "Evaluating and writing the model card."
"$python" -m randlora_core.models.pretraining.probe --data "$data"
