"""The end of a residual block, conv3x3 + conv1x1 or the input itself + biases: eager, torch.compile, Triton.

Everything lies in channels_last. The two convolutions, their biases and their sum are kernels of their own in PyTorch.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from bench.bench_group_norm_silu import clones, compiled
from bench.measure import CUDA, Work, device, error_of, time_with
from kernels.conv_tail import conv_tail, conv_tail_plain
from kernels.equivalence import ROUNDING
from kernels.group_norm_silu import INTERPRET

NAMES = ("eager", "compiled", "triton")


def tail_work(C: int, CX: int, N: int, H: int, B: int) -> Work:
    """Useful: h and x read, y written. CX = N is a block without a skip."""
    g, dtype = torch.Generator().manual_seed(0), torch.bfloat16 if CUDA else torch.float16

    def normal(*shape: int, fan: int = 1) -> Tensor:
        value = (torch.randn(shape, generator=g) / fan**0.5).to(device(), dtype)
        return value.to(memory_format=torch.channels_last) if len(shape) == 4 else value

    given = {"h": normal(B, C, H, H), "x": normal(B, CX, H, H), "weight": normal(N, C, 3, 3, fan=9 * C),
             "bias": normal(N)} | ({} if CX == N else {"skip": normal(N, CX, 1, 1, fan=CX)})
    found = {"eager": conv_tail_plain, "compiled": compiled(conv_tail_plain)}
    if CUDA or INTERPRET:
        found["triton"] = conv_tail
    true = conv_tail_plain(**{k: (v[:2] if k in ("h", "x") else v).double() for k, v in given.items()})

    def calls(function: Callable, n: int) -> list[Callable]:
        return [partial(torch.no_grad()(function), **each) for each in clones(given, n)]

    return Work(f"conv tail ({B}, {C} + {CX} -> {N}, {H}, {H})", found, calls,
                error=lambda function: error_of([torch.no_grad()(function)(**given)[:2]], [true]),
                tolerance=8 * ROUNDING[dtype] + 1e-4, size=B * H * H * (C + CX + N) * dtype.itemsize)


SHAPES = [(256, 256, 256, 16), (256, 512, 256, 16), (128, 128, 128, 32), (128, 256, 128, 32), (256, 256, 256, 8),
          (256, 512, 256, 8), (256, 512, 256, 4)]                   # C, CX, N, H: blocks of the cifar10 U-Net
CASES = [(*shape, B) for B in (512, 1) for shape in SHAPES] if CUDA else [(64, 128, 64, 8, 2)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_tail(benchmark, name, case):
    work = tail_work(*case)
    if name not in work.candidates:
        pytest.skip(f"{name} does not run here")
    time_with(benchmark, work, name)
