"""Hugging Face PEFT's format of an adapter: the meaning of its fields, the layers that it names, and its tensors.

Written against PEFT 0.21.2 and tested with it; nothing here imports it. A saved adapter is `adapter_config.json` and
`adapter_model.safetensors`, whose tensors are called

    base_model.model.<layer>.<parameter>      what trains on a layer
    base_model.model.<parameter of the model> what `modules_to_save` names
    base_model.<matrix>                       frozen matrices of RandLoRA and VeRA; older versions of PEFT wrote a copy
                                              of them per layer as well, as base_model.model.<layer>.<matrix>

    RandLoRA matrices   randlora_A (r, 1, m), randlora_B (M, ceil(m / r), r)     over the targets, M = max(max out,
                                                                                 max in), m = min(max out, max in)
    VeRA matrices       vera_A (r, max in), vera_B (max out, r)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

MODEL_PREFIX = "base_model.model."
SHARED_PREFIX = "base_model."

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Dialect:
    """Describes how PEFT writes one method.

    Args:
        peft_type: Value of `peft_type`.
        prefix: Of the method's own fields, as in `lora_alpha`.
        parameters: Name of our parameter -> of PEFT's tensor.
        matrices: Name of our shared matrix -> of PEFT's tensor.
        settings: Fields that an import understands, beside those of every method.
    """

    peft_type: str
    prefix: str
    parameters: Mapping[str, str]
    matrices: Mapping[str, str]
    settings: frozenset[str]


_LORA = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
_LORA_SETTINGS = frozenset(
    {"lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights"}
)
_PROJECTION = frozenset({"projection_prng_key", "save_projection"})

DIALECTS: dict[str, Dialect] = {
    "lora": Dialect("LORA", "lora", _LORA, {}, _LORA_SETTINGS),
    "dora": Dialect("LORA", "lora", {**_LORA, "lora_magnitude_vector": "lora_magnitude_vector"}, {}, _LORA_SETTINGS),
    "randlora": Dialect(
        "RANDLORA",
        "randlora",
        {"randlora_lambda": "randlora_lambda", "randlora_gamma": "randlora_gamma"},
        {"A": "randlora_A", "B": "randlora_B"},
        _PROJECTION | {"randlora_alpha", "randlora_dropout", "sparse", "very_sparse"},
    ),
    "vera": Dialect(
        "VERA",
        "vera",
        {"vera_lambda_b": "vera_lambda_b", "vera_lambda_d": "vera_lambda_d"},
        {"A": "vera_A", "B": "vera_B"},
        _PROJECTION | {"vera_dropout", "d_initial"},
    ),
}

_COMMON_SETTINGS = frozenset(
    {
        "peft_type",
        "r",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "bias",
    }
)

# Fields that say where an adapter comes from, act at the start of a training only, or repeat what a layer's type says.
_WITHOUT_EFFECT = frozenset(
    {
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "init_weights",
        "fan_in_fan_out",
        "megatron_core",
        "qalora_group_size",
        "eva_config",
    }
)

# Starts that leave the frozen weights as they are; the others (PiSSA, OLoRA, CorDA, LoftQ, ...) take something away.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


def method_of(content: Mapping[str, Any]) -> str:
    """The key in `DIALECTS` of a PEFT config.

    Raises:
        ValueError: If there is none.
    """
    peft_type = content["peft_type"]
    if peft_type == "LORA":
        return "dora" if content.get("use_dora") else "lora"
    for method, dialect in DIALECTS.items():
        if dialect.peft_type == peft_type:
            return method
    known = dict.fromkeys(dialect.peft_type for dialect in DIALECTS.values())
    raise ValueError(f"adapters of peft_type {peft_type!r} cannot be imported; those that can: {', '.join(known)}")


def check_settings(content: Mapping[str, Any], dialect: Dialect) -> None:
    """Refuse a config with a setting that acts and that this library does not have.

    Raises:
        ValueError: Naming the setting.
    """
    understood = _COMMON_SETTINGS | _WITHOUT_EFFECT | dialect.settings
    for field, value in content.items():
        if field not in understood and value:
            raise ValueError(f"{field}={value!r} is not supported")
    if content.get("bias", "none") != "none":
        raise ValueError(f"bias={content['bias']!r} is not supported, only 'none'")
    start = content.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ValueError(
            f"init_lora_weights={start!r} changes the frozen weights; convert the adapter in PEFT first "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )


def is_targeted(content: Mapping[str, Any], name: str) -> bool:
    """Whether a PEFT config puts an adapter on the module `name`, when the module is of a kind that can have one."""
    if _matches(content.get("exclude_modules") or (), name) or is_inside(content.get("modules_to_save") or (), name):
        return False
    targets = content["target_modules"]
    if not _matches(targets, name):
        return False
    indexes = content.get("layers_to_transform")
    if isinstance(targets, str) or name in targets or indexes is None or indexes == []:
        return True
    found = _layer_index(content.get("layers_pattern"), name)
    return found is not None and found in ([indexes] if isinstance(indexes, int) else indexes)


def _matches(patterns: Sequence[str] | str, name: str) -> bool:
    """A string is an expression on the full name, the entries of a list are names or their ends after a dot."""
    if isinstance(patterns, str):
        return _match(rf"(?:{patterns})$", name) is not None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def is_inside(modules: Sequence[str], name: str) -> bool:
    """Whether PEFT leaves a module without adapter because `modules_to_save` holds it or a module around it."""
    return any(_match(rf"(^|.*\.){module}($|\..*)", name) for module in modules)


def _layer_index(patterns: Sequence[str] | str | None, name: str) -> int | None:
    """The number of the layer that a module's name says it belongs to."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    expressions = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns] if patterns else [r".*?\.[^.]*\.(\d+)\."]
    found = next((match for expression in expressions if (match := _match(expression, name))), None)
    return None if found is None else int(found[1])


def _match(expression: str, name: str) -> re.Match[str] | None:
    try:
        return re.match(expression, name)
    except re.error as error:
        raise ValueError(f"{expression!r} is not a regular expression: {error}") from None


def pattern_value(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """Looks a layer up in PEFT's `rank_pattern` or `alpha_pattern`: the value of the first key that ends its name."""
    return next((v for key, v in patterns.items() if _match(rf"(.*\.)?({key})$", name)), default)


def exact_patterns(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Patterns, of this library's or PEFT's kind, that give every layer its own value.

    Args:
        values: Layer's name -> value.
        default: What a layer without pattern gets.

    Returns:
        Full names, longer ones first, so that a name that ends in another one's is found before it. Layers with the
        default are left out, unless their name ends in one that is not.
    """
    different = {name for name, value in values.items() if value != default}
    listed = [name for name in values if name in different or any(name.endswith(f".{other}") for other in different)]
    return {name: values[name] for name in sorted(listed, key=len, reverse=True)}


def target_modules(names: Sequence[str], modules: Iterable[str]) -> list[str] | str:
    """The value of `target_modules` that makes PEFT choose `names` among all `modules`, and nothing else."""
    if any(_matches(names, module) for module in modules if module not in names):
        return "|".join(re.escape(name) for name in names)
    return sorted(names)


def saved_modules(patterns: Sequence[str], model: nn.Module) -> list[str]:
    """The modules that `modules_to_save` makes PEFT train: those whose name ends so, at a dot or not."""
    names = [name for name, _ in model.named_modules() if any(name.endswith(pattern) for pattern in patterns)]
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def module_names(model: nn.Module) -> dict[str, list[str]]:
    """The first name of every module -> all names that the model has for it."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return {own[0]: own for own in names.values()}


def shared_names(model: nn.Module, names: set[str]) -> list[str]:
    """Those of `names` whose parameter the model has under other names, too."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    uses = Counter(id(parameter) for parameter in parameters.values())
    return sorted(name for name in names & parameters.keys() if uses[id(parameters[name])] > 1)


@dataclass(frozen=True)
class Tensors:
    """The tensors of a PEFT file, sorted.

    Args:
        parameters: Layer's name -> our parameter's name -> tensor.
        matrices: Our shared matrix's name -> its copies, under their names in the file.
        others: Everything else, under its name in the plain model.
    """

    parameters: dict[str, dict[str, Tensor]]
    matrices: dict[str, dict[str, Tensor]]
    others: dict[str, Tensor]


def sort_tensors(tensors: Mapping[str, Tensor], dialect: Dialect) -> Tensors:
    """Sort the tensors of a PEFT file; what was saved without a `PeftModel` around it has no prefix."""
    result = Tensors({}, {}, {})
    for key, tensor in tensors.items():
        name = key.removeprefix(MODEL_PREFIX)
        if (found := _split(name, dialect.parameters)) is not None:
            layer, parameter = found
            result.parameters.setdefault(layer, {})[parameter] = tensor
        elif (found := _split(key.removeprefix(SHARED_PREFIX), dialect.matrices)) is not None:
            result.matrices.setdefault(found[1], {})[key] = tensor
        else:
            result.others[name] = tensor
    return result


def _split(name: str, endings: Mapping[str, str]) -> tuple[str, str] | None:
    """The name before PEFT's ending, and what we call the ending."""
    for own, ending in endings.items():
        if name == ending or name.endswith(f".{ending}"):
            return name.removesuffix(ending).removesuffix("."), own
    return None
