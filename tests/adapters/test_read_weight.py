"""Models that read an adapted layer's weight and multiply by it themselves, as timm's BEiT does."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer

from randlora_core import (
    LoRAConfig,
    RandLoRAConfig,
    adapter_parameters,
    add_adapter,
    delta_of,
    disable_adapter,
    inject_adapter,
    make_config,
    merge_adapter,
    set_adapter,
    use_adapters,
)

# Both sides form the same float32 sums in another order; the values are of order 1.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


def make_timm(name: str, **options) -> nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=5, img_size=32, **options)


MODELS = {
    "timm's BEiT": lambda: make_timm("beit_base_patch16_224", embed_dim=24, depth=1, num_heads=3),
    "timm's EVA": lambda: make_timm("eva02_tiny_patch14_224", patch_size=16, embed_dim=24, depth=1, num_heads=2),
    "timm's Swin V2": lambda: make_timm(
        "swinv2_tiny_window8_256", embed_dim=12, depths=(1,), num_heads=(2,), window_size=4
    ),
    "torchvision's Swin": lambda: SwinTransformer([4, 4], 12, [1, 1], [2, 2], [4, 4], num_classes=5),
}


class ReadsWeight(nn.Module):
    """Computes with the weight of `proj` in a way of choice."""

    def __init__(self, way, sizes=(6, 6)) -> None:
        super().__init__()
        self.proj, self.way = nn.Linear(*sizes), way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(x, self.proj)


WAYS = {
    "F.linear": lambda x, proj: F.linear(x, proj.weight, proj.bias),
    "F.linear with keywords and another bias": lambda x, proj: F.linear(
        input=x, weight=proj.weight, bias=2 * proj.bias
    ),
    "F.linear without bias": lambda x, proj: F.linear(x, proj.weight),
    "transpose": lambda x, proj: x @ proj.weight.T,
    "einsum": lambda x, proj: torch.einsum("ni,oi->no", x, proj.weight),
    "cat": lambda x, proj: F.linear(x, torch.cat([proj.weight, proj.weight])),
}


def perturb(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_adapters_of_models_that_read_weights_act_and_train(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # some start with layers that hardly count
    x = torch.randn(2, 3, 32, 32)
    expected_start = model(x)
    inject_adapter(model, RandLoRAConfig(rank=4), ("qkv",))
    torch.testing.assert_close(model(x), expected_start)
    adapted = perturb(model)(x)
    adapted.square().sum().backward()
    assert all(parameter.grad.any() for parameter in adapter_parameters(model))
    assert not torch.allclose(adapted, expected_start, **ROUNDING)
    with disable_adapter(model):
        torch.testing.assert_close(model(x), expected_start)
    merge_adapter(model)
    torch.testing.assert_close(model(x), adapted, **ROUNDING)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["randlora", "dora"])
def test_every_computation_with_the_weight_takes_the_update(way, method):
    model = perturb(inject_adapter(ReadsWeight(WAYS[way]), make_config(method, rank=2), ("proj",)))
    x = torch.randn(3, 6)
    weight = (model.proj.base.weight + delta_of(model)["proj"]).detach()
    plain = nn.Linear(6, 6)
    plain.weight, plain.bias = nn.Parameter(weight), model.proj.bias
    output = model(x)
    torch.testing.assert_close(output, WAYS[way](x, plain), **ROUNDING)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in adapter_parameters(model))
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), output, **ROUNDING)


def test_what_a_weight_is_like_is_answered_without_forming_it(monkeypatch):
    model = inject_adapter(ReadsWeight(WAYS["F.linear"], (6, 4)), LoRAConfig(rank=2), ("proj",)).to(torch.bfloat16)
    monkeypatch.setattr(type(model.proj), "applied_weight", lambda layer: pytest.fail("the weight was formed"))
    weight = model.proj.weight
    assert (weight.dtype, weight.device, weight.shape) == (torch.bfloat16, torch.device("cpu"), (4, 6))
    assert isinstance(weight, Tensor)
    assert weight.size(1) == 6


def test_dropout_and_mixed_batches_count_where_the_weight_is_read():
    model = perturb(inject_adapter(ReadsWeight(WAYS["F.linear"]), LoRAConfig(rank=2, dropout=0.5), ("proj",)))
    x = torch.randn(2, 6)
    assert not torch.equal(model.train()(x), model(x))
    model.eval()
    add_adapter(model, RandLoRAConfig(rank=2), "other")
    perturb(set_adapter(model, "other"))
    expected = [model.proj(x)[1]]
    set_adapter(model, "default")
    expected.insert(0, model.proj(x)[0])
    with use_adapters(model, ["default", "other"]):
        torch.testing.assert_close(model(x), torch.stack(expected))
        model.way = WAYS["transpose"]
        with pytest.raises(ValueError, match="no one weight"):
            model(x)
