"""docs/peers.md: our plain lines beside published implementations on a CPU, from what `pytest bench` measured there.

    pip install -r bench/requirements.txt               # in an environment of its own: it may replace torch
    python -m pytest bench -k "test_sampler or test_loop or test_update"
    python -m bench.peers
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.bench_sampling_loop import LUCIDRAINS
from bench.measure import RESULTS
from bench.tables import load, markdown, stamps
from run.cli import make_parent, parse, script

WORK = {                                                    # what begins the name of a group, and what it is
    "a sampler's own cost": "A sampler's own cost: a step of DDPM with a network that costs nothing",
    "DDIM": "The output of a network and a step of DDIM",
    "training": "A training step: noise, loss, gradient, clip, Adam, and the average of the weights"}
PAGE = """# The plain lines beside published implementations

    pip install -r requirements-test.txt -r bench/requirements.txt     # in an environment of its own: may replace torch
    python -m pytest bench -k "test_sampler or test_loop or test_update"
    python -m bench.peers

Milliseconds of CPU time on one thread of a CPU, the median of at least five runs, and how that compares with diffusers
in float32. `eager` and the rows down to `sub-pixel`, which is all of `--compile --dtype bf16`, are ours, each with what
the rows before it have; diffusers has the same network, denoising-diffusion-pytorch its own. In training `bf16` and the
packages' other rows are autocast, and all have fused Adam and no dropout.

{tables}
Counter-based noise costs more than `torch.randn` where it is computed step by step. `sample.py` therefore computes the
noise of many steps together where pictures are small, and `--compile` compiles it into the step.

Measured on {stamp}"""


@dataclass(frozen=True)
class Config:
    """Writes how the plain lines compare with published implementations on a CPU."""
    lines: str = f"{RESULTS}/cpu/bench.jsonl"   # what was measured
    out: str = "docs/peers.md"                  # the page


def tables(done: pd.DataFrame) -> str:
    """A table for each kind of work and its size: milliseconds, and the ratio to diffusers in float32."""
    text = ""
    for beginning, title in WORK.items():
        for group, rows in done[done.group.str.startswith(beginning)].groupby("group", sort=False):
            ms = rows.set_index("name").us / 1e3 / rows.steps.fillna(1).values
            base = next((name for name in ("diffusers float32", "diffusers") if name in ms), ms.index[0])
            ratio = (ms / ms[base]).rename(f"ratio to {base}")
            text += f"{title}; {group}:\n\n{markdown(pd.concat([ms.rename('ms'), ratio], axis=1))}\n"
    return text


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    lines = load(Path(config.lines))
    done = lines[lines.outcome == "passed"]
    if done.empty:
        raise ValueError(f"{config.lines} has no results; make some with pytest bench, on a CPU")
    make_parent(Path(config.out)).write_text(PAGE.format(tables=tables(done), stamp=stamps(done)))
    absent = [name for name in ("diffusers", LUCIDRAINS) if not done.name.str.startswith(name).any()]
    print(f"see {config.out}" + "".join(f"; {name} was not measured" for name in absent))


if __name__ == "__main__":
    main()
