import dataclasses

import pytest
from made_up import DIFFERENCE, METHODS, SUM, collect, on_machine, plan, record_of
from matplotlib.colors import to_rgb

from randlora_core.experiment.interface import Axis
from randlora_core.experiment.rates import LearningRate
from randlora_core.experiment.reports.figures import (
    accuracy_against_data,
    accuracy_against_parameters,
    make_figures,
    save_figure,
    score_against_rate,
    time_and_memory,
)
from randlora_core.experiment.reports.paper_tables import PaperCell
from randlora_core.experiment.reports.published import AVERAGE, PublishedNumber
from randlora_core.experiment.reports.style import COLOURS, base_colour, styles

ROWS = ("LoRA-4", "RandLoRA-10")
SIZES = ((None, 0.5), (None, None), (16, None), (1, None))


@pytest.fixture
def sized(tiny, results):
    """LoRA-4, RandLoRA-10 and Zero-shot on two data sets at four data sizes, named in no order."""
    axes = (
        Axis("rule"),
        Axis("shots", lambda shots: "" if shots is None else f"{shots} shots"),
        Axis("fraction", lambda fraction: "" if fraction is None else f"{100 * fraction:g} %"),
        Axis("backbone"),
    )
    points = tuple((rule, *size, "clip_vit_b32") for size in SIZES for rule in ("a", "b"))
    methods = ("Zero-shot", "LoRA-4", "RandLoRA-10")
    cells = {(method, point): results.cell(method, SUM) for method in methods for point in points}
    del cells["RandLoRA-10", ("b", 16, None, "clip_vit_b32")]
    experiment = dataclasses.replace(tiny, axes=axes)
    return dataclasses.replace(results, experiment=experiment, points=points, methods=methods, cells=cells, rates={})


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_accuracy_against_parameters_has_points_with_intervals_and_lines_across(results):
    figure = accuracy_against_parameters(results)
    panel, other = figure.axes
    assert (panel.get_title(), other.get_title()) == ("sum", "difference") and legend(figure) == list(METHODS)
    lines = {tuple(line.get_ydata()) for line in panel.lines if line.get_linestyle() == "--"}
    assert lines == {(25.0, 25.0)} and panel.get_xscale() == "log"  # zero-shot has no learning rate
    bars = {tuple(bar.lines[0].get_data()[0]): bar for bar in panel.containers}
    heights = sorted(float(bar.lines[0].get_ydata()[0]) for bar in panel.containers)
    assert heights == pytest.approx([50.0, 75.0, 85.0]) and list(bars) == [(1000,)]
    lora = next(bar for bar in panel.containers if bar.lines[0].get_ydata()[0] == pytest.approx(75.0))
    (segment,) = lora.lines[2][0].get_segments()
    half = 100 * results.cell("LoRA-4", SUM).mean.half_width
    assert segment[:, 1] == pytest.approx([75 - half, 75 + half])
    assert len(other.containers) == 2 and results.cell("VeRA-256", DIFFERENCE) is None  # what is missing is not drawn


def test_a_line_far_below_the_panel_is_named_instead_of_drawn(tiny):
    planned = [plan(tiny, label, "sum", seed) for label in ("Zero-shot", "LoRA-4") for seed in (1, 2)]
    nothing = {"parameters": {"trainable": 0}, "learning_rate": {"value": None, "grid": [], "source": "none"}}
    records = [record_of(p, 0.1, **nothing) if p.label == "Zero-shot" else record_of(p, 0.95) for p in planned]
    figure = accuracy_against_parameters(collect(planned, records))
    (panel,) = figure.axes
    assert panel.get_xlabel() == "trainable parameters\n(below the panel: Zero-shot 10.0)"
    assert panel.get_ylim()[0] > 80 and legend(figure) == ["LoRA-4"]


def test_accuracy_against_training_images_is_in_the_order_of_their_number(sized):
    figure = accuracy_against_data(sized)
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1 shots", "16 shots", "50 %", "100 %"]
    assert panel.get_title() == "clip_vit_b32, average of 2 data sets" and legend(figure) == list(sized.methods)
    curves = {bar.get_label(): bar.lines[0] for bar in panel.containers}
    lora, randlora = (line for line in curves.values() if line.get_ydata()[0] in (pytest.approx(75), pytest.approx(85)))
    assert lora.get_ydata() == pytest.approx([75.0] * 4)
    assert [round(place) for place in randlora.get_xdata()] == [0, 2, 3]  # one data set lacks 16 shots: no average
    assert all(bar.has_yerr for bar in panel.containers)


def test_the_papers_averages_are_dashed_lines_in_the_colour_of_their_row(sized):
    def cell(value, shots, fraction, dataset=AVERAGE, model="CLIP ViT-B/32"):
        return PaperCell(
            "f.csv", "LoRA-4", PublishedNumber({}, model, "LoRA", 4, shots, fraction, dataset, value), None
        )

    paper = [cell(80.0, None, 1.0), cell(60.0, 1, None), cell(1.0, 1, None, "Cars"), cell(2.0, 1, None, model="other")]
    figure = accuracy_against_data(sized, paper)
    (panel,) = figure.axes
    (dashed,) = (line for line in panel.lines if line.get_linestyle() == "--")
    assert list(dashed.get_xdata()) == [0, 3] and list(dashed.get_ydata()) == [60.0, 80.0]
    assert to_rgb(dashed.get_color()) == to_rgb(COLOURS["lora"]) and "LoRA-4, paper" in legend(figure)


def test_time_and_memory_are_bars_and_what_was_not_measured_is_a_dash(sized):
    figure = time_and_memory(sized)
    time, memory = figure.axes
    names = [label.get_text() for label in time.get_yticklabels()]
    assert names == list(sized.methods) == [label.get_text() for label in memory.get_yticklabels()]
    bars = {names[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in time.patches}
    assert bars == {"LoRA-4": 6.0}  # the mean of 5, 6 and 7 s; RandLoRA-10 lacks a point, zero-shot trains nothing
    assert sorted(round(text.get_position()[1]) for text in time.texts) == [0, 2]
    widths = sorted(bar.get_width() for bar in memory.patches)
    assert widths == pytest.approx([100.000001, 100.000002])  # zero-shot's one run stands at every seed


def test_every_machine_has_a_row_of_bars_and_nothing_is_averaged_over_two(tiny):
    """RandLoRA-10 ran on B for sum and on A for difference, everything else on A; LoRA-4's seeds take 5 and 6 s."""
    planned = [plan(tiny, label, rule, seed) for rule in ("sum", "difference") for label in ROWS for seed in (1, 2)]
    records = []
    for entry in planned:
        elsewhere = entry.label == "RandLoRA-10" and entry.config.rule == "sum"
        took = {"time": {"train_seconds": 1000.0, "total_seconds": 1001.0}} if elsewhere else {}
        records.append(record_of(entry, **on_machine("B" if elsewhere else "A"), **took))
    figure = time_and_memory(collect(planned, records))
    shown = []
    for part in figure.subfigs:
        time, memory = part.axes
        names = [label.get_text() for label in time.get_yticklabels()]
        assert names == [label.get_text() for label in memory.get_yticklabels()]
        assert [bar.get_width() for bar in memory.patches] == [100.0] * len(names)
        shown.append((part.get_suptitle(), time.get_title(), names, [bar.get_width() for bar in time.patches]))
    assert shown == [
        ("on A, 2 threads, memory by VmHWM", "sum", ["LoRA-4"], [5.5]),
        ("on B, 2 threads, memory by VmHWM", "sum", ["RandLoRA-10"], [1000.0]),
        ("on A, 2 threads, memory by VmHWM", "difference", ["LoRA-4", "RandLoRA-10"], [5.5, 5.5]),
    ]


def test_one_machine_needs_no_name_and_two_counters_of_memory_are_two(tiny):
    planned = [plan(tiny, label, "sum", 1) for label in ROWS]
    alike = [record_of(entry, **on_machine("A")) for entry in planned]
    (part,) = time_and_memory(collect(planned, alike)).subfigs
    assert part.get_suptitle() == "" and len(part.axes[0].patches) == 2
    counted = [record_of(entry, **on_machine("A", counter)) for entry, counter in zip(planned, "cd", strict=True)]
    parts = time_and_memory(collect(planned, counted)).subfigs
    assert [part.get_suptitle() for part in parts] == ["on A, 2 threads, memory by c", "on A, 2 threads, memory by d"]
    assert [[len(panel.patches) for panel in part.axes] for part in parts] == [[1, 1], [1, 1]]


def test_the_score_against_the_learning_rate_marks_the_chosen_value(results):
    grid = tuple({"value": value, "validation": score} for value, score in ((1e-4, 0.5), (1e-3, 0.9), (1e-2, None)))
    tuned = LearningRate(1e-3, "tuned", grid=grid)
    rates = {("LoRA-4", SUM): tuned, ("LoRA-4", DIFFERENCE): tuned, ("VeRA-256", SUM): LearningRate(0.1, "preset")}
    figure = score_against_rate(dataclasses.replace(results, rates=rates))
    (panel,) = figure.axes  # both points take the same rates
    assert panel.get_title() == "learning rates for sum and 1 more" and legend(figure) == ["LoRA-4"]
    curve, chosen, failed = panel.lines
    assert list(curve.get_xdata()) == [1e-4, 1e-3] and list(curve.get_ydata()) == [50.0, 90.0]
    assert list(chosen.get_xdata()) == [1e-3] and chosen.get_markersize() > 2 * curve.get_markersize()
    assert list(failed.get_xdata()) == [1e-2] and failed.get_marker() == "x"
    other = LearningRate(1e-4, "tuned", grid=grid[:2])
    figure = score_against_rate(dataclasses.replace(results, rates={**rates, ("LoRA-4", DIFFERENCE): other}))
    assert [panel.get_title() for panel in figure.axes] == ["learning rates for sum", "learning rates for difference"]


def test_there_are_figures_only_where_there_is_something_to_draw(results, sized):
    assert list(make_figures(results)) == ["accuracy", "costs"]
    assert list(make_figures(sized)) == ["accuracy", "data", "costs"]
    assert make_figures(dataclasses.replace(sized, cells={}, rates={})) == {}


def test_the_same_figure_is_the_same_file(results, tmp_path):
    for name in ("a.png", "b.png"):
        save_figure(accuracy_against_parameters(results), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_method_has_one_colour_and_its_ranks_shades_of_it(results):
    ranks = dataclasses.replace(
        results,
        methods=("LoRA-4", "RandLoRA-10", "LoRA-16", "HIRA-8"),
        families={"LoRA-4": "lora", "LoRA-16": "lora", "RandLoRA-10": "randlora", "HIRA-8": "hira"},
    )
    looks = styles(ranks)
    assert looks["LoRA-4"].colour == to_rgb(COLOURS["lora"]) and looks["RandLoRA-10"].colour == to_rgb("#d55e00")
    blue, lighter = looks["LoRA-4"].colour, looks["LoRA-16"].colour
    assert all(pale >= full for pale, full in zip(lighter, blue, strict=True)) and lighter != blue
    alone = styles(dataclasses.replace(ranks, methods=("LoRA-4", "HIRA-8")))
    assert alone["LoRA-4"].colour == blue and alone["HIRA-8"].colour == looks["HIRA-8"].colour
    assert base_colour("a tuner of tomorrow") == base_colour("a tuner of tomorrow")
    assert len(set(COLOURS.values())) == len(COLOURS)
