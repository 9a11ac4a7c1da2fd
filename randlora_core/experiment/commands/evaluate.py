"""The evaluation command: loads what a run kept and scores it, on its own test sets or on other ones.

    python -m vision_language.evaluate run=0123456789abcdef                  a run in the results folder
    python -m vision_language.evaluate run=/folder/weights dataset=gtsrb     a folder that a run has written

Only runs with save.adapter=true keep what they trained. Overrides change the run's own configuration.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from randlora_core.experiment.adaptation import RUN_FILE, load_weights
from randlora_core.experiment.commands.options import make_parser, run_command, split_arguments
from randlora_core.experiment.interface import Experiment
from randlora_core.experiment.loop.distributed import evaluating
from randlora_core.experiment.planning import results_folder, settled
from randlora_core.experiment.rates import build_config
from randlora_core.experiment.running import build_task, score_section
from randlora_core.files import atomic_file


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> int:
    """Runs the command line of an experiment and returns the exit code."""
    return run_command(lambda words: _main(experiment, words), arguments, "nothing is kept")


def _main(experiment: Experiment, arguments: Sequence[str]) -> int:
    words, pairs = split_arguments(arguments)
    parser = make_parser(f"{experiment.name}.evaluate", __doc__ or "", "run=ID_OR_FOLDER [SETTING=VALUE ...]")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write scores and predictions as JSON")
    options = parser.parse_args(words)
    runs = [text.removeprefix("run=") for text in pairs if text.startswith("run=")]
    if len(runs) != 1:
        raise ValueError(f"{len(runs)} runs given; accepted: one run=ID_OR_FOLDER")
    overrides = [text for text in pairs if not text.startswith("run=")]
    scores = evaluate_run(experiment, runs[0], overrides)
    for name, score in scores["test"].items():
        print(f"{name}: {100 * score['value']:.2f} % of {score['size']}")
    if scores["mean"] is not None and len(scores["test"]) > 1:
        print(f"mean: {100 * scores['mean']:.2f} %")
    if options.output:
        with atomic_file(options.output) as part:
            part.write_text(json.dumps({"run": runs[0], "overrides": overrides, "scores": scores}, indent=1))
        print(f"written: {options.output}")
    return 0


def evaluate_run(experiment: Experiment, name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Builds a run's task anew, loads what it trained, and scores it.

    Args:
        experiment: The experiment.
        name: A run's identity in the results folder, or a folder that a run has written.
        overrides: Changes of the run's configuration, such as another data set.

    Returns:
        The scores as a record has them.

    Raises:
        ValueError: There is no such run, it kept nothing, or what it kept does not fit, as a head of other classes.
    """
    for text in overrides:
        if text.lstrip("+~").startswith(("adapter", "seed", "training.")) and not text.startswith("training.precision"):
            raise ValueError(f"{text}: the run has been trained; accepted: what it is scored on, such as dataset=NAME")
    folder = _find(experiment, name, overrides)
    kept = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    recorded = kept["config"]
    config = settled(build_config(experiment, overrides, recorded))
    if (weights := experiment.identify_weights(config)) != kept["weights"]:
        raise ValueError(f"the run was trained on the weights {kept['weights']!r}; here are {weights!r}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    task, device = build_task(experiment, config)
    load_weights(folder, task, config)
    with evaluating(task.module, device):
        return score_section(task.evaluate("test", device, config.training.precision), task.test_sets)


def _find(experiment: Experiment, name: str, overrides: Sequence[str]) -> Path:
    """The folder of trained weights that a run's identity or a path means."""
    results = results_folder(build_config(experiment, [text for text in overrides if text.startswith("paths.")]))
    places = [Path(name), Path(name) / "weights", results / experiment.name / name / "weights"]
    for place in places:
        if (place / RUN_FILE).is_file():
            return place
    tried = ", ".join(str(place) for place in places[1:])
    raise ValueError(f"run={name}: no {RUN_FILE} in {tried}; accepted: a run that finished with save.adapter=true")
