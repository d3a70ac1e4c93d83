"""The equivalence report: every kernel against the plain lines and against float64, forward and each gradient.

    python -m kernels                                         # the steps, tails, and norms of digits and cifar10
    python -m kernels --networks all --json report.json

A line a case: the largest error over the largest element, of the kernel and of the plain lines themselves; for the
gradients, of the worst one. Without a GPU the kernels run in Triton's interpreter, the norms cropped to 4 groups and
16 x 16 pixels, and round to bfloat16 towards zero, which costs up to twice the error. On a GPU the shapes are whole,
and times are those of repeated calls on the same memory. Exits with 1 if an error is more than rounding, or if a
second run gives other bits.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from ddpm import check_choice
from kernels import equivalence
from kernels.tail_cases import tail_cases
from run.cli import choose_device, make_parent, parse, script
from unet import CONFIGS


@dataclass(frozen=True)
class Config:
    """Compares every kernel with the plain lines and with float64; exits with 1 if they differ."""
    networks: str = "digits,cifar10"            # names in unet.CONFIGS whose norms are compared, or all
    json: str = ""                              # file for every number


def line(case: dict) -> str:
    """A case as a line of the table."""
    (name, first), *rest = case["errors"].items()
    cells = [f"{name.split()[0]} {first['kernel']:.1e} {first['plain']:.1e}"]
    if rest:
        name, worst = max(rest, key=lambda each: each[1]["kernel"])
        cells.append(f"{name.split()[0]} {worst['kernel']:.1e} {worst['plain']:.1e}")
    times = " ".join(f"{case[k]:.1f} {k}" for k in ("us", "GB/s", "us back", "GB/s back") if k in case)
    return (f"{case['kernel']:15} {case['case']:30} {case['dtype']:8} {case['layout']:13} {case.get('way', ''):17} "
            f"{cells[0]:22} {cells[1] if rest else '':28} {'same' if case['repeats'] else 'OTHER':5} "
            f"{'ok' if sound(case) else 'FAILS'} {times}")


def sound(case: dict) -> bool:
    return case["repeats"] and all(error["ok"] for error in case["errors"].values())


def report(networks: list[str], device: torch.device) -> list[dict]:
    """Every case, printed as it is done."""
    print(f"{'kernel':15} {'case':30} {'dtype':8} {'layout':13} {'way, fwd/bwd':17} {'first: kernel, plain':22} "
          f"{'worst other: kernel, plain':28} twice")
    cases = []
    for case in chain(equivalence.step_cases(device), tail_cases(device), equivalence.norm_cases(networks, device)):
        print(line(case), flush=True)
        cases.append(case)
    return cases


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    names = list(CONFIGS) if config.networks == "all" else config.networks.split(",")
    for name in names:
        check_choice("networks", name, CONFIGS)
    device = choose_device("auto")
    cases = report(names, device)
    if config.json:
        make_parent(Path(config.json)).write_text(json.dumps(cases, indent=1) + "\n")
    failed = [case for case in cases if not sound(case)]
    for case in failed:
        print(f"fails: {case['kernel']} {case['case']} {case['dtype']} {case['layout']}: {case['errors']}")
    print(f"{len(cases)} cases, {len(failed)} fail; torch {torch.__version__}, {device}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        os.environ["TRITON_INTERPRET"] = "1"                  # Triton and the operators read it when imported: again
        os.execv(sys.executable, sys.orig_argv)
    main()
