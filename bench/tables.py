"""The tables and plots of bench/results/<gpu>/, made from its kernels.jsonl and loops.jsonl.

    python -m bench.tables
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean

import torch

from cli import parse, script
from kernels.equivalence import SIDES
from unet import CONFIGS, UNet


@dataclass(frozen=True)
class Config:
    """Makes the Markdown tables and plots of every GPU again."""
    out: str = "bench/results"      # where the GPUs' folders are


def read(path: Path) -> dict[str, dict]:
    """The last line of every case."""
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {line["case"]: line for line in lines}


def table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Markdown; numbers with three digits that count."""
    def cell(value) -> str:
        return f"{value:.3g}" if isinstance(value, float) and value < 1000 else str(
            round(value) if isinstance(value, float) else value)

    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines) + "\n"


def stamps(lines: dict[str, dict]) -> str:
    """What it was measured on; where that changed on the way, all of it."""
    found = {}
    for line in lines.values():
        for name, value in line["stamp"].items():
            found.setdefault(name, {})[value] = None
    return "; ".join(f"{name} {', '.join(values) if len(values) < 4 else f'{min(values)} to {max(values)}'}"
                     for name, values in found.items()) + "\n"


def sections(lines: dict[str, dict]) -> dict[str, dict[str, dict]]:
    """Results by what comes before the last word of a case, or its colon, and after."""
    found = {}
    for case, line in lines.items():
        if case != "machine":
            name, _, last = case.rpartition(": " if ": " in case else " ")
            found.setdefault(name, {})[last] = line
    return found


def over(results: dict, one: str, other: str) -> float | str:
    """How many times as fast `one` is as `other`."""
    times = [results.get(name, {}).get("us") for name in (other, one)]
    return times[0] / times[1] if all(times) else ""


def mean(values: Sequence) -> float | str:
    values = [value for value in values if value != ""]
    return geometric_mean(values) if values else ""


# Kernels

def kernel_table(section: dict[str, dict], state: str) -> str:
    """Microseconds of every candidate for every shape, then what Triton makes of them."""
    done = {shape: line["results"] for shape, line in section.items() if state in line.get("results", {})}
    if not done:
        return ""
    names = list(dict.fromkeys(name for found in done.values() for name in found[state] if name != "copy"))
    rivals = [name for name in names if not name.startswith("triton")]
    rows = []
    for shape, found in done.items():
        at, size = found[state], found["bytes"]
        share = over(at, "triton", "copy") if size else ""
        times = [at.get(name, {}).get("us", "") for name in ("copy", *names)]
        rows.append([shape, size / 1e6 or "", *times,
                     100 * share if share else "", *(over(at, "triton", name) for name in rivals),
                     at.get("triton", {}).get("error", "")])
    last = 4 + len(names)
    rows.append(["geometric mean", *[""] * (last - 1), *(mean([row[last + k] for row in rows])
                                                         for k in range(len(rivals))), ""])
    head = ["shape", "MB", "copy us", *(f"{name} us" for name in names), "triton % of copy",
            *(f"triton over {name}" for name in rivals), "triton error"]
    return f"\n{state}:\n\n" + table(head, rows)


def kernels_page(lines: dict[str, dict]) -> str:
    page = "# Kernels\n\n" + stamps(lines)
    if "results" in lines.get("machine", {}):
        found = lines["machine"]["results"]
        page += (f"\nIn the same run a copy moved {found['copy']['GB/s']:.0f} GB/s, and bf16 matrices multiplied at "
                 f"{found['matrices']['TFLOP/s']:.0f} TFLOP/s.\n")
    for name, section in sections(lines).items():
        page += f"\n## {name}\n" + "".join(kernel_table(section, state) for state in ("cold", "warm"))
    return page + failures(lines)


def failures(lines: dict[str, dict]) -> str:
    """What was not measured, and why."""
    found = [(case, "", line["failed"]) for case, line in lines.items() if "failed" in line]
    for case, line in lines.items():
        results = line.get("results", {})
        groups = [results.get(state, {}) for state in ("cold", "warm")] if "work" in results else [{"": results}]
        found += [(case, name, each["failed"]) for group in groups for name, each in group.items() if "failed" in each]
    found = list(dict.fromkeys(found))
    return "\n## Not measured\n\n" + table(["case", "candidate", "why"], found) if found else ""


def roofline(lines: dict[str, dict], path: Path) -> None:
    """Useful GB/s over useful bytes, cold, beside a copy of as many bytes."""
    points = {}
    for name, section in sections(lines).items():
        for line in section.values():
            found = line.get("results", {})
            for candidate, each in found.get("cold", {}).items():
                if "GB/s" in each and not name.startswith("step"):
                    kind = candidate if candidate == "copy" else f"{candidate}, {name.split()[1]} {name.split()[2]}"
                    points.setdefault(kind, []).append((found["bytes"] / 1e6, each["GB/s"]))
    kept = {k: v for k, v in points.items() if k == "copy" or k.split(",")[0] in ("eager", "compiled", "triton")}
    if kept:
        plot(path, lambda axes: draw_points(axes, kept), "MB read and written", "useful GB/s, cold")


def draw_points(axes, points: dict[str, list[tuple[float, float]]]) -> None:
    for name, found in points.items():
        axes.plot(*zip(*sorted(found), strict=True), "k-" if name == "copy" else "o", label=name, markersize=4)
    axes.set(xscale="log")
    axes.legend(fontsize=6, ncols=2)


def plot(path: Path, draw: Callable, xlabel: str, ylabel: str) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    draw(axes)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    figure.savefig(path, dpi=130)
    plt.close(figure)


# Loops

def flops(network: str) -> int:
    """Of one picture and one step: two for each product, counted on a network without numbers."""
    from torch.utils.flop_counter import FlopCounterMode
    config = CONFIGS[network]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        t = torch.ones(1, dtype=torch.int64)
        xt = torch.empty(1, config.in_channels, SIDES[network], SIDES[network])
        UNet(config)(xt, t, t if config.classes else None)
    return counter.get_total_flops()


def loop_table(name: str, section: dict[str, dict], rate: float) -> str:
    """rate: of the matrices, in TFLOP/s; the floor is our network's products at that rate, three times to train."""
    done = {who: line["results"] for who, line in section.items() if "us" in line.get("results", {})}
    if not done:
        return ""
    kind, network = name.split()[:2]
    work = flops(network) * (3 if kind == "training" else int(kind.split("-")[1]))
    rows = [[who, found["images/s"], found["images/s"] * work / rate / 1e10 if rate and "denoising" not in who else "",
             found["us"] / 1e3, found.get("ms a step", ""), found["p20"] / 1e3, found["p80"] / 1e3,
             found.get("peak GB", ""), found["parameters"] / 1e6, found["error"], found["prepared s"]]
            for who, found in done.items()]
    first = done.get("diffusers", next(iter(done.values())))["images/s"]
    rows = [[row[0], row[1], row[1] / first, *row[2:]] for row in rows]
    over = "diffusers" if "diffusers" in done else next(iter(done))
    head = ["", "images/s", f"over {over}", "% of the floor", "ms", "ms a step", "p20", "p80", "peak GB",
            "M parameters", "error", "s to prepare"]
    return f"\n## {name}\n\n" + table(head, rows)


def loops_page(lines: dict[str, dict]) -> str:
    rate = lines.get("machine", {}).get("results", {}).get("matrices", {}).get("TFLOP/s", 0.)
    page = "# Sampling loops and training steps\n\n" + stamps(lines)
    page += "".join(loop_table(name, section, rate) for name, section in sections(lines).items())
    return page + failures(lines)


def waterfall(lines: dict[str, dict], path: Path) -> None:
    """Milliseconds a step as one stage is added to the other, at the batch that has most of them."""
    from bench.bench_sampling_loop import STAGES
    found = {name: {stage: section[stage]["results"]["ms a step"] for stage in STAGES
                    if "ms a step" in section.get(stage, {}).get("results", {})}
             for name, section in sections(lines).items()}
    name = max(found, key=lambda each: len(found[each]), default="")
    if not found or len(found[name]) < 2:
        return

    def draw(axes) -> None:
        bars = axes.bar(found[name].keys(), found[name].values(), color="tab:blue")
        axes.bar_label(bars, fmt="%.3g")
    plot(path, draw, name, "ms a step")


def write_tables(folder: Path) -> None:
    """kernels.md, loops.md, roofline.png and waterfall.png, as far as there is anything to show."""
    if kernels := read(folder / "kernels.jsonl"):
        (folder / "kernels.md").write_text(kernels_page(kernels))
        roofline(kernels, folder / "roofline.png")
    if loops := read(folder / "loops.jsonl"):
        (folder / "loops.md").write_text(loops_page(loops))
        waterfall(loops, folder / "waterfall.png")


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
