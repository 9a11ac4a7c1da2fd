"""What the command lines of all experiments share: their options, and how they are told from settings."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from randlora_core.command_line import CommandParser
from randlora_core.experiment.compose import CONFIGS
from randlora_core.experiment.interface import Experiment
from randlora_core.experiment.sweeps.executors import Execution
from randlora_core.experiment.sweeps.slurm import load_settings
from randlora_core.machine import usable_cores

SLURM_JOBS = 16
"""Jobs that are queued or running at a time where `--jobs` does not say it."""


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options and Hydra overrides, wherever they stand: an override has a "=" or begins with "~", and is no option."""
    overrides = [text for text in arguments if not text.startswith("-") and ("=" in text or text.startswith("~"))]
    return [text for text in arguments if text not in overrides], overrides


def make_parser(program: str, description: str, usage: str) -> CommandParser:
    """The parser of an experiment's command, which takes settings beside options."""
    return CommandParser(
        words=("SETTING=VALUE",),
        prog=f"python -m {program}",
        description=description,
        usage=f"%(prog)s {usage}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_execution(parser: argparse.ArgumentParser) -> None:
    """The options on where runs are done, and how many at a time."""
    default = f"{default_jobs()}, with Slurm {SLURM_JOBS}"
    parser.add_argument("--jobs", type=int, metavar="N", help=f"runs at a time (default here: {default})")
    text = "where runs are done: local, slurm (as configs/executor/slurm.yaml says), or another FILE.yaml like it"
    parser.add_argument("--executor", default="local", metavar="WHERE", help=text)


def read_execution(options: argparse.Namespace) -> Execution:
    """What the options of `add_execution` mean.

    Raises:
        ValueError: `--jobs` is below 1, `--executor` is none, or this is one of several processes of one launch, each
            of which would start a sweep.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("a sweep starts its own processes; accepted: without torchrun and accelerate launch")
    jobs, where = options.jobs, options.executor
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs}; accepted: 1 or more")
    if where == "local":
        return Execution(default_jobs() if jobs is None else jobs)
    if where != "slurm" and not where.endswith((".yaml", ".yml")):
        raise ValueError(f"executor={where}; accepted: local, slurm, or a YAML file like configs/executor/slurm.yaml")
    settings = load_settings(CONFIGS / "executor" / "slurm.yaml" if where == "slurm" else Path(where))
    return Execution(SLURM_JOBS if jobs is None else jobs, settings)


def default_jobs() -> int:
    """Runs at a time: small models use separate cores better than one after the other uses all; a GPU is not shared."""
    import torch

    return 1 if torch.cuda.is_available() else min(4, usable_cores())


def describe_settings(experiment: Experiment) -> str:
    """The settings of an experiment as its YAML files explain them: the groups' names, its own, and its defaults'."""
    from randlora_core.experiment.compose import choices, groups_of

    own = (experiment.configs / f"{experiment.name}.yaml").read_text(encoding="utf-8")
    shared = experiment.configs / "run.yaml"
    settings = own + (f"\n{shared.read_text(encoding='utf-8')}" if shared.is_file() else "")
    groups = groups_of(experiment.name, experiment.configs)
    listed = "\n".join(f"  {group}={'|'.join(choices(group, experiment.configs))}" for group in sorted(groups))
    files = [experiment.configs / group / f"{choice}.yaml" for group, choice in groups.items()]
    taken = "\n".join(f"{file.parent.name}={file.stem}:\n{file.read_text(encoding='utf-8')}" for file in files)
    return f"Groups:\n{listed}\n\nSettings:\n{settings}\n{taken}"
