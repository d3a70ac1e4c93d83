"""The pages of bench/results/<gpu>/: kernels, loops, the profile of one step, the same pictures, one training."""

import re
from itertools import pairwise
from statistics import fmean, stdev

import torch

from bench import plots
from bench.markdown import eager_peer, failures, machine, machine_line, mean, over, sections, stamps, table
from bench.stages import STAGES
from kernels.equivalence import SIDES, norms
from unet import CONFIGS, UNet

# Tests

def tests_page(lines: dict[str, dict]) -> str:
    rows = [[name, line["results"]["passed"], line["results"]["skipped"], line["results"].get("failed", "")]
            for name, line in lines.items() if "passed" in line.get("results", {})]
    failed = [[f"`{test}`", why] for line in lines.values()
              for test, why in line.get("results", {}).get("failures", {}).items()]
    return ("# Tests\n\n" + stamps(lines) + "\n" + table(["", "passed", "skipped", "failed"], rows)
            + ("\n" + table(["test", "why"], failed) if failed else "") + failures(lines))


# Kernels

def kernel_table(section: dict[str, dict], state: str) -> str:
    """Microseconds of every candidate for every shape, then what Triton makes of them."""
    done = {shape: line["results"] for shape, line in section.items() if state in line.get("results", {})}
    if not done:
        return ""
    names = list(dict.fromkeys(name for results in done.values() for name in results[state] if name != "copy"))
    rivals = [name for name in names if not name.startswith("triton")]
    rows = []
    for shape, results in done.items():
        at, size = results[state], results["bytes"]
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
    page = "# Kernels\n\n" + stamps(lines) + machine_line(lines)
    for name, section in sections(lines).items():
        page += f"\n## {name}\n" + "".join(kernel_table(section, state) for state in ("cold", "warm"))
    return page + failures(lines)


def roofline_points(lines: dict[str, dict]) -> dict[str, list[tuple[float, float]]]:
    """(MB, useful GB/s) of every norm, cold, by candidate, direction and layout, and of copies as large."""
    points = {}
    for name, section in sections(lines).items():
        _, *kind = name.split()                             # of a norm: forward or backward, and the layout
        if kind[:1] not in (["forward"], ["backward"]):
            continue
        for line in section.values():
            results = line.get("results", {})
            for candidate, each in results.get("cold", {}).items():
                if "GB/s" in each and candidate in ("copy", *plots.COLOURS):
                    label = candidate if candidate == "copy" else f"{candidate}, {' '.join(kind)}"
                    points.setdefault(label, []).append((results["bytes"] / 1e6, each["GB/s"]))
    return points


# Loops

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


def floor_ms(network: str, B: int, rate: float) -> float:
    """Milliseconds of a step whose products run at the rate of large matrices, in TFLOP/s; 0 if that is unknown."""
    return sum(flops(network).values()) * B / rate / 1e9 if rate else 0.


def loop_table(name: str, section: dict[str, dict], rate: float) -> str:
    """rate: of the matrices, in TFLOP/s; the floor is our network's products at that rate, three times to train.

    Ratios are to diffusers' eager mode in the layout that is faster for it, or where that is missing to the first line.
    """
    done = {who: line["results"] for who, line in section.items() if "us" in line.get("results", {})}
    if not done:
        return ""
    how, network = name.split()[:2]
    work = sum(flops(network).values()) * (3 if how == "training" else int(how.split("-")[1]))
    rows = [[who, r["images/s"], r["images/s"] * work / rate / 1e10 if rate and "denoising" not in who else "",
             r["us"] / 1e3, r.get("ms per step", ""), r["p20"] / 1e3, r["p80"] / 1e3,
             r.get("peak GB", ""), r["parameters"] / 1e6, r["error"], r["prepared s"]]
            for who, r in done.items()]
    base = eager_peer(done) or next(iter(done))
    rows = [[row[0], row[1], over(done, row[0], base), *row[2:]] for row in rows]
    head = ["", "images/s", f"over {base}{' eager' * base.startswith('diffusers')}", "% of the floor", "ms",
            "ms per step", "p20", "p80", "peak GB", "M parameters", "error", "s to prepare"]
    skipped = [f"- {who}: Inductor left out {r['cudagraph skips']} CUDA graphs that it was asked for\n"
               for who, r in done.items() if r.get("cudagraph skips")]
    return f"\n## {name}\n\n" + table(head, rows) + ("\n" + "".join(skipped) if skipped else "")


def loops_page(lines: dict[str, dict]) -> str:
    page = "# Sampling loops and training steps\n\n" + stamps(lines) + machine_line(lines) + waterfall_section(lines)
    page += "".join(loop_table(name, section, machine(lines)[1]) for name, section in sections(lines).items())
    return page + failures(lines)


def waterfall_of(lines: dict[str, dict]) -> tuple[str, dict[str, float], dict[str, float], float] | None:
    """Of the loop with most stages: its name, ms per step of each stage and of each peer, and the floor."""
    times = {name: {who: line["results"]["ms per step"] for who, line in section.items()
                    if "ms per step" in line.get("results", {})} for name, section in sections(lines).items()}
    name = max(times, key=lambda each: len(STAGES.keys() & times[each]), default="")
    stages = {stage: times[name][stage] for stage in STAGES if stage in times[name]} if name else {}
    if len(stages) < 2 or "eager" not in stages:
        return None
    peers = {who: ms for who, ms in times[name].items() if who not in STAGES and "denoising" not in who}
    return name, stages, peers, floor_ms(name.split()[1], int(name.split()[-1]), machine(lines)[1])


def waterfall_section(lines: dict[str, dict]) -> str:
    """A line for each stage: what it wins, in milliseconds per step."""
    if not (fall := waterfall_of(lines)):
        return ""
    name, stages, _, floor = fall
    text = f"\n## From eager to all of it: {name}\n\n![Milliseconds per step](waterfall.png)\n\n"
    for (_, before), (stage, after) in pairwise(stages.items()):
        text += (f"- {stage}, {STAGES[stage]}: {before:.3g} to {after:.3g} ms per step, {before / after:.3g} times as "
                 f"fast\n")
    first, *_, last = stages.values()
    text += f"- together: {first:.3g} to {last:.3g} ms, {first / last:.3g} times as fast"
    return text + (f"; the network's products alone take {floor:.3g} ms\n" if floor else "\n")


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


def profile_page(lines: dict[str, dict]) -> str:
    page = "# Where one captured step goes\n\n" + stamps(lines) + machine_line(lines)
    for case, line in lines.items():
        if "kernels" in line.get("results", {}):
            page += f"\n## {case}\n\n" + profile_tables(case, line["results"], machine(lines))
    return page + failures(lines)


def profile_tables(case: str, results: dict, rates: tuple[float, float]) -> str:
    """By kind, with what the products, and the bytes of the norms, would take alone; then the longest kernels."""
    network, B = case.split()[0], int(case.split()[-1])
    total, floors = results["us"], floors_us(network, B, *rates) if all(rates) else {}
    kinds = {name: [0., 0.] for name in KINDS}
    for kernel, (count, us) in results["kernels"].items():
        kinds[kind(kernel)][0] += count
        kinds[kind(kernel)][1] += us
    rows = [[name, count, us, 100 * us / total, floors.get(name, "")] for name, (count, us) in kinds.items() if count]
    busy = sum(us for _, us in kinds.values())
    rows += [["between kernels", "", total - busy, 100 * (total - busy) / total, ""],
             ["a step", sum(row[1] for row in rows), total, 100., sum(floors.values()) or ""]]
    longest = [[f"`{kernel[:100]}`", kind(kernel), count, us] for kernel, (count, us) in
               list(results["kernels"].items())[:15]]
    return (table(["", "launches", "us", "%", "floor us"], rows) + "\n"
            + table(["longest", "kind", "launches", "us"], longest))


def floors_us(network: str, B: int, copy: float, rate: float) -> dict[str, float]:
    """Products at the rate of large matrices; norms, read and written once in bf16, at that of a copy."""
    elements = sum(norm.C * norm.H * norm.W * n for norm, n in norms(network).items())
    return {name: B * n / rate / 1e6 for name, n in flops(network).items()} | {"fused norm": 4e-3 * B * elements / copy}


# The same pictures; one training

def same_page(lines: dict[str, dict]) -> str:
    page = "# The same pictures\n\n" + stamps(lines)
    for case, line in lines.items():
        results = line.get("results", {})
        if "sha256" in results:
            page += f"\n## {case}\n\n{'The same bytes' if results['ok'] else '**Other bytes**'}.\n\n" + table(
                ["", "sha256"], [[name, f"`{each}`"] for name, each in results["sha256"].items()])
        if "replays" in results:
            rows = [[name, each["error"], each["tolerance"], *("yes" if each[k] else "**no**" for k in
                    ("same twice", "ok"))] for name, each in results["replays"].items()]
            page += (f"\n## {case}\n\n||difference|| / ||pictures|| to the plain loop's pictures in float32.\n\n"
                     + table(["", "error", "tolerance", "the same bytes twice", "right"], rows))
        if "ways" in results:
            rows = [[name, each["largest"], each["mean"], each["tolerance"], "yes" if each["ok"] else "**no**"]
                    for name, each in results["ways"].items()]
            page += (f"\n## {case}\n\n{results['n']} pictures in [-1, 1] beside the plain ones in float32.\n\n"
                     + table(["", "largest difference", "mean", "tolerance", "within"], rows)
                     + f"\n![Sampled in each way]({results['picture']})\n")
    return page + failures(lines)


def training_page(lines: dict[str, dict]) -> str:
    """Each run, and how far the losses of each are from the first run's at the same steps."""
    runs = training_runs(lines)
    page, first = "# One training, twice\n\n" + stamps(lines), dict(next(iter(runs.values()))["losses"]) if runs else {}
    rows = []
    for name, run in runs.items():
        half = [(step, loss) for step, loss in run["losses"] if 2 * step > run["steps"]]
        apart = [100 * (loss / first[step] - 1) for step, loss in half]
        error = stdev(apart) / len(apart)**0.5 if len(apart) > 1 else 0.
        rows.append([name, run["steps"], fmean(loss for _, loss in half),
                     f"{fmean(apart):+.2f} +- {error:.2f}" if rows else "", run["images/s"],
                     f"`train.py {run['flags']}`"])
    page += "\n" + table(["", "steps", "loss, second half", "% from the first", "images/s", "command"], rows)
    page += ("\nimages/s are those of the whole run, compilation and samples included. Dropout differs "
             "between the two, all else has the same seeds.\n\n![Losses](training.png)\n")
    if results := lines.get("pictures", {}).get("results"):
        page += (f"\n![The same noise through both models](training_pictures.png)\n\n{results['n']} pictures of the "
                 f"same noise differ by {results['mean']:.2g} in the mean, {results['largest']:.2g} at most, in "
                 f"[-1, 1].\n")
    return page + failures(lines)


def training_runs(lines: dict[str, dict]) -> dict[str, dict]:
    return {name: line["results"] for name, line in lines.items() if "losses" in line.get("results", {})}
