"""A process of its own for the cases: one that hangs, crashes or leaves the GPU in error takes no other with it."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection


@contextlib.contextmanager
def worker(prepare: Callable[[], None]) -> Iterator[Callable]:
    """call(case, seconds) -> its results, or why it failed, in another process, a new one after every failure.

    prepare: runs first in each of them. It and the cases are functions that can be pickled.
    """
    child = None

    def call(case: Callable[[], dict], seconds: float) -> dict:
        nonlocal child
        child = child or start(prepare)
        process, pipe = child
        try:
            pipe.send(case)
            result = pipe.recv() if pipe.poll(seconds) else {"failed": f"ended after {seconds:.0f} s"}
        except (EOFError, ConnectionError):
            process.join()
            result = {"failed": f"its process ended with {process.exitcode}"}
        if "failed" in result:
            stop(child)
            child = None
        return result

    try:
        yield call
    finally:
        stop(child)


def start(prepare: Callable[[], None]) -> tuple[multiprocessing.Process, Connection]:
    context = multiprocessing.get_context("spawn")                               # CUDA does not survive a fork
    pipe, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, prepare))
    process.start()
    theirs.close()
    return process, pipe


def stop(child: tuple[multiprocessing.Process, Connection] | None) -> None:
    if child:
        process, pipe = child
        process.kill()
        process.join()
        pipe.close()


def serve(pipe: Connection, prepare: Callable[[], None]) -> None:
    """In the other process: runs what comes through the pipe, until nothing can come any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)                                  # Ctrl-C is the parent's to answer
    threading.Thread(target=end_with_parent, daemon=True).start()
    from bench.runner import here
    prepare()
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(here(pipe.recv(), 0.))


def end_with_parent() -> None:
    """However the parent ends, this process does too: the GPU is then free for the next command."""
    multiprocessing.parent_process().join()
    os._exit(1)
