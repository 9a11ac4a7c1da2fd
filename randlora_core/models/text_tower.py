"""CLIP's text tower on no more positions than the texts need.

open_clip pads every text to the full context (77 tokens, of which "a photo of a cat." takes 8) and computes all of it.
Its tower is causal and reads its features at the end token, so positions behind the longest text change nothing.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call


def shorten(model: nn.Module, tokens: Tensor) -> Tensor:
    """The tokens (..., context) without the columns that are padding in every text, where `model` allows that.

    Args:
        model: CLIP. Others than open_clip's causal one, which pools at the highest token, get the tokens as they are.
        tokens: Texts, the end token the highest id of each; on the CPU, since their length is read.
    """
    return tokens[..., : int(tokens.argmax(-1).max()) + 1] if _is_causal(model) else tokens


def encode_text(model: nn.Module, tokens: Tensor) -> Tensor:
    """The model's `encode_text`, also for tokens (texts, length) that `shorten` has cut: features (texts, E)."""
    length = tokens.shape[-1]
    if not _is_causal(model) or length == model.positional_embedding.shape[0]:
        return model.encode_text(tokens)
    shorter = {
        "model.positional_embedding": model.positional_embedding[:length],
        "model.attn_mask": model.attn_mask[:length, :length],
    }
    return functional_call(_TextTower(model), shorter, (tokens,))


class _TextTower(nn.Module):
    """The text tower as a module's forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens)


def _is_causal(model: nn.Module) -> bool:
    """Whether this is open_clip's CLIP with a causal text tower, pooled where the token is highest."""
    return getattr(model, "text_pool_type", None) == "argmax" and getattr(model, "attn_mask", None) is not None
