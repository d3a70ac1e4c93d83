"""The equivalence report: every kernel against the plain lines and against float64, forward and each gradient.

    python -m kernels                                         # on a GPU also the norms of digits and cifar10
    python -m kernels --networks all --json report.json

One line per case, and on stderr which one it is at: the largest error of the kernel, and of the plain lines themselves,
over the largest element. The cases are those of the tests, small ones that take every way through the kernels. Without
a GPU the kernels run in Triton's interpreter, which rounds to bfloat16 towards zero: up to twice the error. On a GPU
the norms of whole U-Nets follow. Exits with 1 if an error is more than rounding, or if a second run gives other bits.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from data.files import check_writable
from kernels.equivalence import check_triton, comparisons, sound
from run.cli import choose_device, parse, script
from schedules import check_choice
from unet import CONFIGS


@dataclass(frozen=True)
class Config:
    """Compares every kernel with the plain lines and with float64; exits with 1 if they differ."""
    networks: str = "digits,cifar10"            # on a GPU, also the norms of these U-Nets of unet.CONFIGS, or of all
    json: str = ""                              # file for every number


def line(case: dict) -> str:
    """A case as a line of the table."""
    name, worst = max(case["errors"].items(), key=lambda each: each[1]["kernel"])
    return (f"{case['kernel']:15} {case['case']:38} {case['dtype']:8} {case['layout']:13} {case.get('way', ''):17} "
            f"{worst['kernel']:7.1e} {worst['plain']:7.1e} {name:16} {'ok' if sound(case) else 'FAILS'}")


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    names = list(CONFIGS) if config.networks == "all" else config.networks.split(",")
    for name in names:
        check_choice("networks", name, CONFIGS)
    check_triton()
    if config.json:
        check_writable(config.json)                             # fails now, not at the end
    device, cases = choose_device("auto"), []
    print(f"{'kernel':15} {'case':38} {'dtype':8} {'layout':13} {'way, fwd/bwd':17} {'error':7} {'plain':7} of")
    with tqdm(comparisons(names, device), unit="case", leave=False) as bar:         # a GPU compiles each case first
        for name, compare in bar:
            bar.set_description_str(name)
            cases.append(compare())
            with bar.external_write_mode():
                print(line(cases[-1]), flush=True)
    check_triton()
    if config.json:
        Path(config.json).write_text(json.dumps(cases, indent=1) + "\n")
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
