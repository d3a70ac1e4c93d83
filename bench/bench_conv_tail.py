"""The end of a residual block, conv3x3 + conv1x1 or the input itself + biases: eager, torch.compile, Triton.

Everything lies in channels_last. The two convolutions, their biases and their sum are kernels of their own in PyTorch.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from bench.bench_group_norm_silu import clones, compiled
from bench.measure import CUDA, Work, device, error_of, time_with
from kernels.conv_tail import conv_tail, conv_tail_plain
from kernels.equivalence import ROUNDING
from kernels.group_norm_silu import INTERPRET
from kernels.tail_cases import Tail, tail_arguments, tails, useful_bytes

NAMES = ("eager", "compiled", "triton")


def tail_work(tail: Tail, B: int) -> Work:
    """Useful: h, x and the weights read, y written."""
    dtype = torch.bfloat16 if CUDA else torch.float16
    given = tail_arguments(tail, B, dtype, device())
    given["bias"] = given["bias"].to(dtype)
    found = {"eager": conv_tail_plain, "compiled": compiled(conv_tail_plain)}
    if CUDA or INTERPRET:
        found["triton"] = conv_tail
    true = conv_tail_plain(**{k: (v[:2] if k in ("h", "x") else v).double() for k, v in given.items()})

    def calls(function: Callable, n: int) -> list[Callable]:
        return [partial(torch.no_grad()(function), **each) for each in clones(given, n)]

    return Work(f"conv tail ({B}, {tail.CX} -> {tail.N}, {tail.H}, {tail.W})", found, calls,
                error=lambda function: error_of([torch.no_grad()(function)(**given)[:2]], [true]),
                tolerance=8 * ROUNDING[dtype] + 1e-4, size=useful_bytes(**given))


TINY = Tail(64, 128, 64, 8, 8)
CASES = [(tail, B) for B in (512, 1) for tail in tails("cifar10")] if CUDA else [(TINY, 2)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_tail(benchmark, name, case):
    work = tail_work(*case)
    if name not in work.candidates:
        pytest.skip(f"{name} does not run here")
    time_with(benchmark, work, name)
