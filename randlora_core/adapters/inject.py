"""Putting adapters on a model, and taking them off.

Target layers are exchanged for `AdapterLayer`s at their parents, in place. Everything that can be refused is checked
before the model is touched (`plan_injection`, `plan_addition`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from randlora_core.adapters import attention, method_named
from randlora_core.adapters.bases import SharedBases
from randlora_core.adapters.config import IMPORTED, AdapterConfig, is_imported, matches_pattern
from randlora_core.adapters.layer import DEFAULT_NAME, AdapterLayer
from randlora_core.adapters.layer_kinds import Shape
from randlora_core.adapters.state import (
    AdapterState,
    active_name,
    adapter_state,
    adapter_states,
    all_adapter_layers,
    has_adapters,
    require_no_context,
    set_adapter_states,
)
from randlora_core.adapters.targets import choose_layers, find_targets, match_parameters, near_layers, weight_of


@dataclass(frozen=True)
class InjectionPlan:
    """An injection that was checked against its model and can be carried out.

    Args:
        state: What the model will keep.
        configs: Target's name -> its own settings.
        attentions: Name -> attention module that has to be open.
    """

    state: AdapterState
    configs: dict[str, AdapterConfig]
    attentions: dict[str, nn.MultiheadAttention]


def inject_adapter(
    model: nn.Module,
    config: AdapterConfig,
    targets: Sequence[str] | str,
    *,
    exclude: Sequence[str] | str = (),
    trainable: Sequence[str] | str = (),
    split_in_proj: bool = False,
) -> nn.Module:
    """Put adapters on the layers of a model, in place, and freeze the rest.

    The model's outputs do not change. Adapter parameters are float32 and on their layer's device. LoRA's and DoRA's A
    is drawn from torch's global generator; everything else that is random comes from `config.seed`.

    Args:
        model: Any module without adapters.
        config: Settings of a method.
        targets: As in `find_targets`.
        exclude: As in `find_targets`.
        trainable: Suffixes or a regular expression on the names of modules or parameters that train as well (a head).
            The buffers of such modules (a batch norm's statistics) are saved with them.
        split_in_proj: As in `find_targets`.

    Returns:
        `model`.

    Raises:
        ValueError: As in `find_targets`; if the model has adapters already, a pattern of `trainable`, `rank_pattern` or
            `alpha_pattern` matches nothing, or a layer does not allow its rank. The model is unchanged then.
    """
    if is_imported(config):
        raise ValueError(f"basis={IMPORTED!r} needs the matrices of a file: use load_adapter or import_peft")
    plan = plan_injection(model, config, targets, exclude=exclude, trainable=trainable, split_in_proj=split_in_proj)
    return apply_injection(model, plan)


def plan_injection(
    model: nn.Module,
    config: AdapterConfig,
    targets: Sequence[str] | str,
    *,
    exclude: Sequence[str] | str = (),
    trainable: Sequence[str] | str = (),
    split_in_proj: bool = False,
) -> InjectionPlan:
    """Checks everything that `inject_adapter` can refuse, without touching the model; arguments and errors are its."""
    shapes = find_targets(model, targets, exclude=exclude, split_in_proj=split_in_proj)
    trained, attentions = match_parameters(model, trainable, shapes), attention.attentions_to_open(model, shapes)
    config, configs = resolve(config, shapes)
    unfrozen = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return InjectionPlan(AdapterState(config, shapes, trained, split_in_proj, unfrozen), configs, attentions)


def plan_addition(model: nn.Module, config: AdapterConfig, targets: Sequence[str] | str | None) -> InjectionPlan:
    """Checks everything that can be refused when a model gets a further adapter, without touching the model.

    Args:
        model: A model with adapters.
        config: Settings of a method.
        targets: As in `find_targets`; None stands for those of the first adapter.

    Raises:
        ValueError: As in `inject_adapter`; if the model has no adapter, or a target's own weight trains.
    """
    first = next(iter(adapter_states(model).values()))
    shapes = first.shapes if targets is None else choose_layers(model, targets, (), first.split_in_proj)
    for name in shapes:
        if weight_of(model, name).requires_grad:
            raise ValueError(f"layer {name!r} cannot hold an adapter: its own weight trains")
    attentions = attention.attentions_to_open(model, shapes)
    config, configs = resolve(config, shapes)
    state = AdapterState(config, dict(shapes), first.trainable, first.split_in_proj, first.unfrozen)
    return InjectionPlan(state, configs, attentions)


def resolve(config: AdapterConfig, shapes: dict[str, Shape]) -> tuple[AdapterConfig, dict[str, AdapterConfig]]:
    """Fills in what depends on the targets, and gives every target's own settings, checked against its shape.

    Raises:
        ValueError: If a pattern of the config matches no target, or a layer does not allow its rank.
    """
    update_class = method_named(config.method).update
    for field, patterns in config.patterns().items():
        for pattern in patterns:
            if not any(matches_pattern(name, pattern) for name in shapes):
                raise ValueError(f"{field} {pattern!r} matches none of the targets{near_layers(pattern, shapes)}")
    config = update_class.resolve(config, shapes)
    configs = {name: config.for_layer(name) for name in shapes}
    for name, layer_config in configs.items():
        update_class.check(layer_config, name, shapes[name])
    above = [name for name, c in configs.items() if c.rank > min(shapes[name])] if update_class.limits_rank else []
    if above:
        name = above[0]
        warnings.warn(
            f"the rank of {len(above)} layers is above their smaller side and adds no expressiveness: "
            f"{name!r} of shape {shapes[name]} has rank {configs[name].rank}",
            stacklevel=4,
        )
    return config, configs


def apply_injection(
    model: nn.Module,
    plan: InjectionPlan,
    bases: Mapping[int, SharedBases] | None = None,
    *,
    adapter: str = DEFAULT_NAME,
) -> nn.Module:
    """Carry out a plan that was made for this very model; returns `model`.

    The first adapter acts and trains at once; a further one waits for `set_adapter`.

    Args:
        model: A plain model, or one with adapters that has none of this name.
        plan: From `plan_injection`, or from `plan_addition` for a model with adapters.
        bases: Rank -> matrices to use as they are; None makes those that the settings describe.
        adapter: Name of the adapter.
    """
    state = plan.state
    states = adapter_states(model) if has_adapters(model) else {}
    if not states:
        trained = set(state.trainable)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
    for module in plan.attentions.values():
        attention.open_attention(module, split=state.split_in_proj)
    if bases is None:
        bases = make_bases(plan.configs, state.shapes, lambda name: model.get_submodule(name).weight.device, model)
    else:
        device = model.get_submodule(next(iter(plan.configs))).weight.device
        bases = {rank: shared.to(device) for rank, shared in bases.items()}
    active = active_name(model) if states else adapter
    for name, layer_config in plan.configs.items():
        _adapt(model, name, layer_config, bases[layer_config.rank], adapter, active)
    set_adapter_states(model, {**states, adapter: state})
    return model


def _adapt(
    model: nn.Module, name: str, config: AdapterConfig, bases: SharedBases | None, adapter: str, active: str
) -> None:
    """Give the layer `name` an update, exchanging it for an adapted one where it is plain."""
    base = model.get_submodule(name)
    layer = base if isinstance(base, AdapterLayer) else AdapterLayer(base)
    layer.active = active
    shape = (layer.out_features, layer.in_features)
    with torch.no_grad():
        update = method_named(config.method).update.create(config, shape, bases, layer.dense_weight())
    if adapter != active:
        update.requires_grad_(False)
    layer.updates[adapter] = update
    layer.train(base.training)
    if layer is not base:
        _replace(model, name, layer)


def make_bases(
    configs: dict[str, AdapterConfig],
    shapes: dict[str, Shape],
    device_of: Callable[[str], torch.device],
    model: nn.Module | None = None,
) -> dict[int, SharedBases | None]:
    """Makes the bases that the layers of one rank share: rank -> bases, on the device of the first of its layers.

    Args:
        configs: Layer's name -> its own settings.
        shapes: Layer's name -> (out, in).
        device_of: Layer's name -> device.
        model: Bases of this model serve again where they hold the same entries.
    """
    there = [] if model is None else [module for module in model.modules() if isinstance(module, SharedBases)]
    names_by_rank: dict[int, list[str]] = {}
    for name, config in configs.items():
        names_by_rank.setdefault(config.rank, []).append(name)
    bases_by_rank: dict[int, SharedBases | None] = {}
    for rank, names in names_by_rank.items():
        config, device = configs[names[0]], torch.device(device_of(names[0]))
        bases = method_named(config.method).update.make_bases(config, [shapes[name] for name in names], "meta")
        if bases is not None:
            found = next((other for other in there if other.device == device and other.covers(bases)), None)
            if found is not None:
                bases = found
            elif device.type != "meta":
                bases.generate(device)
        bases_by_rank[rank] = bases
    return bases_by_rank


def unload_adapter(model: nn.Module) -> nn.Module:
    """Give the plain layers back, in place: with the frozen weights, or the merged ones after `merge_adapter`.

    All adapters go. Parameters that required gradients before the injection do so again.

    Returns:
        `model`.

    Raises:
        ValueError: If the model has no adapter, or is inside of `disable_adapter` or `use_adapters`.
    """
    state = adapter_state(model)
    require_no_context(all_adapter_layers(model).values())
    for name, layer in all_adapter_layers(model).items():
        _replace(model, name, layer.base)
    for module in list(model.modules()):
        if isinstance(module, attention.OpenMultiheadAttention):
            attention.close_attention(module)
    set_adapter_states(model, {})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in state.unfrozen)
    return model


def forget_adapter(model: nn.Module, adapter: str) -> None:
    """Drop the state of an adapter whose updates are gone, and give layers back that hold no other."""
    set_adapter_states(model, {name: state for name, state in adapter_states(model).items() if name != adapter})
    for name, layer in all_adapter_layers(model).items():
        if not layer.updates:
            _replace(model, name, layer.base)


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` wherever the model uses the module `name`."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child_name, child in parent._modules.items():
            if child is old and parent is not new:
                parent._modules[child_name] = new
