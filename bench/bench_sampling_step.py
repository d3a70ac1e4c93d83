"""One reverse step, x_t -> x_s: eager, torch.compile, Triton, both."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import ddpm
from bench.measure import CUDA, Work, both, device, error_of, measure
from kernels import sampling_step
from kernels.equivalence import LAYOUTS, step_arguments


def candidates(noise: bool) -> dict[str, Callable]:
    """(rows, i, xt, output, seeds) -> xs."""
    def eager(rows: Tensor, i: Tensor, xt: Tensor, output: Tensor, seeds: Tensor) -> Tensor:
        return ddpm.step(rows, i, xt, output, None, seeds if noise else None)[0]

    def triton(rows: Tensor, i: Tensor, xt: Tensor, output: Tensor, seeds: Tensor) -> Tensor:
        return sampling_step(rows, i, xt, output, None, seeds if noise else None, keep_x0=False)[0]

    return both(eager, triton)


def step_work(shape: tuple[int, ...], dtype: torch.dtype, layout: str, noise: bool) -> Work:
    """A step in the middle of 50; the error is that of the last step, which adds no noise.

    Useful: x_t and the output read, x_s written.
    """
    rows = ddpm.sampler_rows(ddpm.linear_schedule(), ddpm.timesteps(1000, 50), eta=float(noise)).to(device())
    xt, output, seeds, *_ = step_arguments(rows, shape, dtype, layout)
    middle, last = (torch.tensor([k], device=device()) for k in (25, 49))
    true = ddpm.step(rows, last, xt.double(), output.double())[0]

    def calls(function: Callable, n: int) -> list[Callable]:
        return [partial(torch.no_grad()(function), rows, middle, xt.clone(), output.clone(), seeds) for _ in range(n)]

    return Work(f"sampling step {'with' if noise else 'without'} noise {layout} {'x'.join(map(str, shape))}",
                candidates(noise), calls,
                error=lambda function: error_of([torch.no_grad()(function)(rows, last, xt, output, seeds)], [true]),
                tolerance=1e-3 if dtype == torch.bfloat16 else 1e-5, size=xt.numel() * (8 + dtype.itemsize))


SHAPES = [(128, 3, 32, 32), (512, 3, 256, 256)] if CUDA else [(8, 3, 32, 32)]
DTYPE = torch.bfloat16 if CUDA else torch.float32


@pytest.mark.parametrize("name", ["triton", "compiled", "eager", "copy", "triton compiled"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("noise", [False, True], ids=["no noise", "noise"])
def test_step(benchmark, name, noise, shape, layout):
    measure(benchmark, step_work(shape, DTYPE, layout, noise), name)
