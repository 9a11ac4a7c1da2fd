"""The evaluation command: loads what runs kept and scores it, on their own test sets or on other ones.

    python -m vision_language.evaluate run=0123456789abcdef                  a run in the results folder
    python -m vision_language.evaluate run=/folder/weights dataset=gtsrb     a folder that a run has written
    python -m vision_language.evaluate run=0123456789abcdef run=fedcba9876543210

Only runs with save.adapter=true keep what they trained. Overrides change the runs' own configurations. Of several runs,
those that follow each other with adapters on the same base and the same test sets share them: the base is built once,
and one adapter takes the other's place.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from randlora_core.adapters.inject import unload_adapter
from randlora_core.command_line import run_command
from randlora_core.experiment.adaptation import RUN_FILE, load_weights
from randlora_core.experiment.commands.options import make_parser, split_arguments
from randlora_core.experiment.config import RunConfig
from randlora_core.experiment.interface import Experiment
from randlora_core.experiment.loop.distributed import evaluating
from randlora_core.experiment.peft_tuners import PEFT
from randlora_core.experiment.planning import results_folder, settled
from randlora_core.experiment.rates import build_config
from randlora_core.experiment.records.reading import label_of
from randlora_core.experiment.running import build_task, score_section
from randlora_core.files import atomic_file, naming, read_json, require_folder


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> int:
    """Runs the command line of an experiment and returns the exit code."""
    kept = "what was scored before is in the file of --output, if there is one"
    return run_command(lambda words: _main(experiment, words), arguments, kept)


def _main(experiment: Experiment, arguments: Sequence[str]) -> int:
    words, pairs = split_arguments(arguments)
    parser = make_parser(f"{experiment.name}.evaluate", __doc__ or "", "run=ID_OR_FOLDER ... [SETTING=VALUE ...]")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write scores and predictions as JSON")
    options = parser.parse_args(words)
    if options.output:
        with naming("--output"):
            require_folder(options.output.parent)
    names = [text.removeprefix("run=") for text in pairs if text.startswith("run=")]
    overrides = [text for text in pairs if not text.startswith("run=")]
    written: list[dict[str, Any]] = []
    for run, scores in evaluate_runs(experiment, names, overrides):
        if len(names) > 1:
            print(f"{run.name}: {run.label}")
        for name, score in scores["test"].items():
            print(f"{name}: {100 * score['value']:.2f} % of {score['size']}")
        if scores["mean"] is not None and len(scores["test"]) > 1:
            print(f"mean: {100 * scores['mean']:.2f} %", flush=True)
        written.append({"run": run.name, "label": run.label, "scores": scores})
        if options.output:  # after every run, so that a later one that fails costs none of the earlier ones
            with atomic_file(options.output) as part:
                part.write_text(json.dumps({"overrides": overrides, "runs": written}, indent=1))
    if options.output:
        print(f"written: {options.output}")
    return 0


@dataclass(frozen=True)
class KeptRun:
    """A run whose trained weights are here.

    Attributes:
        name: As it was asked for.
        folder: What it kept.
        config: Its configuration, with the overrides it is to be scored with.
    """

    name: str
    folder: Path
    config: RunConfig

    @property
    def label(self) -> str:
        """The name of its row in tables."""
        return label_of(self.config.model_dump())

    @functools.cached_property
    def shared(self) -> dict[str, Any] | None:
        """What is the same in all runs whose adapters fit the same task; None where the base itself was trained.

        The precision is a part of it because the embeddings of class texts may be computed when a task is built.
        """
        if not self.config.is_adapted or self.config.adapter.method == PEFT:
            return None
        values = self.config.model_dump(exclude={*self.config.training_keys, "save", "tracking"})
        return {**values, "precision": self.config.training.precision}


def evaluate_run(experiment: Experiment, name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The scores of one run, see `evaluate_runs`."""
    ((_, scores),) = evaluate_runs(experiment, [name], overrides)
    return scores


def evaluate_runs(
    experiment: Experiment, names: Sequence[str], overrides: Sequence[str] = ()
) -> Iterator[tuple[KeptRun, dict[str, Any]]]:
    """Builds the tasks of runs anew, loads what each trained, and scores it; runs in a row share a task where they can.

    Args:
        experiment: The experiment.
        names: Of each run its identity in the results folder, or a folder that it has written.
        overrides: Changes of the runs' configurations, such as another data set.

    Yields:
        Every run with its scores as a record has them, in the order of the names.

    Raises:
        ValueError: No run is named, or, before any is scored, one does not exist, kept nothing or was trained on other
            weights; when its turn comes, what it kept does not fit, as a head of other classes.
    """
    if not names:
        raise ValueError("0 runs given; accepted: run=ID_OR_FOLDER, once or several times")
    for text in overrides:
        if text.lstrip("+~").startswith(("adapter", "seed", "training.")) and not text.startswith("training.precision"):
            raise ValueError(f"{text}: the run has been trained; accepted: what it is scored on, such as dataset=NAME")
    shared = task = None
    for run in [_find_run(experiment, name, overrides) for name in names]:
        if run.config.threads is not None:
            torch.set_num_threads(run.config.threads)
        if run.shared is None or run.shared != shared:
            shared = task = None  # an earlier base is let go before the next one is built
            task, device = build_task(experiment, run.config)
        load_weights(run.folder, task, run.config)
        with evaluating(task.module, device):
            scores = task.evaluate("test", device, run.config.training.precision)
        if (shared := run.shared) is not None:
            unload_adapter(task.model)
        yield run, score_section(scores, task.test_sets)


def _find_run(experiment: Experiment, name: str, overrides: Sequence[str]) -> KeptRun:
    folder = _find(experiment, name, overrides)
    kept = read_json(folder / RUN_FILE)
    config = settled(build_config(experiment, overrides, kept["config"]))
    if (weights := experiment.identify_weights(config)) != kept["weights"]:
        raise ValueError(f"the run was trained on the weights {kept['weights']!r}; here are {weights!r}")
    return KeptRun(name, folder, config)


def _find(experiment: Experiment, name: str, overrides: Sequence[str]) -> Path:
    """The folder of trained weights that a run's identity or a path means."""
    results = results_folder(build_config(experiment, [text for text in overrides if text.startswith("paths.")]))
    places = [Path(name), Path(name) / "weights", results / experiment.name / name / "weights"]
    for place in places:
        if (place / RUN_FILE).is_file():
            return place
    tried = ", ".join(str(place) for place in places[1:])
    raise ValueError(f"run={name}: no {RUN_FILE} in {tried}; accepted: a run that finished with save.adapter=true")
