"""The scores that tests of kept weights must not give: those of a run's task before anything is trained or loaded."""

from randlora_core.experiment.loop.distributed import evaluating
from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.running import build_task, score_section


def untrained_scores(experiment, overrides):
    """The test scores of the run of these overrides, as a record has them, without its training."""
    config = plan_run(experiment, overrides).config
    task, device = build_task(experiment, config)
    with evaluating(task.module, device):
        return score_section(task.evaluate("test", device, config.training.precision), task.test_sets)["test"]
