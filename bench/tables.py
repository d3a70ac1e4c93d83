"""The tables bench.md of bench/results/<gpu>/, from its bench.jsonl; from a CPU's, docs/peers.md and docs/memory.md.

    python -m bench.tables
    python -m bench.tables --docs docs
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bench.lines import read
from bench.measure import RESULTS
from kernels.equivalence import SIDES
from run.cli import parse, script
from run.markdown import fill, table
from unet import CONFIGS, UNet

FACTS = ["outcome", "why", "stamp", "group", "name", "us", "p25", "p75", "error", "bytes", "cold us", "flop", "network",
         "B", "steps", "parameters", "prepared s", "peak GB", "cudagraph skips", "kernels", "pictures"]
DOCS, WORK = Path("docs"), ("training", "sampling")


@dataclass(frozen=True)
class Config:
    """Makes the Markdown tables of every machine again."""
    out: str = str(RESULTS)         # where the machines' folders are
    docs: str = ""                  # a folder for peers.md and memory.md, of what a CPU has measured; empty: none


def load(path: Path) -> pd.DataFrame:
    """The last line of every case, a row each, its name the index."""
    lines = {line["case"]: line for line in read(path)}
    frame = pd.DataFrame(lines.values(), index=[*lines]).reindex(columns=FACTS)
    return frame.astype({"group": "string", "name": "string"})


def markdown(frame: pd.DataFrame) -> str:
    frame = frame.dropna(axis=1, how="all").reset_index()
    return table(list(frame.columns), frame.astype(object).values.tolist())


def stamps(done: pd.DataFrame) -> str:
    """What it was measured on; where that changed on the way, all of it."""
    columns = pd.DataFrame(done.stamp.tolist()).items()
    values = {name: list(dict.fromkeys(column.dropna())) for name, column in columns}
    return "; ".join(f"{name} {', '.join(each) if len(each) < 4 else f'{min(each)} to {max(each)}'}"
                     for name, each in values.items()) + "\n"


@cache
def flops(network: str) -> int:
    """Of one picture and one step: two for each product, counted on a network without numbers."""
    from torch.utils.flop_counter import FlopCounterMode
    config = CONFIGS[network]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        t = torch.ones(1, dtype=torch.int64)
        xt = torch.empty(1, config.in_channels, SIDES[network], SIDES[network])
        UNet(config)(xt, t, t if config.classes else None)
    return counter.get_total_flops()


def loop_table(rows: pd.DataFrame, rate: float) -> pd.DataFrame:
    """Every candidate of every chain and training, beside diffusers in bf16 without torch.compile, the faster layout.

    rate: of the matrices, in TFLOP/s; the floor is our network's products at that rate, three times to train.
    """
    eager = rows.us.where(rows.name.isin(["diffusers nchw", "diffusers channels_last"]))
    work = rows.B * rows.steps.fillna(3) * rows.network.map(flops).astype(float)   # an update has no steps
    ours = ~rows.name.str.startswith("denoising")                               # which has another network
    return pd.DataFrame({
        "candidate": rows.name, "images/s": 1e6 * rows.B / rows.us,
        "times as fast as diffusers": eager.groupby(rows.group).transform("min") / rows.us,
        "% of the floor": (work / rows.us / rate / 1e4).where(ours), "ms": rows.us / 1e3,
        "ms per step": rows.us / 1e3 / rows.steps, "p25": rows.p25 / 1e3, "p75": rows.p75 / 1e3,
        "peak GB": rows["peak GB"], "M parameters": rows.parameters / 1e6, "error": rows.error,
        "s to prepare": rows["prepared s"], "cudagraph skips": rows["cudagraph skips"]}).set_index(
            rows.group.rename("work")).sort_index(kind="stable")


def peers_table(done: pd.DataFrame) -> pd.DataFrame:
    """A row per kind of work and candidate: milliseconds, and the ratio to diffusers in float32."""
    work = pd.concat(rows for _, rows in done.groupby("group", sort=False))
    ms = work.us / 1e3 / work.steps.fillna(1)
    base = ms.where(work.name.isin(["diffusers float32", "diffusers"])).groupby(work.group).transform("max")
    return pd.DataFrame({"candidate": work.name, "ms": ms.map("{:.3f}".format),
                         "ratio to diffusers": (ms / base).map("{:.2f}".format)}).set_index(work.group.rename("work"))


def memory_table(done: pd.DataFrame, work: str) -> pd.DataFrame:
    """GB, a row per network, a column for each way to do this work: training or sampling."""
    rows = done[done.group == f"memory of {work}"]
    rows = rows.assign(parameters=(rows.parameters / 1e6).map("{:.1f} M".format))
    return rows.pivot_table(index=["network", "parameters", "pictures"], columns="name", values="peak GB", sort=False)


def profile_table(row: pd.Series) -> pd.DataFrame:
    """One step: all of it, what lies between kernels, and the longest kernels."""
    kernels = pd.DataFrame.from_dict(row.kernels, orient="index", columns=["launches", "us"])
    whole = pd.DataFrame({"launches": [kernels.launches.sum(), np.nan], "us": [row.us, row.us - kernels.us.sum()]},
                         index=["a step", "between kernels"])
    kernels.index = "`" + kernels.index.str[:100] + "`"
    rows = pd.concat([whole, kernels[:20]]).rename_axis("kernel")
    return rows.assign(**{"%": 100 * rows.us / row.us})


def sections(lines: pd.DataFrame, done: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """All tables by their titles, as far as there is anything to show."""
    tables = {}
    machine, loops = done[done.group == "machine"], done["prepared s"].notna()
    rate = (machine.flop / machine.us / 1e6).max()          # NaN where it was not measured
    tables["The machine: GB/s of a copy, TFLOP/s of bf16 matrices"] = pd.DataFrame({
        "GB/s": machine.bytes / machine.us / 1e3, "TFLOP/s": machine.flop / machine.us / 1e6})
    tables["Sampling loops and training steps"] = loop_table(done[loops], rate)
    short = done[~loops & done.kernels.isna() & ~done.group.str.contains("^(?:machine|memory)")]
    for column, state in (("cold us", "cold"), ("us", "warm")):
        times = short.pivot_table(index="group", columns="name", values=column, sort=False)
        if "triton" in times:                               # the geometric mean over all shapes
            ratios = np.log(times.div(times.triton, axis=0).drop(columns="triton").dropna(how="all"))
            tables[f"How many times as fast Triton is as the others, {state}"] = np.exp(
                ratios.groupby(lambda group: group.rpartition(" ")[0], sort=False).mean())
        tables[f"Microseconds of a call, {state}"] = times
    for _, row in done[done.kernels.notna()].iterrows():
        tables[row.group] = profile_table(row)
    tables |= {f"Memory of {work}, GB": memory_table(done, work) for work in WORK}
    tables["Not measured"] = lines.loc[~lines.outcome.isin(["passed", "skipped"]), ["outcome", "why"]].fillna("")
    return {title: frame for title, frame in tables.items() if len(frame)}


def fill_docs(done: pd.DataFrame, folder: Path) -> None:
    """The pages of what a CPU has measured, as far as it has."""
    peers = done[done.group.str.contains("^(?:a sampler|DDIM|training)")]
    memory = {work: memory_table(done, work) for work in WORK}
    for page, rows, tables in (("peers.md", peers, {"comparison": peers_table(peers)} if len(peers) else {}),
                               ("memory.md", done[done.group.str.startswith("memory")], memory)):
        if tables and all(map(len, tables.values())):
            shown = {name: f"\n\n{markdown(frame)}\n" for name, frame in tables.items()}
            fill(DOCS / page, shown | {"stamp": stamps(rows).strip()}, folder / page)


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    paths = sorted(Path(config.out).glob("*/bench.jsonl"))
    if not paths:
        raise ValueError(f"{config.out} holds no results; make some with pytest bench --minutes 9")
    for path in paths:
        lines = load(path)
        done = lines[lines.outcome == "passed"]
        if len(done):
            tables = [f"\n## {title}\n\n{markdown(frame)}" for title, frame in sections(lines, done).items()]
            path.with_suffix(".md").write_text(f"# {path.parent.name}\n\n{stamps(done)}" + "".join(tables))
            print(path.with_suffix(".md"))
            if config.docs and path.parent.name == "cpu":
                fill_docs(done, Path(config.docs))


if __name__ == "__main__":
    main()
