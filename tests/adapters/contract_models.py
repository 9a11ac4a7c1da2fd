"""Every method with its variants, and every kind of layer, for the tests of what all of them promise.

The methods come from METHODS; a new one is under the contract as soon as it has a line there and, where its rank means
something else, one in VARIANTS.
"""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from randlora_core import METHODS, adapter_parameters, inject_adapter, make_config
from randlora_core.adapters.config import AdapterConfig
from randlora_core.adapters.layer_kinds import kind_of

VARIANTS = {
    **{method: (method, {}) for method in METHODS},
    "rslora": ("lora", {"rank_stabilized": True}),
    "randlora_sparse": ("randlora", {"basis": "sparse"}),
    "randlora_normal": ("randlora", {"basis": "normal", "scale_by_sqrt_bases": True}),
    "randlora_gamma_zero": ("randlora", {"init": "gamma_zero"}),
    "randdora": ("randlora", {"magnitude": True}),
    "randlora_a": ("randlora", {"distinct_a": True, "num_bases": 6}),
    "randlora_b": ("randlora", {"num_bases": 2}),
    "randlora_blocks": ("randlora", {"rank": 3, "groups": "max"}),  # 3 groups: one row of A in each
    "randlora_blocks_of_two": ("randlora", {"groups": 2}),
    "randlora_blocks_remade": ("randlora", {"rank": 3, "groups": 3, "store_bases": False}),
    "randdora_blocks": ("randlora", {"rank": 3, "groups": 3, "magnitude": True}),
    "nola": ("nola", {"num_bases_a": 7, "num_bases_b": 9}),
    "nola_shifted": ("nola", {"num_bases_a": 7, "num_bases_b": 9, "shifted": True}),
}
LAYERS = {
    "linear_tall": lambda: nn.Linear(11, 17),
    "linear_wide": lambda: nn.Linear(17, 11),
    "linear_square": lambda: nn.Linear(11, 11, bias=False),
    "conv1d_tall": lambda: Conv1D(17, 11),
    "conv1d_wide": lambda: Conv1D(11, 17),
}
RANK = 4  # divides none of 11 and 17, so the last basis is cut


class Network(nn.Module):
    """The layer under test between a trained stem, which needs the layer's input gradient, and a frozen norm."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        out_features, in_features = kind_of(layer).shape(layer)
        self.stem = nn.Linear(in_features, in_features)
        self.layer = layer
        self.norm = nn.LayerNorm(out_features)
        self.out_features, self.in_features = out_features, in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(self.stem(x)))


def config_of(variant: str, **fields) -> AdapterConfig:
    method, settings = VARIANTS[variant]
    return make_config(method, **{"rank": RANK, **settings, **fields})


def plain(kind: str) -> Network:
    torch.manual_seed(0)
    return Network(LAYERS[kind]())


def perturb(model: nn.Module, seed: int = 1) -> nn.Module:
    """Move every adapter parameter far enough that the output changes well beyond rounding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise.to(parameter.device, parameter.dtype))
    return model


def adapted(kind: str, variant: str, **fields) -> Network:
    return inject_adapter(plain(kind), config_of(variant, **fields), ("layer",))


def inputs(model: Network, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 5, model.in_features, generator=torch.Generator().manual_seed(2)).to(dtype)


def can_train(model: Network, name: str) -> Tensor:
    """Which entries of a parameter the bases let act: a column of zeros in a sparse A silences that entry of gamma."""
    if not name.endswith("randlora_gamma"):
        return torch.tensor(True)
    return model.layer.update.basis_slices()[0].bool().any(dim=-2)


every_combination = pytest.mark.parametrize("kind", LAYERS)
every_variant = pytest.mark.parametrize("variant", VARIANTS)
