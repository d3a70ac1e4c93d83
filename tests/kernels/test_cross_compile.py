"""Without a GPU: what the launchers of the named U-Nets launch compiles for three of them, and how much it takes.

Each distinct launch is compiled to machine code as kernels/static.py does it, in a process without the interpreter.
`PYTHONPATH=. python tests/kernels/test_cross_compile.py 90` prints the table for sm_90, a line of JSON per kernel.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from kernels.static import compiled, machine_code, norm
from samplers import COLUMNS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}          # bytes of shared memory that a program may have
CIFAR10 = [(128, 32), (256, 32), (384, 32), (128, 16), (256, 16), (384, 16), (512, 16), (256, 8), (512, 8), (256, 4),
           (512, 4)]                                                # channels, height = width
LSUN256 = [(128, 256), (256, 64), (768, 32)]


def norms() -> list[partial]:
    """Both directions in bfloat16 for every shape and layout, and in float32 with every optional argument."""
    launches = []
    for B, shapes in ((128, CIFAR10), (1, CIFAR10[:1]), (16, LSUN256)):
        launches += [partial(norm, B, C, H, order=order) for C, H in shapes
                     for order in (torch.contiguous_format, torch.channels_last)]
    launches += [partial(norm, 128, C, H, dtype=torch.float32, rows=3) for C, H in ((256, 32), (512, 64))]
    return [partial(each, back=back) for each in launches for back in (False, True)]


def steps(fused) -> None:
    rows, i, seeds = (torch.empty(s, dtype=d, device="meta") for s, d in
                      (((9, len(COLUMNS)), torch.float64), (1, torch.int64), (8, torch.int64)))
    x = torch.empty(8, 3, 32, 32, device="meta")
    for channels, dtype, order, past in ((3, torch.bfloat16, torch.channels_last, (None, None)),
                                         (6, torch.bfloat16, torch.channels_last, (None, None)),
                                         (6, torch.float32, torch.contiguous_format, (x, None)),
                                         (3, torch.bfloat16, torch.channels_last, (x, x))):
        output = torch.empty(8, channels, 32, 32, dtype=dtype, device="meta", memory_format=order)
        fused.step(rows, i, x, output, *past, seeds, None, x, None if past[0] is None else x)


def compile_all(arch: int) -> list[dict]:
    """One line per kernel: its constants, and what it takes of a multiprocessor."""
    from kernels import sampling_step_triton
    launches = [launch for run in (*norms(), partial(steps, sampling_step_triton)) for launch in compiled(arch, run)]
    table = []
    for launch in {launch.built.hash: launch for launch in launches}.values():
        tile = launch.arguments.get("tile")
        constants = {k: v for k, v in launch.arguments.items() if isinstance(v, int) and k.isupper()}
        constants |= tile._asdict() if tile else {}
        table.append({"kernel": launch.kernel, "warps": launch.arguments["num_warps"], **constants,
                      "shared": launch.built.metadata.shared, **machine_code(launch.built.asm["cubin"])[1],
                      "min.NaN": "min.NaN" in launch.built.asm["ptx"]})
    return table


@pytest.fixture(scope="module")
def tables() -> dict[int, list[dict]]:
    """The table of each GPU."""
    def table(arch: int) -> list[dict]:
        done = subprocess.run([sys.executable, __file__, str(arch)], cwd=ROOT, capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return {arch: table(arch) for arch in SHARED}


@pytest.mark.parametrize("arch", SHARED)
def test_every_launch_compiles_and_fits(arch, tables):
    for line in tables[arch]:
        cosine = 32 if line["kernel"] == "step_kernel" else 0           # cosf's stack for angles that never come
        assert line["stack"] <= cosine and line["local"] == 0, f"spills: {line}"
        assert line["shared"] <= SHARED[arch], f"too much shared memory: {line}"
        assert line["reg"] * line["warps"] * 32 <= 65536, f"too many registers to start: {line}"


def test_every_way_is_among_them(tables):
    ways = {(line["kernel"], line.get("FIND"), line.get("APPLY"), line.get("PIXELS", 0) >= line.get("HW", 0))
            for line in tables[90]}
    for kernel in ("forward", "backward"):
        assert {(f"{kernel}_kernel", True, True, True), (f"{kernel}_kernel", True, True, False),
                (f"{kernel}_kernel", True, False, False), (f"{kernel}_kernel", False, True, False)} <= ways
        assert f"{kernel}_merge_kernel" in {name for name, *_ in ways}


@pytest.mark.parametrize("arch", SHARED)
def test_the_clip_keeps_nan(arch, tables):
    """Plain min and max turn a NaN into the bound, in hardware though not in the interpreter."""
    assert all(line["min.NaN"] for line in tables[arch] if line["kernel"] == "step_kernel")


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    for line in compile_all(int(sys.argv[1])):
        print(json.dumps(line))
