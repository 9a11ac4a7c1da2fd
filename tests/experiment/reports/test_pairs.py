import functools

import numpy as np
import pytest
from fake_runs import LABELS, scores_of
from made_up import SUM, collect, plan, record_of, with_predictions

from randlora_core.experiment.reports.formats import to_markdown
from randlora_core.experiment.reports.pairs import best_methods, compare_best, compare_pair, compare_pairs
from randlora_core.experiment.reports.report import describe_pair
from randlora_core.experiment.reports.tables import overview_tables


def test_the_verdict_comes_from_paired_predictions(tiny):
    """The method is right wherever its rival is and on 8 of 40 samples more; the third on 2 more, but others."""
    rival = np.where(np.arange(40) < 20, LABELS, (LABELS + 1) % 4)
    method = np.where(np.arange(40) < 28, LABELS, (LABELS + 1) % 4)
    mixed = np.where(np.arange(40) >= 18, LABELS, (LABELS + 1) % 4)  # 22 right, but other ones
    rows = {"LoRA-4": rival, "RandLoRA-10": method, "VeRA-256": mixed}
    runs = [(plan(tiny, label, "sum", seed), predicted) for label, predicted in rows.items() for seed in (1, 2)]
    runs.append((plan(tiny, "LoRA-4", "sum", 3), rival))
    found = [with_predictions(*run) for run in runs]
    for record in found:
        record["parameters"] = {"trainable": 2000 if record["config"]["adapter"]["label"] == "VeRA-256" else 1000}
    results = collect([planned for planned, _ in runs], found)
    (won,) = compare_pairs(results, [("RandLoRA-10", "LoRA-4")], [[SUM]])
    assert won.seeds == (1, 2) and won.difference.mean == pytest.approx(0.2) and won.verdict == "better"
    (lost, drawn) = compare_pairs(results, [("LoRA-4", "RandLoRA-10"), ("VeRA-256", "LoRA-4")], [[SUM]])
    assert lost.verdict == "worse"
    assert drawn.difference.mean == pytest.approx(0.05)
    assert describe_pair(results, drawn).endswith("no significant difference (2 seeds, 2.00 x parameters)")
    assert describe_pair(results, won).startswith("sum: RandLoRA-10 - LoRA-4 = +20.0 [")
    absent = compare_pair(results, "DoRA-16", "LoRA-4", [SUM])
    assert absent.difference is None


def test_there_is_no_verdict_where_a_test_set_or_its_predictions_are_missing(tiny):
    one, two = plan(tiny, "LoRA-4", "sum", 1), plan(tiny, "VeRA-256", "sum", 1)
    whole, part = record_of(one), record_of(two)
    whole["scores"], part["scores"] = scores_of({"near": 0.5, "far": 1.0}), scores_of({"near": 0.25}, sets=("a", "b"))
    assert compare_pair(collect([one, two], [whole, part]), "LoRA-4", "VeRA-256", [SUM]).difference is None
    part["scores"] = scores_of({"near": 0.25, "far": 0.5})
    assert compare_pair(collect([one, two], [whole, part]), "LoRA-4", "VeRA-256", [SUM]).difference is not None
    part["scores"]["test"]["far"]["predictions"] = None
    assert compare_pair(collect([one, two], [whole, part]), "LoRA-4", "VeRA-256", [SUM]).difference is None


def test_predictions_on_other_samples_are_not_paired(tiny):
    one, two = plan(tiny, "LoRA-4", "sum", 1), plan(tiny, "VeRA-256", "sum", 1)
    records = [with_predictions(one, LABELS), with_predictions(two, LABELS, LABELS[::-1].copy())]
    with pytest.raises(ValueError, match="VeRA-256 were tested on different samples of test"):
        compare_pair(collect([one, two], records), "LoRA-4", "VeRA-256", [SUM])


LABELS_OF = ("LoRA-4", "RandLoRA-10", "VeRA-256")


def equal_methods(generator, count, difficulty):
    """Predictions of so many equally good methods, (methods, seeds, samples): each has its own difficult samples."""
    own = generator.normal(0, 4, (count, 1, len(difficulty)))
    right = generator.random((count, 3, len(difficulty))) < 1 / (1 + np.exp(-own - difficulty))
    return np.where(right, LABELS, (LABELS + 1) % 4)


@functools.cache
def run_once(tiny, label, seed):
    planned = plan(tiny, label, "sum", seed)
    return planned, record_of(planned)


def results_of(tiny, predicted):
    """Results on the rule `sum` with these predictions by label, (seeds, samples) each."""
    runs = [
        (*run_once(tiny, label, seed + 1), row) for label, rows in predicted.items() for seed, row in enumerate(rows)
    ]
    records = [{**record, "scores": scores_of({"test": row})} for _, record, row in runs]
    return collect([planned for planned, _, _ in runs], records)


def test_the_best_score_is_marked_only_where_it_is_significantly_above_the_second_best(tiny):
    best, second, third = (np.where(np.arange(40) < right, LABELS, (LABELS + 1) % 4) for right in (36, 20, 19))
    clear = {"VeRA-256": [third] * 3, "RandLoRA-10": [best] * 3, "LoRA-4": [second] * 3}
    results = results_of(tiny, clear)
    assert best_methods(compare_best(results)) == {(SUM,): "RandLoRA-10"}
    (table,) = overview_tables(results, best_methods(compare_best(results)))
    assert table.marked == {(1, 1)} and "| **90.0 ± 0.0** |" in to_markdown(table)
    close = results_of(tiny, {**clear, "RandLoRA-10": [second] * 3, "LoRA-4": [second, third, second]})
    assert best_methods(compare_best(close)) == {} and overview_tables(close, {})[0].marked == frozenset()
    assert best_methods(compare_best(results_of(tiny, {"LoRA-4": [best] * 3}))) == {}
    assert best_methods(compare_best(results_of(tiny, {label: rows[:1] for label, rows in clear.items()}))) == {}


def test_equally_good_methods_are_rarely_marked(tiny):
    """The best two of three equal methods: a mark in 5 % of reports at most, 8 of 100 with probability 0.94."""
    generator = np.random.default_rng(3)
    marks = 0
    for _ in range(100):
        predicted = equal_methods(generator, 3, generator.normal(0, 1, 40))
        results = results_of(tiny, dict(zip(LABELS_OF, predicted, strict=True)))
        marks += bool(best_methods(compare_best(results)))
    assert marks <= 8


def test_points_and_averages_are_corrected_apart(tiny):
    """Two rules: two comparisons at points, whose p-values double, and one on their average, whose does not."""
    generator = np.random.default_rng(0)
    planned, records = [], []
    for rule in ("sum", "difference"):
        for label, level in (("LoRA-4", 0.5), ("RandLoRA-10", 0.8)):
            for seed in (1, 2, 3):
                right = generator.random(40) < level
                planned.append(plan(tiny, label, rule, seed))
                records.append(with_predictions(planned[-1], np.where(right, LABELS, (LABELS + 1) % 4)))
    results = collect(planned, records)
    pairs = compare_pairs(results, [("RandLoRA-10", "LoRA-4")], results.scopes)
    assert [len(pair.points) for pair in pairs] == [1, 1, 2]
    alone = [pair.difference.p_value for pair in pairs]
    assert pairs[2].p_value == alone[2] and sorted(p.p_value for p in pairs[:2])[0] == 2 * min(alone[:2])
    assert pairs[2].difference.mean == pytest.approx(np.mean([pair.difference.mean for pair in pairs[:2]]))
    assert describe_pair(results, pairs[2]).startswith("average of 2: RandLoRA-10 - LoRA-4 = +")
    assert f"p = {pairs[2].p_value:.2g}: " in describe_pair(results, pairs[2])


def test_an_average_needs_both_methods_at_every_point(results):
    everywhere = results.scopes[-1]
    assert len(everywhere) == 2
    assert compare_pair(results, "LoRA-4", "Zero-shot", everywhere).difference is not None
    assert compare_pair(results, "LoRA-4", "VeRA-256", everywhere).difference is None
