"""What each method makes trainable, and that what it trained can be kept and put back."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_experiment import TinyTask
from torch import nn

from randlora_core.adapters.state import adapter_parameters
from randlora_core.experiment.adaptation import apply_method, load_weights, original_weights, save_weights
from randlora_core.experiment.rates import build_config

LAYERS = ((24, 12), (2, 24))
"""Shapes (out, in) of the adapted layers of the tiny network; the one between has no weights."""


def expected_count(method, rank):
    """Trainable parameters by the formulas of the papers, written down apart from the library's own counts."""
    if method == "full":
        return sum(rows * columns + rows for rows, columns in LAYERS)
    if method == "lora":
        return sum(rank * (rows + columns) for rows, columns in LAYERS)
    if method == "dora":
        return sum(rank * (rows + columns) + rows for rows, columns in LAYERS)
    if method == "vera":
        return sum(rank + rows for rows, columns in LAYERS)
    if method == "randlora":  # Lambda (bases, rank) and Gamma (bases, smaller side), bases = ceil(smaller side / rank)
        return sum(-(-min(shape) // rank) * (rank + min(shape)) for shape in LAYERS)
    if method == "nola":
        return 2 * 1024 * len(LAYERS)
    return 0


def config_of(tiny, method, *overrides):
    rank = [] if method in ("full", "zero_shot", "nola") else ["adapter.rank=2"]
    return build_config(tiny, [f"adapter={method}", *rank, "training.learning_rate=0.05", *overrides])


@pytest.mark.parametrize("method", ["zero_shot", "full", "lora", "dora", "vera", "randlora", "nola"])
def test_a_method_trains_what_it_says(tiny, method):
    config = config_of(tiny, method)
    task = TinyTask(config)
    apply_method(task, config)
    trainable = sum(value.numel() for value in task.module.parameters() if value.requires_grad)
    assert trainable == expected_count(method, 2)


def test_targets_of_the_configuration_come_before_the_tasks_own(tiny):
    config = config_of(tiny, "lora", "adapter.targets=['3']")
    task = TinyTask(config)
    apply_method(task, config)
    trained = {name.split(".")[0] for name, value in task.model.named_parameters() if value.requires_grad}
    assert trained == {"3"}
    with pytest.raises(ValueError, match="nothing"):
        apply_method(TinyTask(config), config_of(tiny, "lora", "adapter.targets=[nothing]"))


def test_what_no_method_trains_stays_frozen(tiny):
    for method in ("full", "lora"):
        task = TinyTask(config_of(tiny, method))
        task.frozen = ("3.bias",)
        apply_method(task, config_of(tiny, method))
        assert not task.model.get_parameter("3.bias").requires_grad


class WithHead(TinyTask):
    """A head behind the model, which every method trains."""

    def __init__(self, config, classes=3):
        super().__init__(config)
        self.module.head = nn.Linear(2, classes)
        self.module.register_buffer("scale", torch.ones(2))


def train(task):
    """Moves all that is trainable, and the head's buffer, to other values."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in task.module.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn_like(value))
        if hasattr(task.module, "scale"):
            task.module.scale.fill_(3.0)


def outputs(task):
    torch.manual_seed(2)
    task.module.eval()
    with torch.no_grad():
        features = task.model(torch.randn(5, 12))
        return task.module.head(features / task.module.scale) if hasattr(task.module, "head") else features


def assert_same(expected, found):
    assert expected.keys() == found.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("method", ["full", "lora", "randlora", "dora"])
@pytest.mark.parametrize("make", [TinyTask, WithHead])
def test_what_was_trained_is_put_back(tiny, tmp_path, method, make):
    config = config_of(tiny, method, "save.adapter=true")
    torch.manual_seed(0)
    task = make(config)
    before = outputs(task)
    original = original_weights(task, config)
    apply_method(task, config)
    train(task)
    save_weights(tmp_path, task, config, original, recorded=config.recorded(0.05), weights="w")
    torch.manual_seed(7)
    again = make(config)
    load_weights(tmp_path, again, config)
    assert torch.allclose(outputs(again), outputs(task), atol=1e-6)
    assert not torch.allclose(outputs(task), before, atol=1e-3)


def test_full_fine_tuning_is_kept_as_a_difference(tiny, tmp_path):
    config = config_of(tiny, "full", "save.adapter=true")
    task = TinyTask(config)
    task.frozen = ("3.bias",)
    start = {name: value.detach().clone() for name, value in task.model.named_parameters()}
    original = original_weights(task, config)
    apply_method(task, config)
    train(task)
    save_weights(tmp_path, task, config, original, recorded={}, weights="w")
    delta = load_file(tmp_path / "delta.safetensors")
    assert set(delta) == set(start) - {"3.bias"}
    for name, value in delta.items():
        assert torch.equal(value, task.model.get_parameter(name) - start[name]) and float(value.abs().max()) > 1e-4


def test_originals_are_copied_only_where_they_are_needed(tiny):
    for overrides in (["full"], ["lora", "save.adapter=true"]):
        config = config_of(tiny, *overrides)
        assert original_weights(TinyTask(config), config) == {}


def test_a_head_of_other_classes_is_refused(tiny, tmp_path):
    """Neither the head nor the model is changed by a load that fails."""
    for method in ("lora", "full"):
        config = config_of(tiny, method, "save.adapter=true")
        task = WithHead(config)
        original = original_weights(task, config)
        apply_method(task, config)
        train(task)
        save_weights(tmp_path / method, task, config, original, recorded={}, weights="w")
        other = WithHead(config, classes=4)
        before = {name: value.clone() for name, value in other.module.state_dict().items()}
        with pytest.raises(ValueError, match=r"'head\.bias' has shape \(3,\) there and \(4,\) in the model"):
            load_weights(tmp_path / method, other, config)
        assert_same(before, other.module.state_dict())
    with pytest.raises(ValueError, match=r"missing; accepted: a folder that a run with save\.adapter=true"):
        load_weights(tmp_path / "elsewhere", WithHead(config_of(tiny, "full")), config_of(tiny, "full"))


def test_a_head_for_other_outputs_is_refused_whatever_its_shape(tiny, tmp_path):
    config = config_of(tiny, "lora")
    task = WithHead(config)
    task.outputs = ("ant", "bee", "cow")
    apply_method(task, config)
    train(task)
    save_weights(tmp_path, task, config, {}, recorded={}, weights="w")
    other = WithHead(config)
    other.outputs = ("ant", "cow", "bee")
    before = {name: value.clone() for name, value in other.module.state_dict().items()}
    with pytest.raises(ValueError, match="has a head for ant, bee, cow; the data have ant, cow, bee"):
        load_weights(tmp_path, other, config)
    assert_same(before, other.module.state_dict())


def test_a_delta_for_another_model_is_refused(tiny, tmp_path):
    config = config_of(tiny, "full", "save.adapter=true")
    task = TinyTask(config)
    original = original_weights(task, config)
    apply_method(task, config)
    save_weights(tmp_path, task, config, original, recorded={}, weights="w")
    other = TinyTask(config)
    other.model[3] = nn.Linear(24, 5)
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"'3\.bias' has shape \(2,\) there and \(5,\) in the model"):
        load_weights(tmp_path, other, config)
    assert_same(before, other.model.state_dict())


@pytest.mark.parametrize(("method", "drawn"), [("lora", "lora_A"), ("randlora", "bases"), ("nola", "bases")])
def test_the_seed_alone_draws_what_a_method_draws(tiny, method, drawn):
    """The data have no part in it: the same seed gives the same numbers, another one others."""

    def numbers(seed):
        config = config_of(tiny, method, f"seed={seed}")
        task = TinyTask(config)
        apply_method(task, config)
        if drawn == "bases":  # an update of ones in every coefficient shows the frozen matrices
            with torch.no_grad():
                for parameter in adapter_parameters(task.model):
                    parameter.fill_(1.0)
            task.module.eval()
            with torch.no_grad():
                return task.model(torch.eye(12))
        return torch.cat([parameter.detach().flatten() for parameter in adapter_parameters(task.model)])

    assert torch.equal(numbers(1), numbers(1)) and not torch.allclose(numbers(1), numbers(2))
