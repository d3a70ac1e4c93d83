"""Runs cases one by one while there is time, and writes each result down as it comes."""

import gc
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from bench.expected import expected
from bench.lines import append, read
from bench.measure import CUDA, stamp

GRACE = 30.                                                 # seconds after the deadline at which a case is ended
Case = Callable[[], dict]


def finished(lines: dict[str, dict]) -> set[str]:
    """The cases that have a result, without those that failed as a whole."""
    return {case for case, line in lines.items() if "failed" not in line}


def here(case: Case, seconds: float) -> dict:
    """The case's results, or why it failed; in this process, so it can take as long as it likes."""
    try:
        return {"results": case()}
    except Exception as problem:
        return {"failed": f"{type(problem).__name__}: {str(problem)[:500]}"}
    finally:
        torch.compiler.reset()
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()


def run(path: Path, cases: dict[str, Case], deadline: float, *, call: Callable[[Case, float], dict] = here,
        known: dict[str, dict] | None = None, pages: dict[str, str] | None = None) -> int:
    """Adds a line for every case that has no result yet and may end by the deadline; returns how many still have none.

    deadline: of time.monotonic. call: runs a case, in so many seconds at most. known: lines of another file; what is
    finished there is not measured again. pages: of each case, where it is not the file's name. A case is written down
    as failed when it begins, so one that brings everything down is known; what failed is tried last.
    """
    lines = (known or {}) | read(path)
    for name in sorted(cases.keys() - finished(lines), key=lambda name: (name in lines, [*cases].index(name))):
        seconds, now = expected(name, lines), time.monotonic()
        if now + seconds > deadline:
            continue
        add = partial(add_line, path, lines, {"case": name} | ({"page": pages[name]} if pages else {}))
        add({"seconds": 0., "failed": f"begun at {time.strftime('%H:%M:%S UTC', time.gmtime())}, and never ended"})
        result = call(cases[name], min(4 * seconds + 60, deadline + GRACE - now))
        add({"seconds": time.monotonic() - now, "stamp": stamp(), **result})
        print(f"{lines[name]['seconds']:6.1f} s  {name}  {lines[name].get('failed', '')}", flush=True)
    return len(cases.keys() - finished(lines))


def add_line(path: Path, lines: dict[str, dict], head: dict, rest: dict) -> None:
    """To the file and to what is known, as it will be read again."""
    lines[head["case"]] = json.loads(json.dumps(head | rest))
    append(path, lines[head["case"]])
