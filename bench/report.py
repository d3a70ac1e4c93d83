"""Measures everything that is claimed about speed, on a GPU, and writes it down.

    python -m bench.report kernels      # norms, chains and steps: beside eager, torch.compile, Liger, and a copy
    python -m bench.report loops        # whole sampling loops and training steps, beside peers
    python -m bench.report same         # the same bytes twice; plain, compiled and captured pictures
    python -m bench.report profile      # where the time of one captured step goes
    python -m bench.report training     # one training by train.py in float32, and compiled in bf16

Each finished case is a line of bench/results/<gpu>/<command>.jsonl; a rerun takes up what is missing, and ends when
its minutes are over. Tables and plots are made anew after every run, or by python -m bench.tables. Where there is
little time, python -m bench.first measures the most valuable cases of all of these first.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import training_run
from bench.cases import kernel_cases, loop_cases, profile_cases, same_cases
from bench.measure import CUDA, gpu_name, prepare
from bench.runner import run
from bench.tables import write_tables
from run.cli import make_parent, parse, script

RESULTS = Path("bench/results")


@dataclass(frozen=True)
class Config:
    """Measures, on a GPU, what is not yet measured there."""
    only: str = ""                  # cases whose name has this in it
    minutes: float = 8.             # no case begins that may end later; a training is stopped then
    checkpoint: str = "weights/digits.safetensors"  # whose pictures `same` compares
    steps: int = 3000               # updates of `training`
    out: str = str(RESULTS)         # the GPU's folder is made in this one
    smoke: bool = False             # tiny sizes, anywhere: tries the program, measures nothing


COMMANDS = {"kernels": lambda config, folder: kernel_cases(config.smoke),
            "loops": lambda config, folder: loop_cases(config.smoke),
            "same": lambda config, folder: same_cases(config.smoke, Path(config.checkpoint), folder),
            "profile": lambda config, folder: profile_cases(config.smoke),
            "training": lambda config, folder: training_run.cases(folder, config.steps, config.minutes, config.smoke)}


def check_machine(smoke: bool, out: Path) -> None:
    """Raises ValueError where what is measured would not be worth writing down."""
    if not CUDA and not smoke:
        raise ValueError("there is no GPU here, and times of a CPU would not say what the kernels are worth; "
                         "--smoke with another --out tries the program at tiny sizes")
    if smoke and out == RESULTS:
        raise ValueError(f"a --smoke run measures nothing; give it another --out than {RESULTS}")


@script
def main(argv: Sequence[str] | None = None) -> None:
    command, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if command not in COMMANDS:
        raise ValueError(f"no command {command!r}; it must be one of {', '.join(COMMANDS)}")
    config = parse(Config, rest)
    check_machine(config.smoke, Path(config.out))
    prepare()
    folder = make_parent(Path(config.out, gpu_name(), f"{command}.jsonl")).parent
    cases = {name: case for name, case in COMMANDS[command](config, folder).items() if config.only in name}
    missing = run(folder / f"{command}.jsonl", cases, time.monotonic() + 60 * config.minutes)
    write_tables(folder)
    print(f"{folder}: {missing} of {len(cases)} cases still to measure" + (", run it again" if missing else ""))


if __name__ == "__main__":
    main()
