"""Measures everything that is claimed about speed, on a GPU, and writes it down.

    python -m bench.report kernels      # norms, chains and steps: beside eager, torch.compile, Liger, and a copy
    python -m bench.report loops        # whole sampling loops and training steps, beside peers
    python -m bench.report same         # the same bytes twice; plain, compiled and captured pictures
    python -m bench.report profile      # where the time of one captured step goes
    python -m bench.report training     # one training by train.py in float32, and compiled in bf16

Each finished case is a line of bench/results/<gpu>/<command>.jsonl; a rerun takes up what is missing, and ends when
its minutes are over. Tables and plots are made anew after every run, or by python -m bench.tables.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import training_run
from bench.cases import kernel_cases, loop_cases, profile_cases, same_cases
from bench.markdown import read
from bench.measure import CUDA, device, stamp
from bench.tables import write_tables
from run.cli import make_parent, parse, script

RESULTS = Path("bench/results")


@dataclass(frozen=True)
class Config:
    """Measures, on a GPU, what is not yet measured there."""
    only: str = ""                  # cases whose name has this in it
    minutes: float = 7.             # no case begins after so many; a training is stopped then
    checkpoint: str = "weights/digits.pt"   # whose pictures `same` compares
    steps: int = 3000               # updates of `training`
    out: str = str(RESULTS)         # the GPU's folder is made in this one
    smoke: bool = False             # tiny sizes, anywhere: tries the program, measures nothing


COMMANDS = {"kernels": lambda config, folder: kernel_cases(config.smoke),
            "loops": lambda config, folder: loop_cases(config.smoke),
            "same": lambda config, folder: same_cases(config.smoke, Path(config.checkpoint), folder),
            "profile": lambda config, folder: profile_cases(config.smoke),
            "training": lambda config, folder: training_run.cases(folder, config.steps, config.minutes, config.smoke)}


def finished(path: Path) -> dict[str, dict]:
    """The cases that a file holds, without those that failed as a whole."""
    return {case: line for case, line in read(path).items() if "failed" not in line}


def run(path: Path, cases: dict[str, Callable[[], dict]], minutes: float) -> int:
    """Adds a line for every case that the file lacks, until the minutes are over; how many are still missing."""
    began, done = time.perf_counter(), finished(path)
    for name in cases:
        if name in done:
            continue
        if time.perf_counter() - began > 60 * minutes:
            break
        start = time.perf_counter()
        try:
            result = {"results": cases[name]()}
        except Exception as problem:                        # is tried again by the next run
            result = {"failed": f"{type(problem).__name__}: {str(problem)[:500]}"}
        seconds = time.perf_counter() - start
        with path.open("a") as file:
            file.write(json.dumps({"case": name, "seconds": seconds, "stamp": stamp(), **result}) + "\n")
        print(f"{seconds:6.1f} s  {name}  {result.get('failed', '')}", flush=True)
        torch.compiler.reset()
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()
    return len(cases.keys() - finished(path))


@script
def main(argv: Sequence[str] | None = None) -> None:
    command, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if command not in COMMANDS:
        raise ValueError(f"no command {command!r}; it must be one of {', '.join(COMMANDS)}")
    config = parse(Config, rest)
    if not CUDA and not config.smoke:
        raise ValueError("there is no GPU here, and times of a CPU would not say what the kernels are worth; "
                         "--smoke with another --out tries the program at tiny sizes")
    if config.smoke and Path(config.out) == RESULTS:
        raise ValueError(f"a --smoke run measures nothing; give it another --out than {RESULTS}")
    if device().type == "cuda":
        torch.backends.cudnn.benchmark = True
    gpu = torch.cuda.get_device_name().lower().removeprefix("nvidia ").replace(" ", "-") if CUDA else "cpu"
    folder = make_parent(Path(config.out, gpu, f"{command}.jsonl")).parent
    cases = {name: case for name, case in COMMANDS[command](config, folder).items() if config.only in name}
    missing = run(folder / f"{command}.jsonl", cases, config.minutes)
    write_tables(folder)
    print(f"{folder}: {missing} of {len(cases)} cases still to measure" + (", run it again" if missing else ""))


if __name__ == "__main__":
    main()
