"""The pictures of bench/results/<gpu>/."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from run.pictures import panels, save_figure

COLOURS = {"eager": "0.55", "compiled": "tab:orange", "triton": "tab:blue"}


def plot(path: Path, fill: Callable[[Axes], None], size: tuple[float, float] = (8, 4.5)) -> None:
    figure, axes = panels(1, 1, size)
    fill(axes)
    save_figure(figure, path, dpi=130)


def roofline(path: Path, points: pd.DataFrame) -> None:
    """Useful GB/s over useful MB of norms, by name, direction and layout; the copy as a line."""
    def style(direction: str, layout: str) -> dict:
        return {"marker": "o" if direction == "forward" else "s", "linestyle": "", "markersize": 5,
                "fillstyle": "full" if layout == "channels_last" else "none"}

    def fill(axes: Axes) -> None:
        axes.plot(points[points.name == "copy"].groupby("MB")["GB/s"].median(), "k", label="copy")
        for name, colour in COLOURS.items():
            axes.plot([], [], "D", color=colour, label=name)
        for (direction, layout), rows in points.groupby(["direction", "layout"]):
            axes.plot([], [], color="black", label=f"{direction} {layout}", **style(direction, layout))
            for name, colour in COLOURS.items():
                kernel = rows[rows.name == name]
                axes.plot(kernel.MB, kernel["GB/s"], color=colour, **style(direction, layout))
        axes.set(xscale="log", xlabel="MB read and written", ylabel="useful GB/s, cold", ylim=(0, None))
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    plot(path, fill)


def waterfall(path: Path, title: str, stages: dict[str, float], peers: dict[str, float], floor: float) -> None:
    """Milliseconds per step: what each stage takes off, what is left, the floor, and peers below."""
    first, *_, fastest = stages.values()
    bars = [("eager, float32", 0, first, "0.55", f"{first:.3g} ms")]
    for (_, before), (name, after) in pairwise(stages.items()):
        colour = "tab:green" if after <= before else "tab:red"
        bars.append((f"+ {name}", min(before, after), abs(before - after), colour,
                     f"{after - before:+.3g} ms, {before / after:.2f}x"))
    bars.append(("all of it", 0, fastest, "tab:blue", f"{fastest:.3g} ms, {first / fastest:.3g}x"))
    if floor == floor:                                      # NaN where the machine's rate is not known
        bars.append(("FLOP floor", 0, floor, "black", f"{floor:.3g} ms, {floor / fastest:.0%} of all of it"))
    bars += [(name, 0, ms, "tab:orange", f"{ms:.3g} ms, {ms / fastest:.3g}x as long") for name, ms in peers.items()]

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
