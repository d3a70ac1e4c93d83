"""Runs our scripts in forks of a process that has already imported torch and the project: 0.1 s, where Python takes 4.

    done = run_forked(["train.py", "--steps", "1"], cwd=tmp_path)           # in place of subprocess.run
    assert done.returncode == 0 and "saved" in done.stdout

    with forked(["train.py", "--out", str(tmp_path)]) as process:           # in place of subprocess.Popen
        process.until((tmp_path / "log.jsonl").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0 and "stopped" in process.stdout

What is run is a script of the repository ("train.py", "examples/inpaint.py"), a module ("-m", "tests.kills"), some code
("-c", "print(1)"), each with its arguments, or a function that pickle knows, which may be a functools.partial.

The server is multiprocessing's. It has read the environment once, so variables that count while modules are imported
(TRITON_INTERPRET, OMP_NUM_THREADS) cannot be changed for a fork; closed streams and Python's own flags, too, need a
fresh Python. An uncaught KeyboardInterrupt exits with 1, not by the signal.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PRELOAD = ["tests.forks", "train", "sample", "evaluate", "convert", "torch._dynamo", "sklearn.datasets",
           "matplotlib.pyplot"]


def load(run: Sequence[str]) -> tuple[Callable[[Sequence[str]], object], list[str]]:
    """The main of a script or module, and the arguments for it."""
    name, *argv = run[1:] if run[0] == "-m" else run
    return importlib.import_module(name.removesuffix(".py").replace("/", ".")).main, argv


def _child(run: Sequence[str] | Callable[[], object], cwd: Path, env: Mapping[str, str], pipes: Sequence,
           before: Callable[[], object] | None) -> None:
    """What the fork does, in a process group of its own."""
    os.setsid()
    for descriptor, pipe in enumerate(pipes, start=1):
        os.dup2(pipe.fileno(), descriptor)
        pipe.close()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
    if before:
        before()
    if callable(run):
        run()
    elif run[0] == "-c":
        sys.argv = ["-c", *run[2:]]
        exec(compile(run[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        main, argv = load(run)
        sys.argv = [*run]
        main(argv)


class Forked:
    """A running fork; the methods are those of subprocess.Popen, but stdout and stderr are what it wrote until now."""

    def __init__(self, process: multiprocessing.Process, pipes: Sequence):
        self.process, self.pid = process, process.pid
        self.pipes, self.output = pipes, [b"" for _ in pipes]

    def poll(self) -> int | None:
        """Its exit status, minus the signal's number if one killed it; None while it runs."""
        for k, pipe in enumerate(self.pipes):               # read what is there, so that it never waits for a reader
            while pipe.poll() and (text := os.read(pipe.fileno(), 2**16)):
                self.output[k] += text
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        self.poll()
        return self.output[0].decode(errors="replace")

    @property
    def stderr(self) -> str:
        self.poll()
        return self.output[1].decode(errors="replace")

    def wait(self) -> int:
        """Its exit status, when it has ended."""
        while (status := self.poll()) is None:
            self.process.join(0.02)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def until(self, condition: Callable[[], object]) -> None:
        """Returns when the condition holds; raises AssertionError if the process ends before."""
        while not condition():
            assert self.poll() is None, f"ended with {self.poll()}: {self.stdout}{self.stderr}"
            time.sleep(0.01)


@contextlib.contextmanager
def forked(run: Sequence[str] | Callable[[], object], *, cwd: Path | str = ".", env: Mapping[str, str] | None = None,
           before: Callable[[], object] | None = None) -> Iterator[Forked]:
    """Starts what is described above, and kills what still runs of it, and of what it started, at the end.

    before: called in the fork first, for limits and the like: partial(resource.setrlimit, resource.RLIMIT_AS, (n, n)).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    readers, writers = zip(*(context.Pipe(duplex=False) for _ in range(2)), strict=True)
    process = context.Process(target=_child, args=(
        run, Path(cwd).absolute(), dict(os.environ if env is None else env), writers, before))
    process.start()
    for pipe in writers:
        pipe.close()
    child = Forked(process, readers)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):                   # its children, too, as a loader's workers
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        child.wait()
        for pipe in readers:
            pipe.close()
        child.pipes = ()


def run_forked(run: Sequence[str] | Callable[[], object], **how) -> subprocess.CompletedProcess:
    """What it printed and its exit status, once it has ended; the keywords are those of `forked`."""
    with forked(run, **how) as process:
        return subprocess.CompletedProcess(run, process.wait(), process.stdout, process.stderr)
