import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from randlora_core.experiment.records import lock
from randlora_core.experiment.records.lock import UnderWayError, find_holder, run_lock

HOLDER = """
import sys, time
from pathlib import Path
from randlora_core.experiment.records.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "0123456789abcdef.lock"


@pytest.fixture
def holder(path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def leave(path, seconds_ago=0.0, **facts):
    """A lock file as a holder on another machine leaves it, touched so long before this moment of the file system."""
    path.write_text(json.dumps({"process": 7, "host": "node7", "kernel": "another", **facts}) if facts else "")
    touched = path.stat().st_mtime - seconds_ago
    os.utime(path, (touched, touched))


def test_one_process_holds_it_and_leaves_nothing(path):
    assert find_holder(path) is None
    with run_lock(path):
        assert find_holder(path).startswith(f"process {os.getpid()} on ")
        with pytest.raises(UnderWayError), run_lock(path):
            pass
        assert path.exists()
    assert find_holder(path) is None and list(path.parent.iterdir()) == []


def test_an_error_frees_it(path):
    with pytest.raises(KeyError), run_lock(path):
        raise KeyError
    with run_lock(path):
        pass


def test_of_two_processes_one_gets_it_and_the_other_is_told_who_has_it(path, holder):
    message = f"0123456789abcdef is under way in process {holder.pid} on "
    with pytest.raises(UnderWayError, match=message), run_lock(path):
        pass
    assert str(holder.pid) in find_holder(path)
    os.utime(path, (1, 1))  # on one machine the operating system decides, not the time
    assert str(holder.pid) in find_holder(path)


def test_a_killed_holder_frees_it_at_once(path, holder):
    holder.kill()
    holder.wait()
    assert path.exists() and find_holder(path) is None
    with run_lock(path):
        assert str(os.getpid()) in find_holder(path)
    assert not path.exists()


@pytest.mark.parametrize("facts", [{}, {"host": "node8"}])
def test_a_holder_on_another_machine_keeps_it_as_long_as_it_touches_it(path, facts):
    """What such a holder leaves while `flock` does not reach this machine; without facts it is just being written."""
    leave(path, lock.LEASE_SECONDS / 2, **facts)
    with pytest.raises(UnderWayError, match="node8" if facts else "just starting"), run_lock(path):
        pass
    leave(path, lock.LEASE_SECONDS * 2, **facts)
    assert find_holder(path) is None
    with run_lock(path):
        assert str(os.getpid()) in find_holder(path)


def test_the_holder_touches_it(path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with run_lock(path):
        os.utime(path, (1, 1))
        for _ in range(1000):
            if path.stat().st_mtime > 1:
                break
            time.sleep(0.01)
        assert path.stat().st_mtime > 1


def test_a_holder_that_lost_it_leaves_the_next_ones_alone(path):
    with run_lock(path):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_a_holder_whose_file_was_taken_over_leaves_it(path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with run_lock(path):
        path.write_text(
            json.dumps({"process": 1, "host": "elsewhere", "kernel": None})
        )  # as a taker writes it, in place
        os.utime(path, (1, 1))
        time.sleep(0.1)
        assert path.stat().st_mtime == 1  # it does not beat for the other
    assert json.loads(path.read_text())["host"] == "elsewhere"


def test_a_look_at_the_lock_keeps_nobody_from_taking_it(path):
    leave(path, process=1, host=lock.platform.node(), kernel=lock._kernel())
    looking = os.open(path, os.O_RDONLY)
    lock.fcntl.flock(looking, lock.fcntl.LOCK_SH)  # as `find_holder` does for an instant
    threading.Timer(lock.SECONDS_BETWEEN_LOOKS, os.close, [looking]).start()
    with run_lock(path):
        assert json.loads(path.read_text())["process"] == os.getpid()


def test_where_the_file_system_has_no_locks_the_lease_decides(path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with run_lock(path):
        assert str(os.getpid()) in find_holder(path)
        with pytest.raises(UnderWayError), run_lock(path):
            pass
        touched = path.stat().st_mtime - 2 * lock.LEASE_SECONDS
        os.utime(path, (touched, touched))
        assert find_holder(path) is None
    assert not path.exists()
