"""Tuners of PEFT as methods of a run, on tiny CLIPs in both experiments on images."""

from dataclasses import replace

import pytest
import torch
from fit_settings import settings
from kept_runs import untrained_scores
from safetensors.torch import load_file, save_file
from torch import nn

from randlora_core.adapters.attention import OpenMultiheadAttention, attentions_to_open, open_attention
from randlora_core.adapters.state import adapter_layers
from randlora_core.experiment.adaptation import apply_method, load_weights, parameter_section, save_weights
from randlora_core.experiment.commands.evaluate import evaluate_run
from randlora_core.experiment.interface import find_experiment
from randlora_core.experiment.loop.fit import fit
from randlora_core.experiment.peft_tuners import (
    check_tuner,
    inject_tuner,
    load_tuner,
    save_tuner,
    tuner_parameters,
)
from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.rates import build_config
from randlora_core.experiment.running import run
from randlora_core.models import build_backbone
from randlora_core.models.backbone import CLIP_TARGETS
from randlora_core.models.text_tower import encode_text

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA extension", "ignore:.*boft_n_butterfly_factor")

CPU = torch.device("cpu")
WIDTH, TEXT_WIDTH, DEPTH = 48, 32, 2
CLIP = {
    "vision_cfg": {"layers": DEPTH, "width": WIDTH, "head_width": 16, "patch_size": 16, "image_size": 32},
    "text_cfg": {"layers": 1, "width": TEXT_WIDTH, "heads": 2, "context_length": 16},
}
LAYERS = [(3 * WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)] * DEPTH
TEXT_LAYERS = [(3 * TEXT_WIDTH, TEXT_WIDTH), (4 * TEXT_WIDTH, TEXT_WIDTH), (TEXT_WIDTH, 4 * TEXT_WIDTH)]
SHAPES = {"vision": LAYERS, "vision_language": LAYERS + TEXT_LAYERS}
"""(out, in) of the adapted layers of each experiment."""

TUNERS = {"HIRA": {"r": 4}, "C3A": {"block_size": 8, "init_weights": True}, "BOFT": {"boft_block_size": 4}}
COUNTS = {
    "HIRA": lambda rows, columns: 4 * (rows + columns),
    "C3A": lambda rows, columns: rows * columns // 8,
    "BOFT": lambda rows, columns: columns // 4 * 4 * 4 + rows,  # blocks of 4 x 4 on the inputs, a scale per output
    "LORA": lambda rows, columns: 4 * (rows + columns),
}
"""Trainable parameters of a layer by the papers' formulas."""


def as_override(value):
    if not isinstance(value, dict):
        return str(value)
    return "{" + ", ".join(f"{key}: {as_override(item)}" for key, item in value.items()) + "}"


@pytest.fixture
def given(pets, tmp_path):
    """Overrides of a short run of a tuner on a tiny CLIP and the made images."""

    def overrides(peft_type="HIRA", kwargs=None):
        return [
            "backbone=clip_vit_b32",
            "backbone.pretrained=false",
            *(f"+backbone.{name}={as_override(value)}" for name, value in CLIP.items()),
            "adapter=peft",
            f"adapter.peft_type={peft_type}",
            f"adapter.kwargs={as_override(TUNERS.get(peft_type, {}) if kwargs is None else kwargs)}",
            "dataset=pets",
            f"paths.data={pets}",
            f"paths.results={tmp_path / 'results'}",
            "training.steps=3",
            "training.batch_size=6",
            "training.precision=fp32",
            "training.learning_rate=1e-2",
            "threads=1",
        ]

    return overrides


def adapted_task(experiment, overrides):
    config = build_config(experiment, overrides)
    task = experiment.build_task(config)
    apply_method(task, config)
    return task, config


def train(task, steps=4):
    """Trains as a run does; gives the loss of each step."""
    plan = settings(steps=steps, learning_rate=1e-2, weight_decay=0.0, clip=None, seed=0)
    return fit(task.module, task.batches(steps, 6), plan, CPU).losses


@torch.no_grad()
def features(task):
    """The image features of fixed images, and text features where the task adapts the text tower."""
    task.module.eval()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = [task.encode(images)]
    if hasattr(task, "tokens"):
        found.append(encode_text(task.model, task.tokens[0]))
    return torch.cat(found)


def snapshot(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def structure(model):
    return {name: type(module) for name, module in model.named_modules()}, [
        (name, value.requires_grad) for name, value in model.named_parameters()
    ]


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("name", ["vision", "vision_language"])
@pytest.mark.parametrize("peft_type", TUNERS)
def test_a_tuner_trains_all_and_only_its_parameters_merges_and_is_put_back(name, peft_type, given, tmp_path):
    experiment = find_experiment(name)
    plain = experiment.build_task(build_config(experiment, given(peft_type)))
    task, config = adapted_task(experiment, given(peft_type))
    assert torch.allclose(features(task), features(plain), atol=1e-5)
    counts = parameter_section(task)
    expected = [COUNTS[peft_type](*shape) for shape in SHAPES[name]]
    assert sorted(counts["per_layer"].values()) == sorted(expected) and counts["trainable"] == sum(expected)
    before = {name: (value.detach().clone(), value.requires_grad) for name, value in task.model.named_parameters()}
    losses = train(task)
    assert losses[-1] < losses[0]
    for name, value in task.model.named_parameters():
        assert torch.equal(value, before[name][0]) == (not before[name][1]), name
    trained = features(task)
    assert not torch.allclose(trained, features(plain), atol=1e-3)

    save_weights(tmp_path / "kept", task, config, {}, recorded={}, weights="w")
    again = experiment.build_task(config)
    torch.manual_seed(9)
    load_weights(tmp_path / "kept", again, config)
    assert torch.equal(features(again), trained)

    merged = [layer for layer in task.model.modules() if hasattr(layer, "merge")]
    assert len(merged) == len(counts["per_layer"])
    bases = [layer.get_base_layer().weight.clone() for layer in merged]
    for layer, base in zip(merged, bases, strict=True):
        layer.merge()
        assert not torch.equal(layer.get_base_layer().weight, base)
    assert torch.allclose(features(task), trained, atol=1e-4)  # rounding, of features of a size of about 1


@pytest.mark.parametrize("name", ["vision", "vision_language"])
def test_a_run_is_recorded_and_its_kept_tuner_scored(name, given, pets, tmp_path):
    experiment = find_experiment(name)
    record = run(experiment, [*given(), "save.adapter=true", "training.learning_rate=0.1"])
    adapter = record["config"]["adapter"]
    assert (adapter["method"], adapter["peft_type"], adapter["kwargs"]) == ("peft", "HIRA", {"r": 4})
    assert adapter["label"] == "HIRA r=4"
    assert record["parameters"]["trainable"] == sum(4 * (rows + columns) for rows, columns in SHAPES[name])
    folder = tmp_path / "results" / name / record["saved"]
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"adapter_config.json", "adapter_model.safetensors", "run.json"}
    overrides = [f"paths.results={tmp_path / 'results'}", f"paths.data={pets}"]
    assert evaluate_run(experiment, record["run_id"], overrides)["test"] == record["scores"]["test"]
    assert untrained_scores(experiment, given()) != record["scores"]["test"]


def test_peft_reads_what_a_run_kept(given, tmp_path):
    from peft import PeftModel

    experiment = find_experiment("vision_language")
    task, config = adapted_task(experiment, given("LORA", {"r": 4}))
    train(task)
    save_weights(tmp_path, task, config, {}, recorded={}, weights="w")
    plain = experiment.build_task(config).model
    for module in attentions_to_open(plain, tuner_parameters(task.model)).values():
        open_attention(module)
    loaded = PeftModel.from_pretrained(plain, str(tmp_path))
    images = torch.randn(2, 3, 32, 32)
    task.module.eval()
    with torch.no_grad():
        assert torch.equal(loaded.get_base_model().eval().encode_image(images), task.encode(images))


def test_peft_lora_has_the_loss_curve_of_ours(given):
    """With the same weights at the start, through the packed projection of attention, too."""
    experiment = find_experiment("vision_language")
    theirs, _ = adapted_task(experiment, given("LORA", {"r": 4, "lora_alpha": 8}))
    lora = [text for text in given() if not text.startswith("adapter")]
    ours, _ = adapted_task(experiment, [*lora, "adapter=lora", "adapter.rank=4", "adapter.alpha=8"])
    with torch.no_grad():
        for name, layer in adapter_layers(ours.model).items():
            copy = theirs.model.get_submodule(name)
            for factor in ("lora_A", "lora_B"):
                value = getattr(layer.update, factor)
                value.normal_(std=0.1)
                getattr(copy, factor)["default"].weight.copy_(value)
    assert set(adapter_layers(ours.model)) == set(tuner_parameters(theirs.model))
    assert parameter_section(ours) == parameter_section(theirs)
    first, second = train(ours, steps=8), train(theirs, steps=8)
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) < 1e-5
    assert abs(first[0] - first[-1]) > 0.1


def test_attention_is_opened_without_a_change_of_its_output():
    images = torch.randn(3, 3, 32, 32)
    model = build_backbone("clip_vit_b32", pretrained=False, **CLIP).model
    attention = model.visual.transformer.resblocks[0].attn
    weight = attention.in_proj_weight.detach().clone()
    with torch.no_grad():
        before = model.encode_image(images)
        inject_tuner(model, check_tuner({"peft_type": "HIRA", "kwargs": {"r": 4}}), CLIP_TARGETS)
        after = model.eval().encode_image(images)
    assert isinstance(attention, OpenMultiheadAttention)
    assert torch.equal(attention.in_proj.get_base_layer().weight, weight)
    assert isinstance(attention.in_proj.get_base_layer(), nn.Linear)
    assert torch.allclose(before, after, rtol=0, atol=1e-5)  # torch's fused kernel adds in another order


def test_the_seed_draws_the_start(given):
    def start(seed):
        task, _ = adapted_task(find_experiment("vision"), [*given(), f"seed={seed}"])
        return {name: value for name, value in task.model.named_parameters() if value.requires_grad}

    first, same, other = start(1), start(1), start(2)
    drawn = [name for name in first if "hira_A" in name]
    assert all(torch.equal(first[name], same[name]) for name in first) and drawn
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_a_suffix_of_another_layers_name_is_no_target():
    """PEFT matches lists by their ends, and the names of the text tower are ends of those of the image tower."""
    model = build_backbone("clip_vit_b32", pretrained=False, **CLIP).model
    targets = r"transformer\.resblocks\.0\.mlp\.c_fc"
    inject_tuner(model, check_tuner({"peft_type": "HIRA", "kwargs": {"r": 2}}), targets)
    assert list(tuner_parameters(model)) == ["transformer.resblocks.0.mlp.c_fc"]


def test_shared_parameters_count_once():
    model = build_backbone("clip_vit_b32", pretrained=False, **CLIP).model
    kwargs = {"num_vectors": 20, "vector_length": 16, "topk": 2, "r": 2}
    inject_tuner(model, check_tuner({"peft_type": "VBLORA", "kwargs": kwargs}), CLIP_TARGETS)
    counts = tuner_parameters(model)
    assert sum(counts.values()) == sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert sum(value == min(counts.values()) for value in counts.values()) < len(counts)


SMALL = {
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 50},
    "IA3": {"feedforward_modules": []},
    "MISS": {"r": 8},
    "OFT": {"r": 0, "oft_block_size": 8},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 4},
    "VBLORA": {"num_vectors": 20, "vector_length": 16, "topk": 2, "r": 2},
    "WAVEFT": {"n_frequency": 50},
}
"""Settings of types whose defaults do not fit layers as small as these."""


@pytest.mark.slow
def test_every_accepted_type_trains_and_is_put_back(tmp_path):
    with pytest.raises(ValueError) as caught:
        check_tuner({"peft_type": "none"})
    types = str(caught.value).partition("accepted: ")[2].split(", ")
    assert len(types) >= 30 and {"HIRA", "C3A", "BOFT", "LORA", "VERA"} <= set(types)
    images = torch.randn(4, 3, 32, 32)

    def encode(model):
        return model.encode_image(images)

    for peft_type in types:
        options = check_tuner({"peft_type": peft_type, "kwargs": SMALL.get(peft_type, {})})
        model = build_backbone("clip_vit_b32", pretrained=False, **CLIP).model
        inject_tuner(model, options, CLIP_TARGETS)
        frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
        trained = [value for value in model.parameters() if value.requires_grad]
        assert sum(value.numel() for value in trained) == sum(tuner_parameters(model).values()), peft_type
        start, optimizer = encode(model).detach(), torch.optim.AdamW(trained, lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            encode(model).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            after = encode(model)
        assert not torch.allclose(after, start, atol=1e-3), peft_type
        assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items()), peft_type
        save_tuner(model, tmp_path / peft_type)
        again = build_backbone("clip_vit_b32", pretrained=False, **CLIP).model
        load_tuner(again, tmp_path / peft_type)
        with torch.no_grad():
            assert torch.equal(encode(again), after), peft_type


def test_what_fails_on_one_layer_leaves_the_model_as_it_was():
    """Blocks of 48 fit the layers of the image tower, which come first, and not those of the text tower."""
    model = build_backbone("clip_vit_b32", pretrained=False, **CLIP).model
    model.visual.proj.requires_grad_(False)
    before, weights = structure(model), snapshot(model)
    with pytest.raises(ValueError, match=r"adapter\.kwargs=\{'block_size': 48\} of C3A: The block size should be a"):
        inject_tuner(model, check_tuner({"peft_type": "C3A", "kwargs": {"block_size": 48}}), CLIP_TARGETS)
    assert structure(model) == before and not hasattr(model, "peft_config")
    assert_same(weights, snapshot(model))


def damage(folder, kind):
    """Makes a folder of a kept tuner one that cannot be loaded; what the error then says."""
    tensors = load_file(folder / "adapter_model.safetensors")
    name = sorted(tensors)[-1]
    if kind == "missing":
        (folder / "adapter_model.safetensors").unlink()
        return r"adapter_model\.safetensors: it cannot be read"
    if kind == "unexplained":
        (folder / "adapter_config.json").unlink()
        return r"adapter_config\.json: it cannot be read"
    if kind == "cut":
        data = (folder / "adapter_model.safetensors").read_bytes()
        (folder / "adapter_model.safetensors").write_bytes(data[:-10])
        return "damaged or not a safetensors file"
    if kind == "incomplete":
        del tensors[name]
        message = "has shape nothing there"
    else:
        tensors[name] = tensors[name][1:].clone()
        message = r"has shape \(\d+, \d+\) there and \(\d+, \d+\) in the model"
    save_file(tensors, folder / "adapter_model.safetensors")
    return message


@pytest.mark.parametrize("kind", ["missing", "unexplained", "cut", "incomplete", "another shape"])
def test_a_failed_load_changes_nothing(kind, given, tmp_path):
    experiment = find_experiment("vision_language")
    task, config = adapted_task(experiment, given())
    save_weights(tmp_path / "kept", task, config, {}, recorded={}, weights="w")
    message = damage(tmp_path / "kept", kind)
    other = experiment.build_task(config)
    before, weights = structure(other.model), snapshot(other.module)
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path / "kept", other, config)
    assert structure(other.model) == before
    assert_same(weights, snapshot(other.module))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["adapter.kwargs={r: 0}"], ["{'r': 0}", "HIRA", "(144, 48)", "positive integer"]),
        (["adapter.peft_type=C3A", "adapter.kwargs={block_size: 7}"], ["block_size", "7", "C3A", "(144, 48)", "48"]),
        (["adapter.targets=[attn.nothing]"], ["'attn.nothing' matches no layer", "attn.in_proj"]),
    ],
)
def test_what_a_tuner_cannot_adapt_is_found_before_data_are_looked_at(overrides, named, given):
    def unread(config):
        raise AssertionError("the data were looked at")

    experiment = replace(find_experiment("vision"), identify_data=unread)
    own = [text for text in given() if "kwargs" not in text or "kwargs" not in str(overrides)]
    with pytest.raises(ValueError) as caught:
        plan_run(experiment, [*own, *overrides])
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message
    with pytest.raises(AssertionError, match="the data were looked at"):
        plan_run(experiment, given())


def test_an_interrupted_run_goes_on_to_the_bit(given, tmp_path):
    experiment = find_experiment("vision_language")
    own = [*given("HIRA", {"r": 4, "hira_dropout": 0.1}), "training.steps=5"]
    whole = run(experiment, [*own, f"paths.results={tmp_path / 'other'}"])

    def interrupt(event):
        if event["phase"] == "train" and event["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(experiment, [*own, "save.state_seconds=0"], on_progress=interrupt)
    steps = []
    resumed = run(experiment, own, on_progress=lambda event: steps.append(event["step"]))
    assert steps[0] > 1 and resumed["curves"] == whole["curves"] and resumed["scores"] == whole["scores"]
