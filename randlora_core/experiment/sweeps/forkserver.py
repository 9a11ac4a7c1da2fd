"""Child processes that start in milliseconds although torch takes seconds to import.

A server process imports the heavy packages once and then only forks: it runs no torch kernel, so it holds no pool of
worker threads that a fork would lose. Every run of a sweep is such a child. It can crash, be killed by the kernel for
its memory, or be interrupted without hurting the sweep, and it leaves no allocator state to the next run.

The server is the standard library's (multiprocessing's start method "forkserver"); this module adds messages from the
child, a log of what it prints, and an end that follows the parent's.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection as mp_connection
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from randlora_core.experiment.sweeps.child import Message, attempt, last_words

GRACE_SECONDS = 15.0  # what an interrupted child gets to leave its state before it is killed


def start_server(preload: Iterable[str]) -> None:
    """Starts the process that the children are forked from; does nothing where it already runs.

    Args:
        preload: Names of the modules the server imports before it forks. They must start no thread pool when imported.
            A name that cannot be imported is left to the child, which then fails with the import's own message.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(preload))
    with _without_interrupts(), _environment(OPENBLAS_NUM_THREADS="1"):
        forkserver.ensure_running()


@dataclass
class Child:
    """One running child process.

    Attributes:
        process: The process as multiprocessing knows it.
        messages: Read end of the child's messages; see `read`.
        log: File that takes what the child prints, or None where it prints to the parent's streams.
    """

    process: Any
    messages: mp_connection.Connection
    log: Path | None

    def read(self) -> Iterator[Message]:
        """Yields the messages that have arrived, the final one last."""
        while True:
            ended = not self.process.is_alive()
            if not self.messages.poll():
                if ended:
                    yield "crash", self._describe_crash()
                return
            try:
                message = self.messages.recv()
            except (EOFError, OSError):
                self.process.join()
                yield "crash", self._describe_crash()
                return
            yield message
            if message[0] != "progress":
                return

    def close(self) -> None:
        """Waits for the child that sent its final message, and kills it where it does not end."""
        self.process.join(GRACE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Ends the child at once and frees its handles."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.messages.close()

    def _describe_crash(self) -> str:
        code = self.process.exitcode
        if code is not None and code < 0:
            text = f"killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                text += " (the kernel does this when memory runs out)"
        else:
            text = f"ended with exit code {code} and no record"
        return text + last_words(self.log)


def launch(
    function: Callable[..., Any], arguments: Sequence[Any], *, log: Path | None = None, num_threads: int | None = None
) -> Child:
    """Calls `function(*arguments, on_progress=send)` in a child forked from the server.

    Args:
        function: A module-level function; its value, its exceptions and the events it passes to `on_progress` travel
            back as messages and must be picklable.
        arguments: Positional arguments, picklable.
        log: File that takes the child's output, replaced if present.
        num_threads: Threads torch may use in the child; None leaves torch's default.

    Returns:
        The child, whose messages the caller reads.
    """
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(function, tuple(arguments), sender, log, num_threads))
    with _environment(OPENBLAS_NUM_THREADS="1"):
        process.start()
    sender.close()
    return Child(process, receiver, log)


def wait(children: Iterable[Child], timeout: float | None = None) -> None:
    """Returns when one of the children has sent something or ended, or after `timeout` seconds."""
    handles: list[Any] = []
    for child in children:
        handles += [child.messages, child.process.sentinel]
    mp_connection.wait(handles, timeout)


def end(children: Iterable[Child]) -> None:
    """Interrupts the children (KeyboardInterrupt inside them), gives them time to save, and kills what is left.

    What they still send is read, since a child that waits for room in its pipe cannot save.
    """
    children = list(children)
    for child in children:
        child.process.terminate()
    deadline, waiting = time.monotonic() + GRACE_SECONDS, children
    while waiting and (left := deadline - time.monotonic()) > 0:
        wait(waiting, left)
        waiting = [child for child in waiting if all(kind == "progress" for kind, _ in child.read())]
    for child in children:
        child.process.join(max(0.0, deadline - time.monotonic()))
        child.kill()


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Keeps SIGINT and SIGTERM until the body is done: a child that is started must be known to be ended, too."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _serve(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    sender: mp_connection.Connection,
    log: Path | None,
    num_threads: int | None,
) -> None:
    """The child's life: one call, its messages, and nothing printed to the terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the parent decides
    _follow_parent()

    def work(*arguments: Any, on_progress: Callable[[Any], None]) -> Any:
        if num_threads is not None:
            import torch

            torch.set_num_threads(num_threads)
        return function(*arguments, on_progress=on_progress)

    message = attempt(work, arguments, lambda event: sender.send(("progress", event)), log)
    with contextlib.suppress(BrokenPipeError):
        sender.send(message)


def _follow_parent() -> None:
    """Interrupts this process when the one that launched it is gone, however it ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a child

    def watch() -> None:
        mp_connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process started inside inherits an ignored SIGINT, so that Ctrl-C is the parent's to handle."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    previous = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
