"""Adapters inside nn.MultiheadAttention: its packed input projection and its output projection as ordinary layers.

torch keeps the q, k and v projections as one parameter `in_proj_weight` (3w, w) and reads it, and `out_proj.weight`,
directly: a layer swapped in at `out_proj` is never called, and there is no layer to swap at `in_proj`. So an attention
module that holds a target is opened: it becomes an `OpenMultiheadAttention`, which is still an nn.MultiheadAttention
with the same arguments and results, but whose projections are the sub-modules

    <name>.in_proj                          nn.Linear(w, 3w), one target as in the paper's code and counts, or
    <name>.q_proj, .k_proj, .v_proj         nn.Linear(w, w) each, with split=True
    <name>.out_proj                         as before, but called

Closing it gives nn.MultiheadAttention back, with the same state_dict keys in the same order. Opening changes the class
of the module in place, as torch.nn.utils.parametrize does: hooks, other references to the module, and a module that is
itself the root of the model stay valid.

torch's fused inference kernels (nn.MultiheadAttention, nn.TransformerEncoderLayer and nn.TransformerEncoder in eval
mode) read weights past every sub-module. An open module keeps them off, and `attentions_to_open` names the modules of
every encoder with an adapter inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core.adapters.layer import AdapterLayer

PACKED = ("in_proj",)
SPLIT = ("q_proj", "k_proj", "v_proj")


class UnfusedWeight(Tensor):
    """A plain tensor whose type alone tells torch's fused attention kernels to stay off."""


class OpenMultiheadAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention that calls its projections as sub-modules, so that adapters on them act and train.

    Made by `open_attention`, never constructed. Attributes beyond nn.MultiheadAttention's: `in_proj`, or `q_proj`,
    `k_proj` and `v_proj`.
    """

    @property
    def in_proj_weight(self) -> Tensor:
        """The weight (3w, w) that the input projection applies now, adapters included."""
        return _concatenated([_effective_weight(layer) for layer in self.projections]).as_subclass(UnfusedWeight)

    @property
    def in_proj_bias(self) -> Tensor | None:
        """The bias (3w,) of the input projection."""
        biases = [layer.bias for layer in self.projections]
        return None if biases[0] is None else _concatenated(biases)

    @property
    def projections(self) -> list[nn.Module]:
        """The layers of the input projection, in the order of their rows."""
        return [self._modules[name] for name in projection_names(self)]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments, shapes and results are nn.MultiheadAttention's.

        Legend: N batch, L queries, S keys, w width, H heads, h = w / H.

        Raises:
            RuntimeError: If `is_causal` comes without `attn_mask` (as in torch).
            ValueError: If an input is a nested tensor.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            raise ValueError(
                "nested tensors are not supported by an attention module that holds adapters; pad the batch"
            )
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal=True is a hint about attn_mask and needs attn_mask as well")
        mask = _merge_masks(attn_mask, key_padding_mask, query, self.num_heads)
        causal = is_causal and key_padding_mask is None
        q, k, v = (self._split_heads(projected) for projected in self._project(query, key, value))
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            heads, weights = _attend_with_weights(q, k, v, mask, dropout)
        else:
            heads = F.scaled_dot_product_attention(q, k, v, None if causal else mask, dropout, causal)
        output = self.out_proj(self._join_heads(heads, batched=query.dim() == 3))
        if not need_weights:
            return output, None
        weights = weights.mean(dim=1) if average_attn_weights else weights
        return output, weights if query.dim() == 3 else weights.squeeze(0)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sends each input (..., w) through its part of the input projection."""
        if "in_proj" not in self._modules:
            return self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if query is key and key is value:
            return self.in_proj(query).chunk(3, dim=-1)
        # Each distinct input takes the whole projection, of which a part is used: what an adapter adds to some of the
        # outputs alone is a question that not every method (nor dropout, nor a quantised layer) can answer.
        q = self.in_proj(query).chunk(3, dim=-1)[0]
        if key is value:
            return q, *self.in_proj(key).chunk(3, dim=-1)[1:]
        return q, self.in_proj(key).chunk(3, dim=-1)[1], self.in_proj(value).chunk(3, dim=-1)[2]

    def _split_heads(self, x: Tensor) -> Tensor:
        """Turns (N, L, w), (L, N, w) or (L, w) into (N, H, L, h)."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        if x.dim() == 3:
            return x.transpose(0, 1).unsqueeze(0)
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _join_heads(self, x: Tensor, *, batched: bool) -> Tensor:
        """Turns (N, H, L, h) into the layout of the query."""
        if not batched:
            return x.squeeze(0).transpose(0, 1).flatten(1)
        return (x.transpose(1, 2) if self.batch_first else x.permute(2, 0, 1, 3)).flatten(2)


def _merge_masks(attn_mask: Tensor | None, padding: Tensor | None, query: Tensor, num_heads: int) -> Tensor | None:
    """Joins both masks into one that is added to the scores, broadcastable to (N, H, L, S)."""
    if attn_mask is not None:
        attn_mask = _additive(attn_mask, query.dtype)
        if attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (-1, num_heads))
    if padding is not None:
        padding = _additive(padding, query.dtype)
        padding = padding[None, None, None] if padding.dim() == 1 else padding[:, None, None]
    if attn_mask is None or padding is None:
        return padding if attn_mask is None else attn_mask
    return attn_mask + padding


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turns a boolean mask (True: not attended) into 0 and -inf, and leaves a floating one as it is."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def _attend_with_weights(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """Computes attention step by step: outputs (N, H, L, h) of the heads, and weights (N, H, L, S) after dropout."""
    scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    weights = F.dropout(weights, dropout) if dropout > 0.0 else weights
    return weights @ v, weights


def projection_names(attention: nn.MultiheadAttention, *, split: bool = False) -> tuple[str, ...]:
    """Names of the input projections: those that an open module has, or that a plain one would get with `split`."""
    if isinstance(attention, OpenMultiheadAttention):
        split = "in_proj" not in attention._modules
    return SPLIT if split else PACKED


def projection_shapes(attention: nn.MultiheadAttention, *, split: bool = False) -> dict[str, tuple[int, int]]:
    """Shape (out, in) of each input projection that adapters can target, by name."""
    width = attention.embed_dim
    names = projection_names(attention, split=split)
    return {name: (3 * width // len(names), width) for name in names}


def check_attention(name: str, attention: nn.MultiheadAttention, *, split: bool = False) -> None:
    """Refuse what cannot be opened.

    Raises:
        ValueError: If the module `name` is a subclass of nn.MultiheadAttention, has kdim or vdim different from
            embed_dim, has add_bias_kv or add_zero_attn, or is open the other way (packed where `split` is asked for).
    """
    if isinstance(attention, OpenMultiheadAttention):
        if projection_names(attention) != (SPLIT if split else PACKED):
            raise ValueError(
                f"{name}: its input projection is already open as {', '.join(projection_names(attention))}"
            )
        return
    if type(attention) is not nn.MultiheadAttention:
        raise ValueError(
            f"{name}: {type(attention).__name__} is a subclass of nn.MultiheadAttention; only that itself works"
        )
    if not attention._qkv_same_embed_dim:
        raise ValueError(
            f"{name}: kdim={attention.kdim} and vdim={attention.vdim} must equal embed_dim={attention.embed_dim}; "
            "exclude this module"
        )
    if attention.bias_k is not None or attention.add_zero_attn:
        raise ValueError(f"{name}: add_bias_kv and add_zero_attn are not supported; exclude this module")


def open_attention(attention: nn.MultiheadAttention, *, split: bool = False) -> None:
    """Turn a plain module that passes `check_attention` into an `OpenMultiheadAttention`, in place."""
    if isinstance(attention, OpenMultiheadAttention):
        return
    names = projection_names(attention, split=split)
    weights, biases = attention.in_proj_weight, attention.in_proj_bias
    if split:
        weights = [_like(part, weights) for part in weights.chunk(3)]
        biases = [None] * 3 if biases is None else [_like(part, biases) for part in biases.chunk(3)]
    else:
        weights, biases = [weights], [biases]
    attention.__class__ = OpenMultiheadAttention
    # The entries stay, empty, so that closing keeps the order of the state_dict.
    attention._parameters["in_proj_weight"] = attention._parameters["in_proj_bias"] = None
    for name, weight, bias in zip(names, weights, biases, strict=True):
        attention.add_module(name, _as_linear(weight, bias, attention.training))


def close_attention(attention: OpenMultiheadAttention) -> None:
    """Give nn.MultiheadAttention back, in place; its projections must be plain layers again."""
    layers = attention.projections
    for name in projection_names(attention):
        del attention._modules[name]
    attention.__class__ = nn.MultiheadAttention
    attention._parameters["in_proj_weight"] = _joined([layer.weight for layer in layers])
    attention._parameters["in_proj_bias"] = (
        None if layers[0].bias is None else _joined([layer.bias for layer in layers])
    )


def _effective_weight(layer: nn.Module) -> Tensor:
    """The weight (out, in) that a projection applies now."""
    return layer.effective_weight() if isinstance(layer, AdapterLayer) else layer.weight


def _concatenated(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _like(part: Tensor, parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(part.detach().clone(), requires_grad=parameter.requires_grad)


def _joined(parameters: list[nn.Parameter]) -> nn.Parameter:
    """Joins the rows of parameters in one; a single parameter stays the same object."""
    if len(parameters) == 1:
        return parameters[0]
    return _like(torch.cat([parameter.detach() for parameter in parameters]), parameters[0])


def _as_linear(weight: nn.Parameter, bias: nn.Parameter | None, training: bool) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = weight
    linear.bias = bias
    return linear.train(training)


def attentions_to_open(model: nn.Module, targets: Iterable[str]) -> dict[str, nn.MultiheadAttention]:
    """The attention modules that must be open for adapters on the layers called `targets` to act, by name.

    They are those that hold a target, and those of every torch encoder with a target inside, whose fused kernels read
    the weights of all its layers.
    """
    targets = set(targets)
    parents = {target.rpartition(".")[0] for target in targets}
    encoders = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer)
        and any(_inside(target, name) for target in targets)
    ]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        and (name in parents or any(_inside(name, encoder) for encoder in encoders))
    }


def _inside(name: str, ancestor: str) -> bool:
    return not ancestor or name.startswith(f"{ancestor}.")
