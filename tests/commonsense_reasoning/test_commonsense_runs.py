import json
import os
import signal

import numpy as np
import pytest
import torch
from kept_runs import untrained_scores
from sample_records import WORDS, write_tasks
from test_objective import plain_loss
from tiny_language_models import save_models

from commonsense_reasoning import evaluate, train
from commonsense_reasoning.data import load_training
from commonsense_reasoning.experiment import EXPERIMENT, build_task
from commonsense_reasoning.generated.questions import GENERATED_TASKS, identify_questions
from commonsense_reasoning.prompts import encode_examples
from commonsense_reasoning.sources import find_source
from commonsense_reasoning.tasks import TASKS
from randlora_core.experiment.backbones import build_run_backbone
from randlora_core.experiment.commands.evaluate import evaluate_run, evaluate_runs
from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.rates import build_config
from randlora_core.experiment.records.predictions import decode_predictions
from randlora_core.experiment.running import run
from randlora_core.models.language_models import FUSED_TARGETS, LANGUAGE_MODELS, SEPARATE_TARGETS

LORA = ["adapter=lora", "adapter.rank=2", "training.learning_rate=1e-2"]
METHODS = ("lora", "rslora", "dora", "vera", "nola", "randlora", "randlora_sparse", "randdora", "full")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def models(tmp_path_factory, data):
    """Folders with a tiny model and its tokenizer each."""
    return save_models(tmp_path_factory.mktemp("models"), data, "llama", "phi3", "gemma2")


@pytest.fixture
def setting(data, models, tmp_path):
    """Overrides that make a run small."""
    return [
        "backbone=causal_lm",
        f"backbone.path={models / 'llama'}",
        f"paths.data={data}",
        f"paths.results={tmp_path / 'results'}",
        "training.steps=3",
        "training.batch_size=4",
        "training.precision=fp32",
        "threads=1",
        "device=cpu",
    ]


def losses(record):
    return [loss for _, loss in record["curves"]["loss"]]


def run_id(overrides):
    return plan_run(EXPERIMENT, overrides).run_id


@pytest.mark.parametrize("backbone", [*LANGUAGE_MODELS, "causal_lm"])
def test_the_defaults_are_a_configuration_with_every_language_model(backbone):
    config = build_config(EXPERIMENT, [f"backbone={backbone}"])
    assert (config.backbone.name, config.protocol, config.form, config.cutoff) == (backbone, "cloze", "cloze", 256)
    assert build_config(EXPERIMENT, []).backbone.name == "smollm2_135m"


@pytest.mark.parametrize("protocol", ["options", "cloze", "generate"])
def test_one_training_and_eight_test_sets(setting, protocol):
    form = "paper" if protocol != "cloze" else "cloze"
    record = run(EXPERIMENT, [*LORA, *setting, f"form={form}", f"protocol={protocol}", "test_items=4"])
    tests = record["scores"]["test"]
    assert list(tests) == [f"{name}_4" for name in TASKS] and len(losses(record)) == 3
    assert record["scores"]["mean"] == np.mean([score["value"] for score in tests.values()])
    assert record["config"]["protocol"] == protocol and record["config"]["form"] == form
    for score in tests.values():
        predicted, labels = decode_predictions(score["predictions"])
        assert len(labels) == score["size"] == 4 and np.mean(predicted == labels) == score["value"]
        assert list(score["details"]) == ["unparseable" if protocol == "generate" else "accuracy_summed"]
    sizes = record["data"]["sizes"]
    assert (sizes["train"], sizes["validation"], sizes["available"], sizes["boolq_4"]) == (58, 14, 58, 4)
    assert any("not trained on: piqa, hellaswag" in remark for remark in record["data"]["remarks"])
    text = json.dumps(record)
    assert not any(word in text for word in WORDS)  # records may be committed, items may not


def test_the_criterion_is_minus_the_validation_loss_per_token(setting, data):
    overrides = [*setting, "adapter=zero_shot", "evaluate.batch_size=5", "evaluate.test=false"]
    for form, loss_on in (("cloze", "answer"), ("paper", "full")):
        planned = plan_run(EXPERIMENT, [*overrides, f"form={form}", f"loss_on={loss_on}"])
        task = build_task(planned.config)
        texts = load_training(find_source("mixture", str(data)), form=form, count=None, seed=0)
        with torch.no_grad():
            expected, count = plain_loss(task.model, encode_examples(task.tokenizer, texts.validation, 256), loss_on)
        assert task.validate(torch.device("cpu"), "fp32") == pytest.approx(-float(expected) / count, rel=1e-5)
    assert EXPERIMENT.format_criterion(-1.2345) == "-1.234"


def test_full_fine_tuning_learns(setting):
    before = run(EXPERIMENT, [*setting, "adapter=zero_shot", "evaluate.test=false"])["scores"]["validation"]
    overrides = ["adapter=full", "training.learning_rate=1e-2", "training.steps=30", "evaluate.test=false"]
    after = run(EXPERIMENT, [*setting, *overrides, "training.keep_best=true", "evaluate.every=10"])
    assert after["scores"]["validation"] == max(score for _, score in after["curves"]["validation"]) > before + 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_every_method_trains_every_architecture(setting, models, architecture, method):
    overrides = [f"adapter={method}", f"backbone.path={models / architecture}", "training.learning_rate=1e-2"]
    if method not in ("full", "nola"):
        overrides.append("adapter.rank=3")
    record = run(EXPERIMENT, [*setting, *overrides, "evaluate.test=false", "training.batch_size=58"])
    layers = record["parameters"]["per_layer"]
    if method != "full":
        targets = SEPARATE_TARGETS if architecture == "llama" else FUSED_TARGETS
        assert {name.rpartition(".")[2] for name in layers} == set(targets)
    assert losses(record)[-1] < losses(record)[0]


@pytest.mark.parametrize(("peft_type", "kwargs"), [("HIRA", "{r: 3}"), ("C3A", "{block_size: 4}")])
@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_tuners_of_peft_train_and_are_kept(setting, models, architecture, peft_type, kwargs):
    own = ["adapter=peft", f"adapter.peft_type={peft_type}", f"adapter.kwargs={kwargs}", "training.learning_rate=1"]
    more = [f"backbone.path={models / architecture}", "training.batch_size=58", "save.adapter=true"]
    record = run(EXPERIMENT, [*setting, *own, *more])
    layers = record["parameters"]["per_layer"]
    targets = SEPARATE_TARGETS if architecture == "llama" else FUSED_TARGETS
    assert {name.rpartition(".")[2] for name in layers} == set(targets)
    assert sum(layers.values()) == record["parameters"]["trainable"] and losses(record)[-1] < losses(record)[0]
    places = [text for text in setting if text.startswith("paths.")]
    assert evaluate_run(EXPERIMENT, record["run_id"], places)["test"] == record["scores"]["test"]
    assert untrained_scores(EXPERIMENT, [*setting, *own, *more]) != record["scores"]["test"]


def test_a_budget_is_solved_on_a_model_by_its_path(setting):
    """Of hidden size 24, intermediate size 40 and two of four heads for keys and values, in two layers."""
    shapes = 2 * [(24, 24), (12, 24), (12, 24), (40, 24), (24, 40)]
    adapter = build_config(EXPERIMENT, [*setting, "adapter=randlora", "adapter.budget=lora4"]).adapter
    counts = {r: sum(-(-min(shape) // r) * (r + min(shape)) for shape in shapes) for r in range(1, 13)}
    budget = sum(4 * sum(shape) for shape in shapes)
    assert adapter.budget.parameters == budget and adapter.budget.trainable == counts[adapter.options["rank"]]
    assert abs(adapter.budget.trainable - budget) == min(abs(count - budget) for count in counts.values())


def test_a_batch_cut_into_micro_batches_and_checkpointing_train_the_same(setting, tmp_path):
    overrides = [*LORA, *setting, "evaluate.test=false"]
    expected = losses(run(EXPERIMENT, overrides))
    for number, override in enumerate(("training.accumulate=2", "training.gradient_checkpointing=true")):
        changed = [*overrides, override, f"paths.results={tmp_path / str(number)}"]
        np.testing.assert_allclose(losses(run(EXPERIMENT, changed)), expected, rtol=1e-5)
    checkpointed = build_task(plan_run(EXPERIMENT, changed).config)
    assert checkpointed.model.is_gradient_checkpointing
    assert not build_task(plan_run(EXPERIMENT, overrides).config).model.is_gradient_checkpointing


def test_an_interrupted_run_leaves_no_record_and_resumes_to_the_bit(setting, tmp_path):
    own = [*LORA, *setting, "adapter.dropout=0.1", "training.steps=6", "training.accumulate=2", "test_items=3"]
    own += ["training.group_by_length=true", "training.keep_best=true", "evaluate.every=2"]
    whole = run(EXPERIMENT, [*own, f"paths.results={tmp_path / 'other'}"])

    def interrupt(event):
        if event["step"] == 3 and event["phase"] == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run(EXPERIMENT, own, on_progress=interrupt)
    folder = tmp_path / "results" / EXPERIMENT.name
    assert not list(folder.glob("*.json")) and (folder / whole["run_id"] / "state.safetensors").exists()
    steps = []
    resumed = run(EXPERIMENT, own, on_progress=lambda event: steps.append(event["step"]))
    assert steps[0] == 4 and len(losses(resumed)) == 6
    assert resumed["curves"] == whole["curves"] and resumed["scores"] == whole["scores"]


def test_what_changes_the_numbers_changes_the_identity(setting):
    plain = run_id([*LORA, *setting])
    changed = [
        "dataset=social_i_qa",
        "examples=20",
        "form=paper",
        "loss_on=full",
        "cutoff=40",
        "protocol=options",
        "test_items=3",
        "training.group_by_length=true",
    ]
    assert len({plain, *(run_id([*LORA, *setting, override]) for override in changed)}) == len(changed) + 1
    for override in ("training.gradient_checkpointing=true", "evaluate.batch_size=3", "workers=1"):
        assert run_id([*LORA, *setting, override]) == plain
    zero_shot = [*setting, "adapter=zero_shot"]
    assert run_id([*zero_shot, "examples=20"]) == run_id([*zero_shot, "seed=4"]) == run_id(zero_shot)
    assert run_id([*zero_shot, "form=paper"]) != run_id(zero_shot)


def test_grouping_by_length_changes_the_order_alone(setting):
    record = run(EXPERIMENT, [*LORA, *setting, "training.group_by_length=true", "evaluate.test=false"])
    assert losses(record) != losses(run(EXPERIMENT, [*LORA, *setting, "evaluate.test=false"]))


def test_cut_answers_are_counted(setting):
    overrides = [*LORA, *setting, "form=paper", "evaluate.test=false", "cutoff=1000"]
    lengths = sorted(len(example.tokens) for example in build_task(plan_run(EXPERIMENT, overrides).config).train)
    cutoff = lengths[-1] - 2
    num_cut = sum(length > cutoff for length in lengths)
    record = run(EXPERIMENT, [*overrides, f"cutoff={cutoff}"])
    assert f"{num_cut} of 58 training answers are cut off at {cutoff} tokens." in record["data"]["remarks"]
    remarks = run(EXPERIMENT, overrides)["data"]["remarks"]
    assert 0 < num_cut < 58 and not any("cut off" in remark for remark in remarks)


def test_kept_weights_are_scored_by_another_protocol(setting, capsys):
    record = run(EXPERIMENT, [*LORA, *setting, "save.adapter=true", "training.learning_rate=0.1"])
    others = [text for text in setting if text.startswith(("paths.", "device", "threads"))]
    assert evaluate.main(EXPERIMENT, [f"run={record['run_id']}", *others]) == 0
    output = capsys.readouterr().out
    assert f"mean: {100 * record['scores']['mean']:.2f} %" in output
    assert evaluate.main(EXPERIMENT, [f"run={record['run_id']}", *others, "protocol=options", "test_items=2"]) == 0
    assert "openbookqa_2: " in capsys.readouterr().out
    assert evaluate_run(EXPERIMENT, record["run_id"], others)["test"] == record["scores"]["test"]
    assert untrained_scores(EXPERIMENT, [*LORA, *setting]) != record["scores"]["test"]


def test_adapters_are_scored_on_one_base(setting, tmp_path, monkeypatch):
    """Adapters of several methods and seeds, in between full fine-tuning, which changes the base."""
    randlora, lora = "adapter=randlora adapter.rank=3", "adapter=lora adapter.rank=2"
    methods = [randlora, "adapter=full", lora, "adapter=dora adapter.rank=2 seed=3"]
    kept = [*setting, "save.adapter=true", "training.learning_rate=0.1", "examples=20"]
    records = [run(EXPERIMENT, [*kept, *method.split()]) for method in methods]
    built = []
    monkeypatch.setattr("commonsense_reasoning.experiment.build_run_backbone", _counting(build_run_backbone, built))
    others = [text for text in setting if text.startswith(("paths.", "device", "threads"))]
    names = [record["run_id"] for record in records]
    for order, num_built in (([0, 2, 3, 0], 1), ([0, 1, 2, 3], 3), ([1, 1], 2)):
        built.clear()
        found = list(evaluate_runs(EXPERIMENT, [names[place] for place in order], others))
        assert len(built) == num_built
        for place, (kept_run, scores) in zip(order, found, strict=True):
            assert kept_run.name == names[place] and scores["test"] == records[place]["scores"]["test"]
    assert len({str(record["scores"]["test"]) for record in records}) == 4
    built.clear()
    list(evaluate_runs(EXPERIMENT, [names[0], names[2]], [*others, "protocol=options", "test_items=2"]))
    assert len(built) == 1


def _counting(build, built):
    def counted(config):
        built.append(config)
        return build(config)

    return counted


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["dataset=commonsense"], ["dataset='commonsense'", "commonsense_15k", "mixture", "openbookqa"]),
        (["dataset=commonsense_170k"], ["commonsense_170k.json"]),
        (["examples=1000"], ["examples=1000", "1 to 58"]),
        (["test_items=7"], ["test_items=7", "1 to 6"]),
        (["cutoff=2", "form=paper"], ["cutoff=2", "58 answers"]),
        (["protocol=guess"], ["protocol='guess'", "'generate', 'options' or 'cloze'"]),
        (["form=long"], ["form='long'"]),
        (["backbone=mini_clip"], ["'mini_clip'", "causal language model"]),
        (["backbone=smollm2_135m", "backbone.pretrained=false"], ["'smollm2_135m'", "with a tokenizer"]),
    ],
)
def test_bad_input_is_one_line(setting, overrides, named, capsys):
    setting = [text for text in setting if not (text.startswith("backbone") and "backbone" in overrides[0])]
    assert train.main(EXPERIMENT, [*LORA, *setting, *overrides]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for part in named:
        assert part in error


def test_a_model_that_caps_its_logits_is_refused(setting, models):
    with pytest.raises(ValueError, match="changes its logits behind its head"):
        run(EXPERIMENT, [*LORA, *setting, f"backbone.path={models / 'gemma2'}"])


@pytest.mark.parametrize(("form", "protocol"), [("cloze", "cloze"), ("paper", "options")])
def test_the_generated_tasks_need_no_files(setting, form, protocol):
    own = [
        "dataset=generated",
        "paths.data=null",
        f"form={form}",
        f"protocol={protocol}",
        "test_items=3",
        "examples=40",
    ]
    record = run(EXPERIMENT, [*LORA, *setting, *own])
    assert list(record["scores"]["test"]) == [f"{name}_3" for name in GENERATED_TASKS]
    assert record["identity"]["data"] == identify_questions() and record["data"]["sizes"]["train"] == 40
    assert losses(record)[-1] != losses(record)[0]


def test_missing_data_is_planned_as_missing(setting, tmp_path):
    from randlora_core.experiment.planning import plan_runs

    (planned,) = plan_runs(EXPERIMENT, [[*LORA, *setting, f"paths.data={tmp_path}"]])
    assert planned.status == "missing" and "'mixture' is not in paths.data=" in planned.missing
