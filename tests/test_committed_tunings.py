"""Every committed search of a learning rate has come to its end by the rule of today."""

from pathlib import Path

import pytest

from randlora_core.experiment.interface import find_experiment
from randlora_core.experiment.rates import committed_tunings
from randlora_core.experiment.records.reading import label_of
from randlora_core.experiment.sweeps.comparison_file import load_comparison
from randlora_core.experiment.sweeps.comparison_names import comparison_names
from randlora_core.experiment.sweeps.rate_grid import best_values, scores_of, widen

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(ROOT.glob("*/records/tuning_*.jsonl"))


@pytest.fixture(scope="module")
def rules():
    """File of a comparison's tuning -> the comparison's rule for grids."""
    return {f"tuning_{one.name}.jsonl": one.file.tuning for one in map(load_comparison, comparison_names())}


def searches_of(file):
    """(label and the search's first digits, its scores) for every search of a file, told apart as runs choose them."""
    for tuned, tunings in committed_tunings(find_experiment(file.parents[1].name).records_folder).items():
        for (precision, origin), records in tunings.items():
            if origin == file:
                yield f"{label_of(records[0]['config'])} {tuned[:8]} {precision}", scores_of(records)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parents[1].name}-{file.stem}")
def test_every_search_of_a_committed_tuning_is_finished(file, rules):
    rule = rules[file.name]
    searches = dict(searches_of(file))
    more = {name: values for name, scores in searches.items() if (values := widen(scores, rule.limit))}
    assert searches and more == {}, "values that these searches have still to try"
    short = {name: sorted(scores) for name, scores in searches.items() if len(scores) < rule.num_values}
    assert short == {}, f"fewer values than the first grid's {rule.num_values}"


def test_a_search_that_stopped_early_would_be_found(rules):
    """What was tried above the best value is taken out of each search: none of them would pass."""
    assert len(FILES) > 10
    for file in FILES:
        for name, scores in searches_of(file):
            cut = {value: score for value, score in scores.items() if value <= best_values(scores)[-1]}
            if len(cut) < len(scores):
                assert widen(cut, rules[file.name].limit), name
