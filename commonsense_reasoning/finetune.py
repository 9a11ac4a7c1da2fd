"""Fine-tunes a language model on your data: python -m commonsense_reasoning.finetune --base_model smollm2_135m ...

docs/finetuning.md has an example and all options.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from commonsense_reasoning.finetuning.checkpoints import find_checkpoints
from commonsense_reasoning.finetuning.hub import upload
from commonsense_reasoning.finetuning.options import Options, read_options
from commonsense_reasoning.finetuning.output import FILES, read_record
from commonsense_reasoning.finetuning.planning import PlannedTuning, plan_tuning
from commonsense_reasoning.finetuning.tuning import tune
from randlora_core.command_line import INTERRUPTED, run_command
from randlora_core.experiment.loop.hardware import is_first_process


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for bad input, 130 where a signal stopped it, else 1."""
    return run_command(_main, arguments, "before the training began: nothing was written")


def _main(arguments: Sequence[str]) -> int:
    options = read_options(arguments)
    folder = Path(options.output_dir).expanduser()
    plan = plan_tuning(options)
    if read_record(folder) is not None:
        print(f"{folder} holds the finished adapter: nothing is left to train")
    else:
        _announce(plan)
        try:
            tune(plan)
        except KeyboardInterrupt:
            return _stopped(plan, arguments)
    if is_first_process():
        _conclude(options, folder)
    return 0


def _announce(plan: PlannedTuning) -> None:
    if not is_first_process():
        return
    data, options = plan.data, plan.options
    print(f"{len(data.train):,} rows to train on and {len(data.validation):,} to validate with, {data.kind} form")
    for remark in data.remarks:
        print(f"  {remark}")
    label = f"{options.adapter_name} of rank {options.rank}"
    rows = options.batch_size * options.accumulate
    start = f", from step {plan.resumed_at} on" if plan.resumed_at else ""
    print(f"{label}: {plan.steps} steps of {rows} rows in {plan.precision}{start}", flush=True)


def _stopped(plan: PlannedTuning, arguments: Sequence[str]) -> int:
    """Says how a run that a signal stopped goes on."""
    if not is_first_process():
        return INTERRUPTED
    steps = find_checkpoints(plan.folder)
    if not steps:
        print("stopped before the first step was done: nothing was written", file=sys.stderr)
        return INTERRUPTED
    again = shlex.join([text for text in arguments if text != "--resume"])
    print(f"stopped; the state is in {plan.folder / f'checkpoint-{max(steps)}'}. To go on:", file=sys.stderr)
    print(f"  python -m commonsense_reasoning.finetune {again} --resume", file=sys.stderr)
    return INTERRUPTED


def _conclude(options: Options, folder: Path) -> None:
    """Says what there is now, and uploads it."""
    record = read_record(folder)
    metrics = record["metrics"]
    losses = {key: metrics[key] for key in ("train_loss", "validation_loss") if key in metrics}
    shown = ", ".join(f"{key.replace('_', ' ')} {loss:.4f}" for key, loss in losses.items())
    kind = "PEFT's format" if record["format"] == "peft" else f"randlora_core's format ({record['format_reason']})"
    print(f"{shown}; {record['parameters']['trainable']:,} trained parameters")
    print(f"adapter in {kind}: {folder}")
    print(f'try it: python -m commonsense_reasoning.generate --model {shlex.quote(str(folder))} --prompt "..."')
    if options.push_to_hub:
        print(f"uploaded: {upload(folder, FILES, options.hub_model_id)}")


if __name__ == "__main__":
    sys.exit(main())
