"""The layers and blocks that are measured; whole models are in `randlora_core.benchmarking.whole_models`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core.models.language_models import LANGUAGE_MODELS


@dataclass(frozen=True)
class Case:
    """A module and its input, on which every method is measured.

    Args:
        name: Name in tables.
        kind: "layer", "block" or "model"; the goals on time differ.
        build: Makes the frozen module on a device, with the same random weights each time on that device.
        inputs: Makes the module's input on a device.
        targets: Suffixes of the adapted linear layers.
        tokens: Rows of the input of an adapted layer, T.
        smaller: Smaller side of the adapted layers, d.
        rank: RandLoRA's rank.
        memory_limit: Goal (c): allowed peak relative to LoRA's with equal parameters.
        blocks_limit: Goal (a) of bases in groups: allowed step time relative to LoRA's with equal parameters.
        half: Whether the step runs under bfloat16 autocast.
        for_peft: Whether PEFT can adapt the same layers.
    """

    name: str
    kind: str
    build: Callable[[torch.device], nn.Module]
    inputs: Callable[[torch.device], Tensor]
    targets: tuple[str, ...]
    tokens: int
    smaller: int
    rank: int
    memory_limit: float = 1.02
    blocks_limit: float = 1.15
    half: bool = False
    for_peft: bool = True

    @property
    def tokens_per_side(self) -> float:
        """The number of tokens per unit of the smaller side, T / d."""
        return self.tokens / self.smaller

    @property
    def format(self) -> str:
        """The number format of the step, in words."""
        return "bfloat16 autocast" if self.half else "float32"


class VisionBlock(nn.Module):
    """A pre-norm transformer block of a ViT: attention with one input projection, and a 4-fold MLP.

    Args:
        width: Size of a token, a multiple of 64.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Turns tokens (batch, length, width) into tokens of the same shape."""
        q, k, v = (_heads(part) for part in self.in_proj(self.norm_1(x)).chunk(3, dim=-1))
        x = x + self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.c_proj(F.gelu(self.c_fc(self.norm_2(x))))


class LanguageBlock(nn.Module):
    """A block of a decoder with grouped attention and a gated MLP; positions are left out.

    Args:
        width: Size of a token, a multiple of 64.
        hidden: Size inside the MLP.
        key_width: Size of keys and values, a divisor of the width and a multiple of 64.
    """

    def __init__(self, width: int, hidden: int, key_width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(width, key_width, bias=False) for _ in range(2))
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turns tokens (batch, length, width) into tokens of the same shape."""
        h = self.norm_1(x)
        q, k, v = _heads(self.q_proj(h)), _heads(self.k_proj(h)), _heads(self.v_proj(h))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o_proj(h.transpose(1, 2).flatten(2))
        h = self.norm_2(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 64)).transpose(1, 2)


def _with_random_weights(make: Callable[[], nn.Module]) -> Callable[[torch.device], nn.Module]:
    def build(device: torch.device) -> nn.Module:
        torch.manual_seed(0)
        with device:  # drawn where they are wanted: nothing on meta, and on a GPU not by the CPU, which takes seconds
            return make().requires_grad_(False)

    return build


def random_input(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draws a normal input, the same on every device; on the meta device only its shape is made."""
    if device.type == "meta":
        return torch.empty(shape, device=device)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(device)


def _tokens(*shape: int) -> Callable[[torch.device], Tensor]:
    # Inside a network the input needs a gradient, too.
    return lambda device: random_input(shape, device).requires_grad_()


def layer_case(out: int, in_: int, tokens: int, rank: int, *, half: bool = False) -> Case:
    """Makes a case of one linear layer."""
    return Case(
        name=f"layer {in_} -> {out}",
        kind="layer",
        build=_with_random_weights(lambda: nn.Sequential(nn.Linear(in_, out))),
        inputs=_tokens(tokens, in_),
        targets=("0",),
        tokens=tokens,
        smaller=min(out, in_),
        rank=rank,
        half=half,
    )


VISION_TARGETS = ("in_proj", "c_fc", "c_proj")
LANGUAGE_TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")


def vision_case(
    name: str, width: int, batch: int, length: int, rank: int, *, half: bool = False, depth: int = 1
) -> Case:
    """Makes a case of `depth` blocks of a vision tower, in which the paper's layers are adapted."""
    return Case(
        name=f"{name} block" + ("" if depth == 1 else f" x {depth}"),
        kind="block",
        build=_with_random_weights(lambda: nn.Sequential(*(VisionBlock(width) for _ in range(depth)))),
        inputs=_tokens(batch, length, width),
        targets=VISION_TARGETS,
        tokens=batch * length,
        smaller=width,
        rank=rank,
        half=half,
    )


def block_sizes(name: str) -> tuple[int, int, int]:
    """Gives the width, the MLP's hidden size, and the width of keys and values of a model of `LANGUAGE_MODELS`."""
    sizes = LANGUAGE_MODELS[name].sizes
    width = sizes["hidden_size"]
    key_width = width // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    return width, sizes["intermediate_size"], key_width


def language_case(
    name: str,
    sizes: tuple[int, int, int],
    batch: int,
    length: int,
    rank: int,
    *,
    half: bool = False,
    depth: int = 1,
    memory_limit: float = 1.02,
) -> Case:
    """Makes a case of `depth` decoder blocks with the `sizes` of `block_sizes`; the paper's layers are adapted."""
    return Case(
        name=f"{name} block" + ("" if depth == 1 else f" x {depth}"),
        kind="block",
        build=_with_random_weights(lambda: nn.Sequential(*(LanguageBlock(*sizes) for _ in range(depth)))),
        inputs=_tokens(batch, length, sizes[0]),
        targets=LANGUAGE_TARGETS,
        tokens=batch * length,
        smaller=sizes[0],
        rank=rank,
        half=half,
        memory_limit=memory_limit,
        blocks_limit=1.10,
    )


def quick_cases(half: bool = False) -> tuple[Case, ...]:
    """Makes three cases for a first look, with T / d of 4.2, 8.3 and 0.5."""
    return (
        vision_case("ViT-B", 768, 64, 50, rank=6, half=half),
        layer_case(768, 3072, 6400, rank=6, half=half),
        layer_case(768, 768, 400, rank=6, half=half),
    )


def standard_cases(half: bool) -> tuple[Case, ...]:
    """Makes cases of layers and blocks of the paper's models over T / d."""
    layers = [
        layer_case(out, in_, tokens, rank, half=half)
        for out, in_, rank in ((768, 768, 6), (3072, 768, 6), (768, 3072, 6), (1024, 1024, 8), (4096, 1024, 8))
        for tokens in (min(out, in_) // 2, 2 * min(out, in_), 4 * min(out, in_), 8 * min(out, in_))
    ]
    few = [vision_case("ViT-B", 768, batch, length, rank=6, half=half) for batch, length in ((1, 64), (8, 50))]
    blocks = [vision_case("ViT-B", 768, batch, 50, rank=6, half=half) for batch in (16, 64, 128, 256)] + [
        vision_case("ViT-L", 1024, 16, 257, rank=8, half=half),
        vision_case("ViT-H", 1280, 20, 257, rank=10, half=half),
        language_case("Qwen2-0.5B", block_sizes("qwen2_05b"), 16, 256, rank=6, half=half),
        language_case("SmolLM2-135M", block_sizes("smollm2_135m"), 16, 40, rank=10, half=half),
        language_case("Llama-3-8B", block_sizes("llama3_8b"), 4, 160, rank=30, half=half),
    ]
    return (*layers, *few, *blocks)
