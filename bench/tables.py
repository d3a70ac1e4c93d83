"""The tables and plots of bench/results/<gpu>/, made from the .jsonl files of bench.report.

    python -m bench.tables

summary.md is the README's: it is pasted there as it is, its links lead from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import plots
from bench.markdown import mean, over, read, sections, stamps, table
from bench.pages import (
    kernels_page,
    loops_page,
    profile_page,
    roofline_points,
    same_page,
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
    text = stamps(commands.get("loops") or commands.get("kernels") or {})
    rows = [row for name, section in sections(commands.get("loops", {})).items() for row in summary_rows(name, section)]
    if rows:
        text += "\n" + table(["", "", "images/s", "over diffusers"], rows)
    kernels = [[name, *ratios(section)] for name, section in sections(commands.get("kernels", {})).items()]
    if kernels := [row for row in kernels if row[1]]:
        text += "\n" + table(["kernel, cold", "shapes", "over eager", "over torch.compile", "the least", "% of a copy"],
                             kernels)
    for name, what in {"waterfall": "Milliseconds per step, stage by stage", "roofline": "Norms beside a copy"}.items():
        if (folder / f"{name}.png").exists():
            text += f"\n![{what}]({folder}/{name}.png)\n"
    return text


def summary_rows(name: str, section: dict[str, dict]) -> list[list]:
    done = {who: line["results"] for who, line in section.items() if "images/s" in line.get("results", {})}
    shown = [who for who in done if who not in STAGES or who in ("eager", "compile", "graph")]
    base = done.get("diffusers", {}).get("images/s")
    return [[name, who, done[who]["images/s"], done[who]["images/s"] / base if base else ""] for who in shown]


def ratios(section: dict[str, dict]) -> list:
    """Shapes measured; geometric means of Triton's speed over eager and torch.compile, the least, % of a copy."""
    cold = [line["results"]["cold"] for line in section.values() if "cold" in line.get("results", {})]
    eager, compiled, copy = ([over(each, "triton", other) for each in cold] for other in ("eager", "compiled", "copy"))
    least, share = min((value for value in compiled if value != ""), default=""), mean(copy)
    return [len(cold), mean(eager), mean(compiled), least, 100 * share if share else ""]


PAGES = {"kernels": kernels_page, "loops": loops_page, "same": same_page, "profile": profile_page,
         "training": training_page}


def write_tables(folder: Path) -> None:
    """A page for each .jsonl, plots, and the summary, as far as there is anything to show."""
    commands = {name: lines for name in PAGES if (lines := read(folder / f"{name}.jsonl"))}
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
