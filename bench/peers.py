"""The numbers of docs/peers.md, from what `pytest bench` measured on a CPU: ours beside published implementations.

    pip install -r bench/requirements.txt               # in an environment of its own: it may replace torch
    pytest bench -k "test_sampler or test_loop or test_update"
    python -m bench.peers
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.bench_sampling_loop import LUCIDRAINS
from bench.markdown import fill, table
from bench.measure import RESULTS
from bench.tables import load, stamps
from run.cli import parse, script

PAGE = Path("docs/peers.md")


@dataclass(frozen=True)
class Config:
    """Writes how the plain lines compare with published implementations on a CPU."""
    lines: str = f"{RESULTS}/cpu/bench.jsonl"   # what was measured
    out: str = str(PAGE)                        # the page


def comparison(done: pd.DataFrame) -> str:
    """A row per kind of work and candidate: milliseconds, and the ratio to diffusers in float32."""
    rows = []
    for group, work in done[done.group.str.contains("sampler|DDIM|training")].groupby("group", sort=False):
        ms = dict(zip(work.name, work.us / 1e3 / work.steps.fillna(1), strict=True))
        base = next((ms[name] for name in ("diffusers float32", "diffusers") if name in ms), float("nan"))
        rows += [[group, name, f"{each:.3f}", f"{each / base:.2f}"] for name, each in ms.items()]
    return table(["work", "candidate", "ms", "ratio to diffusers"], rows)


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    lines = load(Path(config.lines))
    done = lines[lines.outcome == "passed"]
    if done.empty:
        raise ValueError(f"{config.lines} has no results; make some with pytest bench, on a CPU")
    fill(PAGE, {"comparison": f"\n\n{comparison(done)}\n", "stamp": stamps(done).strip()}, Path(config.out))
    absent = [name for name in ("diffusers", LUCIDRAINS) if not done.name.str.startswith(name).any()]
    print(f"see {config.out}" + "".join(f"; {name} was not measured" for name in absent))


if __name__ == "__main__":
    main()
