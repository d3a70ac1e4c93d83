"""What `python -m bench.report` measures: by the name of each case, the function that measures it."""

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from bench import bench_sampling_loop as loops
from bench import bench_training_step as training
from bench import same, step_profile
from bench.bench_conv_tail import TINY, tail_work
from bench.bench_group_norm_silu import chain_work, norm_work, shapes
from bench.bench_sampling_step import step_work
from bench.measure import CUDA, Work, captured, copies, device, in_turn, measure
from bench.packages import installed
from kernels.equivalence import LAYOUTS, Norm
from kernels.tail_cases import Tail, tails


def kernel_cases(smoke: bool) -> dict[str, Callable[[], dict]]:
    """The machine itself; the norms of cifar10, which matter most; steps; chains; tails; the norms of lsun256."""
    if smoke:
        tiny = Norm(8, 4, 4, 2, (), True)
        return {"machine": partial(machine, 64),
                **norm_cases("tiny", [tiny], 2, torch.float32, [(back, "channels_last") for back in (False, True)]),
                **step_cases((2, 3, 4, 4), torch.float32, ["nchw"]), **chain_cases([tiny], 2, torch.float32, ["nchw"]),
                **tail_cases([TINY], 2)}
    both = list(product((False, True), reversed(LAYOUTS)))
    cifar10, lsun256 = shapes("cifar10"), shapes("lsun256")
    square = list({(norm.C, norm.H): norm for norm in cifar10 if norm.C in (128, 256)}.values())
    return {"machine": partial(machine, 8192), **norm_cases("cifar10", cifar10, 128, torch.bfloat16, both),
            **step_cases((128, 3, 32, 32), torch.bfloat16, LAYOUTS),
            **step_cases((512, 3, 256, 256), torch.bfloat16, LAYOUTS),
            **chain_cases(square, 128, torch.bfloat16, ["channels_last", "nchw"]),
            **tail_cases(tails("cifar10"), 512), **tail_cases(tails("cifar10"), 1),
            **norm_cases("lsun256", lsun256, 16, torch.bfloat16, both)}


def norm_cases(network: str, shapes: Sequence[Norm], B: int, dtype: torch.dtype, kinds) -> dict[str, Callable]:
    return {f"{network} {'backward' if back else 'forward'} {layout} {norm.C}x{norm.H}":
            partial(both_ways, partial(norm_work, norm, B, dtype, layout, back))
            for back, layout in kinds for norm in shapes}


def step_cases(shape: tuple[int, ...], dtype: torch.dtype, layouts: Sequence[str]) -> dict[str, Callable]:
    return {f"step {'with' if noise else 'without'} noise {layout} {'x'.join(map(str, shape))}":
            partial(both_ways, partial(step_work, shape, dtype, layout, noise))
            for noise in (False, True) for layout in layouts}


def chain_cases(shapes: Sequence[Norm], B: int, dtype: torch.dtype, layouts: Sequence[str]) -> dict[str, Callable]:
    return {f"chain {layout} {norm.C}x{norm.H}": partial(both_ways, partial(chain_work, norm, B, dtype, layout))
            for layout in layouts for norm in shapes}


def tail_cases(tails: Sequence[Tail], B: int) -> dict[str, Callable]:
    return {f"tail batch {B} {tail.CX}->{tail.N}x{tail.H}": partial(both_ways, partial(tail_work, tail, B))
            for tail in tails}


def both_ways(make: Callable[[], Work]) -> dict:
    """Cold, then warm. A chain, whose bytes are not counted, is measured warm: it is its own neighbour."""
    work = make()
    results = {"cold": measure(work, cold=True)} if work.size else {}
    return {"work": work.group, "bytes": work.size} | results | {"warm": measure(work, cold=False)}


def machine(n: int) -> dict:
    """What there is to be had: GB/s of a copy that reads and writes 2 GiB, TFLOP/s of n x n matrices in bf16."""
    size = 2**31 if CUDA else 2**20
    a, b = torch.randn(2, n, n, dtype=torch.bfloat16, device=device())
    runs = {"copy": captured(copies(size, 2)), "matrices": captured([lambda: a @ b])}
    results = in_turn(runs)
    results["copy"]["GB/s"] = size / results["copy"]["us"] / 1e3
    results["matrices"]["TFLOP/s"] = 2 * n**3 / results["matrices"]["us"] / 1e6
    return results


def loop_cases(smoke: bool) -> dict[str, Callable[[], dict]]:
    """The machine; ours stage by stage and peers at batch 512; one picture; training; DDPM-1000; other batches."""
    peers = peers_here()
    ends, rivals = ["eager", "compile", "graph"], [p for p in peers if "max-autotune" not in p]
    if smoke:
        tiny = loops.Chain("digits", 2, 2, 0.)
        return {"machine": partial(machine, 64), **sampling([*loops.stages(), *rivals], tiny),
                **updates(["eager", "bf16"], "digits", 4)}
    sizes = {B: loops.Chain("cifar10", B, 50, 0.) for B in (1, 8, 128, 512)}
    return {"machine": partial(machine, 8192), **sampling(["graph", *loops.STAGES, *rivals], sizes[512]),
            **sampling([*ends, *rivals], sizes[1]), **updates([*training.OURS, *training.PEERS], "cifar10", 128),
            **sampling(["graph", *(p for p in peers if p in ("diffusers channels_last", "diffusers compiled"))],
                       loops.Chain("cifar10", 128, 1000, 1.)),
            **sampling([*ends, *rivals], sizes[128]),
            **sampling([name for name in peers if "max-autotune" in name], sizes[512]), **sampling(ends, sizes[8])}


def peers_here() -> list[str]:
    return [name for name in loops.PEERS if installed(name)]


def sampling(names: Sequence[str], chain: loops.Chain) -> dict[str, Callable[[], dict]]:
    kind = "DDPM" if chain.eta else "DDIM"
    return {f"{kind}-{chain.steps} {chain.network} batch {chain.B}: {name}": partial(sampling_case, name, chain)
            for name in names}


def updates(names: Sequence[str], network: str, B: int) -> dict[str, Callable[[], dict]]:
    return {f"training {network} batch {B}: {name}": partial(training_case, name, network, B)
            for name in names if name in training.OURS or installed(name)}


def sampling_case(name: str, chain: loops.Chain) -> dict:
    counters.clear()
    began = time.perf_counter()
    loop = loops.build(name, chain)
    error = loop.error()
    loop.sample()                                             # compiles what is left
    prepared = time.perf_counter() - began
    if not error <= loop.tolerance:
        return {"error": error, "failed": f"wrong by {error:.2%}"}
    loop = loop._replace(error=None)                        # frees the network in float64
    forget_peak()
    times = in_turn({name: (loop.sample, 1)}, 5 if CUDA and chain.steps < 500 else 2)[name]
    return times | {"error": error, "prepared s": prepared, "images/s": 1e6 * chain.B / times["us"],
                    "ms per step": times["us"] / 1e3 / chain.steps, "parameters": loop.parameters} | memory() | skips()


def training_case(name: str, network: str, B: int) -> dict:
    counters.clear()
    began = time.perf_counter()
    learner = training.build(name, network, B)
    error = learner.error()
    for _ in range(3):
        learner.update()
    prepared = time.perf_counter() - began
    if not error <= training.TOLERANCE:
        return {"error": error, "failed": f"its loss or gradient is wrong by {error:.2%}"}
    forget_peak()
    updates = 10 if CUDA else 1                             # the GPU does not wait for what precedes an update

    def train() -> None:
        for _ in range(updates):
            learner.update()

    times = in_turn({name: (train, updates)}, 5 if CUDA else 2)[name]
    return times | {"error": error, "prepared s": prepared, "images/s": 1e6 * B / times["us"],
                    "parameters": learner.parameters} | memory() | skips()


def skips() -> dict[str, int]:
    """How often Inductor was asked for a CUDA graph and left it out, which it says in a warning only."""
    return {"cudagraph skips": counters["inductor"]["cudagraph_skips"]}


def forget_peak() -> None:
    """Memory used only for preparation and for the error check is not part of the reported memory."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory() -> dict[str, float]:
    """Reserved, not allocated: a captured graph holds its memory without allocating it."""
    return {"peak GB": torch.cuda.max_memory_reserved() / 1e9} if CUDA else {}


def profile_cases(smoke: bool) -> dict[str, Callable[[], dict]]:
    """The machine; a captured step at batch 512, 128 and 1."""
    network, sizes = ("digits", (2,)) if smoke else ("cifar10", (512, 128, 1))
    return {"machine": partial(machine, 64 if smoke else 8192),
            **{f"{network} batch {B}": partial(step_profile.profiled, loops.Chain(network, B, 100, 0.)) for B in sizes}}


def same_cases(smoke: bool, checkpoint: Path, folder: Path) -> dict[str, Callable[[], dict]]:
    """The same bytes twice; pictures of a trained model, sampled in every way."""
    chain, short = (loops.Chain("digits", 2, 2, 1.),) * 2 if smoke else (loops.Chain("cifar10", 512, 1000, 1.),
                                                                         loops.Chain("cifar10", 512, 50, 0.))
    return {f"replays: DDIM-{short.steps} {short.network} batch {short.B}": partial(same.replays, short),
            f"bytes: DDPM-{chain.steps} {chain.network} batch {chain.B}": partial(same.twice, chain),
            f"pictures: {checkpoint}": partial(same.pictures, checkpoint, 10 if smoke else 100, folder)}
