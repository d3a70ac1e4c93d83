"""How work is timed: on a GPU by replays of a CUDA graph of many calls, on a CPU by the CPU time of one thread.

Cold: the calls go round buffers that together are four times the L2 cache. Warm: all calls share one buffer. Nothing is
timed before its error against float64 is known.
"""

import gc
import math
import os
import statistics
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch._functorch.config
from torch import Tensor
from torch._dynamo.utils import counters

from kernels.group_norm_silu import INTERPRET

torch._functorch.config.donated_buffer = False             # a compiled backward is to run more than once
CUDA = torch.cuda.is_available()
ROUNDS = 20 if CUDA else 3                                 # of every kernel's timing
RESULTS = Path("bench/results")
LUCIDRAINS = "denoising-diffusion-pytorch"
PACKAGES = ("diffusers", LUCIDRAINS)                        # names of peers begin so


class Work(NamedTuple):
    """The same work for all candidates."""
    name: str                                               # what it is; the shape comes last
    candidates: dict[str, Callable]                         # by name; those that can run here
    calls: Callable[[Callable, int], list[Callable]]        # a candidate's calls, one for each of so many buffer sets
    error: Callable[[Callable], float]                      # against float64: ||difference|| / ||result||
    tolerance: float                                        # of the error
    size: int                                               # useful bytes of a call, read or written; 0: not counted


class Whole(NamedTuple):
    """A sampling loop or an update as one candidate does it."""
    run: Callable[[], object]
    error: Callable[[], float]                              # against float64, as Work's
    tolerance: float
    parameters: int


def device() -> torch.device:
    """The GPU, on a stream of its own, where graphs can be captured; or the CPU."""
    if CUDA and torch.cuda.current_stream() == torch.cuda.default_stream():
        torch.cuda.set_stream(torch.cuda.Stream())
    return torch.device("cuda" if CUDA else "cpu")


def prepare() -> None:
    """What is the same for every case: nothing compiled before, as Dynamo gives up on a function after eight shapes;
    no memory kept from before; cuDNN's choice of the quickest convolutions; one thread of a CPU."""
    torch.compiler.reset()
    forget_peak()
    torch.backends.cudnn.benchmark = device().type == "cuda"
    if not CUDA:
        torch.set_num_threads(1)


def clock() -> float:
    """Seconds: on a GPU once it has done all its work, on a CPU of this process, so others' work does not count."""
    if not CUDA:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(run: Callable, rounds: int = 1) -> float:
    """The median time of so many runs."""
    times = []
    for _ in range(rounds):
        began = clock()
        run()
        times.append(clock() - began)
    return statistics.median(times)


def installed(name: str) -> bool:
    """Whether there is the package that a candidate's name begins with, "diffusers compiled" say."""
    return find_spec(name.split()[0].replace("-", "_")) is not None


def skip_missing(name: str) -> None:
    """Skips the case of a peer whose package, or what that needs, cannot be imported."""
    if name.startswith(PACKAGES):
        pytest.importorskip(name.split()[0].replace("-", "_"), exc_type=ImportError)


def measure_whole(benchmark, build: Callable[[], Whole], warmups: int = 1, **options) -> None:
    """Times what `build` makes, apart from its preparation; notes down both, and memory. options: of `pedantic`."""
    counters.clear()
    began = time.perf_counter()
    whole = build()
    error = check_error(whole.error(), whole.tolerance)
    for _ in range(warmups):                                # compiles what is left
        whole.run()
    benchmark.extra_info |= {"error": error, "prepared s": time.perf_counter() - began, "parameters": whole.parameters}
    whole = whole._replace(error=None)                      # frees the network in float64
    forget_peak()
    benchmark.pedantic(whole.run, **options)
    # Inductor says in a warning only that it was asked for a CUDA graph and left it out. Reserved, not allocated: a
    # captured graph holds its memory without allocating it.
    benchmark.extra_info |= {"cudagraph skips": counters["inductor"]["cudagraph_skips"]}
    if CUDA:
        benchmark.extra_info |= {"peak GB": torch.cuda.max_memory_reserved() / 1e9}


# Kernels

def measure(benchmark, work: Work, name: str) -> None:
    """Times a candidate, or "copy", a copy of as many bytes; skips the case if there is no such candidate here.

    The benchmark's own time is that of a warm replay; the cold time of a call, where bytes are counted, stands beside.
    """
    benchmark.group, facts = work.name, {"bytes": work.size}
    if name == "copy" and work.size:
        calls = partial(copies, work.size)
    elif name in work.candidates:
        facts["error"] = check_error(work.error(work.candidates[name]), work.tolerance)
        calls = partial(work.calls, work.candidates[name])
    else:
        pytest.skip(f"{name} does not run here")
    if work.size:
        run, launches = captured(calls(buffers(work.size // 2)))
        facts["cold us"] = 1e6 * seconds(run, ROUNDS) / launches
    run, facts["calls"] = captured(calls(1))
    benchmark.extra_info |= facts
    benchmark.pedantic(run, rounds=ROUNDS)


def both(eager: Callable, triton: Callable) -> dict[str, Callable]:
    """Candidates: both as they are and compiled; without Triton, where the fused op is the plain lines, eager alone."""
    compiled = partial(torch.compile, fullgraph=True, dynamic=False)
    candidates = {"eager": eager, "compiled": compiled(eager)}
    if CUDA or INTERPRET:
        candidates |= {"triton": triton, "triton compiled": compiled(triton)}
    return candidates


def check_error(error: float, tolerance: float) -> float:
    """The error. Raises AssertionError if it is too large."""
    assert error <= tolerance, f"wrong by {error:.2%}"
    return error


def error_of(got: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    """||got - true|| / ||true|| of the worst tensor; NaN counts as infinite."""
    return max(((a.double() - b).norm() / b.norm()).nan_to_num(torch.inf).item()
               for a, b in zip(got, true, strict=True))


def buffers(size: int) -> int:
    """How many buffer sets of `size` bytes make four times the L2 cache."""
    return max(2, min(256, -(-4 * torch.cuda.get_device_properties(0).L2_cache_size // size))) if CUDA else 1


def copies(size: int, sets: int) -> list[Callable]:
    """Copies that read and write `size` bytes together."""
    pairs = [torch.randint(256, (2, max(1, size // 2)), dtype=torch.uint8, device=device()) for _ in range(sets)]
    return [partial(b.copy_, a) for a, b in pairs]


def captured(calls: Sequence[Callable], launches: int = 500) -> tuple[Callable[[], None], int]:
    """A function that runs so many calls, or as many as take 50 ms, but each once; and how many: a graph's replay."""
    for call in islice(cycle(calls), 3 if CUDA else 1):
        call()
    if not CUDA:
        return lambda: [call() for call in calls] and None, len(calls)
    launches = max(len(calls), min(launches, math.ceil(0.05 / seconds(calls[0]))))
    graph, results = torch.cuda.CUDAGraph(), deque(maxlen=len(calls))   # results, too, lie in different places
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for call in islice(cycle(calls), launches):
            results.append(call())
    graph.reads = calls                                     # a graph owns its results, but not what it reads
    return graph.replay, launches


def forget_peak() -> None:
    """Memory used only before, for preparation and for the error check, is not part of what is reported."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# What it was measured on

def machine_name() -> str:
    """The GPU's name as a folder is called, as h100-80gb-hbm3, or cpu."""
    return torch.cuda.get_device_name().lower().removeprefix("nvidia ").replace(" ", "-") if CUDA else "cpu"


def output_of(*command: str) -> str:
    """What a command prints, or that it is unknown."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@cache
def commit() -> str:
    """What is measured, and whether more than results has changed; without git, what the variable COMMIT says."""
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no", "--", ":/",
                        ":(top,exclude)bench/results") not in ("", "unknown")
    name = os.environ.get("COMMIT") or output_of("git", "rev-parse", "--short", "HEAD")
    return name + " with changes" * changed


def stamp() -> dict[str, str]:
    """GPU, driver, versions, and the GPU's state now."""
    import triton
    stamp = {"commit": commit(), "torch": torch.__version__, "triton": triton.__version__}
    if not CUDA:
        return {"gpu": "cpu", **stamp}
    query = "driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    state = output_of("nvidia-smi", "-i", "0", f"--query-gpu={query}", "--format=csv,noheader").split(", ")
    names = ("driver", "SM clock", "memory clock", "degrees C", "power")
    return {"gpu": torch.cuda.get_device_name(), **stamp, "cuda": torch.version.cuda,
            **dict(zip(names, state, strict=False)), "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}
