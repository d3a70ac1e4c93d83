"""What can be known of the norm kernels without a GPU: what they take of one, and what binds them.

    python -m kernels.static                                  # the norms of the cifar10 U-Net for three GPUs

The launchers run on tensors without memory, for batch 128 in bfloat16 and channels_last, with `add`, as behind a
convolution. Triton compiles each launch as it would there, to machine code, and that is read:

- registers, shared memory, spills: as ptxas reports them; barriers: those in the code;
- width: bits of the loads of x (and dy) and of the stores of y (or dx);
- programs: how many a multiprocessor holds at once; waves: all programs, over those that run at once on the GPU;
- in flight: KB that a multiprocessor's threads have asked for before they first wait;
- instructions an element: what a thread executes, over its elements. A loop that loads counts as often as its loads
  make up the thread's elements, all else once, branches that are not taken included;
- bound: what takes longest at least: memory (at a copy's speed), issue (four warps' instructions a cycle and
  multiprocessor) or special (16 threads' special functions); then issue and special in per cent of memory's time.

Then a model of the L2 cache: of the second read of a loop, how much hits. The cache keeps what was used last; the
programs that run at once take turns, a tile each. A GPU of two dies or partitions may keep what all read twice, so
half the cache is the worst case.
"""

import re
import subprocess
import tempfile
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch

from ddpm import check_choice
from kernels.equivalence import norms
from run.cli import parse, parse_integers, script
from unet import CONFIGS


class GPU(NamedTuple):
    """Copies: what an H200 was seen to reach, else nine tenths of the data sheet."""
    name: str
    multiprocessors: int
    GHz: float
    copy: float             # GB/s
    L2: int                 # MB


GPUS = {80: GPU("A100", 108, 1.41, 1400, 40), 90: GPU("H200", 132, 1.755, 4300, 50),
        100: GPU("B200", 148, 1.85, 7200, 126)}
REGISTERS, SHARED, WARPS, PROGRAMS = 65536, {80: 164, 90: 228, 100: 228}, 64, 32         # a multiprocessor's; KB
COLUMNS = ("shape (how often)", "way", "warps", "registers", "shared", "barriers", "spills", "width", "programs",
           "waves", "KB in flight", "instructions", "bound: issue, special")


@dataclass(frozen=True)
class Config:
    """Compiles the norms of a U-Net for GPUs that need not be there, and prints Markdown."""
    network: str = "cifar10"                    # name in unet.CONFIGS
    archs: str = "80,90,100"                    # compute capabilities
    rare: bool = True                           # also the shapes that occur once


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
    run, found = JITFunction.run, []

    def compile_only(self, *args, grid, warmup, **kwargs):
        built = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.append(Launch(self.__name__, grid[0], dict(zip(self.arg_names, args, strict=False)) | kwargs, built))

    driver.set_active(Absent(arch))
    JITFunction.run = compile_only
    try:
        launch()
    finally:
        JITFunction.run = run
    return found


def norm(B: int, C: int, H: int, back: bool, dtype=torch.bfloat16, order=torch.channels_last, rows: int = 1) -> None:
    """Launches a norm of 32 groups in one direction, with the last so many of scale, shift and add."""
    from kernels import group_norm_silu_triton as fused
    x, y, dy, dx = (torch.empty(B, C, H, H, dtype=dtype, device="meta", memory_format=order) for _ in range(4))
    stats, weight, bias, sums, *given = (torch.empty(s, device="meta") for s in
                                         ((B, 2, 32), C, C, (2 + rows, B, C), *[(B, C)] * rows))
    given, last = [None] * (3 - rows) + given, order == torch.channels_last
    if back:
        fused.backward(dy, x, stats, weight, bias, *given, True, last, dx, sums)
    else:
        fused.forward(x, y, stats, weight, bias, *given, 1e-5, True, last)


# Reading machine code

def machine_code(cubin: bytes) -> tuple[list[tuple[int, str]], dict[str, int]]:
    """(address, instruction) up to the end of the kernel, and registers a thread and bytes of its stack."""
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


def in_flight(lines: Sequence[str]) -> int:
    """The most bits a thread has asked for before it uses any of them."""
    most, waiting = 0, set()
    for line in lines:
        found = [int(r) for r in re.findall(r"\bR(\d+)\b", line)]
        if re.search(r"\bLDG\b", line):
            waiting = waiting if waiting.isdisjoint(found[1:]) else set()
            waiting |= set(range(found[0], found[0] + widths([line], "LDG")[0] // 32))
            most = max(most, 32 * len(waiting))
        elif not waiting.isdisjoint(found):
            waiting = set()
    return most


# What follows

def at_once(arch: int, warps: int, registers: int, shared: int) -> int:
    """Programs that a multiprocessor holds. Registers go by 8 a thread; each program costs 1 KB of shared memory."""
    return min(REGISTERS // (32 * warps * -(-registers // 8) * 8), SHARED[arch] * 1024 // (shared + 1024),
               WARPS // warps, PROGRAMS)


def measured(arch: int, C: int, H: int, back: bool, B: int = 128) -> dict:
    """All that is known of one direction of a norm."""
    gpu = GPUS[arch]
    (launch,) = compiled(arch, lambda: norm(B, C, H, back))
    (code, used), warps, pixels = machine_code(launch.built.asm["cubin"]), launch.arguments["num_warps"], H * H
    lines = [line for _, line in code]
    elements, tensors = B * C * pixels / (launch.programs * 32 * warps), 2 if back else 1
    count = {k: executed(code, 16 * tensors * elements, k) / elements for k in ("", "MUFU")}
    programs = at_once(arch, warps, used["reg"], launch.built.metadata.shared)
    rate = gpu.multiprocessors * gpu.GHz
    times = {"memory": 2 * (tensors + 1) / gpu.copy, "issue": count[""] / (128 * rate),
             "special": count["MUFU"] / (16 * rate)}                                        # ns an element
    bound, share = max(times, key=times.get), {k: 100 * v / times["memory"] for k, v in times.items()}
    running = min(programs, launch.programs / gpu.multiprocessors)
    return {"way": "resident" if launch.arguments["PIXELS"] >= pixels else "loop", "warps": warps,
            "registers": used["reg"], "shared": launch.built.metadata.shared, "spills": used["stack"] + used["local"],
            "barriers": sum("BAR.SYNC" in line for line in lines),
            "width": f"{max(widths(lines, 'LDG'))}/{max(widths(lines, 'STG'))}", "programs": programs,
            "waves": launch.programs / (programs * gpu.multiprocessors),
            "KB in flight": running * 32 * warps * in_flight(lines) / 8192, "instructions": count[""],
            "bound: issue, special": f"{bound}: {share['issue']:.0f}, {share['special']:.0f}",
            "launched": launch.programs, "tiles": -(-pixels // launch.arguments["PIXELS"])}


def second_reads(launched: int, running: int, tiles: int, tensors: int, tile: float, size: float, walk: int) -> float:
    """The share of second reads that hit a cache of `size` bytes that keeps what was used last.

    Programs read their tiles twice and write them the second time; walk is -1 if that goes backwards, else 1.
    """
    def steps(n: int) -> Iterator[tuple[bool, list[tuple]]]:
        for second, order in ((False, range(tiles)), (True, range(tiles)[::walk])):
            for k in order:
                yield second, [("read", tensor, n, k) for tensor in range(tensors)] + [("write", n, k)] * second

    cache, hits, waiting = OrderedDict(), 0, iter(range(launched))
    turns = deque(steps(n) for n in islice(waiting, running))
    while turns:
        program = turns.popleft()
        second, tiles_used = next(program, (False, []))
        for each in tiles_used:
            hits += second and each in cache                                # a tile is written but once: no hit
            cache.pop(each, None)
            cache[each] = True
            if len(cache) * tile > size:
                cache.popitem(last=False)
        turns.extend([program] if tiles_used else map(steps, islice(waiting, 1)))
    return hits / (launched * tiles * tensors)


# The report

def shapes(network: str) -> Counter[tuple[int, int]]:
    """How often a norm of (C, H) occurs, the most frequent first."""
    found = Counter()
    for each, count in norms(network).items():
        found[each.C, each.H] += count
    return Counter(dict(found.most_common()))


def table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in line] for line in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *cells])


def main_tables(arch: int, found: Counter[tuple[int, int]]) -> str:
    """Both directions of every shape, then the second reads of those that loop."""
    gpu, text, reads = GPUS[arch], [], []
    for back in (False, True):
        cells = []
        for (C, H), count in found.items():
            line = measured(arch, C, H, back)
            cells.append([f"{C}, {H}x{H} ({count})", *(line[name] for name in COLUMNS[1:])])
            if line["way"] == "loop":
                reads.append([f"{C}, {H}x{H} {'backward' if back else 'forward'}", *cache_cells(gpu, line, C, H, back)])
        text += [f"## sm_{arch}, {gpu.name}: {'backward' if back else 'forward'}", table(COLUMNS, cells)]
    head = ("shape", "programs at once", "MB they read", f"hits of {gpu.L2} MB", f"of {gpu.L2 / 2:g} MB",
            f"walking forwards, {gpu.L2} MB", f"{gpu.L2 / 2:g} MB")
    return "\n\n".join([*text, f"Second reads that hit L2, {gpu.name}, per cent:", table(head, reads)])


def cache_cells(gpu: GPU, line: dict, C: int, H: int, back: bool, B: int = 128) -> list[int]:
    tensors, running = 2 if back else 1, min(line["programs"] * gpu.multiprocessors, line["launched"])
    slab = 2 * B * C * H * H / line["launched"]                             # bytes of one tensor that a program reads
    hits = [second_reads(line["launched"], running, line["tiles"], tensors, slab / line["tiles"], size * 1e6, walk)
            for walk in (-1, 1) for size in (gpu.L2, gpu.L2 / 2)]
    return [running, round(running * slab * tensors / 1e6), *(round(100 * each) for each in hits)]


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    check_choice("network", config.network, CONFIGS)
    found = shapes(config.network)
    if not config.rare:
        found = Counter({shape: count for shape, count in found.items() if count > 1})
    for arch in parse_integers("archs", config.archs):
        check_choice("archs", arch, GPUS)
        print(main_tables(arch, found) + "\n", flush=True)


if __name__ == "__main__":
    main()
