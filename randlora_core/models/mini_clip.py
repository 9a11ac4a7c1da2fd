"""The small CLIP that ships: open_clip's two towers with a convolutional stem, at 48 pixels.

Its architecture is `mini_clip.json`, its vocabulary `mini_clip_vocab.json`, its weights `mini_clip.safetensors` (bf16,
used as fp32); `mini_clip.md` is its model card. `tools.pretrain_mini_clip` makes the weights.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from randlora_core.models.backbone import CLIP_TARGETS, Backbone, seeded
from randlora_core.models.tokenizer import Tokenizer
from randlora_core.models.weights import LocalWeights

FOLDER = Path(__file__).parent
CONFIG_FILE = FOLDER / "mini_clip.json"
VOCABULARY_FILE = FOLDER / "mini_clip_vocab.json"
WEIGHTS_FILE = FOLDER / "mini_clip.safetensors"


class ConvStem(nn.Sequential):
    """Three 3x3 convolutions of stride 2 in the place of the patch embedding: (B, 3, S, S) -> (B, width, S/8, S/8).

    Args:
        width: Channels of the result, the width of the vision tower.
        channels: Channels after the first and the second convolution.
        batch_norm: Train with a batch norm after each convolution; `fold` removes them.

    Early convolutions help vision transformers to train: Xiao et al. 2021, https://arxiv.org/abs/2106.14881.
    """

    def __init__(self, width: int, channels: Sequence[int], batch_norm: bool = False) -> None:
        super().__init__()
        sizes = (3, *channels, width)
        for index, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            self.add_module(f"conv{index}", nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1, bias=not batch_norm))
            if batch_norm:
                self.add_module(f"norm{index}", nn.BatchNorm2d(fan_out))
            if index < len(sizes) - 2:
                self.add_module(f"activation{index}", nn.GELU())

    def fold(self) -> ConvStem:
        """The same function, in eval mode, as plain convolutions with biases."""
        convs = [module for name, module in self.named_children() if name.startswith("conv")]
        norms = [module for name, module in self.named_children() if name.startswith("norm")]
        folded = ConvStem(convs[-1].out_channels, [conv.out_channels for conv in convs[:-1]])
        for index, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
            fused = nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm.eval())
            folded.get_submodule(f"conv{index}").load_state_dict(fused.state_dict())
        return folded


def read_config() -> dict[str, Any]:
    """The architecture: open_clip's `embed_dim`, `vision_cfg`, `text_cfg`, then the stem and the input's statistics."""
    return json.loads(CONFIG_FILE.read_text(encoding="utf-8"))


def load_tokenizer() -> Tokenizer:
    """The tokenizer of the small CLIP."""
    return Tokenizer.from_file(VOCABULARY_FILE, read_config()["text_cfg"]["context_length"])


def build_towers(config: dict[str, Any], seed: int = 0, batch_norm: bool = False) -> nn.Module:
    """open_clip's CLIP with a `ConvStem`, its weights drawn from `seed`; the global random state is left alone."""
    from open_clip.model import CLIP

    with seeded(seed):
        model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
        model.visual.conv1 = ConvStem(config["vision_cfg"]["width"], config["stem_channels"], batch_norm)
    return model


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file in fp32.

    Raises:
        FileNotFoundError: If the file is not there.
    """
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(f"the weights of mini_clip are missing: no file {path}")
    return {name: tensor.float() for name, tensor in load_file(path).items()}


def find_mini_clip_weights(weights: Path = WEIGHTS_FILE) -> LocalWeights:
    """Where the weights come from: the file beside this module, or another of the same tensors."""
    return LocalWeights(Path(weights))


def build_mini_clip(
    *, pretrained: bool = True, seed: int = 0, device: str = "cpu", weights: Path = WEIGHTS_FILE
) -> Backbone:
    """Build the small CLIP.

    Args:
        pretrained: Load `weights`; False leaves the random weights of `seed`.
        seed: Seed of the random weights.
        device: Where the model goes; "meta" gives shapes without memory.
        weights: The weight file.

    Raises:
        ValueError: If pre-trained weights are asked for on the meta device.
        FileNotFoundError: If the weight file is missing.
    """
    from open_clip import image_transform

    if pretrained and device == "meta":
        raise ValueError("mini_clip: pretrained=True does not fit device='meta'")

    config = read_config()
    with torch.device("meta" if device == "meta" else "cpu"):
        model = build_towers(config, seed)
    if pretrained:
        model.load_state_dict(read_weights(weights), strict=True)
    image_size, interpolation = config["vision_cfg"]["image_size"], config["interpolation"]
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Backbone(
        name="mini_clip",
        model=model.to(device).eval(),
        kind="clip",
        default_targets=CLIP_TARGETS,
        embed_dim=config["embed_dim"],
        image_size=image_size,
        mean=mean,
        std=std,
        interpolation=interpolation,
        image_transform=image_transform(image_size, False, mean, std, interpolation=interpolation),
        tokenize=load_tokenizer(),
    )
