"""One reverse step, x_t -> x_s: eager, torch.compile, Triton, both, diffusers' scheduler."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import ddpm
from bench.measure import CUDA, Work, device, error_of, measure, missing
from kernels import sampling_step
from kernels.equivalence import LAYOUTS, step_arguments
from kernels.group_norm_silu import INTERPRET

NAMES = ("triton", "compiled", "compiled, counter noise", "eager", "eager, counter noise", "diffusers", "copy",
         "triton compiled")


def candidates(noise: bool) -> dict[str, Callable]:
    """(rows, i, xt, output, seeds) -> xs. Those without counter noise use PyTorch's generator."""
    def eager(rows: Tensor, i: Tensor, xt: Tensor, output: Tensor, seeds: Tensor) -> Tensor:
        return ddpm.step(rows, i, xt, output, z=torch.randn_like(xt) if noise else None)[0]

    def counter(rows: Tensor, i: Tensor, xt: Tensor, output: Tensor, seeds: Tensor) -> Tensor:
        return ddpm.step(rows, i, xt, output, None, seeds)[0]

    def triton(rows: Tensor, i: Tensor, xt: Tensor, output: Tensor, seeds: Tensor) -> Tensor:
        return sampling_step(rows, i, xt, output, None, seeds if noise else None, keep_x0=False)[0]

    compiled = partial(torch.compile, fullgraph=True, dynamic=False)
    functions = {"eager": eager, "compiled": compiled(eager)}
    if noise:
        functions |= {"eager, counter noise": counter, "compiled, counter noise": compiled(counter)}
    if CUDA or INTERPRET:
        functions |= {"triton": triton, "triton compiled": compiled(triton)}
    if not missing("diffusers"):
        functions["diffusers"] = scheduler_step(noise)
    return functions


def scheduler_step(noise: bool) -> Callable:
    """The same step t -> s by DDPMScheduler or, without noise, DDIMScheduler; t is read from the row, once."""
    from diffusers import DDIMScheduler, DDPMScheduler
    scheduler = (DDPMScheduler if noise else DDIMScheduler)(clip_sample=True, timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    times = {}

    def step(rows: Tensor, i: Tensor, xt: Tensor, output: Tensor, seeds: Tensor) -> Tensor:
        if i not in times:
            times[i] = int(rows[i, 0].item()) - 1                                 # published schedulers count from 0
        return scheduler.step(output, times[i], xt).prev_sample
    return step


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

    return Work(f"sampling step {'with' if noise else 'without'} noise", layout, "x".join(map(str, shape)),
                candidates(noise), calls,
                error=lambda function: error_of([torch.no_grad()(function)(rows, last, xt, output, seeds)], [true]),
                tolerance=1e-3 if dtype == torch.bfloat16 else 1e-5, size=xt.numel() * (8 + dtype.itemsize))


SHAPES = [(128, 3, 32, 32), (512, 3, 256, 256)] if CUDA else [(8, 3, 32, 32)]
DTYPE = torch.bfloat16 if CUDA else torch.float32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("noise", [False, True], ids=["no noise", "noise"])
def test_step(benchmark, name, noise, shape, layout):
    measure(benchmark, step_work(shape, DTYPE, layout, noise), name)
