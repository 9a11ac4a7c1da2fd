"""Any tuner of the installed PEFT as a method of a run: checked when it is planned, then put on, counted and kept.

PEFT's layers go on the layers that this library's own methods adapt. An nn.MultiheadAttention with a target inside is
opened first (`randlora_core.adapters.attention`), so that its packed input projection is an nn.Linear for PEFT, too.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save
from torch import Tensor, nn

from randlora_core.adapters import attention
from randlora_core.adapters.config import exactly
from randlora_core.adapters.files import CONFIG_FILE, TENSORS_FILE, check_same_tensors, read_tensors, write_together
from randlora_core.adapters.layer_kinds import Shape
from randlora_core.adapters.targets import find_targets
from randlora_core.errors import near, one_line
from randlora_core.experiment.loop.memory import is_out_of_memory
from randlora_core.extras import needs_extra
from randlora_core.files import naming, read_bytes

PEFT = "peft"
"""The method's name in a configuration."""

OPTIONS = ("peft_type", "kwargs")
"""The settings of the method: a name of PEFT's `PeftType`, and the arguments of that type's configuration class."""

OTHER_LAYERS = {"LNTuningModel": "norms", "TrainableTokensModel": "embeddings"}
"""Tuners for layers that no method here adapts; PEFT would put them on linear layers all the same."""

UNEQUAL_LAYERS = ("FrodModel",)
"""Tuners that need layers of one name to have one size, as those of a CLIP model's two towers have not."""

_TUNER = "_peft_model"  # a plain attribute of the model, since its PeftModel holds the model itself


def tuner_label(options: Mapping[str, Any]) -> str:
    """What tells one tuner's row from another's: type and all arguments, such as "HIRA r=16"."""
    kwargs = options.get("kwargs")
    kwargs = kwargs if isinstance(kwargs, Mapping) else {}  # `check_tuner` refuses anything else
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in sorted(kwargs.items())}
    return " ".join([str(options.get("peft_type")), *(f"{name}={value}" for name, value in values.items())])


def check_tuner(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a tuner as the run's configuration and identity hold them: `peft_type`, and `kwargs` by name.

    The version of PEFT is no part of them, as torch's is none: the record names both. What is left out of `kwargs` is
    PEFT's default.

    Raises:
        ValueError: A setting, type or argument that PEFT does not have, or that it cannot train in a plain loop.
    """
    for name in options:
        if name not in OPTIONS:
            accepted = "adapter.peft_type, and adapter.kwargs for the tuner's own settings"
            raise ValueError(f"adapter.{name} has no effect on method {PEFT!r}; accepted: {accepted}")
    peft_type, kwargs = options.get("peft_type"), options.get("kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise ValueError(f"adapter.kwargs={kwargs!r}; accepted: a mapping, such as adapter.kwargs={{r: 16}}")
    _make_config(peft_type, kwargs)
    return {"peft_type": peft_type, "kwargs": dict(sorted(kwargs.items()))}


def try_tuner(options: Mapping[str, Any], shapes: Iterable[Shape]) -> None:
    """Tries a tuner on a layer of every shape, on the meta device, so that a run need not begin to fail.

    Args:
        options: From `check_tuner`.
        shapes: (out, in) of the layers that a run adapts.

    Raises:
        ValueError: The tuner refuses its settings on a layer of such a shape, such as a block that does not divide it.
    """
    for shape in dict.fromkeys(shapes):
        _try(json.dumps(options), shape)


def inject_tuner(model: nn.Module, options: Mapping[str, Any], targets: Sequence[str] | str) -> None:
    """Puts a tuner on the layers of a model, in place, and freezes the rest.

    Initial values are drawn from torch's global generator, as PEFT does it. What a tuner draws from a seed among its
    own settings (`projection_prng_key`, `random_seed`) comes from there.

    Args:
        model: Any module without adapters.
        options: From `check_tuner`.
        targets: As in `find_targets`.

    Raises:
        ValueError: As in `find_targets`, or PEFT refuses a layer or a setting; the model is unchanged then.
    """
    names = find_targets(model, targets)
    config = _make_config(options["peft_type"], options["kwargs"], target_modules=exactly(names))
    with _unchanged_on_error(model), _described(options["peft_type"], options["kwargs"]):
        _inject(model, config, names)


def tuner_parameters(module: nn.Module) -> dict[str, int]:
    """Trained parameters of every layer that a tuner is on, by name; none where there is no tuner.

    Parameters that layers share, such as VB-LoRA's vector bank, count for the first of them.
    """
    counts, counted = {}, set()
    for name, layer in _tuner_layers(module).items():
        own = {id(value): value.numel() for value in layer.parameters() if value.requires_grad}
        counts[name] = sum(size for key, size in own.items() if key not in counted)
        counted |= own.keys()
    return counts


def save_tuner(model: nn.Module, directory: Path) -> None:
    """Writes a model's tuner in PEFT's format.

    `PeftModel.from_pretrained` reads it on a plain model, whose attention modules with targets are open.

    Raises:
        OSError: The files cannot be written; those that were there are kept.
    """
    tuner = model.__dict__[_TUNER]
    config = copy.copy(tuner.peft_config["default"])
    config.inference_mode = True  # as PEFT saves it: whoever loads the file does not train
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        settings = (Path(folder) / CONFIG_FILE).read_bytes()
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in _state(tuner).items()}
    write_together(directory, {TENSORS_FILE: save(tensors, {"format": "pt"}), CONFIG_FILE: settings})


def load_tuner(model: nn.Module, directory: Path) -> None:
    """Puts a tuner that `save_tuner` wrote on a model, in place.

    Raises:
        ValueError: A file is missing, damaged, or for another model; the model is unchanged then.
    """
    with _quiet_import():
        from peft import PeftConfig, set_peft_model_state_dict

    with naming(directory / CONFIG_FILE):
        read_bytes(directory / CONFIG_FILE)  # PEFT would ask the hub for a file that is not here
        config = PeftConfig.from_pretrained(str(directory))
        names = find_targets(model, config.target_modules)
    with naming(directory / TENSORS_FILE):
        tensors = read_tensors(read_bytes(directory / TENSORS_FILE))
    with _unchanged_on_error(model), naming(directory / TENSORS_FILE):
        with _described(config.peft_type.value, {}):
            tuner = _inject(model, config, names)
        check_same_tensors(tensors, _state(tuner))
        set_peft_model_state_dict(tuner, tensors)


@needs_extra("peft")
def _make_config(peft_type: Any, kwargs: Mapping[str, Any], **more: Any) -> Any:
    """PEFT's configuration; its type, and names and types of all arguments, are checked."""
    with _quiet_import():
        from peft import PeftConfig
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    refusals = {kind.value: _refusal(tuner) for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()}
    if reason := refusals.get(peft_type, "is no type of the installed PEFT"):
        accepted = ", ".join(sorted(name for name, refusal in refusals.items() if refusal is None))
        given = "adapter.peft_type is missing" if peft_type is None else f"adapter.peft_type={peft_type!r} {reason}"
        raise ValueError(f"{given}; accepted: {accepted}")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
    decided = {"target_modules", *(field.name for field in dataclasses.fields(PeftConfig))}
    hints = {name: hint for name, hint in get_type_hints(config_class).items() if name not in decided}
    for name, value in kwargs.items():
        if name not in hints:
            meant = near(name, hints)
            if name == "target_modules":
                meant = " (did you mean adapter.targets?)"
            elif name == "rank" and "r" in hints:
                meant = " (did you mean r?)"
            accepted = f"{', '.join(hints)}; layers are named by adapter.targets"
            raise ValueError(f"adapter.kwargs.{name} is no setting of {peft_type}{meant}; accepted: {accepted}")
        _check_type(f"adapter.kwargs.{name}", value, hints[name])
    with _described(peft_type, kwargs):
        return config_class(**copy.deepcopy(dict(kwargs)), **more)


def _refusal(tuner: type) -> str | None:
    """Why a tuner cannot be trained by the training loop, which calls the adapted model itself and no tuner."""
    from peft.tuners.tuners_utils import BaseTuner

    if tuner.__name__ in OTHER_LAYERS:
        return f"is for {OTHER_LAYERS[tuner.__name__]}, and adapters go on linear layers here"
    if tuner.__name__ in UNEQUAL_LAYERS:
        return "decomposes layers of one name together and needs them to have one width, which two towers do not have"
    if not issubclass(tuner, BaseTuner):
        return "puts no adapter on layers: it learns prompts or the like, for which a language model has to be wrapped"
    if tuner.forward is not BaseTuner.forward or hasattr(tuner, "update_and_allocate"):
        return "has to be called in every step of training, which the training loop does for no method"
    return None


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Refuses what is not of the type by which PEFT annotates a setting; PEFT itself would fail far from there."""
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        accepted = " or ".join(problem["msg"].removeprefix("Input should be ") for problem in error.errors())
        raise ValueError(f"{name}={value!r}; accepted: {accepted}") from None


def _inject(model: nn.Module, config: Any, names: Iterable[str]) -> Any:
    """Puts PEFT's layers on exactly the layers of these names; gives the PeftModel, which is kept on the model."""
    from peft import get_peft_model

    for module in attention.attentions_to_open(model, names).values():
        attention.open_attention(module)
    tuner = get_peft_model(model, config)
    layers = _tuner_layers(model)
    for layer in layers.values():
        layer.train(layer.get_base_layer().training)
    if missing := [name for name in names if name not in layers]:
        raise ValueError(f"{len(missing)} layers get no adapter, {missing[0]!r} among them; leave them out")
    trained = {id(value) for value in model.parameters() if value.requires_grad}
    outside = [name for name, value in tuner.named_parameters() if value.requires_grad and id(value) not in trained]
    if outside or not (trained or config.inference_mode):
        raise ValueError(f"the model itself would not train {', '.join(outside) or 'anything'}; choose another type")
    model.__dict__[_TUNER] = tuner
    return tuner


def _tuner_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that a tuner is on, by name."""
    if not any("peft_config" in module.__dict__ for module in model.modules()):
        return {}  # without an import of PEFT
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def _state(tuner: Any) -> dict[str, Tensor]:
    """What PEFT saves of a tuner; without embeddings, for which it would ask the hub."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(tuner, save_embedding_layers=False)


@functools.lru_cache(maxsize=1024)
def _try(options: str, shape: Shape) -> None:
    from peft import get_peft_model

    choice = json.loads(options)
    out_features, in_features = shape
    layer = nn.Sequential(nn.Linear(in_features, out_features, device="meta"))
    config = _make_config(choice["peft_type"], choice["kwargs"], target_modules="0")
    with (
        _described(choice["peft_type"], choice["kwargs"], f" on a layer of shape {shape}"),
        contextlib.suppress(RuntimeError),  # an initialisation that looks at values, which the meta device has not
    ):
        get_peft_model(layer, config)


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Without the warnings of bitsandbytes, which PEFT imports where it is installed, about kernels of its own."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _described(peft_type: str, kwargs: Mapping[str, Any], where: str = "") -> Iterator[None]:
    """Whatever PEFT fails with on settings or a layer becomes a ValueError of one line that names them."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"adapter.kwargs={dict(kwargs)} of {peft_type}{where}: {one_line(error)}") from error


@contextlib.contextmanager
def _unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Gives a model its modules and parameters back, as they were, if the body fails."""
    modules = [(each, type(each), dict(each._modules), dict(each._parameters)) for each in model.modules()]
    parameters = [(each, each.data, each.requires_grad) for each in model.parameters()]
    attributes = set(model.__dict__)
    try:
        yield
    except BaseException:
        for module, kind, children, own in modules:
            module.__class__ = kind
            module._modules, module._parameters = children, own
        for parameter, data, requires_grad in parameters:
            parameter.data = data
            parameter.requires_grad_(requires_grad)
        for name in set(model.__dict__) - attributes:
            del model.__dict__[name]
        raise
