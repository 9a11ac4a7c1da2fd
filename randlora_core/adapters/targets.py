"""Finds the layers and parameters of a model that `targets`, `exclude` and `trainable` name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from randlora_core.adapters import attention
from randlora_core.adapters.config import matches_regex, matches_suffix
from randlora_core.adapters.layer import AdapterLayer
from randlora_core.adapters.layer_kinds import LAYER_KINDS, Shape, kind_of
from randlora_core.adapters.state import require_plain
from randlora_core.errors import near

ALL_LINEAR = "all-linear"


def find_targets(
    model: nn.Module,
    targets: Sequence[str] | str,
    *,
    exclude: Sequence[str] | str = (),
    split_in_proj: bool = False,
) -> dict[str, Shape]:
    """Finds the layers that a choice of targets names.

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
    return choose_layers(model, targets, exclude, split_in_proj)


def choose_layers(
    model: nn.Module, targets: Sequence[str] | str, exclude: Sequence[str] | str, split_in_proj: bool
) -> dict[str, Shape]:
    """Does what `find_targets` does, on a model with or without adapters."""
    layers = adaptable_layers(model, split_in_proj=split_in_proj)
    matched = _match_targets(model, layers, targets)
    excluded: set[str] = set()
    for pattern in _patterns("exclude", exclude):
        named = {name for name in matched if _matches(name, pattern, exclude)}
        if not named:
            raise ValueError(f"exclude {pattern!r} matches none of the targets{near(pattern, matched)}")
        excluded |= named
    first_names = _first_names(model, layers)
    chosen = {first_names[name] for name in matched - excluded}
    if not chosen:
        raise ValueError(
            f"exclude={exclude!r} leaves no layer of targets={targets!r}"
            if matched
            else f"the {type(model).__name__} holds no layer that can be adapted; layers that can: {_kinds()}"
        )
    for name, module in attention.attentions_to_open(model, chosen).items():
        attention.check_attention(name, module, split=split_in_proj)
    for name in chosen:
        _check_adaptable(model, name)
    return {name: layers[name] for name in layers if name in chosen}


def adaptable_layers(model: nn.Module, *, split_in_proj: bool = False) -> dict[str, Shape]:
    """Finds every layer that can hold an adapter: full name -> (out, in), under all its names.

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
    """Gives all modules under all their names, without those inside of adapted layers."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules(remove_duplicate=False):
        if not name.startswith(inside):
            yield name, module
        if isinstance(module, AdapterLayer):
            inside += (f"{name}.",)


def _first_names(model: nn.Module, layers: dict[str, Shape]) -> dict[str, str]:
    """Maps the name of a layer to the first name that the model has for the same layer."""
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
    """Finds the names in `layers` that `targets` stands for; every pattern must match, and only what can be adapted."""
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
            raise ValueError(f"target {pattern!r} matches no layer{near_layers(pattern, layers)}")
        chosen |= matched
    if not chosen:
        raise ValueError("targets must name at least one layer")
    return chosen


def _kinds() -> str:
    """The layers that can be adapted, for error messages."""
    return f"{', '.join(kind.name for kind in LAYER_KINDS)}, and in_proj and out_proj of nn.MultiheadAttention"


def near_layers(pattern: str, layers: dict[str, Shape]) -> str:
    """Writes a remark that lists the names of layers closest to `pattern`, or else the last parts of all names."""
    endings = dict.fromkeys(".".join(name.split(".")[-depth:]) for depth in (1, 2, 3) for name in layers)
    last = ", ".join(list(dict.fromkeys(name.rpartition(".")[2] for name in layers))[:12])
    return near(pattern, endings) or f"; layers that can be adapted end in: {last or '(there are none)'}"


def _patterns(argument: str, value: Sequence[str] | str) -> tuple[str, ...]:
    patterns = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ValueError(f"{argument} must be a regular expression or a sequence of suffixes, got {value!r}")
    return patterns


def _matches(name: str, pattern: str, given: Sequence[str] | str) -> bool:
    """Matches a pattern that was given as one string as an expression, and one of a sequence as a suffix."""
    return matches_regex(name, pattern) if isinstance(given, str) else matches_suffix(name, pattern)


def _check_adaptable(model: nn.Module, name: str) -> None:
    """Refuse a layer whose kind does not allow an adapter, or whose weight another module uses as well.

    Raises:
        ValueError: Naming the layer and the reason, or both users of the weight.
    """
    parent_name, _, part = name.rpartition(".")
    if part in model.get_submodule(parent_name)._modules:
        module = model.get_submodule(name)
        kind = kind_of(module)
        if kind is not None and (reason := kind.refusal(module)) is not None:
            raise ValueError(f"layer {name!r} ({type(module).__name__}) cannot be adapted: {reason}")
    weight = weight_of(model, name)
    owners = [
        owner
        for owner, module in model.named_modules()
        if any(parameter is weight for parameter in module._parameters.values())
    ]
    if len(owners) > 1:  # an adapter would act on one of the two uses only
        raise ValueError(
            f"the weight of {name!r} is shared by {', '.join(owners)}: an adapter would change one use of it only; "
            f"leave the layer out (exclude=({part!r},)) or untie the weights"
        )


def weight_of(model: nn.Module, name: str) -> nn.Parameter:
    """The weight of an adaptable layer, also where attention keeps it packed."""
    parent_name, _, part = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if isinstance(parent, nn.MultiheadAttention) and part not in parent._modules:
        return parent.in_proj_weight
    layer = model.get_submodule(name)
    return (layer.base if isinstance(layer, AdapterLayer) else layer).weight


def match_parameters(model: nn.Module, trainable: Sequence[str] | str, targets: Iterable[str]) -> tuple[str, ...]:
    """Finds the parameters, and after them the buffers, that `trainable` names itself or by a module around them.

    Args:
        model: Any module without adapters.
        trainable: Suffixes or a regular expression, as in `find_targets`.
        targets: Names of the layers that get an adapter.

    Raises:
        ValueError: If a pattern matches no parameter, or a parameter is the weight of a target.
    """
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
    adapted = {id(weight_of(model, name)): name for name in targets}
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
    """Gives the names of all modules around a parameter and its own: for a.b.c they are a, a.b and a.b.c."""
    parts = name.split(".")
    return (".".join(parts[: depth + 1]) for depth in range(len(parts)))
