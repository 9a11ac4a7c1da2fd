"""Trained weights on disk: adapters, a linear head, or full fine-tuning as the difference to the backbone."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from randlora_core.adapters.checkpoint import save_adapter
from randlora_core.files import atomic_file
from vision_language.config import VisionLanguageConfig
from vision_language.model import load_backbone


def save_weights(directory: Path, objective: nn.Module, config: VisionLanguageConfig) -> None:
    """Keeps what was trained.

    Args:
        directory: Gets the adapter's files, `head.safetensors` or `delta.safetensors`.
        objective: The trained objective.
        config: Says which method it is.
    """
    if config.is_adapted:
        save_adapter(objective.model, directory)
        return
    if config.adapter.method == "linear_probe":
        name, tensors = "head.safetensors", objective.head.state_dict()
    else:
        name, tensors = "delta.safetensors", _difference(objective.model, load_backbone(config.backbone).model)
    with atomic_file(directory / name) as part:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, part)


@torch.no_grad()
def _difference(model: nn.Module, base: nn.Module) -> dict[str, Tensor]:
    """Trained minus original weights, under the parameters' names; untrained ones are left out."""
    original = dict(base.named_parameters())
    return {
        name: parameter.cpu() - original[name]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
