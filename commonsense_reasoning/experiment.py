"""Fine-tuning of language models on commonsense questions (section 5.4 of the paper): one training, eight test sets."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch.utils.data import Dataset

from commonsense_reasoning.batches import ExampleBatches, LossOn, validation_batches
from commonsense_reasoning.data import Form, TestSet, load_test_set, load_training
from commonsense_reasoning.generation import score_answers
from commonsense_reasoning.objective import LanguageModelLoss, check_head, mean_loss
from commonsense_reasoning.paper import paper_scores
from commonsense_reasoning.prompts import (
    EncodedExample,
    cloze_choice,
    encode_choice,
    encode_examples,
    end_token,
    label_choice,
)
from commonsense_reasoning.scoring import score_choices
from commonsense_reasoning.sources import find_source
from commonsense_reasoning.work import count_language_work
from randlora_core.experiment.backbones import adapted_shapes, build_run_backbone, identify_run_weights
from randlora_core.experiment.config import BackboneChoice, RunConfig, TrainingConfig
from randlora_core.experiment.interface import Axis, Experiment, Score, Split, Task
from randlora_core.experiment.sections import Positive, free, neutral
from randlora_core.models import Backbone


class LanguageBackbone(BackboneChoice):
    """A language model of `BACKBONES`.

    Attributes:
        quantize: Load its linear layers in 4bit (NF4) or 8bit (LLM.int8()) by bitsandbytes; null for neither.
    """

    quantize: Literal["4bit", "8bit"] | None = neutral(None)

    @property
    def options(self) -> dict[str, Any]:
        """As in `OpenSection`, with what is asked for here."""
        return {**super().options, **({} if self.quantize is None else {"quantize": self.quantize})}


class CommonsenseTrainingConfig(TrainingConfig):
    """How a language model is trained.

    Attributes:
        group_by_length: Form micro-batches of examples of similar length.
        gradient_checkpointing: Compute activations again in the backward pass, which needs less memory and more time.
    """

    group_by_length: bool
    gradient_checkpointing: bool = free()


class CommonsenseConfig(RunConfig):
    """One run on the eight commonsense tasks.

    Attributes:
        backbone: The pre-trained model.
        dataset: A training set: commonsense_15k, commonsense_170k, mixture, or a task for its own training file, all
            scored on the eight real tasks; or generated, scored on the eight generated ones.
        examples: Training examples; null for all.
        form: What an example looks like as text, paper or cloze.
        loss_on: full (prompt and answer) or answer.
        cutoff: Most tokens of an example; its end is cut off.
        protocol: How a model is asked: generate, options or cloze.
        test_items: Items of each test set, the same ones in every run; null for all.
        training: Optimizer, schedule, length and order.
    """

    TRAINING_DATA: ClassVar[tuple[str, ...]] = ("examples",)

    backbone: LanguageBackbone
    dataset: str
    examples: Positive | None
    form: Form
    loss_on: LossOn
    cutoff: Positive
    protocol: Literal["generate", "options", "cloze"]
    test_items: Positive | None
    training: CommonsenseTrainingConfig

    @model_validator(mode="after")
    def _trains_no_codes(self) -> CommonsenseConfig:
        if self.adapter.method == "full" and self.backbone.quantize is not None:
            given = f"backbone.quantize={self.backbone.quantize!r} holds weights as codes"
            raise ValueError(f"{given}, which adapter=full cannot train; accepted: an adapter, or null")
        return self


class CommonsenseTask(Task):
    """A language model on commonsense questions.

    Args:
        config: The run.
        backbone: A causal language model with its tokenizer.
    """

    def __init__(self, config: CommonsenseConfig, backbone: Backbone):
        if backbone.kind != "causal_lm" or backbone.tokenizer is None:
            accepted = "a causal language model with a tokenizer; random weights have one where path says which"
            raise ValueError(f"backbone {backbone.name!r}; accepted: {accepted}")
        self.config, self.tokenizer, self.filler = config, backbone.tokenizer, end_token(backbone.tokenizer)
        self.model, self.default_targets = backbone.model, backbone.default_targets
        check_head(self.model, backbone.name)
        self.module = LanguageModelLoss(self.model)
        if config.training.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        source = find_source(config.dataset, config.paths.data)
        texts = load_training(source, form=config.form, count=config.examples, seed=config.seed)
        self.train = encode_examples(self.tokenizer, texts.train, config.cutoff)
        self.validation = encode_examples(self.tokenizer, texts.validation, config.cutoff)
        self.tests = [load_test_set(source, name, config.test_items) for name in source.tasks]
        self.num_examples, self.test_sets = len(self.train), tuple(test.name for test in self.tests)
        self.data = self._data_section(texts.num_available, texts.remarks)

    def batches(self, count: int, size: int) -> Dataset:
        """Micro-batches of training examples."""
        return ExampleBatches(
            self.train,
            batch_size=size,
            num_batches=count,
            seed=self.config.seed,
            filler=self.filler,
            loss_on=self.config.loss_on,
            group_by_length=self.config.training.group_by_length,
        )

    def evaluate(self, split: Split, device: torch.device, precision: str) -> dict[str, Score]:
        """Minus the loss per token on the validation examples, or the accuracy on every test set."""
        if split == "validation":
            return {"validation": self._validation_score(device, precision)}
        return {test.name: self._test_score(test, device, precision) for test in self.tests}

    def _validation_score(self, device: torch.device, precision: str) -> Score:
        settings = {"filler": self.filler, "loss_on": self.config.loss_on}
        batches = validation_batches(self.validation, batch_size=self.config.evaluate.batch_size, **settings)
        return Score(-mean_loss(self.module, batches, device, precision), len(self.validation))

    def _test_score(self, test: TestSet, device: torch.device, precision: str) -> Score:
        """The accuracy by the run's protocol."""
        settings = {"batch_size": self.config.evaluate.batch_size, "device": device, "precision": precision}
        if self.config.protocol == "generate":
            return score_answers(self.model, self.tokenizer, test.records, test.questions, **settings)
        if self.config.protocol == "options":
            choices = [label_choice(*item) for item in zip(test.records, test.questions, strict=True)]
        else:
            choices = [cloze_choice(question) for question in test.questions]
        encoded = [encode_choice(self.tokenizer, choice) for choice in choices]
        return score_choices(self.model, encoded, filler=self.filler, **settings)

    def _data_section(self, num_available: int, remarks: tuple[str, ...]) -> dict[str, Any]:
        sizes = {"train": len(self.train), "available": num_available, "validation": len(self.validation)}
        return {
            "name": self.config.dataset,
            "sizes": {**sizes, **{test.name: len(test.records) for test in self.tests}},
            "remarks": [
                *remarks,
                *_cut_remarks(self.train, self.config.cutoff),
                *(remark for test in self.tests for remark in test.remarks),
            ],
        }


def _cut_remarks(examples: list[EncodedExample], cutoff: int) -> list[str]:
    """How many answers lose their end, where any does."""
    num_cut = sum(example.is_cut for example in examples)
    return [f"{num_cut:,} of {len(examples):,} training answers are cut off at {cutoff} tokens."] if num_cut else []


def build_task(config: CommonsenseConfig) -> CommonsenseTask:
    """The task of a run, its model not yet adapted."""
    return CommonsenseTask(config, build_run_backbone(config))


def identify_texts(config: CommonsenseConfig) -> str:
    """The fingerprint of all questions of a run, see `Source.identify`."""
    return find_source(config.dataset, config.paths.data).identify()


def _describe_examples(count: int | None) -> str:
    return "" if count is None else f"{count:,} examples"


def _describe_form(form: str) -> str:
    return f"{form} form"


def _describe_protocol(protocol: str) -> str:
    return f"protocol {protocol}"


EXPERIMENT = Experiment(
    name="commonsense_reasoning",
    config_class=CommonsenseConfig,
    axes=(
        Axis("dataset"),
        Axis("examples", _describe_examples),
        Axis("form", _describe_form),
        Axis("protocol", _describe_protocol),
        Axis("backbone"),
    ),
    identify_data=identify_texts,
    identify_weights=identify_run_weights,
    build_task=build_task,
    adapted_shapes=adapted_shapes,
    paper_scores=paper_scores,
    count_work=count_language_work,
    unit="texts",
    criterion="minus validation loss per token",
    preload=("transformers", "commonsense_reasoning.experiment"),
)
