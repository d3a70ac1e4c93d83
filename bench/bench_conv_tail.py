"""The end of a residual block, conv3x3 + conv1x1 or the input itself + biases: eager, torch.compile, Triton.

Everything lies in channels_last. The two convolutions, their biases and their sum are kernels of their own in PyTorch.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from bench.bench_group_norm_silu import clones, compiled
from bench.measure import CUDA, Work, device, error_of, time_with
from kernels.conv_tail import conv_tail, conv_tail_plain
from kernels.equivalence import ROUNDING, SIDES
from kernels.group_norm_silu import INTERPRET
from unet import CONFIGS, ResBlock, UNet

NAMES = ("eager", "compiled", "triton")


class Tail(NamedTuple):
    """The end of one residual block, without its batch."""
    CX: int                 # channels of its input; equal to N, it has no skip
    N: int                  # of its result, and of what the 3x3 convolution reads
    H: int                  # pixels, squared


def tails(network: str) -> list[Tail]:
    """The distinct ends of a network's residual blocks, the most frequent first."""
    found, config = Counter(), CONFIGS[network]
    with torch.device("meta"):
        unet = UNet(config, lambda x, *_, **__: x)
        for block in unet.modules():
            if isinstance(block, ResBlock):
                block.register_forward_hook(lambda _, given, y: found.update([Tail(given[0].shape[1], *y.shape[1:3])]))
        unet.trunk(torch.empty(1, config.in_channels, SIDES[network], SIDES[network]),
                   torch.empty(1, sum(unet.time_widths)))
    return [tail for tail, _ in found.most_common()]


def tail_work(tail: Tail, B: int) -> Work:
    """Useful: h and x read, y written."""
    g, dtype, (CX, N, H) = torch.Generator().manual_seed(0), torch.bfloat16 if CUDA else torch.float16, tail

    def normal(*shape: int, fan: int = 1) -> Tensor:
        value = (torch.randn(shape, generator=g) / fan**0.5).to(device(), dtype)
        return value.to(memory_format=torch.channels_last) if len(shape) == 4 else value

    given = {"h": normal(B, N, H, H), "x": normal(B, CX, H, H), "weight": normal(N, N, 3, 3, fan=9 * N),
             "bias": normal(N)} | ({} if CX == N else {"skip": normal(N, CX, 1, 1, fan=CX)})
    found = {"eager": conv_tail_plain, "compiled": compiled(conv_tail_plain)}
    if CUDA or INTERPRET:
        found["triton"] = conv_tail
    true = conv_tail_plain(**{k: (v[:2] if k in ("h", "x") else v).double() for k, v in given.items()})

    def calls(function: Callable, n: int) -> list[Callable]:
        return [partial(torch.no_grad()(function), **each) for each in clones(given, n)]

    return Work(f"conv tail ({B}, {CX} -> {N}, {H}, {H})", found, calls,
                error=lambda function: error_of([torch.no_grad()(function)(**given)[:2]], [true]),
                tolerance=8 * ROUNDING[dtype] + 1e-4, size=B * H * H * (CX + 2 * N) * dtype.itemsize)


TINY = Tail(128, 64, 8)
CASES = [(tail, B) for B in (512, 1) for tail in tails("cifar10")] if CUDA else [(TINY, 2)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_tail(benchmark, name, case):
    work = tail_work(*case)
    if name not in work.candidates:
        pytest.skip(f"{name} does not run here")
    time_with(benchmark, work, name)
