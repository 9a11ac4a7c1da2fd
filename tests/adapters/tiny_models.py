"""Tiny transformers models of several architectures, with random weights and a batch for each."""

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

VOCABULARY = 41
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BUILDERS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=24, n_layer=2, n_head=4)),
    "vit": lambda: ViTForImageClassification(
        ViTConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
            num_labels=5,
        )
    ),
}
TARGETS = {
    "qwen2": ("q_proj", "v_proj", "down_proj"),
    "llama": ("k_proj", "o_proj", "up_proj"),
    "phi3": ("qkv_proj", "gate_up_proj", "down_proj"),
    "gpt2": ("c_attn", "mlp.c_fc", "mlp.c_proj"),
    "vit": None,  # filled in below: names differ between versions of transformers
}
ARCHITECTURES = tuple(_BUILDERS)


def tiny_model(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    return _BUILDERS[architecture]().eval()


def targets_of(architecture: str) -> tuple[str, ...]:
    if architecture != "vit":
        return TARGETS[architecture]
    names = [name for name, module in tiny_model("vit").named_modules() if isinstance(module, nn.Linear)]
    return tuple(name for name in names if ".0." in name)


def batch(architecture: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    if architecture == "vit":
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}
    return {"input_ids": torch.randint(3, VOCABULARY, (3, 9), generator=generator)}


@torch.no_grad()
def logits(model: nn.Module, architecture: str) -> Tensor:
    return model.eval()(**batch(architecture)).logits


@torch.no_grad()
def moved(model: nn.Module, size: float = 0.05) -> nn.Module:
    """Move everything that trains, so that an adapter changes the output well beyond rounding."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


def num_trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
