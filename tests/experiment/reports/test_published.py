import pytest

from randlora_core.datasets.catalog import CATALOG
from randlora_core.experiment.reports import published
from randlora_core.experiment.reports.published import (
    ACCURACY,
    AVERAGE,
    PUBLISHED,
    VRAM,
    PublishedRows,
    read_published,
)
from randlora_core.experiment.sections import validated

TABLES = [
    f"table{number}.csv" for number in ("11_clip_vit_b32", "12_clip_vit_l14", "13_clip_vit_h14", "14_dinov2_vit_b14")
]


def average_of(table, method, **amount):
    (number,) = (
        one
        for one in table.numbers
        if one.method == method and one.dataset == AVERAGE and all(getattr(one, k) == v for k, v in amount.items())
    )
    return number.value


def test_one_shot_is_not_all_images():
    """The file has "1" and "1.0"; as numbers both would be 1."""
    table = read_published("table11_clip_vit_b32.csv")
    assert average_of(table, "LoRA", shots=1) == 59.3 and average_of(table, "LoRA", fraction=1.0) == 82.2
    for number in table.numbers:
        assert (number.shots is None) != (number.fraction is None)
    assert {number.shots for number in table.numbers} == {1, 2, 4, 16, None}
    assert {number.fraction for number in table.numbers} == {0.5, 1.0, None}
    assert {type(number.shots) for number in table.numbers if number.shots} == {int}


@pytest.mark.parametrize("file", TABLES)
def test_the_transcribed_entries_have_the_printed_averages(file):
    """Within what rounding of entries and average to 0.1 allows: 0.05 each."""
    table = read_published(file)
    rows = {}
    for number in table.numbers:
        rows.setdefault((number.method, number.rank, number.shots, number.fraction), {})[number.dataset] = number.value
    assert len(rows) == 30 and table.quantity == ACCURACY
    for row in rows.values():
        printed = row.pop(AVERAGE)
        assert set(row) == set(table.datasets_of(table.numbers[0]))
        assert sum(row.values()) / len(row) == pytest.approx(printed, abs=0.1)


def test_the_data_sets_are_those_of_the_catalog():
    """Table 7 as published against the sizes by which data are told to be the paper's."""
    rows = published._rows("table07_vision_datasets.csv")
    entries = {entry.paper_name: entry for entry in CATALOG.values() if entry.paper_name}
    assert [row["dataset"] for row in rows] == list(entries)
    for row in rows:
        entry = entries[row["dataset"]]
        sizes = (entry.num_classes, entry.num_train, entry.num_validation, entry.num_test, entry.epochs)
        assert sizes == tuple(int(row[key]) for key in ("classes", "train", "val", "test", "epochs_paper"))
        assert entry.in_vision_suite == (row["in_vision_only_suite"] == "yes")


def test_a_file_with_averages_alone_is_over_all_data_sets():
    ablation = read_published("table02_rank_ablation.csv")
    (datasets,) = {ablation.datasets_of(number) for number in ablation.numbers}
    assert len(datasets) == 22 and "ImageNet" in datasets
    assert [number.fraction for number in ablation.numbers] == [1.0] * 4
    dinov2 = read_published("table14_dinov2_vit_b14.csv")
    assert {len(dinov2.datasets_of(number)) for number in dinov2.numbers} == {21}


def test_a_file_can_have_averages_over_images_and_over_tasks():
    sparsity = read_published("table03_basis_distribution_sparsity.csv")
    found = [(number.amount, len(sparsity.datasets_of(number))) for number in sparsity.numbers]
    assert found == [((None, 1.0), 22)] * 7 + [("commonsense_170k", 8)] * 2


def test_a_file_with_both_quantities_is_read_by_either():
    file = "submission_table02_dora_memory.csv"
    assert {number.value for number in read_published(file).numbers if number.rank == 60} == {81.0, 84.6}
    memory = read_published(file, VRAM)
    assert {number.value for number in memory.numbers if number.rank == 60} == {40.0} and len(memory.numbers) == 8
    assert {number.training_set for number in memory.numbers} == {"commonsense_15k", "commonsense_170k"}
    rows = PublishedRows(file=file, quantity=VRAM, rows={"LoRA-16": {"method": "LoRA", "rank": 16}})
    assert [number.value for number in rows.numbers("LoRA-16")] == [39.5, 39.5]
    with pytest.raises(
        ValueError, match=r"table06_dora_llama3\.csv has no column vram_gb; accepted: files that have one"
    ):
        read_published("table06_dora_llama3.csv", VRAM)


def test_a_language_model_that_was_not_trained_stands_in_the_tables_of_the_smaller_set():
    numbers = [n for n in read_published("table15_commonsense_per_task.csv").numbers if n.method == "ZeroShot"]
    assert {number.amount for number in numbers} == {"commonsense_15k"} and len(numbers) == 3 * 9


def test_every_file_is_described_and_is_ascii_with_one_kind_of_number():
    text = (PUBLISHED / "README.md").read_text(encoding="utf-8")
    files = sorted(path.name for path in PUBLISHED.glob("*.csv"))
    assert [file for file in files if file not in text] == []
    for file in files:
        rows = published._rows(file)
        assert rows and None not in rows[0]
        if {ACCURACY, VRAM} & set(rows[0]):
            assert len(read_published(file).numbers) == sum(bool(row[read_published(file).quantity]) for row in rows)


def test_rows_of_ours_select_rows_of_theirs():
    rows = PublishedRows(
        file="table12_clip_vit_l14.csv",
        rows={"RandLoRA-8": {"method": "RandLoRA", "rank": 10}, "Full": {"method": "FT"}},
    )
    assert len(rows.numbers("RandLoRA-8")) == 6 * 23 and {n.rank for n in rows.numbers("RandLoRA-8")} == {10}
    assert {number.rank for number in rows.numbers("Full")} == {None} and rows.numbers("Zero-shot") == ()
    values = {"file": "figure03_vram.csv", "where": {"model": "CLIP ViT-L/14"}, "rows": {"A": {"method": "VeRA"}}}
    (number,) = validated(PublishedRows, values).numbers("A")
    assert (number.value, number.rank, number.model) == (23.1, 256, "CLIP ViT-L/14")
    ternary = {"distribution": "ternary", "s": "sqrt(768)"}
    values = {"file": "table03_basis_distribution_sparsity.csv", "rows": {"RandLoRA-6 sparse": ternary}}
    assert [number.value for number in validated(PublishedRows, values).numbers("RandLoRA-6 sparse")] == [85.57]


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("table99.csv", {"method": "LoRA"}, "no file 'table99.csv'; accepted: figure02_vram.csv, "),
        ("../README.md", {"method": "LoRA"}, "no file '../README.md'; accepted: "),
        ("table07_vision_datasets.csv", {"dataset": "Cars"}, "has no column accuracy or vram_gb; accepted: files that"),
        (
            "table11_clip_vit_b32.csv",
            {"ranks": 3},
            "has no column 'ranks'; accepted: table, model, method, rank, label",
        ),
        (
            "table11_clip_vit_b32.csv",
            {"rank": 8},
            "published.rows.A: no number with rank=8; accepted: one row of table11",
        ),
        ("table11_clip_vit_b32.csv", {"model": "CLIP ViT-B/32"}, "several numbers of one data set with model=CLIP"),
        ("figure03_vram.csv", {}, "rows.A"),
    ],
)
def test_rows_that_are_not_there_are_one_line(file, row, message):
    with pytest.raises(ValueError) as raised:
        validated(PublishedRows, {"file": file, "rows": {"A": row}})
    assert message in str(raised.value) and "\n" not in str(raised.value)
