"""Tiny image models with random weights, and the parameters that every method trains on them."""

from randlora_core.models import build_backbone

WIDTH, DEPTH, RANK = 48, 2, 8
# Random weights begin with layer scales of 1e-5, with which nothing of the image would reach the class token.
ARCHITECTURE = {"depth": DEPTH, "embed_dim": WIDTH, "num_heads": 3, "init_values": 1.0}
DINOV2 = {"image_size": 28, "architecture": ARCHITECTURE}
CLIP = {
    "vision_cfg": {"layers": DEPTH, "width": WIDTH, "head_width": 16, "patch_size": 16, "image_size": 32},
    "text_cfg": {"layers": 1, "width": 32, "heads": 2, "context_length": 16},
}
OPTIONS = {"dinov2_vit_s14": DINOV2, "clip_vit_b32": CLIP}
"""DINOv2's architecture, beside which a head is trained, and CLIP's, whose classes are texts; with their options."""
QUICK = [
    "backbone.pretrained=false",
    "training.steps=3",
    "training.batch_size=6",
    "training.precision=fp32",
    "training.learning_rate=1e-3",
    "threads=1",
]
SHAPES = [(3 * WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)] * DEPTH
"""(out, in) of the layers that adapters go on, the same in both models."""
FORMULAS = {
    "lora": lambda rows, columns: RANK * (rows + columns),
    "rslora": lambda rows, columns: RANK * (rows + columns),
    "dora": lambda rows, columns: RANK * (rows + columns) + rows,
    "vera": lambda rows, columns: RANK + rows,
    "nola": lambda rows, columns: 1024 + 1024,
    "randlora": lambda rows, columns: -(-min(rows, columns) // RANK) * (RANK + min(rows, columns)),
    "randdora": lambda rows, columns: -(-min(rows, columns) // RANK) * (RANK + min(rows, columns)) + rows,
}
"""Trainable parameters of a layer by the papers' formulas, apart from the library's own counts."""


def build(model):
    """The backbone of a run."""
    return build_backbone(model, pretrained=False, **OPTIONS[model])


def overrides_of(model, method):
    """Overrides of a short run of a method on a model of `OPTIONS`."""
    options = [f"+backbone.{name}={_as_override(value)}" for name, value in OPTIONS[model].items()]
    rank = [] if method in ("full", "linear_probe", "zero_shot") else [f"adapter.rank={RANK}"]
    return [f"backbone={model}", *options, f"adapter={method}", *rank, *QUICK]


def _as_override(value):
    if not isinstance(value, dict):
        return value
    return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
