import array
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import fake_runs
import pytest
from fake_runs import messages

from randlora_core.experiment.sweeps import forkserver

HARMLESS_THREADS = {"jemalloc_bg_thd"}
"""Background thread of pyarrow's allocator, which handles forks itself."""


@pytest.fixture(scope="module", autouse=True)
def server():
    forkserver.start_server(["torch", "randlora_core.experiment.running"])


@pytest.mark.slow
def test_the_server_has_imported_the_heavy_packages_and_run_no_kernel(tmp_path):
    """A pool of OpenMP or BLAS threads in the server would be missing in the children, which could then hang."""
    script = """
import json, fake_runs
from randlora_core.experiment.sweeps import forkserver
from randlora_core.experiment.commands.execution import PRELOAD
from vision_language.experiment import EXPERIMENT
if __name__ == "__main__":
    forkserver.start_server([*PRELOAD, *EXPERIMENT.preload])
    print(json.dumps(fake_runs.call(fake_runs.inspect_process, ("sklearn.linear_model",))))
"""
    (tmp_path / "script.py").write_text(script)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, env=environment, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["loaded"] and found["sum"] == 64**3
    assert len([name for name in found["threads"] if name not in HARMLESS_THREADS]) == 1, found["threads"]


def test_values_and_errors_come_back_from_a_child():
    assert fake_runs.call(fake_runs.inspect_process, ("json",))["sum"] == 64**3
    for function, arguments, kind, message in (
        (refuse_dataset, (), "ValueError", "unknown dataset 'nowhere'; accepted: digits"),
        (look_up, ({},), "KeyError", "'missing'"),
    ):
        (*_, (last, details)) = messages(forkserver.launch(function, arguments))
        assert (last, details["type"], details["message"]) == ("error", kind, message)
        assert function.__name__ in details["traceback"]


def test_threads_of_a_child_can_be_limited():
    child = forkserver.launch(fake_runs.inspect_process, ("json",), num_threads=1)
    kinds = list(messages(child))
    assert kinds[-1][0] == "result" and kinds[-1][1]["num_threads"] == 1


def test_an_interrupted_child_can_save_and_says_so(tmp_path):
    child = forkserver.launch(fake_runs.wait_for_ever, (str(tmp_path / "state"),))
    forkserver.wait([child])
    assert [kind for kind, _ in child.read()] == ["progress"]
    child.process.terminate()
    assert list(messages(child)) == [("interrupted", None)]
    child.close()
    assert (tmp_path / "state").read_text() == "saved"
    assert child.process.exitcode == 0


def test_a_child_whose_messages_nobody_reads_can_save_all_the_same(tmp_path):
    """It waits for room in its pipe when it is ended."""
    child = forkserver.launch(flood, (str(tmp_path / "state"),))
    unread = array.array("i", [0])
    while unread[0] < 60_000:  # of the 65,536 bytes that a pipe holds
        fcntl.ioctl(child.messages.fileno(), termios.FIONREAD, unread)
        time.sleep(0.01)
    forkserver.end([child])
    assert (tmp_path / "state").read_text() == "saved" and child.process.exitcode == 0


def test_what_stays_after_the_time_to_save_is_killed(monkeypatch):
    monkeypatch.setattr(forkserver, "GRACE_SECONDS", 0.1)
    children = [forkserver.launch(ignore_everything, ()) for _ in range(2)]
    for child in children:
        while not [kind for kind, _ in child.read()]:
            forkserver.wait([child])
    forkserver.end(children)
    assert [child.process.exitcode for child in children] == [-signal.SIGKILL] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_held_until_what_was_begun_is_done(number):
    came, done = [], []
    before = signal.signal(number, lambda number, frame: came.append(number))
    try:
        with forkserver.interrupts_held():
            os.kill(os.getpid(), number)
            done.append(list(came))
        assert done == [[]] and came == [number]
        os.kill(os.getpid(), number)
        assert came == [number, number]
    finally:
        signal.signal(number, before)


def test_what_a_child_prints_goes_to_its_log(tmp_path, capfd):
    child = forkserver.launch(print_and_fail, (), log=tmp_path / "logs" / "run.log")
    ((kind, details),) = messages(child)
    assert kind == "error" and details["type"] == "ZeroDivisionError" and "print_and_fail" in details["traceback"]
    text = (tmp_path / "logs" / "run.log").read_text()
    assert "on its way" in text and "ZeroDivisionError" in text
    assert "on its way" not in capfd.readouterr().out


def refuse_dataset(on_progress):
    raise ValueError("unknown dataset 'nowhere'; accepted: digits")


def flood(saved, on_progress):
    """Tells of steps until it is interrupted, as the training loop is: between two steps."""
    stop = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    for step in itertools.count():
        on_progress({"step": step, "filling": "." * 200})
        if stop:
            Path(saved).write_text("saved")
            raise KeyboardInterrupt


def ignore_everything(on_progress):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    on_progress({})
    threading.Event().wait()


def look_up(mapping, on_progress):
    return mapping["missing"]


def print_and_fail(on_progress):
    print("on its way", flush=True)
    return 1 / 0
