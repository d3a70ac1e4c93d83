"""The pictures of bench/results/<gpu>/."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from run import pictures


def plot(path: Path, fill: Callable[[Axes], None], size: tuple[float, float] = (8, 4.5)) -> None:
    figure = Figure(size, layout="constrained")
    fill(figure.subplots())
    figure.savefig(path, dpi=130)


COLOURS = {"eager": "0.55", "compiled": "tab:orange", "triton": "tab:blue"}


def roofline(path: Path, points: dict[str, list[tuple[float, float]]]) -> None:
    """Useful GB/s over useful MB of "candidate, direction layout"; the copy, named so, as a line."""
    def style(direction: str, layout: str) -> dict:
        return {"marker": "o" if direction == "forward" else "s", "linestyle": "", "markersize": 5,
                "fillstyle": "full" if layout == "channels_last" else "none"}

    def fill(axes: Axes) -> None:
        copies = points.get("copy", [])
        sizes = sorted({size for size, _ in copies})
        axes.plot(sizes, [median(rate for at, rate in copies if at == size) for size in sizes], "k", label="copy")
        kinds = {name.split(", ")[1]: None for name in points if name != "copy"}
        for name, colour in COLOURS.items():
            axes.plot([], [], "D", color=colour, label=name)
        for kind in kinds:
            axes.plot([], [], color="black", label=kind, **style(*kind.split()))
        for name, rates in points.items():
            if name != "copy":
                candidate, kind = name.split(", ")
                axes.plot(*zip(*rates, strict=True), color=COLOURS[candidate], **style(*kind.split()))
        axes.set(xscale="log", xlabel="MB read and written", ylabel="useful GB/s, cold", ylim=(0, None))
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    plot(path, fill)


def waterfall(path: Path, title: str, stages: dict[str, float], peers: dict[str, float], floor: float) -> None:
    """Milliseconds per step: what each stage takes off, what is left, the floor, and peers below."""
    first, *_, last = stages.values()
    bars = [("eager, float32", 0, first, "0.55", f"{first:.3g} ms")]
    for (_, before), (name, after) in pairwise(stages.items()):
        colour = "tab:green" if after <= before else "tab:red"
        bars.append((f"+ {name}", min(before, after), abs(before - after), colour,
                     f"{after - before:+.3g} ms, {before / after:.2f}x"))
    bars.append(("all of it", 0, last, "tab:blue", f"{last:.3g} ms, {first / last:.3g}x"))
    if floor:
        bars.append(("FLOP floor", 0, floor, "black", f"{floor:.3g} ms, {floor / last:.0%} of all of it"))
    bars += [(name, 0, ms, "tab:orange", f"{ms:.3g} ms, {ms / last:.3g}x as long") for name, ms in peers.items()]

    def fill(axes: Axes) -> None:
        for y, (_, left, width, colour, label) in enumerate(bars):
            axes.barh(y, width, left=left, color=colour)
            axes.annotate(label, (left + width, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set(title=title, xlabel="ms per step", xlim=(0, 1.25 * max(left + width for _, left, width, *_ in bars)))
        axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
        axes.invert_yaxis()
        axes.axvline(floor, color="black", linestyle=":", linewidth=1, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    plot(path, fill, (8, 0.8 + 0.3 * len(bars)))


def losses(path: Path, runs: dict[str, list[tuple[int, float]]]) -> None:
    """The loss of each run, and below it how far the others' are from the first's."""
    figure = Figure((8, 5), layout="constrained")
    whole, apart = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    first = dict(next(iter(runs.values())))
    for k, (name, curve) in enumerate(runs.items()):
        steps, values = zip(*curve, strict=True)
        whole.plot(steps, values, label=name, color=f"C{k}", linestyle="--" if k else "-")
        if k:
            apart.plot(steps, [100 * (value / first[step] - 1) for step, value in curve], color=f"C{k}")
    whole.set(yscale="log", ylabel="loss")
    whole.legend()
    apart.axhline(0, color="0.7", linewidth=1)
    apart.set(xlabel="step", ylabel=f"% from {next(iter(runs))}")
    figure.savefig(path, dpi=130)


def picture_rows(path: Path, rows: dict[str, Tensor]) -> None:
    """Pictures (N, C, H, W) in [-1, 1], ten a line, each set under its name."""
    sheets = {name: pictures.grid(x, 10) for name, x in rows.items()}
    heights = [sheet.height / sheet.width for sheet in sheets.values()]
    figure = Figure((8, 8 * sum(heights) + 0.3 * len(rows)), layout="constrained")
    for axes, (name, sheet) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], sheets.items(), strict=True):
        axes.imshow(np.asarray(sheet))
        axes.set_title(name, fontsize=9, loc="left")
        axes.axis("off")
    figure.savefig(path, dpi=130)
