"""Kills a training run at random times, and says whether it ends where the unbroken one does.

    python -m tests.kills --kills 50 --steps 900

Every step is saved, so that many kills fall into a save. The processes are forked: none imports anything anew.
"""

import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401  by the optimizer, late

import data
import train
from run import checkpoint, cli
from run import folder as run_folder


@dataclass(frozen=True)
class Config:
    """Kills a training run at random times."""
    kills: int = 50                 # how often
    steps: int = 900                # of the run; more than pass between the kills
    wait: float = 1.0               # seconds that a process lives, at most
    seed: int = 0                   # of the times


def forked(main: Callable, flags: list[str]) -> int:
    """A process that runs main(flags), its number."""
    if pid := os.fork():
        return pid
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    code = 1
    try:
        main(flags)
        code = 0
    finally:
        os._exit(code)


def same_end(out: Path, other: Path) -> bool:
    """Whether two runs ended at the same bits, log included."""
    (step, ours, lines), (steps, theirs, expected) = state(out), state(other)
    return step == steps and all(map(torch.equal, ours, theirs)) and lines == expected


def state(out: Path) -> tuple:
    """All of a run that must not depend on where it was cut."""
    last = checkpoint.load(out / "last.safetensors")
    lines = [{k: v for k, v in line.items() if k != "images_per_second"} for line in run_folder.read_log(out)]
    moments = [*last.exp_avg.values(), *last.exp_avg_sq.values(), torch.tensor(last.updates)]
    return last.step, [*last.weights.values(), *last.ema.values(), *moments], lines


def main(argv=None) -> None:
    config, began = cli.parse(Config, argv), time.perf_counter()
    times = random.Random(config.seed)
    torch.set_num_threads(1)                                        # threads do not survive a fork, and are waited for
    data.load("digits")                                          # imported before, not in every process
    run_folder.plot_log = lambda out: None                          # slow, and not what is tested
    flags = ["--T", "20", "--batch", "8", "--log_every", "3", "--sample_every", "100000", "--save_every", "1",
             "--steps", str(config.steps), "--out"]
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder, "whole"), Path(folder, "cut")
        in_save, reached = 0, []
        for _ in range(config.kills):
            pid = forked(train.main, [*flags, str(cut)])
            time.sleep(times.uniform(0, config.wait))
            os.kill(pid, signal.SIGKILL)
            if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
                break                                               # it reached its end before it was killed
            in_save += (cut / "last.safetensors.tmp").exists()
            (cut / "last.safetensors.tmp").unlink(missing_ok=True)
            reached.append(checkpoint.load(cut / "last.safetensors").step if (cut / "last.safetensors").exists() else 0)
            assert reached == sorted(reached), reached
        for out in (cut, whole):
            assert os.waitpid(forked(train.main, [*flags, str(out)]), 0)[1] == 0, f"{out} did not end well"
        same, step = same_end(cut, whole), checkpoint.load(cut / "last.safetensors").step
    print(f"{len(reached)} kills, {in_save} in a save, resumed from {len(set(reached))} different steps; "
          f"{'the same' if same else 'ANOTHER'} end at step {step}; {time.perf_counter() - began:.0f} s")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
