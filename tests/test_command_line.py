"""Every command tells what is wrong in one line on standard error and ends with the same exit codes."""

import signal

import pytest

from randlora_core.command_line import CommandParser, run_command


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
    assert "Traceback" in shown and "test_command_line.py" in shown and shown.endswith("error: bad\n")


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


@pytest.fixture
def parser():
    parser = CommandParser(prog="some.command", words=("NAME",))
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("walk").add_argument("-s", "--speed", type=int, default=4)
    return parser


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("walk --spede 3", "unrecognized arguments: --spede 3; accepted: NAME, --help, --traceback"),
        ("walk --tracback", "unrecognized arguments: --tracback (did you mean --traceback?); accepted: NAME, --help, "),
        ("walk --speed high", "argument -s/--speed: invalid int value: 'high'"),
        ("run", "argument command: invalid choice: 'run' (choose from "),
        ("", "the following arguments are required: command"),
    ],
)
def test_a_wrong_command_line_is_one_line_without_usage(parser, capsys, words, line):
    assert run_command(lambda given: parser.parse_args(given).speed, words.split(), "") == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {line}") and printed.err.count("\n") == 1 and printed.out == ""


def test_a_right_command_line_is_read(parser):
    assert run_command(lambda given: parser.parse_args(given).speed, ["walk", "-s", "7", "--traceback"], "") == 7
