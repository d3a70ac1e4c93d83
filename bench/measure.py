"""How work is timed: on a GPU by replays of a CUDA graph of many calls, between device events.

Cold: the calls go round buffers that together are four times the L2 cache. Warm: all calls share one buffer. The
candidates take turns, replay by replay, and none is timed before its error against float64 is known.
"""

import math
import os
import statistics
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import cycle, islice
from typing import NamedTuple

import torch
import torch._functorch.config
from torch import Tensor

torch._functorch.config.donated_buffer = False             # a compiled backward is to run more than once
CUDA = torch.cuda.is_available()
ROUNDS = 20 if CUDA else 2                                 # replays of each graph


class Work(NamedTuple):
    """The same work for all candidates."""
    group: str                                              # what it is
    candidates: dict[str, Callable]                         # by name; those that can run here
    calls: Callable[[Callable, int], list[Callable]]        # a candidate's calls, one for each of so many buffer sets
    error: Callable[[Callable], float]                      # against float64: ||difference|| / ||result||
    tolerance: float                                        # of the error
    size: int                                               # useful bytes of a call, read or written


def device() -> torch.device:
    """The GPU, on a stream of its own, where graphs can be captured; or the CPU."""
    if CUDA and torch.cuda.current_stream() == torch.cuda.default_stream():
        torch.cuda.set_stream(torch.cuda.Stream())
    return torch.device("cuda" if CUDA else "cpu")


def prepare() -> None:
    """What is the same for every candidate: the stream, and cuDNN's choice of the quickest convolutions."""
    torch.backends.cudnn.benchmark = device().type == "cuda"


def gpu_name() -> str:
    """The GPU's name as a folder is called, as h100-80gb-hbm3, or cpu."""
    return torch.cuda.get_device_name().lower().removeprefix("nvidia ").replace(" ", "-") if CUDA else "cpu"


def buffers(size: int) -> int:
    """How many buffer sets of `size` bytes make four times the L2 cache; one where the bytes are not counted."""
    if not CUDA or not size:
        return 1
    return max(2, min(256, -(-4 * torch.cuda.get_device_properties(0).L2_cache_size // size)))


def error_of(got: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    """||got - true|| / ||true|| of the worst tensor; NaN counts as infinite."""
    return max(((a.double() - b).norm() / b.norm()).nan_to_num(torch.inf).item()
               for a, b in zip(got, true, strict=True))


def captured(calls: Sequence[Callable], launches: int = 50) -> tuple[Callable[[], None], int]:
    """A function that runs so many calls, or as many as take 50 ms, but each once; and how many: a graph's replay."""
    for call in islice(cycle(calls), 3 if CUDA else 1):
        call()
    if not CUDA:
        return lambda: [call() for call in calls] and None, len(calls)
    launches = max(len(calls), min(launches, math.ceil(0.05 / once(calls[0]))))
    graph, kept = torch.cuda.CUDAGraph(), deque(maxlen=len(calls))      # results, too, lie in different places
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for call in islice(cycle(calls), launches):
            kept.append(call())
    return partial(replay, graph, calls), launches


def replay(graph: torch.cuda.CUDAGraph, calls: Sequence[Callable]) -> None:
    """Runs the graph, which owns its results, but not what it reads: that lives as long as the calls."""
    graph.replay()


def once(run: Callable[[], None]) -> float:
    """Seconds that one run takes, by device events if there is a device."""
    if not CUDA:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def in_turn(runs: dict[str, tuple[Callable[[], None], int]], rounds: int = ROUNDS) -> dict[str, dict]:
    """Microseconds per call of each run: the median, and where a fifth of the rounds lie below and above."""
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (run, launches) in runs.items():
            seconds[name].append(once(run) / launches)
    times = {}
    for name, own in seconds.items():
        low, *_, high = statistics.quantiles(own, n=5, method="inclusive") if len(own) > 1 else own * 2
        times[name] = {"us": 1e6 * statistics.median(own), "p20": 1e6 * low, "p80": 1e6 * high, "n": len(own)}
    return times


def refused(work: Work, name: str) -> tuple[float, str]:
    """A candidate's error, and why it is not timed, if it is not."""
    error = work.error(work.candidates[name])
    return error, "" if error <= work.tolerance else f"wrong by {error:.2%}"


def measure(work: Work, cold: bool) -> dict[str, dict]:
    """Times, useful GB/s and error of every candidate, and of a copy of as many bytes; or what failed."""
    runs, results = {}, {}
    sets = buffers(work.size // 2) if cold else 1
    for name, candidate in [*work.candidates.items(), *([("copy", None)] if work.size else [])]:
        try:
            error, reason = refused(work, name) if candidate else (0., "")
            results[name] = {"error": error} | ({"failed": reason} if reason else {})
            if not reason:
                runs[name] = captured(work.calls(candidate, sets) if candidate else copies(work.size, sets))
        except Exception as problem:                        # a peer that cannot do this is a line of the table
            first, *_ = [*str(problem).splitlines(), ""]
            results[name] = {"failed": f"{type(problem).__name__}: {first[:200]}"}
    for name, times in in_turn(runs).items():
        results[name] |= times | ({"GB/s": work.size / times["us"] / 1e3} if work.size else {})
    return results


def copies(size: int, sets: int) -> list[Callable]:
    """Copies that read and write `size` bytes together."""
    pairs = [torch.randint(256, (2, max(1, size // 2)), dtype=torch.uint8, device=device()) for _ in range(sets)]
    return [partial(b.copy_, a) for a, b in pairs]


def time_with(benchmark, work: Work, name: str) -> None:
    """Times one candidate with pytest-benchmark; on a GPU the cold and warm times of a call stand beside it."""
    benchmark.group = work.group
    error, reason = refused(work, name)
    assert not reason, reason
    run, launches = captured(work.calls(work.candidates[name], buffers(work.size // 2)))
    benchmark.extra_info |= {"error": error, "calls a round": launches}
    if CUDA:
        if work.size:
            cold = in_turn({name: (run, launches)})[name]["us"]
            benchmark.extra_info |= {"cold us": cold, "cold GB/s": work.size / cold / 1e3}
        benchmark.extra_info["warm us"] = in_turn({name: captured(work.calls(work.candidates[name], 1))})[name]["us"]
    benchmark(finished(run))


def finished(run: Callable) -> Callable[[], None]:
    """run, and then waiting until the device has done it."""
    def wait() -> None:
        run()
        if CUDA:
            torch.cuda.synchronize()
    return wait


# What it was measured on

def said(*command: str) -> str:
    """What a command prints, or that it is unknown."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@cache
def commit() -> str:
    """What is measured, and whether more than results has changed; without git, what the variable COMMIT says."""
    changed = said("git", "status", "--porcelain", "--untracked-files=no", "--", ":/",
                   ":(top,exclude)bench/results") not in ("", "unknown")
    return (os.environ.get("COMMIT") or said("git", "rev-parse", "--short", "HEAD")) + " with changes" * changed


def stamp() -> dict[str, str]:
    """GPU, driver, versions, and the GPU's state now."""
    import triton
    stamp = {"commit": commit(), "torch": torch.__version__, "triton": triton.__version__}
    if not CUDA:
        return {"gpu": "cpu", **stamp}
    query = "driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    state = said("nvidia-smi", "-i", "0", f"--query-gpu={query}", "--format=csv,noheader").split(", ")
    names = ("driver", "SM clock", "memory clock", "degrees C", "power")
    return {"gpu": torch.cuda.get_device_name(), **stamp, "cuda": torch.version.cuda,
            **dict(zip(names, state, strict=False)), "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}
