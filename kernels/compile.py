"""Speed applied from outside: the plain U-Net and the plain loop, compiled, and on a GPU captured.

Five exact rewritings, none of which changes precision or the files that hold the mathematics:
- the time path of a chain is a table: one row per step and label, looked up instead of computed;
- nearest-up and a 3x3 convolution are one transposed 4x4 convolution with summed weights;
- on a GPU the first and the last convolution have 8 channels instead of 3: tensor cores work on eight at once;
- torch.compile fuses what is left; on a GPU the norms and the sampling step are the kernels of this folder;
- on a GPU one step of the chain is captured as a CUDA graph, which the host replays for every step.
"""

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import samplers
from kernels.group_norm_silu import group_norm_silu, group_norm_silu_plain
from kernels.sampling_step import sampling_step
from unet import UNet, UNetConfig, Up


def check_compiler(device: torch.device) -> None:
    """Raises ValueError where torch.compile could not work: on a CPU without a C++ compiler."""
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        raise ValueError("--compile on a CPU needs a C++ compiler and finds none; install g++, or leave --compile out")


def fast_norm(device: torch.device) -> Callable:
    """The norm to compile with: on a GPU the fused op; on a CPU the plain lines, which torch.compile fuses itself."""
    check_compiler(device)
    return group_norm_silu if device.type == "cuda" else group_norm_silu_plain


def fast_unet(config: UNetConfig, device: torch.device) -> UNet:
    """The network to compile: with that norm, and on a GPU channels_last."""
    unet = UNet(config, fast_norm(device)).to(device)
    return unet.to(memory_format=torch.channels_last) if device.type == "cuda" else unet


COMPILING = "compiling the network: half a minute or more the first time, then seconds, as torch keeps what it made"


@contextlib.contextmanager
def quickest_convolutions() -> Iterator[None]:
    """Lets cuDNN time its ways to compute each convolution that it meets here, and keep to the quickest."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@torch.no_grad()
def compile_denoiser(unet: UNet, times: Tensor) -> Callable:
    """(xt, t, labels) -> output for sampling: the network, rewritten and compiled for the times of one chain.

    times: (S,), those that the chain visits (`samplers.network_times`). Changes the network in place; its weights must
    not change after.
    """
    device = next(unet.parameters()).device
    embed = time_table(unet, times)
    rewrite(unet, pad=device.type == "cuda")
    if device.type == "cuda":
        unet.to(memory_format=torch.channels_last)                                # as `fast_unet`; loading undoes it
    trunk = torch.compile(unet.trunk, fullgraph=True, dynamic=False,              # a guided row has twice the batch
                          options=None if device.type == "cuda" else {"freezing": True, **BUILT_AT_ONCE})
    return lambda xt, t, labels=None: trunk(xt, embed(t, labels))


def rewrite(unet: UNet, pad: bool) -> None:
    """Puts the quicker convolutions in the place of the plain ones. pad: the first and the last one too."""
    for k, block in enumerate(unet.ups):
        if isinstance(block, Up):
            unet.ups[k] = SubpixelUp(block)
    if pad:
        unet.first, unet.last = PaddedConv(unet.first), PaddedConv(unet.last)


def compile_trained(model: nn.Module, device: torch.device) -> Callable:
    """The model compiled to be trained; on a GPU, where small kernels cost their launch, independent ones are one."""
    return torch.compile(model, fullgraph=True, options=COMBINED if device.type == "cuda" else BUILT_AT_ONCE)


COMBINED = {"combo_kernels": True}

# On a CPU all loops are one C++ file, not a file each, most of whose time goes to headers; what calls them is another,
# on which -O3 would spend more than on the loops; and two files do not make up for headers that are compiled ahead.
BUILT_AT_ONCE = {"cpp_wrapper": True, "cpp_wrapper_build_separate": True, "cpp_cache_precompile_headers": False}


def time_table(unet: UNet, times: Tensor) -> Callable:
    """`unet.embed` for these times and every label, computed once: (t, labels) -> row, by one lookup.

    Above 1 GiB of table, for a thousand classes say, it is `unet.embed` itself, compiled.
    """
    classes, device = unet.config.classes, times.device
    if 4 * len(times) * max(classes, 1) * unet.time.out_features > 2**30:
        return torch.compile(unet.embed, fullgraph=True)
    times = times.unique()                                                        # increasing, for searchsorted
    if not classes:
        rows = unet.embed(times)                                                  # S width
        return lambda t, labels: rows[torch.searchsorted(times, t.contiguous())]
    labels_of = (torch.full(times.shape, label, device=device) for label in range(classes))
    rows = torch.stack([unet.embed(times, labels) for labels in labels_of], dim=1)
    return lambda t, labels: rows[torch.searchsorted(times, t.contiguous()), labels]  # of S classes width


class SubpixelUp(nn.ConvTranspose2d):
    """Nearest-up and a 3x3 convolution as one transposed convolution: each output pixel sees 2x2 input pixels.

    Along one axis an even output sees input i - 1 by w0 and i by w1 + w2, an odd one i by w0 + w1 and i + 1 by
    w2; the taps of a 4-wide kernel of stride 2 are therefore w2, w1 + w2, w0 + w1, w0. 16 products instead of 36.
    """
    time_width, resamples = 0, True

    def __init__(self, up: Up):
        C = up.in_channels
        super().__init__(C, C, 4, stride=2, padding=1, device="meta")
        w = up.weight.detach().to(torch.promote_types(up.weight.dtype, torch.float32))
        taps = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=w.dtype, device=w.device)
        summed = torch.einsum("yi,xj,abij->bayx", taps, taps, w).to(up.weight.dtype)
        self.weight, self.bias = nn.Parameter(summed, requires_grad=False), up.bias

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return super().forward(x)                                                 # B C 2H 2W


class PaddedConv(nn.Conv2d):
    """A 3x3 convolution with zero channels up to a multiple of 8, in and out; the zeros that come out are cut off."""

    def __init__(self, conv: nn.Conv2d):
        C, width = (8 * math.ceil(n / 8) for n in (conv.in_channels, conv.out_channels))
        super().__init__(C, width, 3, padding=1, device="meta")
        self.extra, self.keep = C - conv.in_channels, conv.out_channels
        weight = F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, self.extra, 0, width - self.keep))
        bias = F.pad(conv.bias.detach(), (0, width - self.keep))
        self.weight, self.bias = (nn.Parameter(w, requires_grad=False) for w in (weight, bias))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 0, self.extra)) if self.extra else x            # B C H W
        return super().forward(x)[:, :self.keep]                                  # B width H W


@torch.no_grad()
def compile_loop(denoise: Callable | Sequence[Callable], rows: Tensor, shape, seeds: Tensor,
                 ahead: int = 1) -> Callable:
    """(seeds, x_T=) -> `samplers.sample`'s iterator, for any seeds as many as these: compiled, on a GPU captured.

    Compiles (and captures) here, not at the first call. Whatever else `denoise`, or that of each row, reads, labels
    say, it must find in the same memory at every call. On a GPU one iterator at a time: the next one begins in the same
    memory. ahead: as for `samplers.sample`, on a CPU.
    """
    if rows.device.type == "cuda":
        with quickest_convolutions():
            return capture(denoise, rows, shape, seeds)
    xt, t = torch.zeros(len(seeds), *shape), samplers.network_times(rows)[:1].expand(len(seeds))
    for each in {*samplers.per_row(denoise, rows)}:
        each(xt, t)
    return partial(samplers.sample, denoise, rows, shape, ahead=ahead)            # the plain step is as quick


def first_row(rows: Tensor) -> Tensor:
    """The row (1, 12) whose step from zeros gives the noise that the chain starts from: z, at the first row's t."""
    row = torch.zeros_like(rows[:1])
    samplers.column(row, "s").copy_(samplers.column(rows, "t")[:1])
    samplers.column(row, "cz").fill_(1)
    return row


def record(warm_up: Callable[[], None], step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """`step` as a CUDA graph, after a warm-up on another stream, which compiles and lets libraries choose."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        warm_up()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.reads = step                                                            # tables that it must not outlive
    return graph


@torch.no_grad()
def capture(denoise: Callable | Sequence[Callable], rows: Tensor, shape, seeds: Tensor) -> Callable:
    """One step of the chain, [network, sampling step, index + 1], as a CUDA graph that is replayed S times.

    If rows have denoisers of their own, there is a graph for each different one, and the memory that it works in.
    """
    seeds, times = seeds.clone(), samplers.network_times(rows)
    steps, narrow = samplers.as_python(samplers.column(rows, "s")), rows.float()      # as the kernel would cast each
    needs = samplers.needs(rows)
    i, first = torch.zeros(1, dtype=torch.int64, device=rows.device), first_row(narrow)
    zeros = torch.zeros(len(seeds), *shape, device=rows.device)
    xt, x0_hat, x0_prev = zeros.clone(), zeros.clone(), zeros.clone() if needs.x0_prev2 else None

    def step(denoise: Callable) -> None:
        output = denoise(xt, times.index_select(0, i).expand(len(seeds)))
        xs, x0 = sampling_step(narrow, i, xt, output, x0_hat if needs.x0_prev else None,
                               seeds if needs.noise else None, x0_prev2=x0_prev)
        xt.copy_(xs)
        if needs.x0_prev2:
            x0_prev.copy_(x0_hat)
        x0_hat.copy_(x0)
        i.add_(1)

    def begin(new: Tensor, x_T: Tensor | None = None) -> None:
        if new.shape != seeds.shape:
            raise ValueError(f"there are {len(new)} seeds; the loop was captured for {len(seeds)}")
        seeds.copy_(new)
        i.zero_()
        xt.copy_(sampling_step(first, i, zeros, zeros, None, seeds, keep_x0=False)[0] if x_T is None else x_T)

    def warm_up(denoise: Callable) -> None:
        begin(seeds)
        samplers.check_output(denoise(xt, times[:1].expand(len(seeds))), xt.shape, needs.learned)
        for _ in range(3):
            step(denoise)
            i.zero_()

    denoisers = samplers.per_row(denoise, rows)
    graphs = {each: record(partial(warm_up, each), partial(step, each)) for each in dict.fromkeys(denoisers)}

    def run(seeds: Tensor, x_T: Tensor | None = None) -> Iterator[tuple[int, Tensor, Tensor]]:
        begin(seeds, x_T)
        for s, each in zip(steps, denoisers, strict=True):
            graphs[each].replay()
            yield s, xt.clone(), x0_hat.clone()

    return run
