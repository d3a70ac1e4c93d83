"""Short runs on Fashion-MNIST, each changed in what its name says, as those of docs/fashion.md: prints their scores.

    python -m docs.fashion                          # about an hour of one CPU core
    python -m docs.fashion --only chosen --minutes 1
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch

import data
import ddpm
import train
from bench.contenders import Contender, ours
from bench.markdown import table
from bench.quality import score
from run.cli import check_range, parse, script
from scores import classes
from unet import CONFIGS

CHOSEN = CONFIGS["fashion"]
PIXELS = replace(CHOSEN, patch=1, widths=(32, 64, 64), blocks=1, heads=(0, 0, 0, 1))
RUNS = {                                            # what is changed: fields of the network, then settings
    "chosen": (CHOSEN, {}),
    "one block a level, no attention": (replace(CHOSEN, blocks=1, heads=(0, 0, 0)), {}),
    "wider: 64, 64, one block a level": (replace(CHOSEN, blocks=1, widths=(64, 64)), {}),
    "attention at 7 x 7 everywhere": (replace(CHOSEN, heads=(0, 2, 2)), {}),
    "patches of 4, width 64, three blocks": (replace(CHOSEN, patch=4, widths=(64,), blocks=3, heads=(0, 1)), {}),
    "no patches: 32, 64, 64, one block a level": (PIXELS, {}),
    "no patches: 16, 32, one block a level": (replace(PIXELS, widths=(16, 32), heads=(0, 0, 0)), {}),
    "float32": (CHOSEN, {"dtype": "float32"}),
    "batch 32": (CHOSEN, {"batch": 32}),
    "rate 0.002": (CHOSEN, {"rate": 2e-3}),
    "rate 0.01": (CHOSEN, {"rate": 1e-2}),
    "target x0, space min-snr": (CHOSEN, {"target": "x0", "space": "min-snr"}),
}


@dataclass(frozen=True)
class Config:
    """Trains short runs on Fashion-MNIST, each with other choices, and prints their scores."""
    only: str = ""                              # names of runs with semicolons between; empty is all
    data: str = train.PRESETS["fashion"].data   # the pictures, as for train.py
    minutes: float = 4.                         # of CPU for each
    n: int = 1000                               # samples of each
    steps: int = 10                             # of DPM-Solver++ for each


def advance(contender: Contender, batches: data.Batches, steps: range) -> float:
    """CPU seconds of these updates."""
    began = time.process_time()
    for step in steps:
        contender.update(step, *batches[step])
    return time.process_time() - began


def short_run(changes: dict, dataset: data.Data, held_out: data.Data, config: Config) -> list:
    """The cells of the network named candidate: parameters, pictures a second, FD, pFD and agree."""
    settings = {"rate": train.PRESETS["fashion"].lr, "network": "candidate", **changes}
    trial = ours(dataset, 0, **settings)
    batches = data.Batches(dataset, trial.batch, 0, False)
    advance(trial, batches, range(1, 4))
    each = advance(trial, batches, range(4, 14)) / 10
    steps = max(1, round(60 * config.minutes / each))
    contender = ours(dataset, 0, **settings, steps=steps)                         # its rate falls to the end of them
    seconds = advance(contender, batches, range(1, steps + 1))
    scores = score(contender, dataset, held_out, config)
    return [f"{contender.parameters / 1e6:.2f} M", f"{steps * contender.batch / seconds:.0f}",
            *(f"{scores[name]:.{digits}f}" for name, digits in (("FD", 2), ("pFD", 2), ("agree", 3)))]


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    check_range(config, "n", classes.K + 1)
    check_range(config, "steps", 1)
    check_range(config, "minutes", 0, 1e4)
    names = config.only.split(";") if config.only else [*RUNS]
    for name in names:
        ddpm.check_choice("only", name, RUNS)
    torch.set_num_threads(1)
    dataset, held_out = data.load(config.data), data.load(data.TEST + config.data)
    print(table(["changed", "parameters", "pictures/s", "FD", "pFD", "agree"], []), end="")
    for name in names:
        network, changes = RUNS[name]
        with patch.dict(CONFIGS, candidate=network):
            print(f"| {name} | {' | '.join(short_run(changes, dataset, held_out, config))} |", flush=True)


if __name__ == "__main__":
    main()
