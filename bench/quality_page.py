"""bench/quality.md and docs/quality.png, from the results of bench.quality."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.ticker import LogLocator

from bench.contenders import CONTENDERS
from data import parse_name
from run.markdown import fill, table
from run.pictures import panels, save_figure

ROOT = Path(__file__).parents[1]


def table_of_curves(lines: pd.DataFrame) -> str:
    """A row for each training, FD at every stop; where there are three seeds, their mean and range."""
    first, ours = lines[lines.seed == 0], lines[(lines.name == "ours") & (lines.seed == 0)]
    last = first.sort_values("minutes").groupby(["name", "rate"]).last()
    frame = pd.DataFrame({"parameters": last.parameters.map(lambda n: f"{n / 1e6:.2f} M"), "form": last.form,
                          "pictures/s": (last.images / last.minutes / 60).map("{:.0f}".format)})
    curves = lines.pivot_table(index=["name", "rate"], columns="minutes", values="FD", aggfunc=span)
    frame = frame.join(curves.rename(columns="{:g} min".format).fillna(""))
    frame["ours was there"] = [
        "" if name.startswith("ours") else
        f"{there.min():g} min" if len(there := ours.minutes[ours.FD <= FD]) else "not yet"
        for (name, _), FD in last.FD.items()]
    frame["agree"] = last.agree.map("{:.3f}".format)
    frame["core's speed"] = lines.groupby(["name", "rate"]).core.agg(
        lambda core: f"{core.min():.0f}" + f" to {core.max():.0f}" * (round(core.min()) < round(core.max())))
    rows = sorted(frame.iterrows(), key=lambda row: ([*CONTENDERS].index(row[0][0]), row[0][1]))
    return table(["training", *frame.columns], [[f"{name}, rate {rate:g}", *row] for (name, rate), row in rows])


def span(FD: pd.Series) -> str:
    """The one number, or the mean of several, the least and the most."""
    return f"{FD.mean():.2f}" + (f" ({FD.min():.2f} to {FD.max():.2f})" if len(FD) > 1 else "")


def draw_curves(path: Path, lines: pd.DataFrame) -> None:
    """FD over CPU-minutes, both logarithmic: seed 0 as lines, other seeds as crosses, other learning rates as rings."""
    figure, axes = panels(1, 1, (10, 4.5))
    kept = lines.sort_values("minutes").groupby("name").rate.last()             # the rate that went on
    for (name, rate, seed), curve in lines.sort_values("minutes").groupby(["name", "rate", "seed"]):
        axes.plot(curve.minutes, curve.FD, "o-" if seed == 0 else "x", color=f"C{[*CONTENDERS].index(name)}",
                  markersize=5, fillstyle="full" if rate == kept[name] else "none",
                  label=f"{name}, rate {rate:g}" if rate == kept[name] and seed == 0 else None)
    axes.set(xscale="log", yscale="log", xlabel="CPU-minutes", ylabel="FD, per cent of the variance")
    stops = sorted(set(lines.minutes))
    axes.set_xticks(stops, [f"{minutes:g}" for minutes in stops])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, frameon=False, loc="outside right center")
    save_figure(figure, path, dpi=130)


def write_page(config: Any, floor: float, done: list[dict]) -> None:
    """The numbers of bench/quality.md, and docs/quality.png. floor: FD of pictures of the training set."""
    lines = pd.DataFrame(done)
    draw_curves(ROOT / "docs/quality.png", lines)
    best = lines.loc[lines.groupby("minutes").FD.idxmin()]
    record = table(["CPU-minutes", "FD", "by", "commit"],
                   [[f"{line.minutes:g}", f"{line.FD:.2f}", f"{line.name}, rate {line.rate:g}, seed {line.seed}",
                     line.commit] for line in best.itertuples()])
    machines = "; ".join(sorted(set(lines.cpu + ", torch " + lines.torch)))
    missing = [name for name in CONTENDERS if name not in set(lines.name)]
    facts = f"""
- {parse_name(config.data)[1]}; {config.n} samples of each training at each stop, by {config.steps} steps
- as many pictures of the training set itself have FD {floor:.2f}
- pFD, steps, pictures and versions of every stop: {config.out}
- {machines}; cores of the same name differed by up to {lines.core.max() / lines.core.min():.1f} times
"""
    facts += f"- not measured yet: {', '.join(missing)}\n" if missing else ""
    fill(ROOT / "bench/quality.md", {"record": f"\n\n{record}\n", "curves": f"\n\n{table_of_curves(lines)}\n",
                                     "facts": f"\n{facts}\n"})
