"""What `python -m bench.first` measures, in which order, and the table it prints last."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import cases, packages, suite, tables
from bench.expected import SECONDS, kind
from bench.lines import by_page, read
from bench.measure import gpu_name, prepare
from bench.report import RESULTS, check_machine
from bench.runner import Case, finished, run
from bench.worker import worker
from run.cli import check_range, make_parent, parse, script

PART = 8.                           # minutes: a command of ten has room for its start and end
START = 30.                         # seconds until the first case begins

# Pages and patterns of cases in the order of their value; what none of them names comes last.
VALUE = [
    ("tests", "norm|step|compile"), ("loops", "^machine"), ("loops", "batch 512: (graph|compile)$"),
    ("loops", "batch 512: diffusers (nchw|channels_last|compiled)$"), ("loops", "batch 512: diffusers max-autotune$"),
    ("profile", "batch 512"), ("kernels", "^cifar10 forward channels_last"),
    ("loops", "^training .*: (bf16 compiled kernels|diffusers compiled)$"),
    ("loops", "batch 1: (graph|diffusers.*)$"), ("kernels", "^cifar10 backward channels_last"), ("kernels", "^step"),
    ("tests", "tail"), ("kernels", "^tail batch 512"),
    ("same", ""), ("loops", "batch 512"), ("loops", "^training"), ("kernels", "^cifar10 forward"), ("loops", ""),
    ("profile", ""), ("kernels", "")]


@dataclass(frozen=True)
class Config:
    """Measures the most valuable things first, on one GPU, and resumes when it is repeated."""
    minutes: float = 25.            # for everything; what would end later is left out
    part: int = 0                   # 1, 2, ...: one of the parts, 8 minutes each, that everything is cut into; 0 is all
    out: str = ""                   # in it the GPU's folder with first.jsonl; empty is bench/results
    smoke: bool = False             # tiny sizes, anywhere: tries the program, measures nothing


def in_order(smoke: bool, folder: Path) -> dict[str, tuple[str, Case]]:
    """All cases, the most valuable first, each with the page that it belongs to."""
    pages = {"tests": suite.cases(smoke), "loops": cases.loop_cases(smoke), "kernels": cases.kernel_cases(smoke),
             "profile": cases.profile_cases(smoke),
             "same": cases.same_cases(smoke, Path("weights/digits.safetensors"), folder)}
    found = {}
    for page, pattern in VALUE:
        for name, case in pages[page].items():
            if re.search(pattern, name):
                found.setdefault(name, (page, case))
    return found


def parts(names: Sequence[str], minutes: float) -> list[list[str]]:
    """The cases that should end within the minutes, cut into parts: each goes to the first that has room for it.

    Every part but the first has its own `machine`, for it may run on another one.
    """
    plan, left = [], 60 * minutes
    for name in names:
        seconds = SECONDS[kind(name)]
        if seconds > left:
            continue
        left -= seconds
        room = (part for part in plan if sum(SECONDS[kind(each)] for each in part) + seconds <= 60 * PART - START)
        if (part := next(room, None)) is None:
            plan.append(part := ["machine"] if plan else [])
        part.append(name)
    return plan


def chosen(config: Config, names: Sequence[str]) -> list[str]:
    """The cases of the part. Raises ValueError if there is no such part."""
    check_range(config, "minutes", 0)
    if not config.part:
        return list(names)
    plan = parts(names, config.minutes)
    check_range(config, "part", 0, len(plan))
    return plan[config.part - 1]


# The table

def short_table(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """A line for each loop, training step and kind of kernel, for the tests, and for what failed or is missing."""
    pages = by_page(folder, tuple(tables.PAGES))
    for name, line in pages.get("tests", {}).items():
        if "passed" in (results := line.get("results", {})):
            yield f"{name}: {results['passed']} passed"
            yield from (f"    {test}: {why}" for test, why in [*results.get("failures", {}).items()][:10])
    yield from tables.summary_tables(pages)
    lines = read(folder / "first.jsonl")
    for name, line in lines.items():
        if failed := line.get("failed") or line.get("results", {}).get("failed"):
            yield f"{name}: {failed[:150]}"
    left = [name for name in names if name not in finished(lines)]
    if left:
        yield f"{len(left)} of {len(names)} cases have no result yet: {', '.join(left[:5])}{', ...' * (len(left) > 5)}"


@script
def main(argv: Sequence[str] | None = None) -> None:
    began, config = time.monotonic(), parse(Config, argv)
    out = Path(config.out or RESULTS)
    check_machine(config.smoke, out)
    path = make_parent(out / gpu_name() / "first.jsonl")
    known = {} if config.smoke else read(RESULTS / gpu_name() / "first.jsonl")
    ordered = in_order(config.smoke, path.parent)
    names = chosen(config, [*ordered])
    done = finished(known | read(path)).intersection(names)
    print(f"{len(names)} cases, {len(done)} of them done; results go to {path}", flush=True)
    deadline = began + 60 * (min(config.minutes, PART) if config.part else config.minutes)
    with worker(prepare) as call:
        run(path, {name: ordered[name][1] for name in names}, deadline, call=call, known=known,
            pages={name: ordered[name][0] for name in names})
    print("", *(["tiny sizes: these times mean nothing"] if config.smoke else []), *packages.check(),
          *short_table(path.parent, names), sep="\n")
