"""Trains for a long time under kills and signals, samples from the newest checkpoint meanwhile, and says how it went.

    python -m tests.soak --steps 15000

Beside the disturbed run trains an undisturbed one; both must end at the same bits, though a worker loads the pictures
of the disturbed one. Sampling is killed, too. Printed at the end: how often what happened, and the most memory and open
files that each kind of process was seen to have.
"""

import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import data
import sample
import train
from run import checkpoint, cli
from tests.kills import forked, same_end


@dataclass(frozen=True)
class Config:
    """Trains under kills and signals while sampling from the newest checkpoint."""
    steps: int = 15000              # of the run
    wait: float = 60.               # seconds that a process is left in peace, at most
    seed: int = 0                   # of the times and the signals


@dataclass
class Job:
    """A command that is started again and again, and disturbed by one of its signals after a while."""
    main: Callable
    flags: list[str]
    signals: tuple[int, ...] = ()
    wait: float = float("inf")
    pid: int = 0
    until: float = 0.
    ends: Counter = field(default_factory=Counter)                  # how its processes ended
    most: list[tuple[int, int]] = field(default_factory=list)       # MB and open files of each, at most

    def start(self, chance: random.Random) -> None:
        self.pid, self.until = forked(self.main, self.flags), time.perf_counter() + chance.random() * self.wait
        self.most.append((0, 0))

    def look(self, chance: random.Random) -> str:
        """How its process ended, "well" or by which signal; nothing while it runs."""
        sent = chance.choice(self.signals) if time.perf_counter() > self.until else 0
        if sent:
            os.kill(self.pid, sent)
        pid, status = os.waitpid(self.pid, 0 if sent else os.WNOHANG)
        if not pid:
            here = Path("/proc", str(self.pid))
            resident = int((here / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            self.most[-1] = tuple(map(max, self.most[-1], (resident // 10**6, len(os.listdir(here / "fd")))))
            return ""
        early = status == sent or sent == signal.SIGINT and os.waitstatus_to_exitcode(status) == 1
        assert status == 0 or early, (sent, status)                 # early: before it listened
        end = signal.Signals(sent).name if sent else "well"
        self.ends[end] += 1
        return end


def main(argv=None) -> None:
    config, began = cli.parse(Config, argv), time.perf_counter()
    chance = random.Random(config.seed)
    torch.set_num_threads(1)                                        # threads do not survive a fork, and are waited for
    data.load("digits")                                             # imported before, not in every process
    with tempfile.TemporaryDirectory() as folder:
        whole, cut, samples = (Path(folder, name) for name in ("whole", "cut", "samples"))
        last, flags = cut / "last.safetensors", ["--steps", str(config.steps), "--save_every", "50", "--out"]
        peace = Job(train.main, [*flags, str(whole)])
        training = Job(train.main, [*flags, str(cut), "--workers", "1"],
                       (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP), config.wait)
        sample_flags = ["--checkpoint", str(last), "--n", "500", "--eta", "1", "--npz", "--out", str(samples)]
        sampling = Job(sample.main, sample_flags, (signal.SIGKILL,), config.wait)
        jobs, again = [peace, training], []
        for job in jobs:
            job.start(chance)
        while jobs:
            time.sleep(0.1)
            for job in [*jobs]:
                if not (end := job.look(chance)):
                    continue
                reached = checkpoint.load(last).step if last.exists() else 0        # sound, whatever the moment
                if job is training:
                    again.append(reached)
                if job is sampling and end == "well":
                    with np.load(samples / "pictures.npz") as file:
                        assert file["arr_0"].shape == (500, 8, 8, 1)
                if reached == config.steps or job is peace:
                    jobs.remove(job)
                else:
                    job.start(chance)
            if last.exists() and training in jobs and sampling not in jobs:
                jobs.append(sampling)
                sampling.start(chance)
        assert again == sorted(again), again
        same, step = same_end(cut, whole), checkpoint.load(last).step
        size = sum(file.stat().st_size for file in cut.rglob("*") if file.is_file()) / 1e6
    for name, job in {"undisturbed": peace, "training": training, "sampling": sampling}.items():
        print(f"{name}: {dict(job.ends)}; at most {max(job.most)[0]} MB, {max(n for _, n in job.most)} files; "
              f"the first {job.most[0]}, the last {job.most[-1]}")
    print(f"resumed from {len({*again})} different steps; the run's folder has {size:.1f} MB; "
          f"{'the same' if same else 'ANOTHER'} end at step {step}; {time.perf_counter() - began:.0f} s")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
