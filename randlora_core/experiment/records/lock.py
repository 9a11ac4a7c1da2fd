"""A lock beside a run's record, so that no two processes do the same run at the same time.

What it guarantees:

- On one machine the lock is the operating system's (`flock`): it is exclusive, and it is free at once when its holder
  ends, however that happens.
- Between the nodes of a cluster, `flock` on a shared folder may or may not reach the other node, depending on how the
  folder is mounted. There the lock is a lease as well: its file is created exclusively, which a network file system
  does for one node only, and its holder touches it every `BEAT_SECONDS`. A file that has not been touched for
  `LEASE_SECONDS`, by the file server's clock, belongs to a holder that is gone, and is taken over.
- What remains: where `flock` does not reach the other node, a holder that stands still for longer than
  `LEASE_SECONDS` loses its lock without noticing (it leaves the file to whoever took it over), and two nodes that find
  an abandoned file within the same instant may both take it. The run is then done twice, which costs time and no
  result: both write the same record, whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

BEAT_SECONDS = 15.0
LEASE_SECONDS = 120.0
LOOKS, SECONDS_BETWEEN_LOOKS = 4, 0.05
"""How often, and how far apart, a lock that others look at is tried."""


class UnderWayError(RuntimeError):
    """Another process does this run."""


@contextlib.contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Holds a run's lock while its body runs.

    Args:
        path: The lock's file, in a folder that exists; it is removed in the end.

    Raises:
        UnderWayError: Another process holds it; the message names that process.
    """
    descriptor, name = _acquire(path)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(descriptor, name, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        if _is_file_at(descriptor, path) and _reads(descriptor, name):  # else it was taken over, and is another's
            path.unlink()
        os.close(descriptor)


def find_holder(path: Path) -> str | None:
    """The process that holds a run's lock, such as "process 4711 on node7", or None where it is free."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return _find_holder(descriptor, fcntl.LOCK_SH, path.parent)
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> tuple[int, bytes]:
    """An open file that is locked, at `path`, and what it says: this process's name."""
    looks = 0
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            locked = _flock(descriptor, fcntl.LOCK_EX)
        except FileExistsError:
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
            if (holder := _find_holder(descriptor, fcntl.LOCK_EX, path.parent)) is not None:
                looked_at = _is_looked_at(descriptor)
                os.close(descriptor)
                if not looked_at or (looks := looks + 1) == LOOKS:
                    raise UnderWayError(f"{path.stem} is under way in {holder}") from None
                time.sleep(SECONDS_BETWEEN_LOOKS)
                continue
            locked = _flock(descriptor, fcntl.LOCK_EX)  # it is already, where that is possible
        if _is_file_at(descriptor, path):
            break
        os.close(descriptor)  # its holder has removed it in the meantime
    facts = {"process": os.getpid(), "host": platform.node(), "kernel": _kernel() if locked else None}
    name = json.dumps(facts).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, name, 0)
    return descriptor, name


def _find_holder(descriptor: int, kind: int, folder: Path) -> str | None:
    """Who holds an open lock file; where nobody does, it is locked by `kind` afterwards if that is possible."""
    try:
        facts = json.loads(os.pread(descriptor, 4096, 0))
    except json.JSONDecodeError:
        facts = {}  # it has just been created
    holder = f"process {facts['process']} on {facts['host']}" if facts else "a process that is just starting"
    try:
        locked = _flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder
    kernel = facts.get("kernel")
    if locked and kernel is not None and kernel == _kernel():
        return None  # a holder on this machine would have kept us from locking
    return holder if _age(descriptor, folder) < LEASE_SECONDS else None


def _is_looked_at(descriptor: int) -> bool:
    """Whether a file that could not be locked may only be locked for an instant, by another process's `find_holder`."""
    try:
        return _flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False


def _flock(descriptor: int, operation: int) -> bool:
    """Locks an open file; False on a file system that cannot.

    Raises:
        BlockingIOError: Another process has locked it, and `operation` is not to wait.
    """
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _age(descriptor: int, folder: Path) -> float:
    """Seconds since an open file was touched, by the clock of the file system that it is on."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_mtime - os.fstat(descriptor).st_mtime


def _beat(descriptor: int, name: bytes, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            if _reads(descriptor, name):
                os.utime(descriptor)


def _reads(descriptor: int, name: bytes) -> bool:
    return os.pread(descriptor, 4096, 0) == name


def _is_file_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _kernel() -> str | None:
    """What tells the running kernel from all others, so that names of machines need not be unique."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return None
