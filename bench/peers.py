"""The numbers of docs/peers.md, from what `pytest bench` measured on a CPU: ours beside published implementations.

    pip install -r bench/requirements.txt               # in an environment of its own: it may replace torch
    pytest bench -k "test_sampler or test_loop or test_update"
    python -m bench.peers
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.markdown import fill
from bench.measure import RESULTS
from bench.tables import load, markdown, stamps
from run.cli import parse, script

PAGE = Path("docs/peers.md")


@dataclass(frozen=True)
class Config:
    """Writes how the plain lines compare with published implementations on a CPU."""
    lines: str = f"{RESULTS}/cpu/bench.jsonl"   # what was measured
    out: str = str(PAGE)                        # the page


def comparison(done: pd.DataFrame) -> pd.DataFrame:
    """A row per kind of work and candidate: milliseconds, and the ratio to diffusers in float32."""
    work = done[done.group.str.contains("sampler|DDIM|training")]
    work = pd.concat(rows for _, rows in work.groupby("group", sort=False))
    ms = work.us / 1e3 / work.steps.fillna(1)
    base = ms.where(work.name.isin(["diffusers float32", "diffusers"])).groupby(work.group).transform("max")
    return pd.DataFrame({"candidate": work.name, "ms": ms.map("{:.3f}".format),
                         "ratio to diffusers": (ms / base).map("{:.2f}".format)}).set_index(work.group.rename("work"))


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    lines = load(Path(config.lines))
    done = lines[lines.outcome == "passed"]
    if done.empty:
        raise ValueError(f"{config.lines} has no results; make some with pytest bench, on a CPU")
    fill(PAGE, {"comparison": f"\n\n{markdown(comparison(done))}\n", "stamp": stamps(done).strip()}, Path(config.out))
    print(f"see {config.out}")


if __name__ == "__main__":
    main()
