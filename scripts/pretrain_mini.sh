#!/usr/bin/env bash
# Makes the small CLIP's weights again, measures them and renews the model card. An interrupted run goes on.
#
#   bash scripts/pretrain_mini.sh PATH [MINUTES]   PATH holds images/ and emoji/ (see randlora_core/models/mini_clip.md)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
[ -d "${1:-}/images" ] || die "usage: bash scripts/pretrain_mini.sh PATH [MINUTES]; no folder '${1:-}/images'"
data="$(cd "$1" && pwd)"
minutes="${2:-52}"
setup_environment
cd "$ROOT"

export OMP_WAIT_POLICY=passive # threads that spin for each other waste a shared machine
say "pre-training for $minutes minutes; checkpoint, log and weights go to results/pretrain"
python -m tools.pretrain_mini_clip.train --data "$data" --minutes "$minutes" --folder results/pretrain
cp results/pretrain/mini_clip.safetensors randlora_core/models/mini_clip.safetensors
say "measuring on the six held-out sets"
python -m tools.pretrain_mini_clip.probe --data "$data"
