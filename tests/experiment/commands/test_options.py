import signal

import pytest

from randlora_core.experiment.commands import options
from randlora_core.experiment.commands.options import make_parser, run_command, split_arguments
from randlora_core.experiment.sweeps.executors import Execution


def failing(error):
    def work(arguments):
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (ValueError("rank=0; accepted:\t1 or more"), 2, ["error: rank=0; accepted: 1 or more"]),
        (ValueError("first\n\n second "), 2, ["error: first", "error: second"]),
        (FileNotFoundError("no folder"), 2, ["error: FileNotFoundError: no folder"]),
        (RuntimeError("two\nlines"), 1, ["error: RuntimeError: two lines"]),
        (ValueError(), 2, ["error: ValueError: "]),
        (KeyboardInterrupt(), 130, ["interrupted; do it again"]),
    ],
)
def test_errors_are_lines_and_an_exit_code(capsys, error, code, lines):
    assert run_command(failing(error), [], "do it again") == code
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [line.rstrip() for line in lines] or shown.err.splitlines() == lines
    assert shown.out == ""


def test_the_traceback_is_shown_where_asked_for(capsys):
    assert run_command(failing(ValueError("bad")), ["--traceback"], "") == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "test_options.py" in shown and shown.endswith("error: bad\n")


def test_a_command_that_ends_gives_its_own_code():
    assert run_command(len, ["one", "two"], "") == 2


def test_the_processes_own_arguments_are_the_default(monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", "a", "b", "c"])
    assert run_command(len, None, "") == 3


def test_a_package_that_is_not_installed_is_told_with_its_extra(capsys):
    assert run_command(failing(ModuleNotFoundError("No module named 'hydra'", name="hydra")), [], "") == 1
    assert "experiments" in capsys.readouterr().err


def test_a_termination_is_an_interruption(capsys):
    def terminated(arguments):
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert run_command(terminated, [], "again") == 130
    assert signal.getsignal(signal.SIGTERM) == before  # the process may do something else afterwards


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
