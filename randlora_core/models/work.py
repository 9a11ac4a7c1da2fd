"""What passes through a backbone cost, counted on shapes: nothing is downloaded, allocated or computed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from randlora_core.models.registry import build_backbone
from randlora_core.models.text_tower import encode_text

TEXT_TOKENS = 16
"""Tokens of a class name in a template, which CLIP's text tower is cut to (`text_tower.shorten`)."""

LANGUAGE_TOKENS = 128
"""Tokens of a question with its answer."""


BYTES_PER_CODE = {"4bit": 0.5 + 1 / 64, "8bit": 1.0}
"""Of a weight as bitsandbytes holds it: its code and, in 4 bits, its part of a scale in 8 bits for every 64 weights."""


@dataclass(frozen=True)
class PassCost:
    """One forward pass.

    Attributes:
        flops: Floating-point operations of its products, two per multiply-add.
        saved_bytes: What autograd keeps for the backward pass, parameters left out.
    """

    flops: int = 0
    saved_bytes: int = 0


@dataclass(frozen=True)
class BackboneCost:
    """A backbone as far as time and memory of a run depend on it.

    Attributes:
        num_bytes: Its parameters.
        vision_bytes: Those of the tower that takes images, of CLIP the vision tower.
        example: The pass of one image, or of one text of `LANGUAGE_TOKENS` of a language model.
        text: The pass of one class text of `TEXT_TOKENS`; nothing for a model without class texts.
    """

    num_bytes: int
    vision_bytes: int
    example: PassCost
    text: PassCost


def pass_cost(forward: Callable[[], Any]) -> PassCost:
    """Counts a pass of modules and inputs on the meta device."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    counter = FlopCounterMode(display=False)
    keeping = torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept)
    # Fake tensors tell transformers that there are no values to look at, which it does in making its attention mask.
    with FakeTensorMode(allow_non_fake_inputs=True), keeping, counter:
        forward()
    return PassCost(counter.get_total_flops(), sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))


def backbone_cost(name: str, options: Mapping[str, Any]) -> BackboneCost:
    """Counts a backbone; the second time it is known.

    Args:
        name: A key of `BACKBONES`.
        options: Options of its builder; whether it is pre-trained makes no difference.

    Raises:
        ValueError: The name or an option is unknown.
        OSError: Its architecture is not here, as of a language model that a path names.
    """
    return _counted(name, tuple(sorted((key, value) for key, value in options.items() if key != "pretrained")))


@functools.lru_cache(maxsize=32)
def _counted(name: str, options: tuple[tuple[str, Any], ...]) -> BackboneCost:
    backbone = build_backbone(name, pretrained=False, device="meta", **dict(options))
    model, meta = backbone.model, torch.device("meta")
    num_bytes = _bytes_of(model)
    if backbone.kind == "causal_lm":
        if (quantize := dict(options).get("quantize")) is not None:
            num_bytes -= _saved_by_quantising(model, quantize)
        tokens = torch.empty(1, LANGUAGE_TOKENS, dtype=torch.long, device=meta)
        return BackboneCost(num_bytes, 0, pass_cost(lambda: model(tokens)), PassCost())
    image = torch.empty(1, 3, backbone.image_size, backbone.image_size, device=meta)
    if backbone.kind == "vision":
        return BackboneCost(num_bytes, num_bytes, pass_cost(lambda: model(image)), PassCost())
    text = torch.empty(1, TEXT_TOKENS, dtype=torch.long, device=meta)
    costs = pass_cost(lambda: model.encode_image(image)), pass_cost(lambda: encode_text(model, text))
    return BackboneCost(num_bytes, _bytes_of(model.visual), *costs)


def _saved_by_quantising(model: nn.Module, quantize: str) -> int:
    """Bytes that a language model takes less where all its linear layers but the output head are quantised."""
    head = model.get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    return sum(int(each.weight.numel() * (each.weight.element_size() - BYTES_PER_CODE[quantize])) for each in layers)


def _bytes_of(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
