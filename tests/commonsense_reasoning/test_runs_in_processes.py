"""Whole runs in two processes of CPUs, data-parallel (DDP) and with sharded parameters (FSDP2), against one process."""

import json
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from launching import ProcessCrashed, launch
from runs_in_processes import train
from safetensors.torch import load_file
from sample_records import write_tasks
from tiny_language_models import save_models

from commonsense_reasoning.experiment import EXPERIMENT
from randlora_core.experiment.commands.evaluate import evaluate_run
from randlora_core.experiment.compose import CONFIGS
from randlora_core.experiment.planning import plan_run
from randlora_core.models.language_models import LANGUAGE_MODELS

pytestmark = pytest.mark.slow

ACCELERATE = CONFIGS / "accelerate"
RUNS = {
    "lora": ["adapter=lora", "adapter.rank=2", "form=paper", "protocol=generate", "test_items=1"],
    "randlora": ["adapter=randlora", "adapter.rank=3", "training.gradient_checkpointing=true"],
    "bf16": ["adapter=randlora", "adapter.rank=3", "backbone.dtype=bfloat16", "training.accumulate=4"],
    "full": ["adapter=full", "evaluate.every=1", "training.keep_best=true"],
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Overrides of a short run on a tiny Llama of two blocks, without those of its method and its results."""
    folder = tmp_path_factory.mktemp("inputs")
    data = write_tasks(folder / "data")
    save_models(folder, data, "llama")
    return [
        "backbone=causal_lm",
        f"backbone.path={folder / 'llama'}",
        f"paths.data={data}",
        "test_items=4",
        "training.learning_rate=1e-2",
        "training.steps=3",
        "training.batch_size=8",
        "training.accumulate=2",
        "training.precision=fp32",
        "save.adapter=true",
        "save.state_seconds=0",
        "threads=1",
        "device=cpu",
    ]


@pytest.fixture(scope="module")
def together(setting, tmp_path_factory):
    """What two processes got under a file of accelerate's: their folder, and what `train` gave in each of them.

    Under fsdp2 a process has been seen to end by SIGSEGV once, and not again in 370 runs that were made to find out
    where. So a crash is told, and the launch done once more from the start; a second crash fails.
    """
    done = {}

    def do(name):
        folder = tmp_path_factory.mktemp(name)
        runs = [[*setting, *run, f"paths.results={folder / 'results'}"] for run in RUNS.values()]
        (folder / "runs.json").write_text(json.dumps(runs))
        launch(Path(__file__).with_name("runs_in_processes.py"), folder, **launch_environment(f"{name}.yaml"))
        return folder, [dict(zip(RUNS, torch.load(folder / f"{rank}.pt"), strict=True)) for rank in (0, 1)]

    def get(name):
        if name not in done:
            try:
                done[name] = do(name)
            except ProcessCrashed as crash:
                warnings.warn(f"{name}: {crash}", stacklevel=2)
                done[name] = do(name)
        return done[name]

    return get


@pytest.fixture(scope="module")
def alone(setting, tmp_path_factory):
    """What one process got: its folder and what `train` gave."""
    folder = tmp_path_factory.mktemp("alone")
    runs = {name: [*setting, *run, f"paths.results={folder / 'results'}"] for name, run in RUNS.items()}
    return folder, {name: train(run) for name, run in runs.items()}


def launch_environment(file):
    """What `accelerate launch` leaves in the environment of the processes for a file of `configs/accelerate`."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    chosen = launch_command_parser().parse_args(["--config_file", str(ACCELERATE / file), "script.py"])
    environment = prepare_multi_gpu_env(_validate_launch_command(chosen)[0])
    return {key: value for key, value in environment.items() if key.startswith(("FSDP_", "ACCELERATE_"))}


def record_of(setting, method, folder):
    (planned,) = [plan_run(EXPERIMENT, [*setting, *RUNS[method], f"paths.results={folder / 'results'}"])]
    assert planned.finished is not None
    return planned.record, planned.scratch / "weights"


@pytest.mark.parametrize("method", RUNS)
@pytest.mark.parametrize("file", ["ddp", "fsdp2"])
def test_two_processes_do_the_run_of_one(setting, together, alone, method, file):
    """Rounding alone differs, of gradients in another order, and of a base in bf16 more."""
    folder, _ = together(file)
    record, weights = record_of(setting, method, folder)
    expected, expected_weights = record_of(setting, method, alone[0])
    loose = 1e-5 if method != "bf16" else 1e-2
    assert record["run_id"] == expected["run_id"]
    for got, wanted in zip(record["curves"]["loss"], expected["curves"]["loss"], strict=True):
        assert got == pytest.approx(wanted, rel=loose)
    assert record["scores"]["validation"] == pytest.approx(expected["scores"]["validation"], rel=loose)
    if method != "bf16":
        assert record["scores"]["test"] == expected["scores"]["test"]
    assert record["parameters"] == expected["parameters"]
    (ours,), (theirs,) = (list(place.glob("*.safetensors")) for place in (weights, expected_weights))
    ours, theirs = load_file(ours), load_file(theirs)
    assert ours.keys() == theirs.keys() and sorted(path.name for path in weights.parent.iterdir()) == ["weights"]
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=100 * loose, atol=100 * loose * value.abs().max().item())


@pytest.mark.parametrize("method", RUNS)
@pytest.mark.parametrize("file", ["ddp", "fsdp2"])
def test_the_optimizer_gets_the_gradients_of_one_process(together, alone, method, file):
    """Of the first step, whose weights are the same; an adaptive optimizer alone would not see a factor."""
    for got in together(file)[1]:
        steps, expected = got[method]["gradients"], alone[1][method]["gradients"]
        first, wanted = steps[0], expected[0]
        assert len(steps) == len(expected) == 3 and len(first) == len(wanted) > 0
        for ours, theirs in zip(first, wanted, strict=True):
            close = (2e-4, 1e-6) if method != "bf16" else (5e-2, 1e-2 * theirs.abs().max().item())
            torch.testing.assert_close(ours, theirs, rtol=close[0], atol=close[1])
        assert any(theirs.abs().max() > 1e-3 for theirs in wanted)


@pytest.mark.parametrize("method", RUNS)
def test_a_process_holds_all_trained_parameters_or_its_part_of_them(together, alone, method):
    """Parts of an uneven number of rows are not quite halves."""
    (whole,) = alone[1][method]["held"]
    assert [got[method]["held"] for got in together("ddp")[1]] == [{whole}, {whole}]
    parts = [held for got in together("fsdp2")[1] for held in got[method]["held"]]
    assert len(parts) == 2 and sum(parts) == whole and min(parts) > 0.3 * whole


@pytest.mark.parametrize("file", ["ddp", "fsdp2"])
def test_what_two_processes_kept_is_scored_by_one(setting, together, file):
    folder, _ = together(file)
    record, weights = record_of(setting, "randlora", folder)
    places = [text for text in setting if text.startswith("paths.")]
    assert evaluate_run(EXPERIMENT, str(weights), places)["test"] == record["scores"]["test"]


@pytest.mark.parametrize(("file", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP")])
def test_accelerate_reads_the_files(file, kind):
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(ACCELERATE / f"{file}.yaml"))
    given = yaml.safe_load((ACCELERATE / f"{file}.yaml").read_text())
    assert loaded.distributed_type == kind and loaded.mixed_precision == "no"
    assert given.keys() <= loaded.to_dict().keys() | {"fsdp_config"}
    environment = launch_environment(f"{file}.yaml")
    assert (environment.get("ACCELERATE_USE_FSDP") == "true") == (file == "fsdp2")


def test_the_sharded_blocks_are_those_of_llama(monkeypatch):
    """And accelerate's own reading of the file is the one that the training loop relies on."""
    from accelerate import FullyShardedDataParallelPlugin
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[LANGUAGE_MODELS["llama3_8b"].model_type] == "LlamaForCausalLM"
    for key, value in launch_environment("fsdp2.yaml").items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.transformer_cls_names_to_wrap == list(LlamaForCausalLM._no_split_modules)
    assert not (plugin.cpu_ram_efficient_loading or plugin.activation_checkpointing)
