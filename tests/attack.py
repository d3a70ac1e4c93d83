"""Attacks every script with hostile files, flags, streams and disks, each case in a process of its own.

    python -m tests.attack                          # all cases: about half an hour of two cores
    python -m tests.attack --only images --seed 3   # other cases of one kind

The cases are in tests/hostile/. A case ends well if the script works ("ok"), or prints one sentence and exits with
status 2 ("sentence"). A traceback, or anything else, a crash, and a process that does not end are failures, and so is
a file that was there before and is lost, or written over with less ("lost"). Processes are forked from one that has
imported everything, have little address space, and are killed when their time is over. Exits 1 after any failure.
"""

import contextlib
import hashlib
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from run import checkpoint, cli, tensors
from tests import hostile
from tests.hostile.case import Case, foundations

ENDS = ("ok", "sentence", "traceback", "crash", "hang", "lost")
MEMORY = 10 * 2**30                     # bytes of address space; libraries alone take most of it
PROGRESS = re.compile(r"\d+%\|.*/s|^warning: |^usage: |^ {2,}\S|Warning: |^$")


@dataclass(frozen=True)
class Config:
    """Attacks every script with hostile files, flags, streams and disks."""
    only: str = ""                      # one kind of case; empty is all
    few: bool = False                   # only one case of each kind
    seed: int = 0                       # of the cases
    jobs: int = 2                       # processes at a time
    limit: float = 90.                  # seconds after which a process hangs
    show: bool = False                  # print what every case says


class End(NamedTuple):
    """How a case ended."""
    case: Case
    ends: tuple[str, ...]               # one of ENDS, and "lost" beside it
    said: str                           # on stdout and stderr, at last
    seconds: float


# In the child

def play(case: Case, folder: Path, pipe: int, before: Path) -> None:
    """Arranges the case's files, notes what is there, runs the script, and ends the process."""
    os.setsid()
    code = 1
    try:
        os.chdir(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flags = case.arrange()
        before.write_text(json.dumps(state(folder)))
        for k in (1, 2):
            os.dup2(pipe, k)
        sys.stdout, sys.stderr = (open(k, "w", 1, errors=how, closefd=False)                  # noqa: SIM115
                                  for k, how in ((1, "strict"), (2, "backslashreplace")))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if case.disk is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case.disk, case.disk))
        case.main(flags)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        with contextlib.suppress(BaseException):
            os.write(pipe, traceback.format_exc()[-4000:].encode(errors="replace"))
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def state(folder: Path) -> dict[str, str]:
    """A hash of every file under the folder, by name; links are not followed."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()
            and path.stat().st_size < 2**28}


# In the parent

def lost(case: Case, folder: Path, before: dict[str, str], well: bool) -> list[str]:
    """What is wrong with the files: missing, changed by a script that failed, half written, or left over."""
    after, wrong = state(folder), []
    for name in before.keys() | after.keys():
        path, may_change = folder / name, (well or case.midway) and "precious" not in name
        if path.name == ".lock" or path.suffix == ".npy" and name not in before:
            continue
        if name not in after:
            wrong += [] if case.midway and well else [f"{name} is gone"]
        elif name in before and after[name] == before[name]:
            continue
        elif path.suffix == ".tmp":
            wrong.append(f"{name} was left")
        elif name in before and not may_change:
            wrong.append(f"{name} was changed")
        elif reason := broken(path):
            wrong.append(f"{name} is broken: {reason}")
    return wrong


def broken(path: Path) -> str:
    """Why a file that a script wrote cannot be read; empty if it can."""
    try:
        if path.suffix == ".safetensors":
            _, facts = tensors.load(path)
            _ = checkpoint.load(path) if "format" in facts else None
        elif path.suffix in (".png", ".gif"):
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                _ = [arrays[name] for name in arrays]
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
    except Exception as error:
        return repr(error)[:200]
    return ""


def judge(case: Case, status: int | None, said: str) -> str:
    """Which of ENDS this is; status: of `waitpid`, None for a process that was killed when its time was over."""
    if status is None:
        return "hang"
    if os.WIFSIGNALED(status):
        return "crash"
    code = os.waitstatus_to_exitcode(status)
    lines = [line for line in re.split("[\r\n]+", said) if not PROGRESS.search(line)]
    if "Traceback" in said or "Exception ignored" in said or code not in (0, 2):
        return "traceback"
    if code == 0:
        return "ok"
    sentences = [line for line in lines if re.match(r"\w+\.py: .{10}", line)]
    return "sentence" if len(sentences) == 1 and lines[-1] == sentences[0] else "traceback"


class Job:
    """A case that is being played."""

    def __init__(self, case: Case, home: Path, k: int):
        self.case, self.folder, self.before = case, home / f"{k}", home / f"{k}.json"
        self.folder.mkdir()
        self.said, self.began = b"", time.perf_counter()
        self.pipe, theirs = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            play(case, self.folder, theirs, self.before)
        os.close(theirs)

    def end(self, limit: float) -> End | None:
        """How it ended; None while it runs."""
        while select.select([self.pipe], [], [], 0)[0] and (more := os.read(self.pipe, 2**16)):
            self.said = (self.said + more)[-2**16:]
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        seconds = time.perf_counter() - self.began
        if not pid and seconds < limit:
            return None
        if not pid:
            status = None
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        with contextlib.suppress(ProcessLookupError):                             # its children, if any are left
            os.killpg(self.pid, signal.SIGKILL)
        os.set_blocking(self.pipe, False)
        with contextlib.suppress(BlockingIOError):
            self.said += os.read(self.pipe, 2**16)
        os.close(self.pipe)
        said = self.said.decode(errors="replace")
        ends = judge(self.case, status, said)
        before = json.loads(self.before.read_text()) if self.before.exists() else None
        wrong = ["it could not be arranged"] if before is None else lost(
            self.case, self.folder, before, ends == "ok")
        shutil.rmtree(self.folder)
        return End(self.case, (ends, *["lost"] * bool(wrong)), "\n".join([said[-3000:], *wrong]), seconds)


def attack(cases: Sequence[Case], jobs: int = 2, limit: float = 90., show: bool = False) -> list[End]:
    """Plays the cases, some at a time; prints each failure when it is known, or all ends."""
    waiting, running, ends = list(enumerate(cases)), [], []
    with tempfile.TemporaryDirectory() as home:
        while waiting or running:
            while waiting and len(running) < jobs:
                k, case = waiting.pop(0)
                running.append(Job(case, Path(home), k))
            time.sleep(0.02)
            for job in [*running]:
                if not (end := job.end(limit)):
                    continue
                running.remove(job)
                ends.append(end)
                if show or {*end.ends} - {"ok", "sentence"}:
                    print(f"{end.case.kind}: {end.case.name}: {' and '.join(end.ends)}\n{end.said.rstrip()}\n",
                          flush=True)
    return ends


def table(ends: Sequence[End]) -> str:
    """How many cases of each kind ended how."""
    lines = [f"{'':22}{'cases':>7}" + "".join(f"{name:>11}" for name in ENDS) + f"{'s':>8}"]
    for kind in (*dict.fromkeys(end.case.kind for end in ends), "all"):
        these = [end for end in ends if kind in ("all", end.case.kind)]
        counts = Counter(name for end in these for name in end.ends)
        lines.append(f"{kind:22}{len(these):7}" + "".join(f"{counts[name]:11}" for name in ENDS)
                     + f"{sum(end.seconds for end in these):8.0f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    config = cli.parse(Config, argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as base:
        [made] = attack([foundations(Path(base))], limit=300)                     # in a child: the parent stays clean
        assert made.ends == ("ok",), made.said
        cases = hostile.cases(Path(base), config.seed)
        kinds = dict.fromkeys(case.kind for case in cases)
        if config.only and config.only not in kinds:
            raise SystemExit(f"attack.py: only is {config.only!r}; it must be one of {', '.join(kinds)}")
        cases = [case for case in cases if config.only in ("", case.kind)]
        if config.few:
            cases = [next(case for case in cases if case.kind == kind) for kind in kinds if kind in (
                case.kind for case in cases)]
        ends = attack(cases, config.jobs, config.limit, config.show)
    print(table(ends))
    raise SystemExit(any({*end.ends} - {"ok", "sentence"} for end in ends))


if __name__ == "__main__":
    main()
