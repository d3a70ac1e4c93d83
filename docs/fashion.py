"""Short runs on Fashion-MNIST, each changed in what its name says, as those of docs/fashion.md: prints their scores.

    python -m docs.fashion                          # about an hour of one CPU core
    python -m docs.fashion --only chosen --minutes 1
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch

import data
import ddpm
import sample
import train
from run import checkpoint, folder
from run.cli import check_range, parse, script
from scores import classes
from unet import CONFIGS, UNetConfig

CHOSEN = CONFIGS["fashion"]
PIXELS = replace(CHOSEN, patch=1, widths=(32, 64, 64), blocks=1, heads=(0, 0, 0, 1))
RUNS = {                                            # the network, and flags of train.py
    "chosen": (CHOSEN, ""),
    "one block per level, no attention": (replace(CHOSEN, blocks=1, heads=(0, 0, 0)), ""),
    "wider: 64, 64, one block per level": (replace(CHOSEN, blocks=1, widths=(64, 64)), ""),
    "attention at 7 x 7 everywhere": (replace(CHOSEN, heads=(0, 2, 2)), ""),
    "patches of 4, width 64, three blocks": (replace(CHOSEN, patch=4, widths=(64,), blocks=3, heads=(0, 1)), ""),
    "no patches: 32, 64, 64, one block per level": (PIXELS, ""),
    "no patches: 16, 32, one block per level": (replace(PIXELS, widths=(16, 32), heads=(0, 0, 0)), ""),
    "float32": (CHOSEN, "--dtype float32"),
    "batch 32": (CHOSEN, "--batch 32"),
    "rate 0.002": (CHOSEN, "--lr 2e-3"),
    "rate 0.01": (CHOSEN, "--lr 1e-2"),
    "target x0, space min-snr": (CHOSEN, "--target x0 --space min-snr"),
}


@dataclass(frozen=True)
class Config:
    """Trains short runs on Fashion-MNIST, each with other choices, and prints their scores."""
    only: str = ""                              # names of runs with semicolons between; empty is all
    data: str = train.PRESETS["fashion"].data   # the pictures, as for train.py
    minutes: float = 4.                         # of training for each
    n: int = 1000                               # samples of each
    steps: int = 10                             # of DPM-Solver++ for each


def short_run(network: UNetConfig, flags: str, score: Callable, config: Config) -> list[str]:
    """The cells of a row: parameters, pictures learned from per second, FD and agree."""
    run = ["--preset", "fashion", "--data", config.data, "--network", "candidate", *flags.split()]
    with tempfile.TemporaryDirectory() as out, patch.dict(CONFIGS, candidate=network):
        train.main([*run, "--steps", "13", "--log_every", "13", "--out", f"{out}/trial"])
        speed = folder.read_log(Path(out, "trial"))[0]["images_per_second"]
        batch = checkpoint.load(f"{out}/trial/last.safetensors").settings["batch"]
        steps = max(1, round(60 * config.minutes * speed / batch))                # the rate falls to the end of them
        train.main([*run, "--steps", str(steps), "--out", f"{out}/run"])
        path = f"{out}/run/last.safetensors"
        samples = sample.generate(sample.Config(checkpoint=path, n=config.n, sampler="2m", steps=str(config.steps)))
        parameters = sum(w.numel() for w in checkpoint.load(path).ema.values())
    scores = score(samples.x, samples.labels)
    return [f"{parameters / 1e6:.2f} M", f"{speed:.0f}", f"{scores['FD']:.2f}", f"{scores['agree']:.3f}"]


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    check_range(config, "n", classes.K + 1)
    check_range(config, "steps", 1)
    check_range(config, "minutes", 0, 1e4)
    names = config.only.split(";") if config.only else [*RUNS]
    for name in names:
        ddpm.check_choice("only", name, RUNS)
    score = classes.scorer(data.load(config.data), config.data, "", "crop")
    if score is None:
        raise ValueError(f"data is {config.data!r}; weights/ has no classifier that fits it")
    torch.set_num_threads(1)
    print("| changed | parameters | pictures/s | FD | agree |\n|---|---|---|---|---|")
    for name in names:
        with contextlib.redirect_stdout(sys.stderr):
            cells = short_run(*RUNS[name], score, config)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
