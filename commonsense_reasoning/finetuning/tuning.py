"""Trains an adapter on a base model as a plan says."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import torch

from commonsense_reasoning.batches import ExampleBatches, validation_batches
from commonsense_reasoning.finetuning.checkpoints import Checkpoints
from commonsense_reasoning.finetuning.output import write_adapter, write_description
from commonsense_reasoning.finetuning.planning import PlannedTuning
from commonsense_reasoning.finetuning.progress import ProgressBar
from commonsense_reasoning.objective import LanguageModelLoss, check_head, mean_loss
from commonsense_reasoning.prompts import end_token
from randlora_core.adapters.inject import inject_adapter
from randlora_core.adapters.state import count_parameters
from randlora_core.experiment.loop.distributed import evaluating, gathered
from randlora_core.experiment.loop.fit import FitResult, FitSettings, fit
from randlora_core.experiment.loop.hardware import is_first_process, pick_device
from randlora_core.experiment.loop.measuring import Measurement, measured
from randlora_core.experiment.loop.memory import quantised_bytes
from randlora_core.experiment.loop.seeding import seed_global
from randlora_core.experiment.records.provenance import provenance
from randlora_core.experiment.records.tracking import NoTracker, Tracker, WandbTracker
from randlora_core.models import Backbone
from randlora_core.models.language_models import LANGUAGE_MODELS, build_language_model

WARMUP_SHARE = 0.1
LAST_LOSSES = 0.1
"""Share of the steps, at their end, whose mean is the training loss of the record."""


def tune(plan: PlannedTuning) -> None:
    """Trains, and writes the adapter with its record and model card; of several processes the first one writes.

    Raises:
        ValueError: The model cannot be trained in this way.
        FloatingPointError: The training diverges.
        KeyboardInterrupt: A signal came; the state after the last whole step has been written.
        OSError: The model cannot be had, or a file not be written.
    """
    device = pick_device(plan.options.device)
    with measured(device) as measurement:
        backbone = adapted_model(plan, device)
        batches = training_batches(plan)
        tracker = _make_tracker(plan)
        try:
            fitted = _train(plan, backbone, batches, device, tracker)
        except BaseException:  # an interruption, too
            tracker.finish({"status": "failed"})
            raise
    with gathered(backbone.model):
        if is_first_process():
            record = _describe(plan, backbone, batches, fitted, measurement)
            record["format"], record["format_reason"] = write_adapter(backbone.model, plan.folder)
            write_description(plan.folder, record)
            tracker.finish({**record, "status": "finished"})


def adapted_model(plan: PlannedTuning, device: torch.device) -> Backbone:
    """The base model with its adapter."""
    options = plan.options
    place = str(device) if options.bits else "cpu"  # the loop moves a model that is not quantised
    settings = {"device": place, "dtype": plan.dtype, "quantize": options.bits}
    backbone = build_language_model(plan.name, path=plan.path, **settings)
    check_head(backbone.model, options.base_model)
    seed_global(options.seed, "initialisation")
    inject_adapter(backbone.model, options.adapter_config(), options.targets)
    if options.gradient_checkpointing:
        backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    return backbone


def training_batches(plan: PlannedTuning) -> ExampleBatches:
    """The micro-batches of all steps."""
    options = plan.options
    return ExampleBatches(
        plan.data.train,
        batch_size=options.batch_size,
        num_batches=plan.steps * options.accumulate,
        seed=options.seed,
        filler=end_token(plan.tokenizer),
        loss_on=options.loss_on,
        group_by_length=False,
    )


def _train(
    plan: PlannedTuning, backbone: Backbone, batches: ExampleBatches, device: torch.device, tracker: Tracker
) -> FitResult:
    options, module = plan.options, LanguageModelLoss(backbone.model)
    validates = bool(plan.data.validation)
    settings = FitSettings(
        steps=plan.steps,
        accumulate=options.accumulate,
        learning_rate=options.learning_rate,
        weight_decay=0.0,
        clip=1.0,
        precision=plan.precision,
        schedule="linear",
        warmup_steps=int(WARMUP_SHARE * plan.steps),
        floor=0.0,
        seed=options.seed,
        validate_every=options.eval_step if validates else None,
        keep_best=validates,
        workers=0,
    )
    checkpoints = Checkpoints(plan.folder, plan.key, math.inf, options.save_step, plan.steps, plan.settings)
    bar = ProgressBar(batches, steps=plan.steps, accumulate=options.accumulate, done=plan.resumed_at)

    validated = itertools.count(plan.resumed_at // options.eval_step + 1)

    def validate() -> float:
        held_out = {"batch_size": options.batch_size, "filler": batches.filler, "loss_on": options.loss_on}
        with evaluating(module, device):
            loss = mean_loss(module, validation_batches(plan.data.validation, **held_out), device, plan.precision)
        bar.validation_loss = loss
        tracker.log(min(next(validated) * options.eval_step, plan.steps), {"validation_loss": loss})
        return -loss

    def on_step(step: int, loss: float) -> None:
        tracker.log(step, {"loss": loss, "tokens_per_second": bar.update(step, loss)})

    with bar:
        return fit(
            module,
            batches,
            settings,
            device,
            resume=checkpoints,
            on_step=on_step,
            validate=validate if validates else None,
        )


def _make_tracker(plan: PlannedTuning) -> Tracker:
    if plan.options.tracking == "none" or not is_first_process():
        return NoTracker()
    plan.folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "project": "randlora",
        "mode": "online",
        "id": plan.key[:16],
        "name": f"{plan.options.adapter_name}-{plan.folder.name}",
        "job_type": "finetune",
        "config": plan.settings,
        "dir": str(plan.folder),
    }
    return WandbTracker(settings, lambda record: record.get("metrics", {}))


def _describe(
    plan: PlannedTuning, backbone: Backbone, batches: ExampleBatches, fitted: FitResult, measurement: Measurement
) -> dict[str, Any]:
    """The record of a run, without the adapter's format."""
    options, data = plan.options, plan.data
    parameters = count_parameters(backbone.model)
    repository = LANGUAGE_MODELS[plan.name].repository if plan.path is None else _hub_name(plan.path)
    given, config = dataclasses.asdict(options), options.adapter_config()
    settled = {"adapter": options.adapter_name, "randlora_alpha": getattr(config, "alpha_or_default", None)}
    hidden = ("output_dir", "resume", "device", "push_to_hub", "hub_model_id", "tracking")
    return {
        "adapter": options.adapter_name,
        "label": f"{options.adapter_name} of rank {options.rank}",
        "kind": data.kind,
        "base_model": options.base_model,
        "base_location": backbone.model.config._name_or_path,
        "hub": {"base_model": repository, "data": _hub_name(options.data_path)},
        "options": {**{key: value for key, value in given.items() if key not in hidden}, **settled},
        "data": {
            "kind": data.kind,
            "train": len(data.train),
            "validation": len(data.validation),
            "remarks": list(data.remarks),
        },
        "parameters": {
            "trainable": parameters.trainable,
            "total": parameters.total,
            "trainable_percent": 100 * parameters.trainable / parameters.total,
        },
        "metrics": {**_metrics(plan, batches, fitted, measurement), **quantised_bytes(backbone.model)},
        "curves": {
            "loss": fitted.losses,
            "validation_loss": [[step, -score] for step, score in fitted.validation],
        },
        "provenance": provenance(),
    }


def _metrics(
    plan: PlannedTuning, batches: ExampleBatches, fitted: FitResult, measurement: Measurement
) -> dict[str, Any]:
    last = fitted.losses[-max(1, int(LAST_LOSSES * plan.steps)) :]
    tokens = sum(batches.num_tokens(index) for index in range(len(batches)))
    metrics = {"steps": plan.steps, "train_loss": sum(last) / len(last)}
    if fitted.validation:
        loss = -dict(fitted.validation)[fitted.best_step]
        metrics |= {"validation_loss": loss, "validation_perplexity": math.exp(min(loss, 700.0))}
        metrics["best_step"] = fitted.best_step
    return {
        **metrics,
        "train_tokens": tokens,
        "tokens_per_second": tokens / fitted.seconds if fitted.seconds else None,
        "train_seconds": fitted.seconds,
        "peak_memory_bytes": measurement.peak_bytes,
        "memory_before_bytes": measurement.baseline_bytes,
        "memory_counter": measurement.counter,
    }


def _hub_name(place: str) -> str | None:
    """A place that is no path here is the hub's."""
    return None if Path(place).expanduser().exists() else place
