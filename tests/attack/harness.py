"""Plays cases: each makes its files in an empty folder, runs a script on them in a fork, and is judged by its end.

A script does well if it works ("ok"), or prints one sentence and exits with status 2 ("sentence"). A traceback, or
anything else, a crash, and a process that does not end are failures, and so is a file that was there before and is
lost, or written over with less ("lost").
"""

import hashlib
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from run import tensors
from tests.forks import forked
from tests.helpers import Trap

MEMORY = 3 * 2**30                      # bytes of address space that a script may take besides its libraries'
PROGRESS = re.compile(r"\d+%\|.*/s|^warning: |^usage: |^ {2,}\S|Warning: |^$")


class Case(NamedTuple):
    """What is run on what. Files may change only if the script succeeds."""
    kind: str
    name: str
    files: dict[str, bytes | Path | Callable[[Path], object]]     # contents, what to copy, or what makes it there
    run: Sequence[str] | Callable[[], object]       # as for `forked`
    says: str = ""                                  # a pattern that the sentence must have; empty: it may also work
    before: Callable[[], object] | None = None      # called in the fork, before the script
    midway: bool = False                            # it may fail in the middle: files may be newer, if they are whole


class End(NamedTuple):
    """How a case ended."""
    case: Case
    ends: tuple[str, ...]               # ok, sentence, traceback, crash or hang; and "lost" beside it
    said: str                           # on stdout and stderr, at last

    @property
    def well(self) -> bool:
        return self.ends in (("ok",), ("sentence",))


def prepare(before: Callable[[], object] | None) -> None:
    """In the fork, before the script: limits memory, and calls the case's own `before`."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if before:
        before()


def stop_at(module: str, name: str) -> None:
    """The script ends well where it would call this function of the module: what comes then takes long."""
    setattr(import_module(module), name, lambda *args, **kwargs: sys.exit(0))


def make(folder: Path, files: dict[str, bytes | Path | Callable[[Path], object]]) -> None:
    """The case's files, in the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif not isinstance(content, Path):
            content(path)
        elif content.is_dir():
            shutil.copytree(content, path, dirs_exist_ok=True)
        else:
            shutil.copy(content, path)


def state(folder: Path) -> dict[str, str]:
    """A hash of every file under the folder, by name."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size < 2**28}


def lost(case: Case, folder: Path, before: dict[str, str], well: bool) -> list[str]:
    """What is wrong with the files: missing, changed by a script that failed, half written, or left over."""
    after, wrong = state(folder), ["a trap sprang"] * (folder / Trap.NAME).exists()
    for name in before.keys() | after.keys():
        path = folder / name
        if path.name == ".lock" or path.suffix == ".npy" and name not in before:
            continue
        if name not in after:
            wrong += [] if case.midway and well else [f"{name} is gone"]
        elif name in before and after[name] == before[name]:
            continue
        elif path.suffix == ".tmp":
            wrong.append(f"{name} was left")
        elif name in before and not (well or case.midway):
            wrong.append(f"{name} was changed")
        elif reason := broken(path):
            wrong.append(f"{name} is broken: {reason}")
    return wrong


READ = {".safetensors": tensors.load, ".npz": lambda path: dict(np.load(path)),
        ".png": lambda path: Image.open(path).load(), ".gif": lambda path: Image.open(path).load(),
        ".json": lambda path: json.loads(path.read_bytes())}


def broken(path: Path) -> str:
    """Why a file that a script wrote cannot be read; empty if it can."""
    try:
        READ.get(path.suffix, str)(path)
    except Exception as error:
        return repr(error)[:200]
    return ""


def judge(status: int | None, stdout: str, stderr: str, says: str = "") -> str:
    """What kind of end this is; status: what a process ended with, None for one that had to be killed."""
    if status is None:
        return "hang"
    if status < 0:
        return "crash"
    lines = [line for line in re.split("[\r\n]+", stderr) if not PROGRESS.search(line)]
    if "Traceback" in stdout + stderr or "Exception ignored" in stderr or status not in (0, 2):
        return "traceback"
    if status == 0:
        return "ok" if not says else "traceback"
    sentences = [line for line in lines if re.match(r"\w+\.py: .{10}", line)]
    one = len(sentences) == 1 and lines[-1] == sentences[0] and re.search(says, lines[-1])
    return "sentence" if one else "traceback"


def play(case: Case, limit_s: float) -> Iterator[None]:
    """Plays the case, yielding while it runs; what it returns is the End."""
    with tempfile.TemporaryDirectory() as home:
        folder, began = Path(home, "case"), time.perf_counter()
        folder.mkdir()
        make(folder, case.files)
        before = state(folder)
        env = {**os.environ, "HF_HOME": f"{home}/cache", "HF_HUB_OFFLINE": "1"}
        with forked(case.run, cwd=folder, env=env, before=partial(prepare, case.before)) as process:
            while process.poll() is None and time.perf_counter() - began < limit_s:
                yield
            status, stdout, stderr = process.poll(), process.stdout, process.stderr
        end = judge(status, stdout, stderr, case.says)
        wrong = lost(case, folder, before, end == "ok")
        return End(case, (end, *["lost"] * bool(wrong)), "\n".join([stdout[-1500:], stderr[-3000:], *wrong]))


def attack(cases: Sequence[Case], jobs: int = 2, limit_s: float = 600.) -> list[End]:
    """Plays the cases, some at a time; prints each failure when it is known."""
    waiting, running, ends = [*cases][::-1], [], []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(play(waiting.pop(), limit_s))
        time.sleep(0.02)
        for playing in [*running]:
            try:
                next(playing)
            except StopIteration as stop:
                running.remove(playing)
                ends.append(stop.value)
                if not stop.value.well:
                    print(f"{stop.value.case.kind}: {stop.value.case.name}: {' and '.join(stop.value.ends)}\n"
                          f"{stop.value.said.strip()}\n", flush=True)
    return ends


def table(ends: Sequence[End]) -> str:
    """How many cases of each kind ended how."""
    counts = Counter(f"{kind}: {' and '.join(end.ends)}" for end in ends for kind in (end.case.kind, "all"))
    return "\n".join(f"{count:5} {what}" for what, count in counts.items())
