"""`python -m randlora_core.datasets list | doctor [NAMES] | fetch NAMES [paths.data=FOLDER]`."""

import sys
from collections.abc import Sequence

from randlora_core.command_line import CommandParser, run_command

from .catalog import CATALOG
from .doctor import examine
from .find import (
    BUILT_IN,
    FOLDER_PREFIX,
    MissingDataError,
    UnknownDataError,
    available,
    catalog_entry,
    fetch,
    find_data,
    paper_entry,
)

ROOT_OPTION = "paths.data="
PAPER_NAMES = tuple(entry.key for entry in CATALOG.values() if entry.paper_name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of the commands.

    Args:
        arguments: The words of the command line; those of this process without any.

    Returns:
        The exit status: 0; 1 where the doctor found something or a download failed; 2 for a wrong command line.
    """
    return run_command(_main, arguments, "what was fetched before is kept")


def _main(arguments: Sequence[str]) -> int:
    parser = CommandParser(prog="python -m randlora_core.datasets", description="Image data sets.")
    commands = {"list": _list, "doctor": _examine, "fetch": _fetch}
    parser.add_argument("command", choices=commands, help="what is known and here, what is wrong, or get from the net")
    parser.add_argument("words", nargs="*", metavar="NAME | paths.data=FOLDER", help="data sets; a folder of data sets")
    options = parser.parse_args(arguments)
    roots = [word.removeprefix(ROOT_OPTION) for word in options.words if word.startswith(ROOT_OPTION)]
    names = [word for word in options.words if not word.startswith(ROOT_OPTION)]
    if setting := next((name for name in names if "=" in name), None):
        raise ValueError(f"unknown setting {setting!r}; accepted: {ROOT_OPTION}FOLDER")
    return commands[options.command](names, roots[-1] if roots else None)


def _check_names(names: Sequence[str], root: str | None) -> None:
    """Refuses a folder of data sets that does not exist and names that are unknown; the sets themselves may be damaged.

    Raises:
        ValueError: Naming what is accepted.
    """
    available(root)
    for name in names:
        try:
            find_data(name, root)
        except UnknownDataError as error:
            raise ValueError(f"{error}; and the paper's: {', '.join(PAPER_NAMES)}") from None
        except ValueError:
            pass


def _examine(names: Sequence[str], root: str | None) -> int:
    """Prints what is wrong with the named sets; without names with all under the root, else with the paper's 22."""
    _check_names(names, root)
    if not names:
        here = available(root)[len(BUILT_IN) :] if root else ()
        names = here if root else PAPER_NAMES
    num_findings = 0
    for name in names:
        for finding in examine(name, root):
            print(finding, flush=True)
            num_findings += 1
    return int(num_findings > 0)


def _list(names: Sequence[str], root: str | None) -> int:
    """Prints the catalog and the other folders: sizes of table 7, epochs, and where each set is."""
    _check_names(names, root)
    folders = available(root)[len(BUILT_IN) :]
    others = [name for name in folders if paper_entry(name) is None]
    row = "{:<18}{:<15}{:>8}{:>10}{:>12}{:>8}{:>8}  {}"
    print(row.format("name", "in the paper", "classes", "train", "validation", "test", "epochs", "here"))
    for name in names or (*CATALOG, *others):
        entry = CATALOG.get(name) or paper_entry(name)
        if entry is None:
            part_of = catalog_entry(name)
            print(row.format(name, *"-" * 6, _place(name, root) + (f", part of {part_of.key}" if part_of else "")))
            continue
        sizes = (entry.num_classes, entry.num_train, entry.num_validation, entry.num_test, entry.epochs or "-")
        print(row.format(entry.key, entry.paper_name or "-", *sizes, _place(entry.key, root)))
    return 0


def _place(name: str, root: str | None) -> str:
    """Says how a data set is here, in a few words."""
    if name in BUILT_IN:
        return "built in"
    try:
        stored = find_data(name, root)
    except MissingDataError:
        return "no"
    return {"ParquetFiles": "Parquet files", "ClassFolders": "class folders", "HubData": "from the hub"}.get(
        type(stored).__name__, "from torchvision"
    )


def _fetch(names: Sequence[str], root: str | None) -> int:
    """Downloads the named sets into the cache folder; a failure does not keep the others from being tried."""
    entries = {name: paper_entry(name) for name in names if not name.startswith(FOLDER_PREFIX)}
    if unknown := [name for name in names if entries.get(name) is None] or not names:
        given = " ".join(unknown) if names else "without a name"
        raise ValueError(f"fetch {given}: accepted are {', '.join(PAPER_NAMES)}")
    failed = 0
    for entry in entries.values():
        try:
            fetch(entry)
        except MissingDataError as error:
            print(error, file=sys.stderr)
            failed += 1
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
