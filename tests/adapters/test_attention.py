"""Adapters inside nn.MultiheadAttention, against torch's own module with the adapted weights written into it."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from randlora_core import (
    METHODS,
    RandLoRAConfig,
    adapter_parameters,
    disable_adapter,
    inject_adapter,
    make_config,
    merge_adapter,
    unload_adapter,
    unmerge_adapter,
)
from randlora_core.adapters.state import adapter_layers

WIDTH, HEADS, QUERIES, KEYS, BATCH = 12, 2, 5, 7, 3
VARIANTS = {name: (name, {}) for name in METHODS} | {
    "randdora": ("randlora", {"magnitude": True}),
    "randlora_blocks": ("randlora", {"rank": 3, "groups": "max"}),
}
TARGETS = {False: ("in_proj", "out_proj"), True: ("q_proj", "k_proj", "v_proj", "out_proj")}
# Both sides form the same products in float64 in another order; the values are of order 1.
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}


def make_attention(dtype=torch.float64, **options) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options}, dtype=dtype)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention


def inject(model, variant="randlora", split=False, **fields):
    method, settings = VARIANTS[variant]
    config = make_config(method, **{"rank": 5, **settings, **fields})
    return inject_adapter(model, config, TARGETS[split], split_in_proj=split)


def perturb(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def adapted_weight(layer) -> Tensor:
    """The weight by the methods' definitions; DoRA's norm carries no gradient."""
    total = layer.dense_weight() + layer.update.delta_weight()
    magnitude = getattr(layer.update, "lora_magnitude_vector", None)
    return total if magnitude is None else (magnitude / total.detach().norm(dim=1))[:, None] * total


def oracle(attention, plain, *inputs, **arguments):
    """The plain module with the adapted weights in place of its own, by torch's composed path."""
    layers = adapter_layers(attention)
    weights = {
        "in_proj_weight": torch.cat([adapted_weight(layers[n]) for n in layers if n != "out_proj"]),
        "out_proj.weight": adapted_weight(layers["out_proj"]),
    }
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return functional_call(plain, weights, inputs, arguments)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def cases(batch_first: bool) -> dict[str, tuple[tuple, dict]]:
    """Name -> inputs and arguments: self- and cross-attention under every kind of mask, batched and not."""
    torch.manual_seed(2)
    x = torch.randn(BATCH, QUERIES, WIDTH, dtype=torch.float64)
    keys, values = torch.randn(2, BATCH, KEYS, WIDTH, dtype=torch.float64)
    single = torch.randn(QUERIES, WIDTH, dtype=torch.float64)
    padding = torch.tensor([0, 2, 1])[:, None] > torch.arange(QUERIES).flip(0)
    causal = torch.ones(QUERIES, QUERIES, dtype=torch.bool).triu(1)
    per_head = torch.randn(BATCH * HEADS, QUERIES, QUERIES, dtype=torch.float64)
    if not batch_first:
        x, keys, values = (tensor.transpose(0, 1) for tensor in (x, keys, values))
    return {
        "self": ((x, x, x), {}),
        "padding": ((x, x, x), {"key_padding_mask": padding}),
        "causal": ((x, x, x), {"attn_mask": causal, "is_causal": True}),
        "float mask": ((x, x, x), {"attn_mask": per_head}),
        "both masks": ((x, x, x), {"attn_mask": causal, "key_padding_mask": padding, "is_causal": True}),
        "encoder-decoder": ((x, keys, keys), {}),
        "three inputs": ((x, keys, values), {"average_attn_weights": False}),
        "unbatched": ((single, single, single), {"key_padding_mask": padding[1]}),
        "unbatched float mask": ((single, single, single), {"attn_mask": per_head[:HEADS]}),
    }


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_every_way_to_attend(batch_first, bias, split):
    plain = make_attention(batch_first=batch_first, bias=bias)
    attention = inject(copy.deepcopy(plain), split=split)
    assert isinstance(attention, nn.MultiheadAttention)
    for perturbed in (False, True):
        if perturbed:
            perturb(attention)
        for name, (inputs, arguments) in cases(batch_first).items():
            for training, grad, need_weights in [(True, True, True), (False, False, True), (False, False, False)]:
                attention.train(training)
                plain.train(training)
                with torch.set_grad_enabled(grad):
                    arguments = {**arguments, "need_weights": need_weights}
                    output, weights = attention(*inputs, **arguments)
                    expected, expected_weights = oracle(attention, plain, *inputs, **arguments)
                    base = plain(*inputs, **arguments)[0]
                torch.testing.assert_close(output, expected, **ROUNDING, msg=lambda m, name=name: f"{name}: {m}")
                if need_weights:
                    torch.testing.assert_close(weights, expected_weights, **ROUNDING)
                else:
                    assert weights is None
                assert torch.allclose(output, base, **ROUNDING) is not perturbed


@pytest.mark.parametrize("batch_first", [False, True])
def test_identity_is_exact_beside_torchs_composed_path(batch_first):
    plain = make_attention(dtype=torch.float32, batch_first=batch_first, dropout=0.3)
    attention = inject(copy.deepcopy(plain))
    x = torch.randn(BATCH, QUERIES, WIDTH)
    torch.manual_seed(3)
    expected, _ = plain(x, x, x, need_weights=False)
    torch.manual_seed(3)
    output, _ = attention(x, x, x, need_weights=False)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients_of_every_method(variant, split):
    plain = make_attention()
    attention = perturb(inject(copy.deepcopy(plain), variant, split))
    parameters = list(adapter_parameters(attention))
    for name in ("self", "encoder-decoder", "three inputs"):
        inputs, arguments = cases(batch_first=True)[name]
        output = attention(*inputs, **arguments)[0]
        expected = oracle(attention, plain, *inputs, **arguments)[0]
        torch.testing.assert_close(output, expected, **ROUNDING)
        probe = torch.randn_like(output)
        gradients = torch.autograd.grad(output, parameters, probe)
        assert all(gradient.abs().max() > 0 for gradient in gradients)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters, probe), **ROUNDING)
    assert {id(p) for p in attention.parameters() if p.requires_grad} == {id(p) for p in parameters}

    layers = adapter_layers(attention)
    adapted = torch.cat([adapted_weight(layers[name]) for name in layers if name != "out_proj"])
    torch.testing.assert_close(attention.in_proj_weight.as_subclass(Tensor), adapted, **ROUNDING)
    assert torch.equal(attention.in_proj_bias, plain.in_proj_bias)
    with disable_adapter(attention):
        assert torch.equal(attention.in_proj_weight.as_subclass(Tensor), plain.in_proj_weight)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merge_disable_copy_pickle_unload(variant, split):
    plain = make_attention()
    attention = perturb(inject(copy.deepcopy(plain), variant, split)).eval()
    x = torch.randn(BATCH, QUERIES, WIDTH, dtype=torch.float64)
    adapted, base = attention(x, x, x)[0], plain(x, x, x)[0]
    frozen = {name: layer.dense_weight().clone() for name, layer in adapter_layers(attention).items()}

    for twin in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert torch.equal(twin(x, x, x)[0], adapted)
    with disable_adapter(attention):
        torch.testing.assert_close(attention(x, x, x)[0], base, **ROUNDING)
    merge_adapter(attention)
    torch.testing.assert_close(attention(x, x, x)[0], adapted, **ROUNDING)
    merged = unload_adapter(copy.deepcopy(attention))
    assert type(merged) is nn.MultiheadAttention
    torch.testing.assert_close(merged(x, x, x)[0], adapted, **ROUNDING)
    unmerge_adapter(attention)
    for name, layer in adapter_layers(attention).items():
        assert torch.equal(layer.dense_weight(), frozen[name])
    assert torch.equal(attention(x, x, x)[0], adapted)


@pytest.mark.parametrize("split", [False, True])
def test_unload_gives_back_the_plain_module(split):
    plain = make_attention(dtype=torch.float32, dropout=0.1)
    attention = copy.deepcopy(plain)
    attention.in_proj_bias.requires_grad_(False)
    calls = []
    attention.register_forward_hook(lambda *_: calls.append(1))
    perturb(inject(attention, split=split))
    x = torch.randn(BATCH, QUERIES, WIDTH)
    attention(x, x, x)
    assert unload_adapter(attention) is attention
    attention(x, x, x)
    assert calls == [1, 1]
    assert type(attention) is nn.MultiheadAttention
    assert type(attention.out_proj) is type(plain.out_proj)
    state, expected = attention.state_dict(), plain.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    trainable = {name: parameter.requires_grad for name, parameter in attention.named_parameters()}
    assert trainable == {name: name != "in_proj_bias" for name in expected}
    assert list(dict(attention.named_modules())) == list(dict(plain.named_modules()))


@pytest.mark.parametrize("variant", ["randlora", "dora"])
def test_compiled_equals_eager(variant):
    torch._dynamo.reset()  # guards of the other variant would ask this one for its modules
    attention = perturb(inject(make_attention(), variant))
    x, keys = torch.randn(2, BATCH, QUERIES, WIDTH, dtype=torch.float64)
    parameters = list(adapter_parameters(attention))
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    for inputs in ((x, x, x), (x, keys, keys)):
        expected, output = attention(*inputs)[0], compiled(*inputs)[0]
        torch.testing.assert_close(output, expected, **ROUNDING)
        gradients = torch.autograd.grad(expected.square().sum(), parameters)
        torch.testing.assert_close(torch.autograd.grad(output.square().sum(), parameters), gradients, **ROUNDING)


def test_adapter_dropout_is_its_own_and_off_in_eval():
    attention = perturb(inject(make_attention(), dropout=0.5))
    x = torch.randn(BATCH, QUERIES, WIDTH, dtype=torch.float64)
    assert not torch.equal(attention(x, x, x)[0], attention(x, x, x)[0])
    attention.eval()
    assert torch.equal(attention(x, x, x)[0], attention(x, x, x)[0])


def test_small_update_survives_bfloat16_autocast():
    attention = make_attention(dtype=torch.float32, bias=False)
    signs = torch.tensor([1.0, -1.0]).repeat(WIDTH // 2)
    nn.init.ones_(attention.in_proj_weight)
    inject(attention, "lora", rank=1, alpha=1)
    with torch.no_grad():
        # The frozen projection of `signs` is 0; 1 +- 2^-10 has no bfloat16, so a summed weight would give 0, too.
        attention.in_proj.update.lora_A.copy_(2.0**-10 * signs)
        attention.in_proj.update.lora_B.fill_(1.0)
    x = signs.expand(1, 2, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = attention(x, x, x)
    expected = attention.out_proj.weight.sum(dim=1) * WIDTH * 2.0**-10
    torch.testing.assert_close(output[0, 0].float(), expected, rtol=2.0**-6, atol=2.0**-12)


class Encoder(nn.Module):
    """torch's encoder, whose eval mode reads weights past all sub-modules and packs padded batches."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True, norm_first=norm_first, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    "targets", [("self_attn.in_proj",), ("self_attn.out_proj",), ("linear1",), ("layers.1.linear2",)]
)
def test_fused_encoder_kernels_see_the_adapters(targets, norm_first):
    torch.manual_seed(0)
    plain = Encoder(norm_first).double().eval()
    model = inject_adapter(copy.deepcopy(plain), RandLoRAConfig(rank=5), targets)
    x = torch.randn(BATCH, QUERIES, WIDTH, dtype=torch.float64)
    padding = torch.tensor([0, 2, 1])[:, None] > torch.arange(QUERIES).flip(0)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), **ROUNDING)
        perturb(model)
        merged = unload_adapter(merge_adapter(copy.deepcopy(model)))
        assert all(type(layer.self_attn) is nn.MultiheadAttention for layer in merged.encoder.layers)
        for mask in (None, padding):
            expected = merged(x, mask)
            keep = slice(None) if mask is None else ~mask
            torch.testing.assert_close(model(x, mask)[keep], expected[keep], **ROUNDING)
            assert not torch.allclose(plain(x, mask)[keep], expected[keep])


class Subclass(nn.MultiheadAttention):
    pass


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (lambda: nn.MultiheadAttention(8, 2, kdim=6), "kdim=6 and vdim=8 must equal embed_dim=8"),
        (lambda: nn.MultiheadAttention(8, 2, vdim=6), "kdim=8 and vdim=6 must equal embed_dim=8"),
        (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), "add_bias_kv and add_zero_attn are not supported"),
        (lambda: nn.MultiheadAttention(8, 2, add_zero_attn=True), "add_bias_kv and add_zero_attn are not supported"),
        (lambda: Subclass(8, 2), "Subclass is a subclass of nn.MultiheadAttention"),
    ],
)
@pytest.mark.parametrize("target", ["in_proj", "out_proj"])
def test_what_cannot_be_opened_is_refused(attention, reason, target):
    model = nn.ModuleDict({"first": nn.MultiheadAttention(8, 2), "second": attention()})
    before = {name: (type(module), list(module._parameters)) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=f"second: .*{reason}"):
        inject_adapter(model, RandLoRAConfig(rank=2), (target,))
    assert {name: (type(module), list(module._parameters)) for name, module in model.named_modules()} == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    inject_adapter(model, RandLoRAConfig(rank=2), (target,), exclude=(f"second.{target}",))


def test_calls_that_torch_refuses_too():
    attention = inject(make_attention())
    x = torch.randn(BATCH, QUERIES, WIDTH, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="needs attn_mask"):
        attention(x, x, x, is_causal=True)
    nested = torch.nested.nested_tensor([x[0], x[1, :2]], layout=torch.jagged)
    with pytest.raises(ValueError, match="nested tensors"):
        attention(nested, nested, nested)


def small_open_clip() -> tuple[nn.Module, tuple[str, ...]]:
    from open_clip.model import CLIP

    vision = {"image_size": 16, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
    text = {"context_length": 6, "vocab_size": 20, "width": 24, "heads": 2, "layers": 2}
    return CLIP(16, vision, text), ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")


def small_torchvision() -> tuple[nn.Module, tuple[str, ...]]:
    from torchvision.models import VisionTransformer

    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24, "num_classes": 3}
    model = VisionTransformer(16, 8, **sizes)
    nn.init.normal_(model.heads[-1].weight)
    return model, ("self_attention.in_proj", "self_attention.out_proj")


@pytest.mark.parametrize("build", [small_open_clip, small_torchvision])
def test_published_models(build):
    torch.manual_seed(0)
    plain, targets = build()
    images, tokens = torch.randn(3, 3, 16, 16), torch.randint(1, 20, (3, 6))
    inputs = (images, tokens) if build is small_open_clip else (images,)

    def run(model):
        outputs = model(*inputs)
        return torch.cat([part.flatten() for part in outputs]) if isinstance(outputs, tuple) else outputs.flatten()

    model = inject_adapter(copy.deepcopy(plain), RandLoRAConfig(rank=6), targets)
    for training in (True, False):
        # float32; torch's fused kernel in eval mode rounds differently.
        torch.testing.assert_close(run(model.train(training)), run(plain.train(training)), rtol=1e-5, atol=1e-5)
    perturb(model)
    run(model).square().sum().backward()
    for name, parameter in model.named_parameters():
        learns = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert learns is parameter.requires_grad, name
    with torch.no_grad():
        adapted = run(model)
        assert not torch.allclose(adapted, run(plain), atol=1e-2)
        merged = unload_adapter(merge_adapter(model))
        torch.testing.assert_close(run(merged), adapted, rtol=1e-3, atol=1e-4)
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert type(merged) is type(plain)
