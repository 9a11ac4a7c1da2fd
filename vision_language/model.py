"""From a backbone and a method's name to a model of which the right parameters are trainable."""

from __future__ import annotations

from torch import nn

from randlora_core.adapters import make_config
from randlora_core.adapters.inject import count_parameters, inject_adapter
from randlora_core.experiment.config import AdapterChoice, BackboneChoice
from randlora_core.experiment.seeding import seed_global
from randlora_core.models import Backbone, build_backbone
from vision_language.config import UNADAPTED
from vision_language.objective import ContrastiveObjective, ProbeObjective


def load_backbone(choice: BackboneChoice) -> Backbone:
    """Builds the backbone that a configuration names.

    Raises:
        ValueError: An unknown name, an option its builder does not take, or a model without a text tower.
    """
    try:
        backbone = build_backbone(choice.name, **choice.options)
    except TypeError as error:
        raise ValueError(f"backbone {choice.name!r}: {error}") from error
    if backbone.kind != "clip":
        raise ValueError(f"backbone {choice.name!r} has no text tower; vision_language takes CLIP models")
    return backbone


def make_objective(backbone: Backbone, adapter: AdapterChoice, num_classes: int, seed: int) -> nn.Module:
    """Applies a method to the backbone's model, in place, and gives what is trained.

    The temperature is frozen for every method, full fine-tuning included.

    Args:
        backbone: A CLIP model.
        adapter: The method.
        num_classes: Outputs of the linear head, where the method is linear_probe.
        seed: The run's seed; its stream initialisation decides the adapters' and the head's initial values.

    Returns:
        `ProbeObjective` for linear_probe, else `ContrastiveObjective`; in zero_shot nothing is trainable.
    """
    model = backbone.model
    model.requires_grad_(adapter.method == "full")
    seed_global(seed, "initialisation")
    if adapter.method not in UNADAPTED:
        targets = adapter.targets if adapter.targets is not None else backbone.default_targets
        inject_adapter(model, make_config(adapter.method, **adapter.options), targets)
    model.logit_scale.requires_grad_(False)
    if adapter.method == "linear_probe":
        return ProbeObjective(model, backbone.embed_dim, num_classes)
    return ContrastiveObjective(model)


def parameter_section(objective: nn.Module) -> dict[str, object]:
    """The record's section on parameters: trainable, total, and trainable ones per layer."""
    counted = objective if isinstance(objective, ProbeObjective) else objective.model
    counts = count_parameters(counted)
    return {"trainable": counts.trainable, "total": counts.total, "per_layer": dict(counts.per_layer)}
