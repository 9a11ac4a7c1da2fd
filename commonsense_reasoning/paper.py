"""Tells the paper's own runs on the commonsense tasks from all others, so that its numbers stand beside those alone."""

from __future__ import annotations

from commonsense_reasoning.sources import PUBLISHED
from commonsense_reasoning.tasks import TASKS
from randlora_core.experiment.identity import identify_settings
from randlora_core.experiment.interface import Experiment
from randlora_core.experiment.rates import build_config
from randlora_core.experiment.records.reading import Record, test_scores
from randlora_core.experiment.reports.paper_tables import paper_model


def paper_scores(experiment: Experiment, record: Record) -> dict[tuple[str, str], float]:
    """The accuracies of a record in [0, 1] by (model, task) as the paper calls them, of all eight tasks or of none.

    There are none unless the record has the paper's model with its weights, one of its training sets whole, every item
    of the eight test sets, and the settings of `recipe=paper`, which ask the model by generation. The learning rate may
    be a tuned one.
    """
    model, scores = paper_model(record), test_scores(record)
    if model is None or not scores.keys() >= TASKS.keys():
        return {}
    if not _is_whole(record) or not _follows_recipe(experiment, record):
        return {}
    return {(model, task.paper_name): scores[name] for name, task in TASKS.items()}


def _is_whole(record: Record) -> bool:
    """Whether no example of the training set and no item of a test set was left out."""
    sizes, thousands = record["data"]["sizes"], PUBLISHED.get(record["config"]["dataset"])
    all_trained = sizes["train"] == sizes["available"]
    all_trained = all_trained and round((sizes["available"] + sizes["validation"]) / 1000) == thousands
    return all_trained and all(sizes.get(name) == task.test_size for name, task in TASKS.items())


def _follows_recipe(experiment: Experiment, record: Record) -> bool:
    """Whether a run has the settings of the recipe at its rank, and the label that goes with them."""
    recorded, found = record["config"], record["learning_rate"]
    adapter = recorded["adapter"]
    preset = adapter["method"]
    if preset == "randlora" and adapter["basis"] != "uniform":  # table 3's sparse bases have a file of their own
        preset = f"randlora_{adapter['basis']}"
    overrides = ["recipe=paper", f"adapter={preset}", f"backbone={recorded['backbone']['name']}"]
    overrides.append(f"dataset={recorded['dataset']}")
    if "rank" in adapter:
        overrides.append(f"adapter.rank={adapter['rank']}")
    if adapter["method"] == "randlora":  # the scale is 2 / sqrt(n) at every rank n
        overrides.append(f"adapter.alpha={2 * adapter['rank']}")
    try:
        config = build_config(experiment, overrides)
    except ValueError:  # no rule of the recipe, or no file, is of the method
        return False
    rate = found["value"] if found["source"].startswith("tuned") else config.training.learning_rate
    settings = identify_settings(config.identity(rate), experiment.name)
    return settings["group"] == record["identity"]["group"] and config.adapter.label == adapter["label"]
