"""bench/quality.md and docs/quality.png, from the results of bench.quality."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator

from bench.contenders import CONTENDERS, training_of
from bench.markdown import fill, table
from bench.plots import plot
from data import parse_name

ROOT = Path(__file__).parents[1]

def table_of_curves(stops: Sequence[float], done: list[dict]) -> str:
    """A row for each training, FD at every stop; where there are three seeds, their mean and range."""
    rows = []
    for name, rate in sorted({(line["name"], line["rate"]) for line in done}, key=lambda row: (
            [*CONTENDERS].index(row[0]), row[1])):
        lines = [line for line in done if (line["name"], line["rate"]) == (name, rate)]
        longest = max((line for line in lines if line["seed"] == 0), key=lambda line: line["minutes"])
        cells = [fd_cell([line["FD"] for line in lines if line["minutes"] == minutes]) for minutes in stops]
        ours_there = "" if name == "ours" else reached(longest["FD"], done)
        rows.append([f"{name}, rate {rate:g}", f"{longest['parameters'] / 1e6:.2f} M", longest["form"],
                     f"{longest['images'] / longest['minutes'] / 60:.0f}", *cells, ours_there,
                     f"{longest['agree']:.3f}", span([line["core"] for line in lines if "core" in line])])
    return table(["training", "parameters", "form", "pictures/s", *(f"{minutes:g} min" for minutes in stops),
                  "ours was there", "agree", "core's speed"], rows)


def reached(FD: float, done: list[dict]) -> str:
    """The first stop at which ours, of seed 0, has this FD or less."""
    stops = [line["minutes"] for line in done if line["name"] == "ours" and line["seed"] == 0 and line["FD"] <= FD]
    return f"{min(stops):g} min" if stops else "not yet"


def span(values: Sequence[float]) -> str:
    """The least and the most in whole numbers, or the one number that they are."""
    least, most = f"{min(values):.0f}", f"{max(values):.0f}"
    return least if least == most else f"{least} to {most}"


def fd_cell(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else ""
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def draw_curves(path: Path, done: list[dict]) -> None:
    """FD over CPU-minutes, both logarithmic: seed 0 as lines, other seeds as crosses, other learning rates as rings."""
    def fill(axes) -> None:
        colours = {name: f"C{k}" for k, name in enumerate(CONTENDERS)}
        for name, rate, seed in sorted({training_of(line) for line in done}):
            points = sorted((line["minutes"], line["FD"]) for line in done if training_of(line) == (name, rate, seed))
            longest = max((line for line in done if line["name"] == name), key=lambda line: line["minutes"])
            kept = rate == longest["rate"]
            axes.plot(*zip(*points, strict=True), "o-" if seed == 0 else "x", color=colours[name], markersize=5,
                      fillstyle="full" if kept else "none",
                      label=f"{name}, rate {rate:g}" if kept and seed == 0 else None)
        axes.set(xscale="log", yscale="log", xlabel="CPU-minutes", ylabel="FD, per cent of the variance")
        stops = sorted({line["minutes"] for line in done})
        axes.set_xticks(stops, [f"{minutes:g}" for minutes in stops])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    plot(path, fill)


def write_page(config: Any, floor: float, done: list[dict]) -> None:
    """The numbers of bench/quality.md, and docs/quality.png. floor: FD of pictures of the training set."""
    stops = sorted({line["minutes"] for line in done})
    draw_curves(ROOT / "docs/quality.png", done)
    best = {minutes: min((line for line in done if line["minutes"] == minutes), key=lambda line: line["FD"])
            for minutes in stops}
    record = table(["CPU-minutes", "FD", "by", "commit"],
                   [[f"{minutes:g}", f"{line['FD']:.2f}", f"{line['name']}, rate {line['rate']:g}, seed {line['seed']}",
                     line["commit"]] for minutes, line in best.items()])
    cores = [line["core"] for line in done if "core" in line]
    missing = [name for name in CONTENDERS if name not in {line["name"] for line in done}]
    machines = ", ".join(sorted({f"{line['cpu']}, torch {line['torch']}" for line in done}))
    facts = f"""
- {parse_name(config.data)[1]}; {config.n} samples of each training at each stop, by {config.steps} steps
- as many pictures of the training set itself have FD {floor:.2f}
- pFD, steps, pictures and versions of every stop: {config.out}
- {machines}; cores of the same name differed by up to {max(cores) / min(cores):.1f} times
"""
    facts += f"- not measured yet: {', '.join(missing)}\n" if missing else ""
    fill(ROOT / "bench/quality.md", {"record": f"\n\n{record}\n", "curves": f"\n\n{table_of_curves(stops, done)}\n",
                                     "facts": f"\n{facts}\n"})
