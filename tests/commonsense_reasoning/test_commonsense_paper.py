"""The paper's numbers on the commonsense tasks stand beside those runs alone that are the paper's in all."""

import copy
import csv
import dataclasses
import io

import pytest

from commonsense_reasoning.experiment import EXPERIMENT as REAL
from commonsense_reasoning.tasks import TASKS
from randlora_core.experiment.commands import train
from randlora_core.experiment.planning import plan_runs
from randlora_core.experiment.records.reading import label_of
from randlora_core.experiment.reports.formats import to_csv
from randlora_core.experiment.reports.paper_tables import CSV_COLUMNS, paper_cells, paper_csv_rows
from randlora_core.experiment.reports.published import AVERAGE, PUBLISHED, PublishedRows, read_published
from randlora_core.experiment.reports.report import make_report
from randlora_core.experiment.reports.results import collect_results
from randlora_core.experiment.running import opening
from randlora_core.experiment.sweeps.comparison_file import load_comparison
from randlora_core.models.language_models import LANGUAGE_MODELS

EXPERIMENT = dataclasses.replace(
    REAL,
    identify_data=lambda config: f"data of {config.dataset}",
    identify_weights=lambda config: f"hub {LANGUAGE_MODELS[config.backbone.name].repository}@{'a' * 40}",
)
LORA = ["recipe=paper", "backbone=qwen2_05b", "dataset=commonsense_15k", "adapter=lora", "adapter.rank=16"]
TABLE_15 = PublishedRows(
    file="table15_commonsense_per_task.csv",
    rows={"LoRA-16": {"method": "LoRA", "rank": 16}, "RandLoRA-5": {"method": "RandLoRA", "rank": 5}},
)


def record_of(planned):
    """A record of a run on all that the paper used: 0.50 on BoolQ, 0.51 on PIQA, and so on to 0.57."""
    train = 170_300 if planned.config.dataset == "commonsense_170k" else 14_999
    sizes = {"train": train, "available": train, "validation": 120}
    sizes |= {name: task.test_size for name, task in TASKS.items()}
    values = {name: 0.50 + place / 100 for place, name in enumerate(TASKS)}
    return {
        **opening(planned),
        "status": "finished",
        "data": {"name": planned.config.dataset, "sizes": sizes, "remarks": []},
        "parameters": {"trainable": 1000},
        "scores": {
            "validation": -1.0,
            "mean": sum(values.values()) / 8,
            "test": {name: {"value": value, "predictions": None} for name, value in values.items()},
        },
        "solution": None,
        "time": {"train_seconds": 10.0},
        "memory": {"peak_bytes": 2_000_000_000, "counter": "c"},
    }


def plan(*runs):
    return plan_runs(EXPERIMENT, runs, inputs_needed=False)


def collect(planned, records):
    known = {id(entry): record for entry, record in zip(planned, records, strict=True)}
    return collect_results("commonsense_paper", planned, lambda entry: known[id(entry)])


def cells_of(*overrides, change=lambda record: None, published=TABLE_15):
    """The cells of one run, whose record was changed."""
    planned = plan(overrides)
    record = copy.deepcopy(record_of(planned[0]))
    change(record)
    return paper_cells(collect(planned, [record]), [published])


def key(number):
    return number.model, number.method, number.rank, number.training_set


def is_average(number):
    return number.dataset == AVERAGE


def test_a_run_of_the_paper_stands_beside_its_tasks_and_their_average():
    cells = cells_of(*LORA)
    assert [cell.number.dataset for cell in cells] == [*(task.paper_name for task in TASKS.values()), AVERAGE]
    with open(PUBLISHED / TABLE_15.file, encoding="ascii") as lines:
        wanted = {"model": "Qwen2-0.5B", "label": "LoRA-16", "data": "15k"}
        printed = [float(row["accuracy"]) for row in csv.DictReader(lines) if row.items() >= wanted.items()]
    assert [cell.number.value for cell in cells] == printed and len(printed) == 9
    assert [cell.ours for cell in cells] == pytest.approx([50, 51, 52, 53, 54, 55, 56, 57, 53.5])
    assert cells[0].gap == pytest.approx(50 - printed[0])


OTHER_SETTINGS = {
    "another protocol": ["protocol=options"],
    "a choice of test items": ["test_items=200"],
    "a choice of training examples": ["examples=1200"],
    "another training set": ["dataset=mixture"],
    "another cutoff": ["cutoff=512"],
    "another form": ["form=cloze"],
    "another rank under the same label": ["adapter.rank=8", "adapter.label=LoRA-16"],
    "another rate, untuned": ["training.learning_rate=3e-4"],
    "fewer epochs": ["training.epochs=1"],
    "another method under the same label": ["adapter=dora", "adapter.rank=16", "adapter.label=LoRA-16"],
    "a method that the paper does not have": ["recipe=none", "adapter=rslora", "adapter.label=LoRA-16"],
    "quantised": ["backbone.quantize=4bit"],
    "another model": ["recipe=none", "backbone=smollm2_135m"],
    "no recipe": ["recipe=none"],
}


@pytest.mark.parametrize("overrides", OTHER_SETTINGS.values(), ids=OTHER_SETTINGS)
def test_a_run_by_other_settings_stands_beside_nothing(overrides):
    papers, other = (record_of(entry) for entry in plan(LORA, [*LORA, *overrides]))
    assert len(EXPERIMENT.paper_scores(EXPERIMENT, papers)) == 8
    assert EXPERIMENT.paper_scores(EXPERIMENT, other) == {}
    assert [cell for cell in cells_of(*LORA, *overrides) if cell.ours is not None] == []


OTHER_DATA = {
    "a subset of a test set": lambda record: record["data"]["sizes"].update(boolq=3269),
    "a test set that is not there": lambda record: record["data"]["sizes"].pop("piqa"),
    "a task without a score": lambda record: record["scores"]["test"].pop("openbookqa"),
    "a part of the training set": lambda record: record["data"]["sizes"].update(train=14_000),
    "a training set of another size": lambda record: record["data"]["sizes"].update(train=13_000, available=13_000),
    "weights from another repository": lambda record: record["identity"].update(weights="hub Qwen/Qwen2.5-0.5B@1"),
    "weights from a file": lambda record: record["identity"].update(weights="file " + "0" * 64),
    "random weights": lambda record: record["config"]["backbone"].update(pretrained=False),
}


@pytest.mark.parametrize("change", OTHER_DATA.values(), ids=OTHER_DATA)
def test_a_run_on_other_data_or_weights_stands_beside_nothing(change):
    record = copy.deepcopy(record_of(plan(LORA)[0]))
    change(record)
    assert EXPERIMENT.paper_scores(EXPERIMENT, record) == {}
    cells = cells_of(*LORA, change=change)
    assert len(cells) == 9 and {cell.ours for cell in cells} == {None}


def test_a_tuned_rate_is_the_papers_run_and_seeds_are_averaged():
    tuned = [*LORA, "training.learning_rate=3e-4"]
    cells = cells_of(*tuned, change=lambda record: record["learning_rate"].update(source="tuned"))
    assert all(cell.ours is not None for cell in cells)
    planned = plan([*LORA, "seed=1"], [*LORA, "seed=2"])
    records = [record_of(entry) for entry in planned]
    records[1]["scores"]["test"]["boolq"]["value"] = 0.60
    assert paper_cells(collect(planned, records), [TABLE_15])[0].ours == pytest.approx(55.0)
    records[1]["data"]["sizes"]["boolq"] -= 1
    assert paper_cells(collect(planned, records), [TABLE_15])[0].ours is None


def test_every_rank_and_model_of_the_comparisons_has_its_number_and_counts():
    """Each row of the files that ship stands beside the paper's of its own method, rank, model and training set."""
    for name, count in (("paper/commonsense", 47 * 9), ("paper/dora", 12)):
        comparison = load_comparison(name)
        planned = plan(*(overrides for _, overrides in comparison.runs(EXPERIMENT.name)))
        results = collect(planned, [record_of(entry) for entry in planned])
        cells = paper_cells(results, comparison.file.published)
        assert len(cells) == count and all(cell.ours is not None for cell in cells)
        for cell in cells:
            kind, _, rank = cell.label.partition("-")
            assert (cell.number.method, str(cell.number.rank)) == (kind, rank) or cell.label == "Zero-shot"
        assert all(cell.ours == pytest.approx(53.5) for cell in cells if is_average(cell.number))


def test_both_rows_of_the_sparsity_study_stand_beside_table_3():
    comparison = load_comparison("paper/sparsity")
    planned = plan(*(overrides for _, overrides in comparison.runs(EXPERIMENT.name)))
    cells = paper_cells(collect(planned, [record_of(entry) for entry in planned]), comparison.file.published)
    found = [(cell.label, cell.amount, cell.number.value, cell.ours) for cell in cells]
    ours = pytest.approx(53.5)
    assert found == [
        ("RandLoRA-30", "commonsense_170k", 85.59, ours),
        ("RandLoRA-sparse-30", "commonsense_170k", 85.42, ours),
    ]


@pytest.mark.parametrize("basis", ["normal", "ternary", "sparse"])
def test_other_bases_under_randloras_label_stand_beside_nothing(basis):
    sparsity = ["adapter.sparsity=6"] if basis == "ternary" else []
    base = [*LORA[:3], "adapter=randlora"]
    uniform, other = plan(base, [*base, f"adapter.basis={basis}", *sparsity])
    assert uniform.label == other.label == "RandLoRA-5"
    assert len(EXPERIMENT.paper_scores(EXPERIMENT, record_of(uniform))) == 8
    assert EXPERIMENT.paper_scores(EXPERIMENT, record_of(other)) == {}


def test_the_tables_have_the_training_sets_as_columns_and_the_csv_names_them():
    planned = plan(LORA, [*LORA, "dataset=commonsense_170k"])
    results = collect(planned, [record_of(planned[0]), None])
    report = make_report(results, published=[TABLE_15])
    averages, small, large = (table for table in report.tables if TABLE_15.file in table.title)
    assert averages.columns == ("Method", "", "commonsense_15k", "commonsense_170k")
    assert averages.rows[:2] == (("LoRA-16", "paper", "53.25", "57.37"), ("", "ours", "53.5", "-"))
    assert small.title.startswith("Qwen2-0.5B, commonsense_15k: ") and small.rows[1][2] == "50.0"
    assert small.columns[2:] == (*(task.paper_name for task in TASKS.values()), "Average")
    assert large.title.startswith("Qwen2-0.5B, commonsense_170k: ") and set(large.rows[1][2:]) == {"-"}
    assert "9 of 18 cells of ours are filled" in " ".join(report.notes)
    rows = list(csv.DictReader(io.StringIO(to_csv(CSV_COLUMNS, paper_csv_rows(results, report.paper)))))
    assert [row["training_set"] for row in rows] == ["commonsense_15k"] * 9 + ["commonsense_170k"] * 9
    assert rows[8]["ours"] == "53.5"


def test_memory_stands_beside_the_submissions_as_ratios_to_lora():
    comparison = load_comparison("paper/dora")
    planned = plan(*(overrides for _, overrides in comparison.runs(EXPERIMENT.name)))
    records = [record_of(entry) for entry in planned]
    for entry, record in zip(planned, records, strict=True):
        record["memory"]["peak_bytes"] = 3_000_000_000 if entry.label == "RandLoRA-60" else 2_000_000_000
    report = make_report(collect(planned, records), published=comparison.file.published)
    (table,) = (table for table in report.tables if "Paper GB" in table.columns)
    assert table.columns[3:] == ("Peak MB", "/ LoRA-16", "Paper GB", "Paper / LoRA-16")
    rows = {row[0]: row[3:] for row in table.rows}
    assert rows["LoRA-16"] == ("2,000", "1.00", "39.5", "1.00") and rows["DoRA-16"] == ("2,000", "1.00", "-", "-")
    assert rows["RandLoRA-60"] == ("3,000", "1.50", "40", "1.01")
    assert "only the ratios to LoRA-16 can be compared" in table.title


def test_a_file_of_averages_needs_all_eight_tasks_and_says_what_table_15_says():
    table_1 = PublishedRows(file="table01_commonsense_averages.csv", rows=TABLE_15.rows)
    (datasets,) = {table_1.table.datasets_of(number) for number in table_1.table.numbers}
    assert datasets == tuple(task.paper_name for task in TASKS.values())
    (cell,) = cells_of(*LORA, published=table_1)
    assert (cell.number.value, cell.ours) == (53.2, pytest.approx(53.5))
    (cell,) = cells_of(*LORA, published=table_1, change=lambda record: record["data"]["sizes"].update(boolq=100))
    assert cell.ours is None
    by_task = {key(number): number.value for number in read_published(TABLE_15.file).numbers if is_average(number)}
    for file in (table_1.file, "submission_table01_commonsense_averages.csv", "table06_dora_llama3.csv"):
        shared = [number for number in read_published(file).numbers if key(number) in by_task]
        assert len(shared) >= 8
        for number in shared:
            assert by_task[key(number)] == pytest.approx(number.value, abs=0.0501)


def test_quantised_runs_have_rows_of_their_own():
    """They would else be two runs of one method at one point, which tables refuse."""
    planned = plan(*([*LORA, f"backbone.quantize={bits}"] for bits in ("null", "4bit", "8bit")))
    assert [entry.label for entry in planned] == ["LoRA-16", "LoRA-16 4bit", "LoRA-16 8bit"]
    assert {entry.config.adapter.label for entry in planned} == {"LoRA-16"}
    records = [record_of(entry) for entry in planned]
    for record, peak in zip(records, (3e9, 1e9, 2e9), strict=True):
        record["memory"]["peak_bytes"] = int(peak)
    results = collect(planned, records)
    assert len(results.points) == 1 and len(set(results.families.values())) == 3  # and so a curve each in figures
    report = make_report(results, [["LoRA-16 4bit", "LoRA-16"]], published=[TABLE_15])
    (table,) = (table for table in report.tables if "Peak MB" in table.columns and "LR" in table.columns)
    peaks = {row[0]: row[table.columns.index("Peak MB")] for row in table.rows}
    assert peaks == {"LoRA-16": "3,000", "LoRA-16 4bit": "1,000", "LoRA-16 8bit": "2,000"}
    assert {cell.label for cell in report.paper} == {"LoRA-16"}  # the paper quantises nothing
    assert {pair.method for pair in report.pairs} == {"LoRA-16 4bit"}
    assert [label_of(record["config"]) for record in records] == [entry.label for entry in planned]
    settings = [
        [f"backbone.quantize={bits}", f"training.epochs={epochs}"] for bits in ("null", "4bit") for epochs in (1, 2)
    ]
    labels = [entry.label for entry in train._told_apart(plan(*([*LORA, *more] for more in settings)))]
    assert labels == [f"LoRA-16 training.epochs={epochs}{bits}" for bits in ("", " 4bit") for epochs in (1, 2)]
