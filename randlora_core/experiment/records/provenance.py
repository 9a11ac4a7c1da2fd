"""Which code on which machine made a number."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from randlora_core.machine import usable_cores

PACKAGES = (
    "torch",
    "torchvision",
    "accelerate",
    "safetensors",
    "numpy",
    "open_clip_torch",
    "timm",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "scikit-learn",
    "matplotlib",
    "hydra-core",
    "wandb",
)
"""Packages whose versions a record names, where installed."""


def provenance() -> dict[str, Any]:
    """Commit and whether the checkout differs from it (both None outside a checkout), versions, hardware.

    Records and the pages made of them do not count as a difference: a comparison writes them while its runs go on.
    """
    commit = _git("rev-parse", "HEAD")
    code = ("--", ":/", ":(exclude,top,glob)*/records/*.jsonl", ":(exclude,top)docs/results")
    return {
        "commit": commit,
        "dirty": None if commit is None else bool(_git("status", "--porcelain", "--untracked-files=all", *code)),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "python": platform.python_version(),
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, torch's threads, memory in bytes, accelerator (None without one)."""
    cuda = torch.cuda.is_available()
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
    }


def _git(*arguments: str) -> str | None:
    """Output of git in this package's checkout; None where it is not in one or there is no git."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    if package == "torch":
        return torch.__version__  # names the build, e.g. +cpu, which the installed metadata may not
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
