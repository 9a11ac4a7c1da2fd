import pytest

from randlora_core.experiment.commands import options
from randlora_core.experiment.commands.options import make_parser, split_arguments
from randlora_core.experiment.sweeps.executors import Execution


def test_overrides_may_stand_anywhere_among_the_options():
    words, pairs = split_arguments(["--datasets", "digits", "paths.data=/d", "longer", "~shots", "--jobs", "2", "+a=1"])
    assert words == ["--datasets", "digits", "longer", "--jobs", "2"] and pairs == ["paths.data=/d", "~shots", "+a=1"]
    assert split_arguments(["--output=file"]) == (["--output=file"], [])


def test_an_unknown_option_says_what_is_accepted():
    parser = make_parser("some.command", "", "")
    with pytest.raises(
        ValueError, match="unrecognized arguments: --wrong; accepted: SETTING=VALUE, --help, --traceback"
    ):
        parser.parse_args(["--wrong"])


def read_execution(*words):
    parser = make_parser("some.command", "", "")
    options.add_execution(parser)
    return options.read_execution(parser.parse_args(words))


def test_a_sweep_is_started_by_one_process(monkeypatch):
    assert read_execution("--jobs", "3") == Execution(3) and read_execution() == Execution(options.default_jobs())
    with pytest.raises(ValueError, match="jobs=0; accepted: 1 or more"):
        read_execution("--jobs", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="accepted: without torchrun and accelerate launch"):
        read_execution("--jobs", "1")


def test_runs_are_done_here_or_as_a_file_says(tmp_path):
    there = read_execution("--executor", "slurm")
    assert there.jobs == options.SLURM_JOBS and there.slurm.cluster == "slurm"
    (tmp_path / "mine.yaml").write_text("{minutes: 10, cpus: 3, gpus: 0}")
    mine = read_execution("--executor", str(tmp_path / "mine.yaml"), "--jobs", "2")
    assert (mine.jobs, mine.slurm.cpus) == (2, 3)
    with pytest.raises(ValueError, match=r"^executor=cloud; accepted: local, slurm, or a YAML file like "):
        read_execution("--executor", "cloud")


def test_small_models_run_side_by_side_and_a_gpu_is_not_shared(monkeypatch):
    for cores, expected in ((2, 2), (64, 4)):
        monkeypatch.setattr(options, "usable_cores", lambda cores=cores: cores)
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        assert options.default_jobs() == expected
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert options.default_jobs() == 1
