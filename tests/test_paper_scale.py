"""The comparisons at the paper's scale list the paper's runs with the paper's settings, without data or weights."""

import itertools
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from randlora_core.adapters.targets import find_targets
from randlora_core.datasets.catalog import CATALOG
from randlora_core.experiment.commands.compare import plan_comparison
from randlora_core.experiment.commands.dry_run import run_lines
from randlora_core.experiment.compose import CONFIGS, choices
from randlora_core.experiment.interface import find_experiment
from randlora_core.experiment.rates import build_config
from randlora_core.experiment.records.ledger import read_records
from randlora_core.experiment.reports.notes import make_notes
from randlora_core.experiment.reports.results import collect_results
from randlora_core.experiment.sweeps.comparison_file import load_comparison
from randlora_core.models.architectures import build_architecture
from randlora_core.models.counts import closest_rank, count_trainable

ROOT = Path(__file__).resolve().parents[1]
PAPER = [entry.key for entry in CATALOG.values() if entry.paper_name]
SIZES = [("1", ""), ("2", ""), ("4", ""), ("16", ""), ("", "0.5"), ("", "1.0")]
TRAINED = ("linear_probe", "full", "lora", "nola", "vera", "randlora")


@pytest.fixture
def lines(monkeypatch, tmp_path):
    """The table of runs of a comparison at the paper's scale, as dictionaries without the status."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def plan(name, **arguments):
        comparison = load_comparison(name, scale="paper", overrides=[f"paths.results={tmp_path}"], **arguments)
        planned = plan_comparison(comparison, comparison.experiments(), None)
        header, *found = (line.split("\t") for line in run_lines(planned))
        runs = [dict(zip(header, line, strict=True)) for line in found]
        assert {run.pop("status") for run in runs} == {"missing"}
        assert len({tuple(run.values()) for run in runs}) == len(runs)
        return runs

    return plan


def product(datasets, backbones, without_zero_shot=()):
    """(data set, backbone, method, shots, fraction) of every method on everything, zero-shot once."""
    trained = itertools.product(datasets, backbones, TRAINED, SIZES)
    yield from ((*cell, *size) for *cell, size in trained)
    for dataset, backbone in itertools.product(datasets, backbones):
        if backbone not in without_zero_shot:
            yield dataset, backbone, "zero_shot", "", "1.0"


def cells(runs):
    return Counter((run["dataset"], run["backbone"], run["method"], run["shots"], run["fraction"]) for run in runs)


def by_method(runs, key):
    found = {}
    for run in runs:
        found.setdefault((run["method"], run["backbone"]), set()).add(run[key])
    return {pair: values.pop() for pair, values in found.items() if len(values) == 1}


def test_figure_3_is_22_sets_at_6_sizes_with_every_method(lines):
    runs, models = lines("figure3"), ("clip_vit_b32", "clip_vit_l14", "clip_vit_h14")
    assert cells(runs) == Counter(product(PAPER, models)) and len(runs) == 22 * 3 * (6 * 6 + 1) == 2442
    rates, ranks = by_method(runs, "lr"), by_method(runs, "rank")
    for model, rank in zip(models, ("6", "8", "10"), strict=True):
        assert rates["full", model] == "1e-05" and rates["vera", model] == "0.01" and rates["linear_probe", model] == ""
        assert {rates[method, model] for method in ("lora", "nola", "randlora")} == {"0.001"}
        assert (ranks["randlora", model], ranks["lora", model], ranks["nola", model]) == (rank, "32", "1")
        assert ranks["full", model] == ranks["zero_shot", model] == ranks["linear_probe", model] == ""
    assert [ranks["vera", model] for model in models] == ["256", "256", "1024"]
    assert {run["seed"] for run in runs} == {"1"}


def test_figure_2_is_21_sets_on_three_image_models(lines):
    runs, models = lines("figure2"), ("clip_vit_b32", "clip_vit_l14", "dinov2_vit_b14")
    sets = [key for key in PAPER if CATALOG[key].in_vision_suite]
    assert len(sets) == 21 and cells(runs) == Counter(product(sets, models, without_zero_shot=("dinov2_vit_b14",)))
    rates, ranks = by_method(runs, "lr"), by_method(runs, "rank")
    for model, rank in zip(models, ("6", "8", "6"), strict=True):
        assert rates["lora", model] == rates["randlora", model] == rates["vera", model] == "0.01"
        assert rates["nola", model] == "0.001" and rates["full", model] == "1e-05" and ranks["randlora", model] == rank


def test_more_seeds_are_more_runs_of_what_depends_on_them(lines):
    runs = lines("figure3", seeds=[1, 2, 3], axes={"dataset": ["dtd"], "backbone": ["clip_vit_b32"]})
    seeds = Counter((run["method"], run["shots"], run["fraction"]) for run in runs)
    assert {seeds["lora", *size] for size in SIZES} == {seeds["linear_probe", "4", ""]} == {3}
    assert seeds["zero_shot", "", "1.0"] == seeds["linear_probe", "", "1.0"] == 1


@pytest.mark.parametrize("name", ["figure2", "figure3"])
def test_tables_without_a_record_miss_the_runs_that_the_dry_run_lists(name):
    """Zero-shot is one run at every data size and seed, the probe on all images one at every seed."""
    comparison = load_comparison(name, scale="paper", axes={"dataset": ["dtd"]}, seeds=[1, 2, 3])
    planned = plan_comparison(comparison, comparison.experiments(), None, inputs_needed=False)
    results = collect_results(name, planned, lambda entry: None)
    count = len(run_lines(planned)) - 1
    assert count < len(planned) and (results.num_expected, results.num_missing) == (count, count)
    assert next(iter(make_notes(results))).startswith(f"{count} of {count} runs are not there")


def test_the_rank_ablation_and_the_sweep_of_distributions_have_the_papers_rows(lines):
    def rows(runs):
        return Counter((run["backbone"], run["method"], run["rank"], run["shots"], run["fraction"]) for run in runs)

    b32 = [("lora", "32"), ("randlora_a", "32"), ("randlora_b", "3"), ("randlora", "6")]
    assert rows(lines("table3")) == {("clip_vit_b32", *row, "", "1.0"): 22 for row in b32}
    names = ["", "_normal", "_binary", "_sparse", "_very_sparse", "_s100", "_s200"]
    expected = {("clip_vit_b32", f"randlora{name}", "6", "", "1.0"): 22 for name in names}
    expected |= {("llama3_8b", f"randlora{name}", "30", "", "1.0"): 1 for name in ("", "_sparse")}
    assert rows(lines("table4")) == expected


def test_figure_1_pairs_ranks_with_the_closest_number_of_parameters(lines):
    runs = lines("figure1")
    ranks = {}
    for run in runs:
        found = ranks.setdefault(run["backbone"], {}).setdefault(run["method"], [])
        found += [int(run["rank"])] if int(run["rank"]) not in found else []
    assert ranks["llama3_8b"] == {"lora": [16, 32, 64], "randlora": [60, 30, 15]}
    for name in ("clip_vit_b32", "dinov2_vit_b14"):
        architecture = build_architecture(name)
        shapes = find_targets(architecture.model, architecture.targets)
        budgets = [count_trainable(shapes, "lora", rank) for rank in ranks[name]["lora"]]
        assert ranks[name]["lora"] == [1, 2, 4, 8, 16, 32, 64, 128]
        assert ranks[name]["randlora"] == [closest_rank(shapes, "randlora", budget) for budget in budgets]
    assert Counter(run["backbone"] for run in runs) == {"clip_vit_b32": 336, "dinov2_vit_b14": 336, "llama3_8b": 6}


RANKS = {
    "qwen2_05b": {16: 10, 32: 5},
    "phi3_mini": {16: 40, 32: 20, 64: 10},
    "llama3_8b": {16: 60, 32: 30, 64: 15},
}
"""Language model -> LoRA's ranks in table 15 and RandLoRA's of about as many parameters."""


def test_tables_1_and_2_have_the_papers_rows_on_language_models(lines):
    def rows(name):
        runs = lines(name)
        assert {(run["seed"], run["shots"], run["fraction"]) for run in runs} == {("1", "", "1.0")}
        assert all(run["lr"] == {"zero_shot": "", "vera": "0.01"}.get(run["method"], "0.0001") for run in runs)
        return Counter((run["backbone"], run["method"], run["rank"], run["dataset"]) for run in runs)

    sets = ("commonsense_15k", "commonsense_170k")
    expected = [(backbone, "zero_shot", "", "commonsense_15k") for backbone in RANKS]
    for backbone, pairs in RANKS.items():
        own = [("nola", "1"), ("vera", "1024"), *(("lora", str(rank)) for rank in pairs)]
        own += [("randlora", str(rank)) for rank in pairs.values()]
        expected += [(backbone, *row, dataset) for row in own for dataset in sets]
    assert rows("table1") == Counter(expected) and len(expected) == 47
    with_dora = [("lora", "16"), ("lora", "32"), ("dora", "16"), ("dora", "32"), ("randlora", "60"), ("randlora", "30")]
    assert rows("table2") == Counter(("llama3_8b", *row, dataset) for row in with_dora for dataset in sets)


def test_pairs_on_language_models_have_equal_budgets_and_the_papers_scale():
    """The numbers were recomputed from the formulas of the methods; on Qwen2 rank 6 would be 16 % below LoRA-32."""
    counts = {
        "qwen2_05b": {5_898_240: 5_956_992, 11_796_480: 11_842_944},
        "phi3_mini": {22_020_096: 23_003_904, 44_040_192: 45_712_128, 88_080_384: 91_128_576},
        "llama3_8b": {28_311_552: 28_778_112, 56_623_104: 56_626_112, 113_246_208: 112_723_968},
    }
    experiment = find_experiment("commonsense_reasoning")
    for backbone, pairs in RANKS.items():
        config = setting("commonsense_reasoning", f"backbone={backbone} dataset=commonsense_15k")
        shapes = experiment.adapted_shapes(config)
        found = {count_trainable(shapes, "lora", a): count_trainable(shapes, "randlora", b) for a, b in pairs.items()}
        assert counts[backbone] == found
        assert all(own == pytest.approx(budget, rel=0.05) for budget, own in found.items())
    runs = [
        run for name in ("commonsense", "dora") for run in load_comparison(name, scale="paper").runs(experiment.name)
    ]
    for _, overrides in runs:
        adapter = build_config(experiment, overrides).adapter
        if adapter.method == "randlora":
            assert adapter.options["alpha"] == 2 * adapter.options["rank"] and adapter.options["scale_by_sqrt_bases"]
        elif adapter.method in ("lora", "dora"):
            assert adapter.options["alpha"] in (None, 2 * adapter.options["rank"])


@pytest.mark.parametrize("name", ["figure1", "figure2", "figure3", "rank_ablation", "sparsity", "commonsense", "dora"])
def test_the_page_on_reproducing_counts_the_runs(lines, name):
    page = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `bash scripts/train.sh {name} "))
    assert row.split("|")[4].strip() == f"{len(lines(name)):,}"


def test_randlora_a_and_b_have_about_randlora_6s_parameters_in_both_towers():
    architecture = build_architecture("clip_vit_b32")
    shapes = find_targets(architecture.model, architecture.targets)
    for width in (768, 512):
        part = {name: shape for name, shape in shapes.items() if min(shape) == width}
        budget = count_trainable(part, "randlora", 6)
        for preset in ("randlora_a", "randlora_b"):
            options = build_config(find_experiment("vision_language"), [f"adapter={preset}"]).adapter.options
            assert count_trainable(part, "randlora", **options) == pytest.approx(budget, rel=0.02)
            assert options["num_bases"][width] * options["rank"] <= width // 2 or options["distinct_a"]


def setting(experiment, text):
    return build_config(find_experiment(experiment), ["recipe=paper", *text.split()])


@pytest.mark.parametrize("experiment", ["vision", "vision_language"])
def test_the_papers_settings_on_images(experiment):
    training = setting(experiment, "backbone=clip_vit_b32 dataset=dtd adapter=full").training
    assert (training.batch_size, training.weight_decay, training.clip, training.precision) == (128, 0.1, 1.0, "bf16")
    assert (training.schedule, training.warmup_steps, training.crop, training.flip) == ("cosine", 0, 0.5, True)
    assert training.steps is None and training.epochs == 76


def test_epochs_are_table_7s_and_ten_with_shots():
    for entry in CATALOG.values():
        if entry.paper_name:
            chosen = f"backbone=clip_vit_b32 dataset={entry.key}"
            epochs = [
                setting("vision", f"{chosen} {size}").training.epochs for size in ("", "fraction=0.5", "shots=16")
            ]
            assert epochs == [entry.epochs, entry.epochs, 10]
    assert setting("vision_language", "backbone=clip_vit_b32 dataset=eurosat").training.epochs == 12
    assert setting("vision_language", "backbone=clip_vit_b32 dataset=cars").training.epochs == 35  # an alias
    with pytest.raises(ValueError, match=r"^training\.epochs=paper with dataset=digits; accepted: a number, or one of"):
        setting("vision", "backbone=clip_vit_b32 dataset=digits")


def test_epochs_of_the_paper_are_recorded_and_identified_by_their_number():
    experiment, base = find_experiment("vision"), ["backbone=clip_vit_b32", "dataset=dtd", "training.steps=null"]
    paper, number = (build_config(experiment, [*base, f"training.epochs={value}"]) for value in ("paper", "76"))
    assert paper.identity(0.1) == number.identity(0.1) and paper.recorded(0.1)["training"]["epochs"] == 76
    assert paper.training.num_steps(3384) == 76 * 106


def test_scales_batches_and_prompts_of_the_paper():
    for backbone, micro_batches, rank in (("clip_vit_b32", 1, 6), ("clip_vit_l14", 2, 8), ("clip_vit_h14", 2, 10)):
        config = setting("vision_language", f"backbone={backbone} dataset=dtd")
        assert (config.training.accumulate, config.adapter.options["rank"]) == (micro_batches, rank)
        assert config.adapter.options["alpha"] == 10 and config.prompts == "single"
        assert config.training.objective == "in_batch"
    full = [setting("vision_language", f"adapter=full dataset=dtd backbone=clip_vit_{size}") for size in ("l14", "h14")]
    assert [config.training.accumulate for config in full] == [2, 4]
    for method in ("lora", "nola"):
        options = setting("vision", f"backbone=clip_vit_b32 dataset=dtd adapter={method}").adapter.options
        assert options["alpha"] == 1
    vision = setting("vision", "backbone=dinov2_vit_b14 dataset=dtd")
    assert vision.training.head_learning_rate == 1e-3 and vision.prompts == "ensemble"


def test_the_papers_settings_on_language_models():
    for backbone, rank, micro_batches in (("qwen2_05b", 5, 1), ("phi3_mini", 20, 2), ("llama3_8b", 30, 4)):
        config = setting("commonsense_reasoning", f"backbone={backbone} dataset=commonsense_15k")
        options, training = config.adapter.options, config.training
        assert (options["rank"], options["alpha"], options["scale_by_sqrt_bases"]) == (rank, 2 * rank, True)
        assert (training.batch_size, training.accumulate, training.epochs) == (16, micro_batches, 3)
        assert (options["dropout"], training.learning_rate, training.warmup_steps) == (0.05, 1e-4, 100)


@pytest.mark.parametrize("backbone", ["qwen2_05b", "phi3_mini", "llama3_8b"])
def test_methods_that_the_paper_lacks_on_language_models_take_the_settings_of_their_kin(backbone):
    def chosen(method):
        return setting("commonsense_reasoning", f"backbone={backbone} dataset=commonsense_15k adapter={method}")

    lora, rslora, randlora, randdora, full = map(chosen, ("lora", "rslora", "randlora", "randdora", "full"))
    options, other = rslora.adapter.options, lora.adapter.options
    assert options["rank_stabilized"] and not other["rank_stabilized"] and options["dropout"] == other["dropout"]
    assert options["alpha"] == 64 == 2 * other["rank"] and options["rank"] == other["rank"]  # LoRA's alpha is 2 rank
    assert randdora.adapter.options == {**randlora.adapter.options, "magnitude": True}
    rates = [config.training.learning_rate for config in (lora, rslora, randlora, randdora, full)]
    assert rates == [1e-4, 1e-4, 1e-4, 1e-4, 1e-5]
    for config in (rslora, randdora, full):
        same = config.training.model_copy(update={"learning_rate": 1e-4})
        assert same == lora.training and config.training.keep_best and config.training.epochs == 3
    assert full.backbone.options["dtype"] == "float32" and rslora.backbone == randdora.backbone == lora.backbone


def test_every_rule_of_the_recipe_fits_some_run():
    """A misspelt name would be a rule that never counts."""
    import yaml

    rules = yaml.safe_load((CONFIGS / "recipe" / "paper.yaml").read_text(encoding="utf-8"))["rules"]
    known = {"experiment": ["vision", "vision_language", "commonsense_reasoning"]}
    known |= {group: choices(group) for group in ("adapter", "backbone")}
    for rule in rules:
        for key, values in rule["at"].items():
            for value in [values] if isinstance(values, str) else values:
                matching = [name for name in known[key] if name == value or name.startswith(value.rstrip("*"))]
                assert matching and (value.endswith("*") or value in matching), value


def test_the_committed_records_are_still_those_of_the_default_comparison():
    """Settings that were added later leave the identity of earlier runs as it was."""
    comparison = load_comparison("default")
    planned = plan_comparison(comparison, comparison.experiments(), None, inputs_needed=False)
    records = read_records(ROOT / "vision_language" / "records" / "default.jsonl")
    settings = {record["identity"]["settings"] for record in records}
    assert {entry.identity.settings for entry in planned} <= settings and len(settings) == len(records)


def test_setup_writes_its_messages_to_standard_error(tmp_path):
    """What train.sh prints can be read by a program: here a Python that shows its arguments and nothing else."""
    texts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    wanted = subprocess.run(["sha256sum"], input=b"".join(texts), capture_output=True, check=True).stdout.split()[0]
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$*"\n')
    python.chmod(0o755)
    (tmp_path / "randlora-ready").write_bytes(wanted + b"\n")
    command = ["bash", str(ROOT / "scripts" / "train.sh"), "figure3", "--dry-run", "--format=tsv"]
    environment = {"PATH": "/usr/bin:/bin", "RANDLORA_VENV": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "-m randlora_core.experiment.commands.compare figure3 --dry-run --format=tsv\n"
    assert done.stderr.startswith("[randlora] using the environment in")


def test_values_that_stand_in_no_grid_are_named():
    with pytest.raises(ValueError) as caught:
        load_comparison("figure3", axes={"shots": [3]})
    assert str(caught.value) == "--shots 3; accepted: 1, 2, 4, 16, null"
    comparison = load_comparison("figure3", axes={"dataset": ["dtd"], "shots": [4], "fraction": [0.5]})
    with pytest.raises(ValueError, match="no run of figure3_paper is at --datasets dtd --shots 4 --fractions 0"):
        plan_comparison(comparison, comparison.experiments(), None)
