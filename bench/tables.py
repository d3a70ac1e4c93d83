"""The tables and plots of bench/results/<gpu>/, made from the .jsonl files of bench.report and bench.first.

    python -m bench.tables

summary.md is the README's: it is pasted there as it is, its links lead from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import plots
from bench.lines import by_page
from bench.markdown import eager_peer, fastest_peer, mean, over, sections, stamps, table
from bench.pages import (
    kernels_page,
    loops_page,
    profile_page,
    roofline_points,
    same_page,
    tests_page,
    training_page,
    training_runs,
    waterfall_of,
)
from bench.stages import STAGES
from run.cli import parse, script


@dataclass(frozen=True)
class Config:
    """Makes the Markdown tables and plots of every GPU again."""
    out: str = "bench/results"      # where the GPUs' folders are


# For the README

def summary(folder: Path, commands: dict[str, dict[str, dict]]) -> str:
    """The ends of every loop, a line for each kind of kernel, and the pictures."""
    text = stamps(commands.get("loops") or commands.get("kernels") or {}) + "".join(
        f"\n{part}" for part in summary_tables(commands))
    for name, what in {"waterfall": "Milliseconds per step, stage by stage", "roofline": "Norms beside a copy"}.items():
        if (folder / f"{name}.png").exists():
            text += f"\n![{what}]({folder}/{name}.png)\n"
    return text


def summary_tables(commands: dict[str, dict[str, dict]]) -> list[str]:
    """Loops and training steps beside their peers, and kernels beside PyTorch, as far as they were measured."""
    rows = [row for name, section in sections(commands.get("loops", {})).items() for row in summary_rows(name, section)]
    found = [table(["", "", "images/s", "over diffusers eager", "which is", "over diffusers' fastest"], rows)]
    kinds = sections(commands.get("kernels", {}))
    kernels = [[name, *ratios(section, kinds.get(other_layout(name), {}))] for name, section in kinds.items()]
    kernels = [row for row in kernels if row[1]]
    found += [table(["kernel, cold", "shapes", "over eager, same layout", "over eager, its best layout",
                     "over torch.compile", "the least", "% of a copy"], kernels)]
    return [part for part, rows in zip(found, (rows, kernels), strict=True) if rows]


def summary_rows(name: str, section: dict[str, dict]) -> list[list]:
    done = {who: line["results"] for who, line in section.items() if "images/s" in line.get("results", {})}
    shown = [who for who in done if who not in STAGES or who in ("eager", "compile", "graph")]
    eager, fastest = eager_peer(done), fastest_peer(done)
    return [[name, who, done[who]["images/s"], over(done, who, eager), eager.removeprefix("diffusers "),
             over(done, who, fastest)] for who in shown]


def other_layout(section: str) -> str:
    """The section of the same kernel in the other layout."""
    names = {"nchw": "channels_last", "channels_last": "nchw"}
    return " ".join(names.get(word, word) for word in section.split())


def ratios(section: dict[str, dict], other: dict[str, dict]) -> list:
    """Shapes measured; geometric means of Triton's speed over eager here, over eager in the layout that is faster for
    it, and over torch.compile; the least of these; % of a copy."""
    cold = {shape: line["results"]["cold"] for shape, line in section.items() if "cold" in line.get("results", {})}
    eager, compiled, copy = ([over(each, "triton", name) for each in cold.values()]
                             for name in ("eager", "compiled", "copy"))
    best = []
    for (shape, each), here in zip(cold.items(), eager, strict=True):
        there = other.get(shape, {}).get("results", {}).get("cold", {}).get("eager", {})
        best.append(over({**each, "eager": there}, "triton", "eager") if here and "us" in there else "")
    best = [min(pair) for pair in zip(eager, best, strict=True) if "" not in pair]
    least, share = min((value for value in compiled if value != ""), default=""), mean(copy)
    return [len(cold), mean(eager), mean(best), mean(compiled), least, 100 * share if share else ""]


PAGES = {"tests": tests_page, "kernels": kernels_page, "loops": loops_page, "same": same_page,
         "profile": profile_page, "training": training_page}


def write_tables(folder: Path) -> None:
    """A page for each kind of case, plots, and the summary, as far as there is anything to show."""
    commands = by_page(folder, tuple(PAGES))
    for name, lines in commands.items():
        (folder / f"{name}.md").write_text(PAGES[name](lines))
    if points := roofline_points(commands.get("kernels", {})):
        plots.roofline(folder / "roofline.png", points)
    if fall := waterfall_of(commands.get("loops", {})):
        plots.waterfall(folder / "waterfall.png", *fall)
    if runs := training_runs(commands.get("training", {})):
        plots.losses(folder / "training.png", {name: run["losses"] for name, run in runs.items()})
    (folder / "summary.md").write_text(summary(folder, commands))


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    folders = [path.parent for path in Path(config.out).glob("*/*.jsonl")]
    if not folders:
        raise ValueError(f"{config.out} holds no results; make some with python -m bench.report kernels, on a GPU")
    for folder in sorted(set(folders)):
        write_tables(folder)
        print(folder)


if __name__ == "__main__":
    main()
