"""The tables and plots of bench/results/<gpu>/, made from its bench.jsonl.

    python -m bench.tables
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bench import plots
from bench.bench_sampling_loop import STAGES
from bench.lines import read
from bench.markdown import table
from bench.measure import RESULTS
from kernels.equivalence import SIDES, norms
from run.cli import parse, script
from unet import CONFIGS, UNet

FACTS = ["outcome", "why", "stamp", "group", "name", "us", "p25", "p75", "error",
         "kind", "layout", "shape", "bytes", "cold us", "flop",
         "network", "B", "steps", "parameters", "prepared s", "peak GB", "cudagraph skips", "kernels"]


@dataclass(frozen=True)
class Config:
    """Makes the Markdown tables and plots of every machine again."""
    out: str = str(RESULTS)         # where the machines' folders are


def load(path: Path) -> pd.DataFrame:
    """The last line of every case, a row each, its name the index."""
    lines = {line["case"]: line for line in read(path)}
    frame = pd.DataFrame(lines.values(), index=[*lines]).reindex(columns=FACTS)
    return frame.astype(dict.fromkeys(("group", "name", "kind", "layout", "shape"), "string"))


def markdown(frame: pd.DataFrame) -> str:
    frame = frame.dropna(axis=1, how="all").reset_index()
    return table(list(frame.columns), frame.astype(object).values.tolist())


def geometric_mean(values: pd.Series) -> float:
    return float(np.exp(np.log(values.dropna()).mean()))


# The machine

def stamps(done: pd.DataFrame) -> str:
    """What it was measured on; where that changed on the way, all of it."""
    columns = pd.DataFrame(done.stamp.tolist()).items()
    values = {name: list(dict.fromkeys(column.dropna())) for name, column in columns}
    return "; ".join(f"{name} {', '.join(each) if len(each) < 4 else f'{min(each)} to {max(each)}'}"
                     for name, each in values.items()) + "\n"


def rates(done: pd.DataFrame) -> tuple[float, float]:
    """GB/s of a copy and TFLOP/s of matrices; NaN for what was not measured."""
    machine = done[done.group == "machine"]
    return ((machine.bytes / machine.us / 1e3).max(), (machine.flop / machine.us / 1e6).max())


@cache
def flops(network: str) -> dict[str, int]:
    """Of one picture and one step, by kind: two for each product, counted on a network without numbers."""
    from torch.utils.flop_counter import FlopCounterMode
    config = CONFIGS[network]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        t = torch.ones(1, dtype=torch.int64)
        xt = torch.empty(1, config.in_channels, SIDES[network], SIDES[network])
        UNet(config)(xt, t, t if config.classes else None)
    products = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    return {"convolution": products.pop("aten.convolution"), "attention": products.pop("aten.bmm", 0),
            "matrix product": sum(products.values())}


# Sampling loops and training steps

def loop_table(rows: pd.DataFrame, rate: float) -> pd.DataFrame:
    """rate: of the matrices, in TFLOP/s; the floor is our network's products at that rate, three times to train.

    Ratios are to diffusers in bf16 without torch.compile, in the layout that is faster for it, or to the first row.
    """
    rows = rows.set_index("name")
    eager = rows.us.reindex(["diffusers nchw", "diffusers channels_last"])
    base = rows.index[0] if eager.isna().all() else eager.idxmin()
    passes = rows.steps.fillna(3)                           # an update has none
    work = rows.B * passes * sum(flops(rows.network.iloc[0]).values())
    ours = ~rows.index.str.startswith("denoising")          # which has another network
    return pd.DataFrame({
        "images/s": 1e6 * rows.B / rows.us, f"times as fast as {base}": rows.us[base] / rows.us,
        "% of the floor": (work / rows.us / rate / 1e4).where(ours), "ms": rows.us / 1e3,
        "ms per step": rows.us / 1e3 / rows.steps, "p25": rows.p25 / 1e3, "p75": rows.p75 / 1e3,
        "peak GB": rows["peak GB"], "M parameters": rows.parameters / 1e6, "error": rows.error,
        "s to prepare": rows["prepared s"], "cudagraph skips": rows["cudagraph skips"]})


def waterfall_of(loops: pd.DataFrame, rate: float) -> tuple[str, dict, dict, float] | None:
    """Of the loop with most stages: its name, ms per step of each stage and of each peer, and the floor."""
    times = {name: dict(zip(rows.name, rows.us / 1e3 / rows.steps, strict=True))
             for name, rows in loops.dropna(subset=["steps"]).groupby("group")}
    name = max(times, key=lambda loop: len(STAGES.keys() & times[loop]), default="")
    stages = {stage: times[name][stage] for stage in STAGES if stage in times[name]} if name else {}
    if len(stages) < 2 or "eager" not in stages:
        return None
    peers = {peer: ms for peer, ms in times[name].items() if peer.startswith("diffusers")}
    _, network, _, B = name.split()
    return name, stages, peers, int(B) * sum(flops(network).values()) / rate / 1e9


def waterfall_section(name: str, stages: dict[str, float], floor: float) -> str:
    """A line for each stage: what it wins, in milliseconds per step."""
    text = f"\n## From eager to all of it: {name}\n\n![Milliseconds per step](waterfall.png)\n\n"
    for (_, before), (stage, after) in pairwise(stages.items()):
        text += (f"- {stage}, {STAGES[stage]}: {before:.3g} to {after:.3g} ms per step, {before / after:.3g} times as "
                 f"fast\n")
    first, *_, last_stage = stages.values()
    return text + (f"- together: {first:.3g} to {last_stage:.3g} ms, {first / last_stage:.3g} times as fast; the "
                   f"network's products alone take {floor:.3g} ms\n")


# Kernels

def kernel_times(done: pd.DataFrame, column: str) -> pd.DataFrame:
    """Microseconds, a row for each kernel, layout and shape, a column for each candidate."""
    return done.dropna(subset=["kind", column]).pivot_table(index=["kind", "layout", "shape"], columns="name",
                                                            values=column, sort=False)


def triton_over(times: pd.DataFrame) -> pd.DataFrame:
    """How many times as fast Triton is as each of the others."""
    return times.div(times.triton, axis=0).drop(columns="triton")


def kernel_summary(times: pd.DataFrame) -> pd.DataFrame:
    """Of each kernel and layout: how many shapes, and over all of them the geometric mean of Triton's speed over the
    others', over eager's in the layout that is faster for it, and the least over torch.compile."""
    ratios = triton_over(times)
    best = times.eager.groupby(level=["kind", "shape"]).transform("min") / times.triton
    ratios.insert(0, "eager, its best layout", best)
    groups = ratios.groupby(level=["kind", "layout"], sort=False)
    summary = groups.agg(geometric_mean).rename(columns="over {}".format)
    summary["over compiled, the least"] = groups.compiled.min()
    if "over copy" in summary:
        summary["% of a copy"] = 100 * summary.pop("over copy")
    summary.insert(0, "shapes", groups.size())
    return summary


def kernel_sections(done: pd.DataFrame) -> str:
    text = ""
    for column, state in (("cold us", "cold"), ("us", "warm")):
        times = kernel_times(done, column)
        if {"triton", "eager", "compiled"} <= {*times.columns}:
            text += f"\n## Triton's speed over the others', {state}\n\n" + markdown(kernel_summary(times))
        if len(times):
            text += f"\n## Microseconds of a call, {state}\n\n" + markdown(times)
    return text


def roofline_points(done: pd.DataFrame) -> pd.DataFrame:
    """Useful MB and GB/s of every norm, cold, by name, direction and layout, and of copies as large."""
    norms = done[done.kind.str.contains("forward|backward", na=False) & done["cold us"].notna()]
    return pd.DataFrame({"name": norms.name, "direction": norms.kind.str.split().str[-1], "layout": norms.layout,
                         "MB": norms.bytes / 1e6, "GB/s": norms.bytes / norms["cold us"] / 1e3})


# One step, kernel by kernel

KINDS = {                                                   # the first whose pattern occurs in a kernel's name
    "fused norm": r"^(forward|backward)_(part_|merge_|apply_)?kernel|group_norm",
    "sampling step": r"^step_kernel",
    "compiled pointwise": r"^triton_(poi|red|per)",
    "attention": r"(?i)flash|fmha|attention|sdpa|softmax",
    "convolution": r"(?i)conv|fprop|dgrad|wgrad|nchwtonhwc|nhwctonchw|cudnn",
    "matrix product": r"(?i)gemm|nvjet|cutlass|splitk|addmm|bmm|::mm",
    "copy": r"(?i)memcpy|memset|copy|CatArray",
    "pointwise": r"(?i)elementwise|index|gather|aten::",
    "other": ""}


def kind(kernel: str) -> str:
    return next(name for name, pattern in KINDS.items() if re.search(pattern, kernel))


def floors_us(network: str, B: int, copy: float, rate: float) -> dict[str, float]:
    """Products at the rate of large matrices; norms, read and written once in bf16, at that of a copy."""
    elements = sum(norm.C * norm.H * norm.W * n for norm, n in norms(network).items())
    return {name: B * n / rate / 1e6 for name, n in flops(network).items()} | {"fused norm": 4e-3 * B * elements / copy}


def profile_section(row: pd.Series, copy: float, rate: float) -> str:
    """By kind, with what the products, and the bytes of the norms, would take alone; then the longest kernels."""
    kernels = pd.DataFrame.from_dict(row.kernels, orient="index", columns=["launches", "us"]).rename_axis("longest")
    kernels.insert(0, "kind", kernels.index.map(kind))
    kinds = kernels.groupby("kind").sum().reindex([name for name in KINDS if name in set(kernels.kind)])
    kinds.loc["between kernels"] = [np.nan, row.us - kinds.us.sum()]
    kinds.loc["a step"] = [kinds.launches.sum(), row.us]
    kinds.insert(2, "%", 100 * kinds.us / row.us)
    floors = floors_us(row.network, int(row.B), copy, rate)
    kinds["floor us"] = pd.Series({**floors, "a step": sum(floors.values())})
    kernels.index = "`" + kernels.index.str[:100] + "`"
    return f"\n## {row.group}\n\n{markdown(kinds)}\n{markdown(kernels[:15].rename_axis('longest'))}"


# All of it

def write_tables(folder: Path) -> None:
    """bench.md and its plots, as far as there is anything to show."""
    lines = load(folder / "bench.jsonl")
    done = lines[lines.outcome == "passed"]
    if done.empty:
        return
    copy, rate = rates(done)
    text = f"# {folder.name}\n\n{stamps(done)}"
    if copy == copy:
        text += f"\nA copy moved {copy:.0f} GB/s, and bf16 matrices multiplied at {rate:.0f} TFLOP/s.\n"
    loops = done[done.parameters.notna()]
    if waterfall := waterfall_of(loops, rate):
        plots.waterfall(folder / "waterfall.png", *waterfall)
        name, stages, _, floor = waterfall
        text += waterfall_section(name, stages, floor)
    for name, rows in loops.groupby("group", sort=False):
        text += f"\n## {name}\n\n{markdown(loop_table(rows, rate))}"
    text += kernel_sections(done)
    points = roofline_points(done)
    if len(points):
        plots.roofline(folder / "roofline.png", points)
        text += "\n![Norms beside a copy](roofline.png)\n"
    sampler = done[done.group.str.startswith("a sampler's")]
    if len(sampler):
        text += "\n## A sampler's own cost\n\nMicroseconds of a step.\n\n" + markdown(
            sampler.pivot_table(index="group", columns="name", values="us", sort=False))
    for _, row in done[done.kernels.notna()].iterrows():
        text += profile_section(row, copy, rate)
    failed = lines[~lines.outcome.isin(["passed", "skipped"])]
    if len(failed):
        text += "\n## Not measured\n\n" + markdown(failed[["outcome", "why"]].fillna(""))
    (folder / "bench.md").write_text(text)
    print(folder / "bench.md")


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    folders = [path.parent for path in sorted(Path(config.out).glob("*/bench.jsonl"))]
    if not folders:
        raise ValueError(f"{config.out} holds no results; make some with pytest bench --minutes 9")
    for folder in folders:
        write_tables(folder)


if __name__ == "__main__":
    main()
