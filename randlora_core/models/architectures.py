"""The paper's models as shapes alone: built on the meta device from their published configurations, no weights, no hub.

Used to count parameters. Sizes of the language models are those of the published config.json files: Qwen/Qwen2-0.5B,
microsoft/Phi-3-mini-4k-instruct, meta-llama/Meta-Llama-3-8B.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from randlora_core.models.registry import build_backbone

SEPARATE_TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
FUSED_TARGETS = ("qkv_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Architecture:
    """A model without weights and the layers that the paper adapts in it.

    Attributes:
        model: The network, all of it on the meta device.
        targets: Suffixes of the adapted layers.
        vision: Name of the sub-module that is the vision tower of a CLIP model; None for other models.
    """

    model: nn.Module
    targets: tuple[str, ...]
    vision: str | None = None


@dataclass(frozen=True)
class LanguageModelSizes:
    """The published sizes of a decoder: the model type in transformers, the adapted layers, config.json's entries."""

    model_type: str
    targets: tuple[str, ...]
    sizes: dict[str, Any]


LANGUAGE_MODELS = {
    "qwen2_0_5b": LanguageModelSizes(
        "qwen2",
        SEPARATE_TARGETS,
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "phi3_mini": LanguageModelSizes(
        "phi3",
        FUSED_TARGETS,
        {
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "tie_word_embeddings": False,
        },
    ),
    "llama3_8b": LanguageModelSizes(
        "llama",
        SEPARATE_TARGETS,
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
    ),
}


def _build_language_model(name: str) -> Architecture:
    from transformers import AutoConfig, AutoModelForCausalLM

    entry = LANGUAGE_MODELS[name]
    config = AutoConfig.for_model(entry.model_type, **entry.sizes)
    with torch.device("meta"):
        return Architecture(AutoModelForCausalLM.from_config(config), entry.targets)


def _build_backbone(name: str, vision: str | None = None) -> Architecture:
    backbone = build_backbone(name, pretrained=False, device="meta")
    return Architecture(backbone.model, backbone.default_targets, vision)


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    "clip_vit_b32": partial(_build_backbone, "clip_vit_b32", "visual"),
    "clip_vit_l14": partial(_build_backbone, "clip_vit_l14", "visual"),
    "clip_vit_h14": partial(_build_backbone, "clip_vit_h14", "visual"),
    "dinov2_vit_b14": partial(_build_backbone, "dinov2_vit_b14"),
    **{name: partial(_build_language_model, name) for name in LANGUAGE_MODELS},
}


def build_architecture(name: str) -> Architecture:
    """Build one of `ARCHITECTURES` on the meta device.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]()
