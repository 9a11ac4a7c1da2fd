#!/usr/bin/env bash
# Sets up the environment on first use, then trains and compares.
#
#   bash scripts/train.sh                       the default comparison: digits and characters, three seeds
#   bash scripts/train.sh tune                  choose every method's learning rate on validation data
#   bash scripts/train.sh time_memory           step time and memory beside the paper's Table 10
#   bash scripts/train.sh longer paths.data=F   the same comparison, longer, on three data sets in folder F
#   bash scripts/train.sh --dry-run             what would run, what is done, what it would cost
#   bash scripts/train.sh --help                all options; further arguments are Hydra overrides for every run
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup_environment

case "${1:-}" in
  time_memory) shift; exec python -m randlora_core.benchmark --table10 "$@" ;;
  tune) shift; exec python -m vision_language.tune "$@" ;;
  "" | -* | *=*) exec python -m vision_language.compare "$@" ;;
  *) comparison="$1"; shift; exec python -m vision_language.compare "name=$comparison" "$@" ;;
esac
