"""Runs our scripts in forks of a process that has already imported torch and the project: 0.1 s, where Python takes 4.

    done = run_forked(["train.py", "--steps", "1"], cwd=tmp_path)           # in place of subprocess.run
    assert done.returncode == 0 and "saved" in done.stdout

    with forked(["train.py", "--out", str(tmp_path)]) as process:           # in place of subprocess.Popen
        process.until((tmp_path / "log.jsonl").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0 and "stopped" in process.stdout

What is run is a script of the repository ("train.py", "examples/inpaint.py"), a module ("-m", "tests.kills"), some code
("-c", "print(1)"), each with its arguments, or a function that pickle knows, which may be a functools.partial. The
working directory and os.environ are the test's own unless others are given.

The server is multiprocessing's: a single process without threads, started by the first call and ended with the tests.
It has read the environment once, so variables that count while modules are imported (TRITON_INTERPRET,
OMP_NUM_THREADS) cannot be changed for a fork; closed streams and Python's own flags, too, need a fresh Python. An
uncaught KeyboardInterrupt exits with 1, not by the signal.
"""

import contextlib
import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PRELOAD = ("tests.forks", "train", "sample", "evaluate", "convert", "torch._dynamo", "sklearn.datasets",
           "matplotlib.pyplot")


def _call(run: Sequence[str] | Callable[[], object]) -> None:
    """Calls the function, or runs the script, module or code with its arguments."""
    if callable(run):
        return run()
    if run[0] == "-c":
        sys.argv = ["-c", *run[2:]]
        return exec(compile(run[1], "<string>", "exec"), {"__name__": "__main__"})
    name, *argv = run[1:] if run[0] == "-m" else run
    module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
    sys.argv = [module.__file__, *argv]
    module.main(argv)


def _child(run: Sequence[str] | Callable[[], object], cwd: Path, env: Mapping[str, str], output: Path,
           before: Callable[[], object] | None) -> None:
    """What the fork does."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_APPEND), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
    if before:
        before()
    _call(run)


class Forked:
    """A running fork; the methods are those of subprocess.Popen."""

    def __init__(self, process: multiprocessing.Process, output: Path):
        self.process, self.output, self.pid = process, output, process.pid

    @property
    def stdout(self) -> str:
        """What it has written until now; as stderr, to be read inside the `with`."""
        return (self.output / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return (self.output / "stderr").read_text(errors="replace")

    def poll(self) -> int | None:
        """Its exit status, minus the signal's number if one killed it; None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit status when it ends; None if it has not after so many seconds."""
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def until(self, condition: Callable[[], object]) -> None:
        """Returns when the condition holds; raises AssertionError if the process ends before."""
        while not condition():
            assert self.poll() is None, f"ended with {self.poll()}: {self.stdout}{self.stderr}"
            time.sleep(0.01)


@contextlib.contextmanager
def forked(run: Sequence[str] | Callable[[], object], *, cwd: Path | str | None = None,
           env: Mapping[str, str] | None = None, before: Callable[[], object] | None = None) -> Iterator[Forked]:
    """Starts what is described above, and kills it at the end if it still runs.

    before: called in the fork first, for limits and the like: partial(resource.setrlimit, resource.RLIMIT_AS, (n, n)).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD])
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        for name in ("stdout", "stderr"):
            (output / name).touch()
        process = context.Process(target=_child, args=(run, Path(cwd or "."), {**(os.environ if env is None else env)},
                                                       output, before))
        process.start()
        try:
            yield Forked(process, output)
        finally:
            process.kill()
            process.join()


def run_forked(run: Sequence[str] | Callable[[], object], **how) -> subprocess.CompletedProcess:
    """What it printed and its exit status, once it has ended; the keywords are those of `forked`."""
    with forked(run, **how) as process:
        return subprocess.CompletedProcess(run, process.wait(), process.stdout, process.stderr)
