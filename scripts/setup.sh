# Sourced by train.sh and test.sh: makes the checkout's own environment, once, and puts it first on PATH.
# PYTHON=/path/to/python3.12 chooses the interpreter; RANDLORA_VENV=/some/folder the place of the environment.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${RANDLORA_VENV:-$ROOT/.venv}"

# Messages go to standard error, so that what a command prints can be read by another one.
say() { printf '[randlora] %s\n' "$*" >&2; }
die() { printf '[randlora] error: %s\n' "$*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer with the venv module found; install one (Debian: apt-get install python3-venv) or set PYTHON="
}

setup_environment() {
  local wanted python
  wanted="$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | sha256sum | cut -d' ' -f1)"
  if [ "$(cat "$VENV/randlora-ready" 2>/dev/null)" != "$wanted" ]; then
    python="$(find_python)"
    say "installing into $VENV with $python (once; a few minutes, several GB with PyTorch's CUDA packages)"
    [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV" >&2
    "$VENV/bin/python" -m pip install --quiet --constraint "$ROOT/constraints.txt" --editable "$ROOT[dev]" >&2 ||
      die "the installation failed; see pip's message above, then run this command again"
    printf '%s\n' "$wanted" >"$VENV/randlora-ready"
  else
    say "using the environment in $VENV"
  fi
  export PATH="$VENV/bin:$PATH" VIRTUAL_ENV="$VENV"
}
