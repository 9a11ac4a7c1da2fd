"""The paper's numbers stand beside ours only where backbone, weights and splits are the paper's."""

import copy
import csv
import dataclasses
import io

import pytest

from randlora_core.datasets.catalog import CATALOG
from randlora_core.experiment.planning import plan_runs
from randlora_core.experiment.reports.formats import to_csv
from randlora_core.experiment.reports.paper_tables import (
    CSV_COLUMNS,
    cost_tables,
    paper_case,
    paper_cells,
    paper_csv_rows,
    paper_tables,
)
from randlora_core.experiment.reports.published import AVERAGE, PublishedRows
from randlora_core.experiment.reports.report import make_report
from randlora_core.experiment.reports.results import collect_results
from randlora_core.experiment.running import opening
from vision_language.experiment import EXPERIMENT as REAL

ENTRIES = {entry.paper_name: entry for entry in CATALOG.values() if entry.paper_name}
METHODS = {"LoRA-32": ["adapter=lora", "adapter.rank=32"], "RandLoRA-6": ["adapter=randlora", "adapter.rank=6"]}
ROWS = {"LoRA-32": {"method": "LoRA", "rank": 32}, "RandLoRA-6": {"method": "RandLoRA", "rank": 6}}
TABLE_11 = PublishedRows(file="table11_clip_vit_b32.csv", rows=ROWS)
WEIGHTS = "hub timm/vit_base_patch32_clip_224.openai@" + "a" * 40
EXPERIMENT = dataclasses.replace(
    REAL, identify_data=lambda config: f"data of {config.dataset}", identify_weights=lambda config: WEIGHTS
)
SIZES = {"4 shots": ["shots=4"], "100 %": ["fraction=1.0"]}


def record_of(planned, score=0.5, **data):
    """A record of a run on exactly what the paper used."""
    entry = CATALOG[planned.config.dataset]
    train = entry.num_train_and_validation - entry.num_validation
    sizes = {"train": train if planned.config.shots is None else 4 * entry.num_classes}
    sizes |= {"validation": entry.num_validation, "test": entry.num_test}
    about = {"name": entry.key, "paper_name": entry.paper_name, "is_subset": False, "sizes": sizes, "remarks": []}
    return {
        **opening(planned),
        "status": "finished",
        "data": about | data,
        "parameters": {"trainable": 1000},
        "scores": {"validation": score, "mean": score, "test": {"test": {"value": score, "predictions": None}}},
        "solution": None,
        "time": {"train_seconds": 10.0},
        "memory": {"peak_bytes": 2_000_000_000, "counter": "c"},
    }


def overrides(dataset, size, method, seed=1):
    return [*METHODS[method], *SIZES[size], f"dataset={dataset}", f"seed={seed}", "backbone=clip_vit_b32"]


@pytest.fixture(scope="module")
def planned():
    """Two methods on the paper's 22 data sets with 4 shots and with all images."""
    runs = [overrides(e.key, size, method) for size in SIZES for e in ENTRIES.values() for method in METHODS]
    return plan_runs(EXPERIMENT, runs, inputs_needed=False)


@pytest.fixture(scope="module")
def records(planned):
    return [record_of(entry, 0.5 if entry.label == "LoRA-32" else 0.6) for entry in planned]


def collect(planned, records):
    known = {id(entry): record for entry, record in zip(planned, records, strict=True)}
    return collect_results("figure3", planned, lambda entry: known[id(entry)])


def find(records, dataset):
    """LoRA-32's record on all images of a data set."""
    (found,) = (
        record
        for record in records
        if (record["data"]["name"], record["config"]["adapter"]["label"], record["config"]["shots"])
        == (dataset, "LoRA-32", None)
    )
    return found


def at(cells, label, dataset, shots=None):
    (found,) = (
        cell for cell in cells if (cell.label, cell.number.dataset, cell.number.shots) == (label, dataset, shots)
    )
    return found


def test_a_record_on_what_the_paper_used_fills_ours_and_the_gap(planned, records):
    cells = paper_cells(collect(planned, records), [TABLE_11])
    assert len(cells) == 2 * 2 * 23 and all(cell.ours is not None for cell in cells)
    cell = at(cells, "LoRA-32", "Cars", shots=4)
    assert (cell.number.value, cell.ours, cell.gap) == (57.0, 50.0, -7.0)
    average = at(cells, "RandLoRA-6", AVERAGE)
    assert (average.number.value, average.ours, average.gap) == (84.4, pytest.approx(60.0), pytest.approx(-24.4))


def _shorter(record, split):
    record["data"]["sizes"][split] -= 1


OTHER = {
    "a subset by its own word": lambda record: record["data"].update(is_subset=True),
    "a data set of no paper's name": lambda record: record["data"].update(paper_name=None),
    "a test split of another size": lambda record: _shorter(record, "test"),
    "a validation split of another size": lambda record: _shorter(record, "validation"),
    "a training split of another size": lambda record: _shorter(record, "train"),
    "another backbone": lambda record: record["config"]["backbone"].update(name="mini_clip"),
    "random weights": lambda record: record["config"]["backbone"].update(pretrained=False),
    "another setting of the backbone": lambda record: record["config"]["backbone"].update(vision_cfg={"width": 8}),
    "weights from another repository": lambda record: record["identity"].update(weights="hub laion/CLIP-ViT-B-32@1"),
    "weights from a file": lambda record: record["identity"].update(weights="file " + "0" * 64),
}


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_a_record_on_anything_else_leaves_ours_empty_and_the_average_with_it(planned, records, change):
    """Its row and its data set keep the paper's names all the while."""
    index = records.index(find(records, "dtd"))
    assert paper_case(records[index]) == ("CLIP ViT-B/32", "DTD")
    other = copy.deepcopy(records[index])
    change(other)
    assert paper_case(other) is None
    cells = paper_cells(collect(planned, [*records[:index], other, *records[index + 1 :]]), [TABLE_11])
    for cell in cells:
        emptied = cell.label == "LoRA-32" and cell.number.dataset in ("DTD", AVERAGE) and cell.number.shots is None
        assert (cell.ours is None) == emptied and (cell.gap is None) == emptied


def test_one_record_of_a_cell_that_is_not_the_papers_is_enough(planned, records):
    (second,) = plan_runs(EXPERIMENT, [overrides("dtd", "100 %", "LoRA-32", seed=2)], inputs_needed=False)
    for is_subset in (False, True):
        whole = collect([*planned, second], [*records, record_of(second, 0.7, is_subset=is_subset)])
        cell = at(paper_cells(whole, [TABLE_11]), "LoRA-32", "DTD")
        assert cell.ours == (None if is_subset else pytest.approx(60.0))


def test_one_data_set_under_two_names_is_compared_under_neither(planned, records):
    (again,) = plan_runs(EXPERIMENT, [overrides("cars", "100 %", "LoRA-32")], inputs_needed=False)
    twice = collect([*planned, again], [*records, find(records, "stanford_cars")])
    assert at(paper_cells(collect(planned, records), [TABLE_11]), "LoRA-32", "Cars").ours == 50.0
    assert at(paper_cells(twice, [TABLE_11]), "LoRA-32", "Cars").ours is None


def test_tables_are_laid_out_as_the_papers_appendix_with_averages_first(planned, records):
    results = collect(planned, records)
    averages, four, whole = paper_tables(results, paper_cells(results, [TABLE_11]))
    assert averages.title.startswith("CLIP ViT-B/32, average over data sets: ")
    assert averages.columns == ("Method", "", "4 shots", "100 %")
    assert averages.rows == (
        ("LoRA-32", "paper", "66.8", "82.2"),
        ("", "ours", "50.0", "50.0"),
        ("", "gap", "-16.8", "-32.2"),
        ("RandLoRA-6", "paper", "70.4", "84.4"),
        ("", "ours", "60.0", "60.0"),
        ("", "gap", "-10.4", "-24.4"),
    )
    assert four.title.startswith("CLIP ViT-B/32, 4 shots: ") and whole.title.startswith("CLIP ViT-B/32, 100 %: ")
    assert four.columns[:4] == ("Method", "", "Cars", "DTD") and four.columns[-1] == "Average" and len(four.rows) == 6
    assert set(four.columns[2:-1]) == set(ENTRIES) and len(four.columns) == 25


def test_what_was_not_run_is_a_dash_and_is_counted(planned):
    results = collect(planned, [None] * len(planned))
    cells = paper_cells(results, [TABLE_11])
    assert {row[2:] for table in paper_tables(results, cells) for row in table.rows if row[1] in ("ours", "gap")} == {
        ("-",) * 2,
        ("-",) * 23,
    }
    notes = make_report(results, published=[TABLE_11]).notes
    assert "Beside the paper's numbers: 0 of 92 cells of ours are filled; the others, '-', have no run," in notes[1]
    assert notes[0].startswith("88 of 88 runs are not there")


def test_zero_shot_stands_at_every_data_size_and_is_one_run():
    runs = [["adapter=zero_shot", *amount, "dataset=dtd", "backbone=clip_vit_b32"] for amount in SIZES.values()]
    twice = plan_runs(EXPERIMENT, runs, inputs_needed=False)
    empty, filled = collect(twice, [None, None]), collect(twice, [record_of(twice[0])] * 2)
    assert (empty.num_expected, empty.num_missing) == (1, 1) and (filled.num_expected, filled.num_missing) == (1, 0)
    assert len(filled.points) == 2 and all(filled.score("Zero-shot", [point]).mean == 0.5 for point in filled.points)


def test_only_backbones_and_data_sizes_of_the_comparison_have_tables(planned, records):
    half = [entry for entry in planned if entry.config.shots == 4]
    results = collect(half, [record for record in records if record["config"]["shots"] == 4])
    large = PublishedRows(file="table12_clip_vit_l14.csv", rows={"LoRA-32": {"method": "LoRA", "rank": 32}})
    cells = paper_cells(results, [TABLE_11, large])
    assert {(cell.file, cell.amount) for cell in cells} == {("table11_clip_vit_b32.csv", (4, None))}
    assert len(cells) == 2 * 23
    small = plan_runs(EXPERIMENT, [["dataset=digits", *METHODS["LoRA-32"]]], inputs_needed=False)
    assert paper_cells(collect(small, [None]), [TABLE_11]) == []


def test_a_file_of_averages_alone_needs_all_of_the_papers_data_sets(planned, records):
    ablation = PublishedRows(
        file="table02_rank_ablation.csv",
        rows={"LoRA-32": {"variant": "LoRA-32"}, "RandLoRA-6": {"variant": "RandLoRA-6"}},
    )
    results = collect(planned, records)
    cells = paper_cells(results, [ablation])
    assert [(c.label, c.number.value, c.ours, c.amount) for c in cells] == [
        ("LoRA-32", 83.74, pytest.approx(50.0), (None, 1.0)),
        ("RandLoRA-6", 85.98, pytest.approx(60.0), (None, 1.0)),
    ]
    (table,) = paper_tables(results, cells)
    assert table.rows[0] == ("LoRA-32", "paper", "83.74")
    fewer = [entry for entry in planned if entry.config.dataset != "imagenet"]
    kept = [record for record in records if record["data"]["name"] != "imagenet"]
    assert [cell.ours for cell in paper_cells(collect(fewer, kept), [ablation])] == [None, None]


def test_the_csv_has_every_number(planned, records):
    results = collect(planned, records)
    rows = list(
        csv.DictReader(io.StringIO(to_csv(CSV_COLUMNS, paper_csv_rows(results, paper_cells(results, [TABLE_11])))))
    )
    (row,) = (r for r in rows if (r["method"], r["dataset"], r["shots"]) == ("LoRA-32", "Cars", "4"))
    assert (row["paper"], row["ours"], row["fraction"], row["model"]) == ("57.0", "50.0", "-", "CLIP ViT-B/32")
    assert len(rows) == 92 and {row["fraction"] for row in rows} == {"-", "1.0"}


def test_memory_stands_beside_the_figures_as_ratios(planned):
    """Full fine-tuning is the base of both ratios, ours and the paper's 8.5 GB."""
    full = [["adapter=full", *SIZES[size], "dataset=dtd", "backbone=clip_vit_b32"] for size in SIZES]
    lora = [overrides("dtd", size, "LoRA-32", seed=0) for size in SIZES]
    runs = plan_runs(EXPERIMENT, [*full, *lora], inputs_needed=False)
    records = []
    for entry, seconds, peak in zip(runs, (10.0, 30.0, 5.0, 10.0), (4e9, 4e9, 2e9, 3e9), strict=True):
        record = record_of(entry)
        record["time"], record["memory"] = {"train_seconds": seconds}, {"peak_bytes": peak, "counter": "c"}
        records.append(record)
    vram = PublishedRows(
        file="figure03_vram.csv",
        where={"model": "CLIP ViT-B/32"},
        rows={"Full fine-tuning": {"method": "FT"}, "LoRA-32": {"method": "LoRA"}},
    )
    (table,) = cost_tables(collect(runs, records), [vram])
    assert table.columns == ("Method", "Train s", "/ full", "Peak MB", "/ full", "Paper GB", "Paper / full")
    assert table.rows == (
        ("Full fine-tuning", "20.0", "1.00", "4,000", "1.00", "8.5", "1.00"),
        ("LoRA-32", "7.5", "0.38", "2,500", "0.62", "6.8", "0.80"),
    )
    assert "only the ratios to full can be compared" in table.title
    (without,) = cost_tables(collect(runs, records), [])
    assert without.columns == ("Method", "Train s", "/ full", "Peak MB", "/ full")
    (part,) = cost_tables(collect(runs, [*records[:3], None]), [vram])
    assert part.rows[1] == (
        "LoRA-32",
        "-",
        "-",
        "-",
        "-",
        "6.8",
        "0.80",
    )  # never the mean of the one point that is there
    (single,) = cost_tables(collect(runs[:1], records[:1]), [vram])
    assert single.rows[0][1:3] == ("10.0", "1.00") and cost_tables(collect(runs[:1], records[:1]), []) == []


def test_the_report_has_the_papers_tables_and_lines(planned, records):
    report = make_report(collect(planned, records), published=[TABLE_11])
    titles = [table.title for table in report.tables]
    assert sum("of the paper (published/table11_clip_vit_b32.csv)" in title for title in titles) == 3
    assert "92 of 92 cells of ours are filled" in " ".join(report.notes)
    assert {"accuracy", "data", "costs"} <= set(report.figures) and report.paper
    assert dataclasses.replace(report, paper=()).figures.keys() == report.figures.keys()


def test_costs_of_different_machines_are_not_averaged(planned):
    runs = plan_runs(EXPERIMENT, [overrides("dtd", size, "LoRA-32") for size in SIZES], inputs_needed=False)
    runs += plan_runs(EXPERIMENT, [overrides("sun397", size, "LoRA-32") for size in SIZES], inputs_needed=False)
    records = [record_of(entry) for entry in runs]
    (together,) = cost_tables(collect(runs, records), [])
    assert "over 4 points" in together.title and together.rows[0][1] == "10.0"
    for record in records[2:]:
        record["time"], record["provenance"] = {"train_seconds": 1000.0}, copy.deepcopy(record["provenance"])
        record["provenance"]["hardware"]["gpu"] = "another"
    here, elsewhere = cost_tables(collect(runs, records), [])
    assert [table.rows[0][1] for table in (here, elsewhere)] == ["10.0", "1000.0"]
    assert "over 2 points (dtd" in here.title and "over 2 points (sun397" in elsewhere.title


def on_machines(runs, gpus):
    """A record of every run, each on the GPU named."""
    records = [record_of(entry) for entry in runs]
    for record, gpu in zip(records, gpus, strict=True):
        record["provenance"] = copy.deepcopy(record["provenance"])
        record["provenance"]["hardware"] |= {"gpu": gpu, "cpu": "C", "threads": 1}
    return records


def test_no_cost_is_divided_by_another_machines():
    """LoRA-32 ran elsewhere than full fine-tuning; without it, no ratio is left to print."""
    full = [["adapter=full", *SIZES[size], "dataset=dtd", "backbone=clip_vit_b32"] for size in SIZES]
    lora = [overrides("dtd", size, "LoRA-32", seed=0) for size in SIZES]
    rand = [overrides("dtd", size, "RandLoRA-6", seed=0) for size in SIZES]
    runs = plan_runs(EXPERIMENT, [*full, *lora, *rand], inputs_needed=False)
    results = collect(runs, on_machines(runs, "XXYYXX"))
    here, elsewhere = cost_tables(results, [])
    assert here.columns == ("Method", "Train s", "/ full", "Peak MB", "/ full")
    assert [row[0] for row in here.rows] == ["Full fine-tuning", "RandLoRA-6"] and here.rows[1][2] == "1.00"
    assert here.title.endswith("over 2 points, on X, C, 1 thread, memory by c")
    assert elsewhere.columns == ("Method", "Train s", "Peak MB")
    assert elsewhere.rows == (("LoRA-32", "10.0", "2,000"),) and ", on Y, C, 1 thread" in elsewhere.title
    vram = PublishedRows(
        file="figure03_vram.csv",
        where={"model": "CLIP ViT-B/32"},
        rows={"Full fine-tuning": {"method": "FT"}, "LoRA-32": {"method": "LoRA"}},
    )
    _, elsewhere = cost_tables(results, [vram])
    assert elsewhere.columns[2:] == ("/ LoRA-32", "Peak MB", "/ LoRA-32", "Paper GB", "Paper / LoRA-32")
    moved = collect(runs, on_machines(runs, "XXXYXX"))  # LoRA-32 with 4 shots beside the others, with all images not
    assert [[row[:2] for row in table.rows] for table in cost_tables(moved, [vram])] == [
        [("Full fine-tuning", "10.0"), ("LoRA-32", "10.0"), ("RandLoRA-6", "10.0")],
        [("Full fine-tuning", "10.0"), ("RandLoRA-6", "10.0")],
        [("LoRA-32", "10.0")],
    ]
    crossed = collect(runs[2:], on_machines(runs[2:], "XYYX"))  # each method ran on each machine once
    assert [table.rows for table in cost_tables(crossed, [])] == 2 * [(("LoRA-32", "-", "-"), ("RandLoRA-6", "-", "-"))]


def test_without_a_row_to_divide_by_there_are_no_columns_of_ratios():
    runs = plan_runs(EXPERIMENT, [overrides("dtd", size, "LoRA-32") for size in SIZES], inputs_needed=False)
    (table,) = cost_tables(collect(runs, [record_of(entry) for entry in runs]), [])
    assert table.columns == ("Method", "Train s", "Peak MB") and table.rows == (("LoRA-32", "10.0", "2,000"),)
