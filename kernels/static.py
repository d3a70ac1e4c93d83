"""What can be known of the norm kernels without a GPU: what they take of one, and what binds them.

    python -m kernels.static > bench/static.md                # the norms of the cifar10 U-Net for three GPUs

The launchers run on tensors without memory, for batch 128 in bfloat16 and channels_last, with `add`, as behind a
convolution. Triton compiles each launch as it would there, to machine code, and that is read:

- registers, shared memory, spills: as ptxas reports them; barriers: those in the code;
- width: bits of the loads of x (and dy) and of the stores of y (or dx);
- programs: how many a multiprocessor holds at once; waves: all programs, over those that run at once on the GPU;
- instructions per element: what a thread executes, over its elements. A loop that loads counts as often as its loads
  make up the thread's elements, all else once, branches that are not taken included;
- bound: what takes longest at least: memory (at a copy's speed), issue (four warps' instructions a cycle and
  multiprocessor) or special (16 threads' special functions); then issue and special in per cent of memory's time.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from tqdm import tqdm

from kernels.equivalence import check_triton, norms
from run.cli import parse, parse_numbers, script
from run.markdown import table
from schedules import check_choice
from unet import CONFIGS


class GPU(NamedTuple):
    """Copies: what an H200 was seen to reach, else nine tenths of the data sheet."""
    name: str
    multiprocessors: int
    GHz: float
    copy: float             # GB/s
    shared: int             # KB of a multiprocessor


GPUS = {80: GPU("A100", 108, 1.41, 1400, 164), 90: GPU("H200", 132, 1.755, 4300, 228),
        100: GPU("B200", 148, 1.85, 7200, 228)}
REGISTERS, WARPS, PROGRAMS = 65536, 64, 32              # of a multiprocessor


@dataclass(frozen=True)
class Config:
    """Compiles the norms of a U-Net for GPUs that need not be there, and prints Markdown."""
    network: str = "cifar10"                    # name in unet.CONFIGS
    archs: str = "80,90,100"                    # compute capabilities


# Compiling without a GPU

class Launch(NamedTuple):
    """A launch that was compiled instead of made."""
    kernel: str
    programs: int
    arguments: dict         # by name
    built: object           # triton's CompiledKernel


class Absent:
    """Triton's driver for a GPU that is not there. The device's number is its compute capability."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(arch: int, launch: Callable) -> list[Launch]:
    """What launch() launches, compiled by Triton as for a GPU of this compute capability; nothing runs."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction
    run, launches = JITFunction.run, []

    def compile_only(self, *args, grid, warmup, **kwargs):
        built = run(self, *args, grid=grid, warmup=True, **kwargs)
        launches.append(Launch(self.__name__, grid[0], dict(zip(self.arg_names, args, strict=False)) | kwargs, built))

    driver.set_active(Absent(arch))
    JITFunction.run = compile_only
    try:
        launch()
    finally:
        JITFunction.run = run
    return launches


def norm(B: int, C: int, H: int, back: bool, dtype=torch.bfloat16, order=torch.channels_last, rows: int = 1) -> None:
    """Launches a norm of 32 groups in one direction, with the last so many of scale, shift and add."""
    from kernels import group_norm_silu_triton as fused
    x, y, dy, dx = (torch.empty(B, C, H, H, dtype=dtype, device="meta", memory_format=order) for _ in range(4))
    stats, weight, bias, sums, *arguments = (torch.empty(s, device="meta") for s in
                                             ((B, 2, 32), C, C, (2 + rows, B, C), *[(B, C)] * rows))
    arguments, channels_last = [None] * (3 - rows) + arguments, order == torch.channels_last
    if back:
        fused.backward(dy, x, stats, weight, bias, *arguments, True, channels_last, dx, sums)
    else:
        fused.forward(x, y, stats, weight, bias, *arguments, 1e-5, True, channels_last)


# Reading machine code

def machine_code(cubin: bytes) -> tuple[list[tuple[int, str]], dict[str, int]]:
    """(address, instruction) up to the end of the kernel, registers per thread and bytes of its stack."""
    from triton import knobs
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", file.name],
                              check=True, capture_output=True, text=True).stdout
    code = [(int(at, 16), line.strip()) for at, line in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", text)]
    end = max(k for k, (_, line) in enumerate(code) if line == "EXIT")
    return code[:end + 1], {k.lower(): int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def loops(code: list[tuple[int, str]]) -> Iterator[list[str]]:
    """The instructions of each loop: from the target of a branch backwards to the branch."""
    for stop, line in code:
        target = re.search(r"\bBRA\b.*0x([0-9a-f]+)", line)
        if target and (start := int(target[1], 16)) < stop:
            yield [line for at, line in code if start <= at <= stop]


def widths(lines: Sequence[str], kind: str) -> list[int]:
    """Bits of each global load (LDG) or store (STG)."""
    return [int((re.search(r"\.(64|128)\b", line) or (0, 32))[1]) for line in lines
            if re.search(rf"\b{kind}\b", line) and not re.search(r"\.[US]?(8|16)\b", line)]


def executed(code: list[tuple[int, str]], bits: float, pattern: str = "") -> float:
    """How many instructions that match a thread executes whose elements make `bits` of loads."""
    count = sum(bool(re.search(pattern, line)) for _, line in code)
    for body in loops(code):
        loaded = sum(widths(body, "LDG"))
        if loaded:
            count += sum(bool(re.search(pattern, line)) for line in body) * (bits / loaded - 1)
    return count


# What follows

def measured(arch: int, C: int, H: int, back: bool, B: int = 128) -> dict:
    """All that is known of one direction of a norm; the docstring of this file says what each is."""
    gpu = GPUS[arch]
    (launch,) = compiled(arch, lambda: norm(B, C, H, back))
    (code, used), warps, pixels = machine_code(launch.built.asm["cubin"]), launch.arguments["num_warps"], H * H
    lines, shared = [line for _, line in code], launch.built.metadata.shared
    elements, tensors = B * C * pixels / (launch.programs * 32 * warps), 2 if back else 1
    count = {k: executed(code, 16 * tensors * elements, k) / elements for k in ("", "MUFU")}
    # Registers go by 8 per thread; each program costs 1 KB of shared memory
    programs = min(REGISTERS // (32 * warps * -(-used["reg"] // 8) * 8), gpu.shared * 1024 // (shared + 1024),
                   WARPS // warps, PROGRAMS)
    rate = gpu.multiprocessors * gpu.GHz
    times = {"memory": 2 * (tensors + 1) / gpu.copy, "issue": count[""] / (128 * rate),
             "special": count["MUFU"] / (16 * rate)}                                        # ns per element
    bound, share = max(times, key=times.get), {k: 100 * v / times["memory"] for k, v in times.items()}
    return {"way": "resident" if pixels <= launch.arguments["tile"].PIXELS else "loop", "warps": warps,
            "registers": used["reg"], "shared": shared, "barriers": sum("BAR.SYNC" in line for line in lines),
            "spills": used["stack"] + used["local"],
            "width": f"{max(widths(lines, 'LDG'))}/{max(widths(lines, 'STG'))}", "programs": programs,
            "waves": launch.programs / (programs * gpu.multiprocessors), "instructions": count[""],
            "bound: issue, special": f"{bound}: {share['issue']:.0f}, {share['special']:.0f}"}


# The report

HEAD = """# The norm kernels, counted without a GPU

    python -m kernels.static > bench/static.md

The docstring of `kernels/static.py` says what each column is. Batch 128, bfloat16, channels_last. The numbers are read
from machine code and are no measurements: what they predict has not been run on a GPU yet."""


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    check_choice("network", config.network, CONFIGS)
    check_triton()
    archs = parse_numbers("archs", config.archs)
    for arch in archs:
        check_choice("archs", arch, GPUS)
    counts = Counter()                                  # how often a norm of (C, H) occurs
    for each, count in norms(config.network).items():
        counts[each.C, each.H] += count
    print(HEAD, flush=True)
    for arch, back in product(archs, (False, True)):
        title = f"sm_{arch}, {GPUS[arch].name}: {'backward' if back else 'forward'}"
        rows = [{"shape (how often)": f"{C}, {H}x{H} ({count})", **measured(arch, C, H, back)}
                for (C, H), count in tqdm(counts.most_common(), title, leave=False)]
        print(f"\n## {title}\n\n{table([*rows[0]], [row.values() for row in rows])}", end="", flush=True)


if __name__ == "__main__":
    main()
