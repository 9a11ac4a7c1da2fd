"""Adapters on bitsandbytes' 4-bit (NF4, FP4) and 8-bit linear layers: how to read and write their weights.

    Linear4bit     4-bit codes in blocks of one scale each, the scales themselves in 8 bits where "double quantised"
                   (QLoRA, https://arxiv.org/abs/2305.14314)
    Linear8bitLt   W0[o, :] = code[o, :] scale[o] / 127, one scale a row (LLM.int8(), https://arxiv.org/abs/2208.07339);
                   outside of training it quantises the inputs, too, so that its output is not x W0^T + bias exactly

The frozen layer computes its own output, so that the decoded weight lives for one product; the adapter's part is added
in floating point. Merging decodes the weight, adds the update, and quantises the sum with the layer's own settings:
what that costs is `AdapterLayer.merge_error`. An update far below the quantiser's steps is mostly lost. Unmerging
restores the codes and scales to the bit.

This is the only file that knows bitsandbytes; it is imported where a weight is decoded or quantised, and layers are
recognised by name, so that nobody else pays for it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn


def missing_bitsandbytes() -> str | None:
    """How to get bitsandbytes, behind the words on what needs it; None where it is installed."""
    if importlib.util.find_spec("bitsandbytes") is not None:
        return None
    return 'needs bitsandbytes: pip install "randlora[quantization]"'


def is_linear_4bit(module: nn.Module) -> bool:
    """Whether `module` is a Linear4bit, LinearNF4 or LinearFP4."""
    return _is(module, "Linear4bit")


def is_linear_8bit(module: nn.Module) -> bool:
    """Whether `module` is a Linear8bitLt."""
    return _is(module, "Linear8bitLt")


def _is(module: nn.Module, name: str) -> bool:
    return any(c.__name__ == name and c.__module__.startswith("bitsandbytes.") for c in type(module).__mro__)


def shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a quantised layer, whose packed weight may have another shape."""
    return module.out_features, module.in_features


def refusal_4bit(module: nn.Module) -> str | None:
    """Gives the reason why a Linear4bit cannot be adapted; None if it can."""
    if getattr(module.weight, "quant_state", None) is None:
        return "its weight is not quantised yet; move the model to its device first"
    return None


def prepare_4bit(module: nn.Module) -> None:
    """Keep the layer off bitsandbytes' weight format for CPUs with AVX512-BF16.

    In evaluation mode bitsandbytes converts the weight to it, which rounds the blocks' scales to bfloat16 for good and
    fails where out is no multiple of 32. A weight in this format is converted back as far as bitsandbytes can.
    """
    module.support_avx512bf16_for_cpu = False
    if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

        state = module.weight.quant_state
        module.weight.data, module.weight.quant_state = _convert_weight_packed_for_cpu_inverse(
            module.weight.data, state
        )


def quantise_linear_layers(module: nn.Module, dtype: torch.dtype) -> None:
    """Exchanges all plain linear layers for NF4 ones with quantised scales, which hold codes once moved to a device.

    Args:
        module: Holds them, at any depth.
        dtype: Number format of the products.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear:
                sizes = (layer.in_features, layer.out_features)
                quantised = Linear4bit(*sizes, bias=False, compute_dtype=dtype, device="meta")
                quantised.bias = layer.bias
                settings = {"requires_grad": False, "quant_type": "nf4", "compress_statistics": True}
                quantised.weight = Params4bit(layer.weight.data, module=quantised, **settings)
                setattr(parent, name, quantised)


def dense_4bit(module: nn.Module) -> Tensor:
    """The decoded weight (out, in), in the dtype that it had before it was quantised."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(module.weight.detach(), module.weight.quant_state)


def tensors_4bit(module: nn.Module) -> dict[str, Tensor]:
    """Codes and scales; the tables of code values are the quantiser's constants."""
    state = module.weight.quant_state
    parts = {"weight": module.weight.data, "absmax": state.absmax}
    if state.nested:
        parts |= {"offset": state.offset, "nested_absmax": state.state2.absmax}
    return parts


@torch.no_grad()
def write_4bit(module: nn.Module, weight: Tensor) -> None:
    """Quantise (out, in) with the layer's own settings, in place."""
    from bitsandbytes.functional import quantize_4bit

    state = module.weight.quant_state
    codes, new = quantize_4bit(
        weight.contiguous(),
        blocksize=state.blocksize,
        compress_statistics=state.nested,
        quant_type=state.quant_type,
        quant_storage=module.weight.dtype,
    )
    module.weight.data.copy_(codes)
    state.absmax.copy_(new.absmax)
    if state.nested:
        state.offset.copy_(new.offset)
        state.state2.absmax.copy_(new.state2.absmax)
    module.quant_state = state


def refusal_8bit(module: nn.Module) -> str | None:
    """Gives the reason why a Linear8bitLt cannot be adapted; None if it can."""
    if module.state.has_fp16_weights:
        return "has_fp16_weights=True keeps a 16-bit weight and quantises it in every forward; use False"
    if _row_scales(module) is None:
        return "its weight is not quantised yet; move the model to its device first"
    return None


def _row_scales(module: nn.Module) -> Any:
    """Largest magnitude of each row (out,), which moves from the weight to the layer in the first forward."""
    scales = getattr(module.weight, "SCB", None)
    return module.state.SCB if scales is None else scales


def tensors_8bit(module: nn.Module) -> dict[str, Tensor]:
    """Codes (out, in) int8 and the largest magnitude of each row (out,)."""
    codes = module.state.CB if module.state.CB is not None else module.weight.CB
    if codes is not None:
        module.weight.data = codes  # a copied layer has two of them until its next forward, which takes these
    return {"weight": module.weight.data, "scales": _row_scales(module)}


def dense_8bit(module: nn.Module) -> Tensor:
    """The decoded weight (out, in), float32."""
    parts = tensors_8bit(module)
    return parts["weight"].to(torch.float32) * (parts["scales"].to(torch.float32) / 127.0)[:, None]


@torch.no_grad()
def write_8bit(module: nn.Module, weight: Tensor) -> None:
    """Quantise (out, in) by rows, in place."""
    from bitsandbytes.functional import int8_vectorwise_quant

    codes, scales, _ = int8_vectorwise_quant(weight.to(torch.float16))
    parts = tensors_8bit(module)
    parts["weight"].copy_(codes)
    parts["scales"].copy_(scales)
