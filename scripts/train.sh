#!/usr/bin/env bash
# Sets up the environment on first use, then trains and compares.
#
#   bash scripts/train.sh                       the default comparison: digits, three seeds
#   bash scripts/train.sh tune                  choose every method's learning rate on validation data
#   bash scripts/train.sh figure3 paths.data=F  the paper's figure on the data sets in folder F; also figure1, figure2,
#                                               rank_ablation and sparsity (docs/reproducing.md)
#   bash scripts/train.sh figure3 scale=mini    in miniature, with models and data that need no hub
#   bash scripts/train.sh commonsense           a language model on generated questions (docs/commonsense.md); with
#                                               scale=mini or paper and paths.data=F on the real ones, also dora
#   bash scripts/train.sh time_memory           step time and memory beside the paper's Table 10
#   bash scripts/train.sh --dry-run             what would run, what is done, what it would cost
#   bash scripts/train.sh --help                all options; further arguments are Hydra overrides for every run
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup_environment

case "${1:-}" in
  time_memory) shift; exec python -m randlora_core.benchmark --table10 "$@" ;;
  tune) shift; exec python -m randlora_core.experiment.commands.tune "$@" ;;
  *) exec python -m randlora_core.experiment.commands.compare "$@" ;;
esac
