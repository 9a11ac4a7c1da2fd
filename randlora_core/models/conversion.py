"""Weight files of other formats to safetensors: GGUF (a language model), ONNX (a ViT of DINOv2's architecture)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TIMM_NAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
"""Pattern of a name in Dinov2Model of transformers 4, and what timm's VisionTransformer has in its place."""


def convert_gguf(source: Path, folder: Path) -> None:
    """Writes a causal language model from a GGUF file as transformers' own files: weights, config and tokenizer.

    transformers dequantises the file but calls the result quantised and does not save it; so its float32 tensors go
    into a plain model of the same config.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = loaded.config
    del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


def convert_onnx(source: Path, folder: Path) -> None:
    """Writes the ViT in an ONNX file as `model.safetensors`, named and shaped as timm's models of DINOv2 are."""
    import onnx
    from safetensors.torch import save_file

    tensors = rename_to_timm(read_backbone(onnx.load(source).graph))
    save_file(tensors, folder / "model.safetensors")


def read_backbone(graph: Any) -> dict[str, Tensor]:
    """The tensors of the sub-module `backbone` of an exported model, under Dinov2Model's names in transformers 4.

    The exporter keeps the names of most tensors. Those that it has transposed or computed stand under generated names,
    and the node that uses one says what it is: the matrix of a linear layer (stored transposed) belongs to a MatMul
    named after its layer; the position table is stored as two tensors, the class token's row, which a Concat of the
    embeddings uses, and the patches' rows, which a Reshape uses.

    Args:
        graph: The ONNX graph.

    Raises:
        ValueError: If the position table is not found.
    """
    from onnx import numpy_helper

    values = {item.name: np.array(numpy_helper.to_array(item)) for item in graph.initializer}
    found = {name.removeprefix("backbone."): value for name, value in values.items() if name.startswith("backbone.")}
    positions = {}
    for node in graph.node:
        generated = [name for name in node.input if name in values and name.startswith("onnx::")]
        if not node.name.startswith("/backbone/") or not generated:
            continue
        path = node.name.removeprefix("/backbone/").split("/")[:-1]
        if node.op_type == "MatMul":
            found[".".join([*path, "weight"])] = values[generated[0]].T
        elif path == ["embeddings"] and values[generated[0]].ndim == 3:
            positions[node.op_type] = values[generated[0]]
    if not {"Concat", "Reshape"} <= positions.keys():
        raise ValueError("the graph has no position table of a class token (Concat) and of patches (Reshape)")
    found["embeddings.position_embeddings"] = np.concatenate([positions["Concat"], positions["Reshape"]], axis=1)
    found.pop("embeddings.mask_token", None)  # for pre-training only; timm's model has none
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in found.items()}


def rename_to_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names a Dinov2Model's tensors as timm does, where query, key and value are one layer `attn.qkv`."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in TIMM_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        renamed[name.replace("query", "qkv")] = torch.cat(parts)
    return renamed
