"""Kills a training run at random times, and says whether it ends where the undisturbed one does.

    python -m tests.kills                               # 50 kills, many of them in a save: every step is saved
    python -m tests.kills --soak --steps 15000 --wait 60    # other signals, too, and a worker

Fails unless both runs end at the same bits, log included.
"""

import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from run import cli, tensors
from run import folder as run_folder
from run.checkpoint import LAST
from tests.forks import forked, run_forked
from tests.helpers import same_run


@dataclass(frozen=True)
class Config:
    """Kills a training run at random times."""
    kills: int = 50                 # how often
    steps: int = 900                # of the run; more than pass between the kills
    wait: float = 1.0               # seconds that a process lives, at most
    soak: bool = False              # also signals that can be heard, and a worker
    seed: int = 0                   # of the times and signals


def no_plots() -> None:
    """In the fork: curves are slow, and not what is tested."""
    run_folder.plot_log = lambda out: None


def disturbed(train: Sequence[str], sent: signal.Signals, wait: float) -> str:
    """How training ends that gets the signal after `wait` seconds: the signal's name, or "by itself"."""
    with forked(train, before=no_plots) as process:
        time.sleep(wait)
        process.send_signal(sent)
        status = process.wait()
    early = [-sent, *[1, 130] * (sent == signal.SIGINT)]            # before it listens
    assert status == 0 or status in early, (sent, status, process.stderr)
    return "by itself" if status == 0 else sent.name


def main(argv=None) -> None:
    config, began = cli.parse(Config, argv), time.perf_counter()
    chance, ends, in_save, reached = random.Random(config.seed), Counter(), 0, [0]
    signals = [signal.SIGKILL, *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) * config.soak]
    train = ["train.py", "--T", "20", "--batch", "8", "--log_every", "3", "--sample_every", "100000", "--steps",
             str(config.steps), *(["--save_every", "50", "--workers", "1"] if config.soak else ["--save_every", "1"])]
    with tempfile.TemporaryDirectory() as home:
        whole, cut = Path(home, "whole"), Path(home, "cut")
        checkpoint, half = cut / LAST, cut / f"{LAST}.tmp"
        while len(reached) <= config.kills and reached[-1] < config.steps:
            ends[disturbed([*train, "--out", str(cut)], chance.choice(signals), chance.uniform(0, config.wait))] += 1
            in_save += half.exists()
            half.unlink(missing_ok=True)
            reached.append(tensors.load(checkpoint)[1]["step"] if checkpoint.exists() else 0)
            assert reached == sorted(reached), reached
        for out in (cut, whole):
            done = run_forked([*train, "--out", str(out)], before=no_plots)
            assert done.returncode == 0, done.stderr
        same_run(cut, whole)
        step = tensors.load(checkpoint)[1]["step"]
    print(f"{len(reached) - 1} kills, {in_save} in a save, ends {dict(ends)}, resumed from {len({*reached})} different "
          f"steps; the same end at step {step}; {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
