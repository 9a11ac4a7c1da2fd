"""Writes the page that says which method works on which kind of layer, found out by trying.

    python -m tools.capabilities_page > docs/capabilities.md

writes the committed page; a test tries everything again and compares.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from randlora_core import (
    adapter_parameters,
    add_adapter,
    disable_adapter,
    export_peft,
    inject_adapter,
    load_adapter,
    make_config,
    merge_adapter,
    merge_error,
    save_adapter,
    set_adapter,
    unmerge_adapter,
    use_adapters,
)
from randlora_core.adapters.config import AdapterConfig

YES, NO = "yes", "no"

SHOWN_METHODS: dict[str, AdapterConfig] = {
    "RandLoRA": make_config("randlora", rank=4),
    "RandLoRA, sparse": make_config("randlora", rank=4, basis="sparse"),
    "RandLoRA with magnitude": make_config("randlora", rank=4, magnitude=True),
    "RandLoRA-a": make_config("randlora", rank=4, distinct_a=True, num_bases=3),
    "RandLoRA-b": make_config("randlora", rank=4, num_bases=2),
    "RandLoRA, blocks": make_config("randlora", rank=3, groups=3),
    "LoRA": make_config("lora", rank=4),
    "rsLoRA": make_config("lora", rank=4, rank_stabilized=True),
    "DoRA": make_config("dora", rank=4),
    "VeRA": make_config("vera", rank=4),
    "NoLA": make_config("nola", rank=4, num_bases_a=5, num_bases_b=5),
}
"""Row of the tables -> settings."""

_SIZES = (12, 24)  # in, out


class Stem(nn.Module):
    """A layer called `layer` behind another one, so that gradients have to pass it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Linear(_SIZES[0], _SIZES[0])
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Output (N, L, out) for x (N, L, in)."""
        x = self.stem(x)
        return self.layer(x, x, x)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)


def _conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(_SIZES[1], _SIZES[0])


def _quantised(kind: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import bitsandbytes

        if kind == "int8":
            return bitsandbytes.nn.Linear8bitLt(*_SIZES, has_fp16_weights=False).to("cpu")
        return bitsandbytes.nn.Linear4bit(*_SIZES, quant_type=kind).to("cpu")

    return build


def _attention() -> nn.Module:
    return nn.MultiheadAttention(_SIZES[0], 2, batch_first=True)


LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "nn.Linear": (lambda: nn.Linear(*_SIZES), "layer"),
    "Conv1D": (_conv1d, "layer"),
    "attention in_proj": (_attention, "layer.in_proj"),
    "attention out_proj": (_attention, "layer.out_proj"),
    "4 bits, NF4": (_quantised("nf4"), "layer"),
    "4 bits, FP4": (_quantised("fp4"), "layer"),
    "8 bits": (_quantised("int8"), "layer"),
}
"""Column of the tables -> builder of the layer, and the target's name in `Stem`."""


def plain_model(kind: str) -> nn.Module:
    """The model that is tried, without adapter; always the same values. In training mode.

    Args:
        kind: A key of `LAYERS`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Stem(LAYERS[kind][0]())
        if isinstance(model.layer, nn.MultiheadAttention):
            nn.init.normal_(model.layer.in_proj_bias)
    return model


def adapted_model(method: str, kind: str) -> nn.Module:
    """The same with an adapter that has moved away from its start.

    Args:
        method: A key of `SHOWN_METHODS`.
        kind: A key of `LAYERS`.
    """
    model = inject_adapter(plain_model(kind), SHOWN_METHODS[method], (LAYERS[kind][1],))
    _move(adapter_parameters(model))
    return model


@torch.no_grad()
def _move(parameters: Iterator[nn.Parameter], seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def _inputs() -> Tensor:
    return torch.randn(3, 5, _SIZES[0], generator=torch.Generator().manual_seed(2))


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def try_training(method: str, kind: str) -> str:
    """Starts at the base model; every adapter parameter and nothing else gets a gradient; survives its file."""
    model, x = inject_adapter(plain_model(kind), SHOWN_METHODS[method], (LAYERS[kind][1],)), _inputs()
    starts = _close(model(x), plain_model(kind)(x))
    _move(adapter_parameters(model))
    output = model(x)
    output.square().sum().backward()
    trained = {id(parameter) for parameter in adapter_parameters(model)}
    reached = all((p.grad is not None) == (id(p) in trained) for p in model.parameters())
    with tempfile.TemporaryDirectory() as directory:
        save_adapter(model, directory)
        kept = torch.equal(load_adapter(plain_model(kind), directory)(x), output)
    return YES if starts and reached and kept and not _close(output, plain_model(kind)(x)) else NO


def try_merging(method: str, kind: str) -> str:
    """The merged output is the unmerged one, or the weight is quantised again; unmerging and disabling are exact."""
    model, x = adapted_model(method, kind), _inputs()
    expected = model(x)
    merge_adapter(model)
    exact, rounded = _close(model(x), expected), max(merge_error(model).values())
    with disable_adapter(model):
        base = model(x)
    unmerge_adapter(model)
    if not (torch.equal(model(x), expected) and _close(base, plain_model(kind)(x))):
        return NO
    return YES if exact else "rounded" if rounded > 0 else NO


def try_compiling(method: str, kind: str) -> str:
    """`torch.compile` (backend aot_eager) gives the same outputs and gradients, in one graph or with breaks."""
    for fullgraph, answer in ((True, YES), (False, "with breaks")):
        torch._dynamo.reset()
        model, x = adapted_model(method, kind), _inputs()
        reference = copy.deepcopy(model)
        try:
            output = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)(x)
            output.square().sum().backward()
        except Exception:  # whatever the compiler raises, the answer is that it does not work
            continue
        reference(x).square().sum().backward()
        pairs = zip(adapter_parameters(model), adapter_parameters(reference), strict=True)
        if _close(output, reference(x)) and all(torch.allclose(a.grad, b.grad, 1e-3, 1e-3) for a, b in pairs):
            return answer
    return NO


def try_mixing(method: str, kind: str) -> str:
    """A batch whose rows go through the base model, this adapter and another one of the method."""
    model, x = adapted_model(method, kind), _inputs()
    add_adapter(model, SHOWN_METHODS[method], "other")
    expected = [plain_model(kind)(x), model(x)]
    _move(adapter_parameters(set_adapter(model, "other")), seed=3)
    expected.append(model(x))
    with use_adapters(model, [None, "default", "other"]):
        mixed = model(x)
    distinct = not any(_close(expected[i], expected[i - 1]) for i in range(3))
    return YES if distinct and all(_close(mixed[i], expected[i][i]) for i in range(3)) else NO


def try_peft(method: str, kind: str) -> str:
    """The installed PEFT opens what `export_peft` writes, with the same outputs: the method itself, or only as LoRA."""
    import peft

    model, x = adapted_model(method, kind), _inputs()
    for as_lora, answer in ((None, YES), (max(_SIZES), "as LoRA")):
        with tempfile.TemporaryDirectory() as directory:
            try:
                export_peft(model, directory, as_lora=as_lora)
            except ValueError:
                continue
            opened = peft.PeftModel.from_pretrained(_for_peft(kind), directory)
            if _close(opened.train()(x), model(x)):
                return answer
    return NO


def _for_peft(kind: str) -> nn.Module:
    """PEFT asks the model, not the layer, whether it is quantised."""
    model = plain_model(kind)
    model.is_loaded_in_4bit = kind.startswith("4 bits")
    model.is_loaded_in_8bit = kind.startswith("8 bits")
    return model


CAPABILITIES: dict[str, tuple[Callable[[str, str], str], str]] = {
    "Training and files": (
        try_training,
        "The output at the start is the base model's, gradients reach the adapter's parameters and no others, and an "
        "adapter that was saved and loaded gives the same output to the bit.",
    ),
    "Merging": (
        try_merging,
        "The merged model gives the unmerged model's output up to float32 rounding, and unmerging restores the weights "
        'to the bit. "rounded": the merged weight is quantised again, so that the output changes; `merge_error` says '
        "by how much, unmerging is exact all the same.",
    ),
    "Many adapters": (
        try_mixing,
        "In one batch, rows go through the base model, one adapter and another one, with the outputs that each gives "
        "alone.",
    ),
    "torch.compile": (
        try_compiling,
        "Outputs and gradients under torch.compile (backend aot_eager, CPU) are the plain ones, in one graph; "
        '"with breaks": only without `fullgraph=True`.',
    ),
    "Export to PEFT": (
        try_peft,
        '`export_peft` writes a directory that the installed PEFT opens with the same outputs; "as LoRA": only with '
        "`as_lora`, here at full rank.",
    ),
}
"""Heading -> what tries it, and what is tried."""


def answers(capability: str) -> dict[str, dict[str, str]]:
    """Try one capability: method -> layer kind -> answer.

    Args:
        capability: A key of `CAPABILITIES`.
    """
    attempt, _ = CAPABILITIES[capability]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {method: {kind: attempt(method, kind) for kind in LAYERS} for method in SHOWN_METHODS}


def table(capability: str, found: Mapping[str, Mapping[str, str]]) -> str:
    """The section of the page for one capability, Markdown."""
    rows = [("", *LAYERS), ("---", *["---"] * len(LAYERS)), *((m, *found[m].values()) for m in found)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"## {capability}", "", CAPABILITIES[capability][1], "", *lines, ""])


INTRODUCTION = (
    "# What works with what\n\n"
    "Written by `python -m tools.capabilities_page > docs/capabilities.md`, which tries every cell on the CPU, "
    f"on a layer with {_SIZES[0]} inputs and {_SIZES[1]} outputs (attention: width {_SIZES[0]}); "
    "`tests/tools/test_capabilities_page.py` tries again and compares.\n\n"
    "Conv1D is transformers' layer of that name; attention is `nn.MultiheadAttention`; 4 and 8 bits are "
    "bitsandbytes' `Linear4bit` and `Linear8bitLt`, in training mode, since in evaluation mode the 8-bit layer "
    "rounds its inputs, with or without adapter. Everything else (convolutions, embeddings, weights "
    "that two layers share) is refused with the reason.\n"
)


def page() -> str:
    """The whole page, Markdown. Takes minutes."""
    return "\n".join([INTRODUCTION, *(table(name, answers(name)) for name in CAPABILITIES)])


if __name__ == "__main__":
    print(page(), end="")
