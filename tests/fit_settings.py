"""Settings of the training loop that tests change where it matters to them."""

from randlora_core.experiment.loop.fit import FitSettings


def settings(**changes):
    usual = {
        "steps": 7,
        "accumulate": 1,
        "learning_rate": 0.05,
        "weight_decay": 0.1,
        "clip": 1.0,
        "precision": "fp32",
        "schedule": "cosine",
        "warmup_steps": 0,
        "floor": 0.01,
        "seed": 3,
        "validate_every": None,
        "keep_best": False,
        "workers": 0,
    }
    return FitSettings(**{**usual, **changes})
