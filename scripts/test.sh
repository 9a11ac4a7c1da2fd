#!/usr/bin/env bash
# Lint, format check and tests. `--all` includes the tests marked slow; anything after goes to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup_environment
cd "$ROOT"

selection="not slow and not network"
if [ "${1:-}" = "--all" ]; then
  selection="not network"
  shift
fi
say "ruff: lint and format"
ruff check .
ruff format --check .
say "tests ($selection)"
# One worker per core with one thread each: small models use cores better that way than by torch's threads.
export OMP_NUM_THREADS=1
exec python -m pytest -q --numprocesses auto --dist worksteal -m "$selection" "$@"
