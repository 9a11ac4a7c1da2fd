"""Putting adapters on a model, and taking them off: find targets, inject, merge, disable, count.

The model keeps its class. Target layers are exchanged for `AdapterLayer`s at their parents, in place, and what was
injected is kept on the model as a tuple of plain values (`adapter_state`), so that it survives deepcopy and pickling.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from randlora_core.adapters import attention, method_named
from randlora_core.adapters.bases import IMPORTED, SharedBases, is_imported
from randlora_core.adapters.config import (
    AdapterConfig,
    check_choice,
    matches_pattern,
    matches_regex,
    matches_suffix,
    near,
)
from randlora_core.adapters.layer import DEFAULT_NAME, LAYER_KINDS, AdapterLayer, Shape, kind_of

ALL_LINEAR = "all-linear"

_STATE = "_randlora_state"


@dataclass(frozen=True)
class AdapterState:
    """What was injected into a model.

    Args:
        config: Settings, with those that depend on the targets resolved.
        shapes: Full name of every adapted layer -> (out, in), in the model's order.
        trainable: Full names of the model's own parameters that train beside the adapter, in the plain model's names,
            and of the buffers that change with them (running statistics).
        split_in_proj: Whether attention modules have separate q, k and v targets.
        unfrozen: Names of all parameters that required gradients before the injection.
    """

    config: AdapterConfig
    shapes: dict[str, Shape]
    trainable: tuple[str, ...]
    split_in_proj: bool
    unfrozen: tuple[str, ...]


@dataclass(frozen=True)
class InjectionPlan:
    """What `inject_adapter` is going to do, all of it checked against the model.

    Args:
        state: What the model will keep.
        configs: Target's name -> its own settings.
        attentions: Name -> attention module that has to be open.
    """

    state: AdapterState
    configs: dict[str, AdapterConfig]
    attentions: dict[str, nn.MultiheadAttention]


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters.

    Args:
        trainable: Parameters that require gradients: adapters and what `trainable` named.
        total: All parameters of the model, adapters included; frozen random bases are no parameters.
        per_layer: Adapted layer's name -> parameters of its adapter.
    """

    trainable: int
    total: int
    per_layer: dict[str, int]


def find_targets(
    model: nn.Module,
    targets: Sequence[str] | str,
    *,
    exclude: Sequence[str] | str = (),
    split_in_proj: bool = False,
) -> dict[str, Shape]:
    """The layers that a choice of targets names.

    Args:
        model: Any module without adapters.
        targets: A sequence of suffixes of module names, matched at dots; or a regular expression on the full name; or
            "all-linear". An nn.MultiheadAttention called `a` has the layers `a.in_proj` (3w, w) and `a.out_proj`.
        exclude: Suffixes or a regular expression: layers to leave out.
        split_in_proj: Give attention modules `a.q_proj`, `a.k_proj` and `a.v_proj` instead of `a.in_proj`.

    Returns:
        Full name -> (out, in), in the model's order. A module that the model uses under several names appears once,
        under the first.

    Raises:
        ValueError: If a target or an exclusion matches nothing, a target is a layer that cannot be adapted, its weight
            is shared with another module, its attention module cannot be opened, nothing is left, or the model has
            adapters already.
    """
    require_plain(model)
    return _choose_layers(model, targets, exclude, split_in_proj)


def _choose_layers(
    model: nn.Module, targets: Sequence[str] | str, exclude: Sequence[str] | str, split_in_proj: bool
) -> dict[str, Shape]:
    """`find_targets` on a model with or without adapters."""
    layers = adaptable_layers(model, split_in_proj=split_in_proj)
    matched = _match_targets(model, layers, targets)
    first_names = _first_names(model, layers)
    chosen = {first_names[name] for name in matched - _match_exclusions(exclude, matched)}
    if not chosen:
        raise ValueError(
            f"exclude={exclude!r} leaves no layer of targets={targets!r}"
            if matched
            else f"the {type(model).__name__} holds no layer that can be adapted; layers that can: {_kinds()}"
        )
    for name, module in attention.attentions_to_open(model, chosen).items():
        attention.check_attention(name, module, split=split_in_proj)
    for name in chosen:
        _check_not_refused(model, name)
        _check_not_shared(model, name)
    return {name: layers[name] for name in layers if name in chosen}


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
    """All of `inject_adapter` that can be refused, without touching the model; arguments and errors are the same."""
    shapes = find_targets(model, targets, exclude=exclude, split_in_proj=split_in_proj)
    config = method_named(config.method).update.resolve(config, tuple(shapes.values()))
    configs = layer_configs(config, shapes)
    trained = _match_parameters(model, trainable, shapes, split_in_proj)
    unfrozen = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    state = AdapterState(config, shapes, trained, split_in_proj, unfrozen)
    return InjectionPlan(state, configs, attention.attentions_to_open(model, shapes))


def plan_addition(model: nn.Module, config: AdapterConfig, targets: Sequence[str] | str | None) -> InjectionPlan:
    """What can be refused when a model with adapters gets another one, without touching the model.

    Args:
        model: A model with adapters.
        config: Settings of a method.
        targets: As in `find_targets`; None stands for those of the first adapter.

    Raises:
        ValueError: As in `inject_adapter`; if the model has no adapter, or a target's own weight trains.
    """
    first = next(iter(adapter_states(model).values()))
    shapes = first.shapes if targets is None else _choose_layers(model, targets, (), first.split_in_proj)
    for name in shapes:
        if _weight_of(model, name).requires_grad:
            raise ValueError(f"layer {name!r} cannot hold an adapter: its own weight trains")
    config = method_named(config.method).update.resolve(config, tuple(shapes.values()))
    state = AdapterState(config, dict(shapes), first.trainable, first.split_in_proj, first.unfrozen)
    return InjectionPlan(state, layer_configs(config, shapes), attention.attentions_to_open(model, shapes))


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
    states = getattr(model, _STATE, {})
    if not states:
        _freeze_except(model, state.trainable)
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
    setattr(model, _STATE, {**states, adapter: state})
    return model


def require_plain(model: nn.Module) -> None:
    """Refuse a model with adapters.

    Raises:
        ValueError: If `model` has any.
    """
    if all_adapter_layers(model) or hasattr(model, _STATE):
        raise ValueError("the model has adapters already; call unload_adapter first")


def has_adapters(model: nn.Module) -> bool:
    """Whether anything was injected into `model`."""
    return hasattr(model, _STATE)


def adapter_state(model: nn.Module, adapter: str | None = None) -> AdapterState:
    """What was injected into `model` under the name `adapter`; None stands for the active adapter.

    Raises:
        ValueError: If the model has no adapter, or none of this name.
    """
    states = adapter_states(model)
    return states[require_adapter(model, active_name(model) if adapter is None else adapter)]


def adapter_states(model: nn.Module) -> dict[str, AdapterState]:
    """Adapter's name -> what was injected, in the order of injection.

    Raises:
        ValueError: If the model has no adapter.
    """
    states = getattr(model, _STATE, None)
    if states is None:
        raise ValueError(f"the {type(model).__name__} has no adapter; call inject_adapter first")
    return states


def require_adapter(model: nn.Module, adapter: str) -> str:
    """`adapter`, where the model has an adapter of this name.

    Raises:
        ValueError: Where it has none.
    """
    check_choice("adapter", adapter, adapter_states(model))
    return adapter


def _require_no_context(layers: Iterable[AdapterLayer]) -> None:
    """Refuse to change weights where a context is going to change them back.

    Raises:
        ValueError: Inside of `disable_adapter` or `use_adapters`.
    """
    if any(layer.disabled or layer.rows is not None for layer in layers):
        raise ValueError("leave disable_adapter and use_adapters first: they set back what they changed")


def require_unmerged(model: nn.Module) -> None:
    """Refuse a merged model.

    Raises:
        ValueError: If the active adapter is merged.
    """
    if any(layer.merged for layer in all_adapter_layers(model).values()):
        raise ValueError("the adapter is merged; call unmerge_adapter first")


def forget_adapter(model: nn.Module, adapter: str) -> None:
    """Drop what is kept about an adapter whose updates are gone, and layers without any other."""
    states = adapter_states(model)
    setattr(model, _STATE, {name: state for name, state in states.items() if name != adapter})
    for name, layer in all_adapter_layers(model).items():
        if not layer.updates:
            _replace(model, name, layer.base)


def active_name(model: nn.Module) -> str:
    """Name of the adapter that acts, merges and trains.

    Raises:
        ValueError: If the model has no adapter.
    """
    adapter_states(model)
    return next(iter(all_adapter_layers(model).values())).active


def all_adapter_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """The layers that hold any adapter by name, each once, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdapterLayer)}


def adapter_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """The layers that hold the active adapter by name, each once, in the model's order."""
    return {name: layer for name, layer in all_adapter_layers(model).items() if layer.active in layer.updates}


def adapter_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The active adapter's parameters, without the model's own that `trainable` named."""
    return (parameter for layer in _require_layers(model).values() for parameter in layer.update.parameters())


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters that train beside the adapters, by their names in the injected model."""
    adapters = {id(parameter) for parameter in adapter_parameters(model)}
    return {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in adapters}


def adapter_bases(model: nn.Module, adapter: str | None = None) -> dict[int, SharedBases]:
    """The frozen random matrices of an adapter (None: the active one) by rank; empty for methods without."""
    adapter = active_name(model) if adapter is None else require_adapter(model, adapter)
    layers = all_adapter_layers(model).values()
    updates = [layer.updates[adapter] for layer in layers if adapter in layer.updates]
    return {update.config.rank: update.bases for update in updates if hasattr(update, "bases")}


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Counts of a model with or without adapters; shared parameters count once. `per_layer` is the active adapter's."""
    parameters = list(model.parameters())
    return ParameterCounts(
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        total=sum(p.numel() for p in parameters),
        per_layer={
            name: sum(p.numel() for p in layer.update.parameters()) for name, layer in adapter_layers(model).items()
        },
    )


def merge_adapter(model: nn.Module) -> nn.Module:
    """Add the active adapter to the frozen weights, in place: the forward pass then costs what the base model's does.

    A quantised weight is decoded, added to and quantised again, which costs precision: there is a warning that gives
    the largest `merge_error`.

    Returns:
        `model`.

    Raises:
        ValueError: If the model has no adapter, is merged already, is inside of `disable_adapter` or `use_adapters`, or
            a weight cannot be written or would not be finite; the model is unchanged then.
    """
    layers = _require_layers(model)
    if any(layer.merged for layer in layers.values()):
        raise ValueError("the adapter is merged already")
    _require_no_context(layers.values())
    done = []
    for name, layer in layers.items():
        try:
            layer.merge()
        except ValueError as error:
            for merged in done:
                merged.unmerge()
            raise ValueError(f"cannot merge layer {name!r}: {error}") from None
        done.append(layer)
    _warn_of_quantised_merges(layers)
    return model


def merge_error(model: nn.Module) -> dict[str, float]:
    """What rounding or quantising the merged weights took from the update.

    Returns:
        Layer's name -> ||stored - (W0 + dW)|| / ||dW||, Frobenius norms: 0 is exact, and at 1 the error is as large as
        the update.

    Raises:
        ValueError: If the model has no adapter or is not merged.
    """
    layers = _require_layers(model)
    if not all(layer.merged for layer in layers.values()):
        raise ValueError("the adapter is not merged")
    return {name: layer.merge_error for name, layer in layers.items()}


def _warn_of_quantised_merges(layers: Mapping[str, AdapterLayer]) -> None:
    errors = {name: layer.merge_error for name, layer in layers.items() if layer.kind.quantised}
    if errors:
        name = max(errors, key=errors.get)
        warnings.warn(
            f"{len(errors)} merged weights were quantised again; the largest error is {errors[name]:.3g} times the "
            f"update's norm, in layer {name!r}; merge_error(model) has all",
            stacklevel=3,
        )


def unmerge_adapter(model: nn.Module) -> nn.Module:
    """Undo `merge_adapter`: the frozen weights are what they were, to the bit.

    Returns:
        `model`.

    Raises:
        ValueError: If the model has no adapter, is not merged, or is inside of `disable_adapter`.
    """
    layers = _require_layers(model)
    if not all(layer.merged for layer in layers.values()):
        raise ValueError("the adapter is not merged")
    _require_no_context(layers.values())
    for layer in layers.values():
        layer.unmerge()
    return model


def unload_adapter(model: nn.Module) -> nn.Module:
    """Give the plain layers back, in place: with the frozen weights, or the merged ones after `merge_adapter`.

    All adapters go. Parameters that required gradients before the injection do so again.

    Returns:
        `model`.

    Raises:
        ValueError: If the model has no adapter, or is inside of `disable_adapter` or `use_adapters`.
    """
    state = adapter_state(model)
    _require_no_context(all_adapter_layers(model).values())
    for name, layer in all_adapter_layers(model).items():
        _replace(model, name, layer.base)
    for module in list(model.modules()):
        if isinstance(module, attention.OpenMultiheadAttention):
            attention.close_attention(module)
    delattr(model, _STATE)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in state.unfrozen)
    return model


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[nn.Module]:
    """Within the context the model answers as the base model, merged or not. Contexts may be nested.

    Parameters that `trainable` named keep their trained values.

    Raises:
        ValueError: If the model has no adapter.
    """
    adapter_states(model)
    layers = [layer for layer in all_adapter_layers(model).values() if not layer.disabled]
    for layer in layers:
        layer.disabled = True
        if layer.merged:
            layer.exchange_weights()
    try:
        yield model
    finally:
        for layer in layers:
            layer.disabled = False
            if layer.merged:
                layer.exchange_weights()


def _require_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    layers = adapter_layers(model)
    if not layers:
        raise ValueError(f"the {type(model).__name__} has no adapter; call inject_adapter first")
    return layers


def adaptable_layers(model: nn.Module, *, split_in_proj: bool = False) -> dict[str, Shape]:
    """Full name -> (out, in) of every layer that can hold an adapter, under all its names.

    Args:
        model: Any module; one with adapters has the layers that it had without.
        split_in_proj: As in `find_targets`.
    """
    layers: dict[str, Shape] = {}
    for name, module in _plain_modules(model):
        if isinstance(module, nn.MultiheadAttention):
            projections = attention.projection_shapes(module, split=split_in_proj)
            layers |= {f"{name}.{part}" if name else part: shape for part, shape in projections.items()}
        elif name and isinstance(module, AdapterLayer):
            layers[name] = (module.out_features, module.in_features)
        elif name and (kind := kind_of(module)) is not None:
            layers[name] = kind.shape(module)
    return layers


def _plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules under all names, without what is inside adapted layers."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules(remove_duplicate=False):
        if not name.startswith(inside):
            yield name, module
        if isinstance(module, AdapterLayer):
            inside += (f"{name}.",)


def _first_names(model: nn.Module, layers: dict[str, Shape]) -> dict[str, str]:
    """Name of a layer -> the first name that the model has for the same layer."""
    first: dict[tuple[int, str], str] = {}
    result = {}
    for name in layers:
        parent_name, _, part = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        packed = isinstance(parent, nn.MultiheadAttention) and part not in parent._modules
        identity = (id(parent), part) if packed else (id(model.get_submodule(name)), "")
        result[name] = first.setdefault(identity, name)
    return result


def _match_targets(model: nn.Module, layers: dict[str, Shape], targets: Sequence[str] | str) -> set[str]:
    """Names in `layers` that `targets` stands for; every part of it must match, and only what can be adapted."""
    if targets == ALL_LINEAR:
        return set(layers)
    chosen: set[str] = set()
    for pattern in _patterns("targets", targets):
        matched = {name for name in layers if _matches(name, pattern, targets)}
        unsuitable = [
            f"{name} ({type(module).__name__})"
            for name, module in _plain_modules(model)
            if name not in layers
            and _matches(name, pattern, targets)
            and any(parameter is not None for parameter in module._parameters.values())
            and not any(layer.startswith(f"{name}.") for layer in matched)
        ]
        if unsuitable:
            raise ValueError(
                f"target {pattern!r} matches {', '.join(unsuitable[:3])}, which cannot be adapted; layers that can: "
                f"{_kinds()}"
            )
        if not matched:
            if isinstance(targets, str) and any(matches_suffix(name, pattern) for name in layers):
                raise ValueError(
                    f"target {pattern!r} matches no layer: one string is a regular expression on the full name; for "
                    f"layers whose name ends so, give a sequence, ({pattern!r},)"
                )
            raise ValueError(f"target {pattern!r} matches no layer{_near_layers(pattern, layers)}")
        chosen |= matched
    if not chosen:
        raise ValueError("targets must name at least one layer")
    return chosen


def _kinds() -> str:
    """The layers that can be adapted, for error messages."""
    return f"{', '.join(kind.name for kind in LAYER_KINDS)}, and in_proj and out_proj of nn.MultiheadAttention"


def _near_layers(pattern: str, layers: dict[str, Shape]) -> str:
    """A remark that lists names of adaptable layers close to `pattern`, or else the last parts of all names."""
    endings = dict.fromkeys(".".join(name.split(".")[-depth:]) for depth in (1, 2, 3) for name in layers)
    last = ", ".join(list(dict.fromkeys(name.rpartition(".")[2] for name in layers))[:12])
    return near(pattern, endings) or f"; layers that can be adapted end in: {last or '(there are none)'}"


def _match_exclusions(exclude: Sequence[str] | str, targets: Iterable[str]) -> set[str]:
    """Names in `targets` to leave out; every part of `exclude` must match one."""
    excluded: set[str] = set()
    for pattern in _patterns("exclude", exclude):
        matched = {name for name in targets if _matches(name, pattern, exclude)}
        if not matched:
            raise ValueError(f"exclude {pattern!r} matches none of the targets{near(pattern, targets)}")
        excluded |= matched
    return excluded


def _patterns(argument: str, value: Sequence[str] | str) -> tuple[str, ...]:
    patterns = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ValueError(f"{argument} must be a regular expression or a sequence of suffixes, got {value!r}")
    return patterns


def _matches(name: str, pattern: str, given: Sequence[str] | str) -> bool:
    """A pattern that was given as one string is an expression; one of a sequence is a suffix."""
    return matches_regex(name, pattern) if isinstance(given, str) else matches_suffix(name, pattern)


def _check_not_refused(model: nn.Module, name: str) -> None:
    """Refuse a layer that its kind does not allow to adapt.

    Raises:
        ValueError: Naming the layer and the reason.
    """
    parent_name, _, part = name.rpartition(".")
    if part not in model.get_submodule(parent_name)._modules:
        return
    module = model.get_submodule(name)
    kind = kind_of(module)
    if kind is not None and (reason := kind.refusal(module)) is not None:
        raise ValueError(f"layer {name!r} ({type(module).__name__}) cannot be adapted: {reason}")


def _check_not_shared(model: nn.Module, name: str) -> None:
    """Refuse a layer whose weight another module uses, since an adapter would act on one of the two only.

    Raises:
        ValueError: Naming both.
    """
    weight = _weight_of(model, name)
    owners = [
        owner
        for owner, module in model.named_modules()
        if any(parameter is weight for parameter in module._parameters.values())
    ]
    if len(owners) > 1:
        raise ValueError(
            f"the weight of {name!r} is shared by {', '.join(owners)}: an adapter would change one use of it only; "
            f"leave the layer out (exclude=({name.rpartition('.')[2]!r},)) or untie the weights"
        )


def _weight_of(model: nn.Module, name: str) -> nn.Parameter:
    """The weight of an adaptable layer, also where attention keeps it packed."""
    parent_name, _, part = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if isinstance(parent, nn.MultiheadAttention) and part not in parent._modules:
        return parent.in_proj_weight
    layer = model.get_submodule(name)
    return (layer.base if isinstance(layer, AdapterLayer) else layer).weight


def layer_configs(config: AdapterConfig, shapes: dict[str, Shape]) -> dict[str, AdapterConfig]:
    """Every target's own settings, checked against its shape.

    Raises:
        ValueError: If a pattern of the config matches no target, or a layer does not allow its rank.
    """
    update_class = method_named(config.method).update
    for field, patterns in config.patterns().items():
        for pattern in patterns:
            if not any(matches_pattern(name, pattern) for name in shapes):
                raise ValueError(f"{field} {pattern!r} matches none of the targets{_near_layers(pattern, shapes)}")
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
    return configs


def _match_parameters(
    model: nn.Module, trainable: Sequence[str] | str, shapes: dict[str, Shape], split_in_proj: bool
) -> tuple[str, ...]:
    """Names of parameters, then of buffers, whose own name or that of a module around them matches `trainable`."""
    names = [name for name, _ in model.named_parameters()]
    buffers = _saved_buffers(model) if trainable else []
    chosen: set[str] = set()
    for pattern in _patterns("trainable", trainable):
        matched = {name for name in names if any(_matches(part, pattern, trainable) for part in _ancestry(name))}
        if not matched:
            endings = dict.fromkeys(part.rpartition(".")[2] for name in names for part in _ancestry(name))
            raise ValueError(f"trainable {pattern!r} matches no parameter{near(pattern, endings)}")
        chosen |= matched
        chosen |= {name for name in buffers if any(_matches(part, pattern, trainable) for part in _ancestry(name))}
    adapted = {id(_weight_of(model, name)): name for name in shapes}
    for name in chosen.intersection(names):
        if (layer := adapted.get(id(model.get_parameter(name)))) is not None:
            raise ValueError(f"{name!r} cannot train: its layer {layer!r} holds an adapter; exclude one of the two")
    return tuple(name for name in (*names, *buffers) if name in chosen)


def _saved_buffers(model: nn.Module) -> list[str]:
    """Names of the buffers that belong to the model's state."""
    return [
        name
        for name, _ in model.named_buffers()
        if (place := name.rpartition("."))[2] not in model.get_submodule(place[0])._non_persistent_buffers_set
    ]


def _ancestry(name: str) -> Iterator[str]:
    """The name of every module around a parameter and its own: a.b.c gives a, a.b and a.b.c."""
    parts = name.split(".")
    return (".".join(parts[: depth + 1]) for depth in range(len(parts)))


def _freeze_except(model: nn.Module, trained: Sequence[str]) -> None:
    trained = set(trained)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


def make_bases(
    configs: dict[str, AdapterConfig],
    shapes: dict[str, Shape],
    device_of: Callable[[str], torch.device],
    model: nn.Module | None = None,
) -> dict[int, SharedBases | None]:
    """Rank -> bases for the layers of that rank, on the device of the first of them.

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
    return {
        rank: _find_or_make_bases(configs[names[0]], [shapes[name] for name in names], device_of(names[0]), there)
        for rank, names in names_by_rank.items()
    }


def _find_or_make_bases(
    config: AdapterConfig, shapes: list[Shape], device: torch.device, there: list[SharedBases]
) -> SharedBases | None:
    needed = method_named(config.method).update.make_bases(config, shapes, "meta")
    if needed is None:
        return None
    found = next((bases for bases in there if bases.device == torch.device(device) and bases.covers(needed)), None)
    if found is None and torch.device(device).type != "meta":
        needed.generate(device)
    return needed if found is None else found


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


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` wherever the model uses the module `name`."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child_name, child in parent._modules.items():
            if child is old and parent is not new:
                parent._modules[child_name] = new
