"""GroupNorm+SiLU, forward and backward: eager, torch.compile, Triton, both, Liger."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measure import CUDA, Work, both, device, error_of, installed, measure
from kernels import group_norm_silu, group_norm_silu_plain
from kernels.equivalence import LAYOUTS, ROUNDING, Norm, leaves, norms

NAMES = ("triton", "compiled", "eager", "copy", "triton compiled", "liger")


def norm_candidates(groups: int, layout: str) -> dict[str, Callable]:
    """(x, weight, bias) -> y in x's layout, in NHWC too where PyTorch's operator returns NCHW."""
    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, groups, weight, bias)).contiguous(memory_format=LAYOUTS[layout])

    def triton(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm_silu(x, groups, weight, bias)

    functions = both(eager, triton)
    if CUDA and layout == "nchw" and installed("liger-kernel"):
        from liger_kernel.ops.group_norm import LigerGroupNormFunction
        functions["liger"] = lambda x, w, b: F.silu(LigerGroupNormFunction.apply(x, w, b, x.shape[1], groups, 1e-5))
    return functions


def clones(x: Tensor, n: int) -> list[Tensor]:
    """n copies of x in different places, itself the first."""
    return [x, *(x.detach().clone().requires_grad_(x.requires_grad) for _ in range(n - 1))]


def norm_work(network: str, norm: Norm, B: int, dtype: torch.dtype, layout: str, back: bool) -> Work:
    """y, or from dy the gradients of x, weight and bias. Useful: x read, y written; x and dy read, dx written."""
    inputs = leaves(norm, B, dtype, layout, device())
    x, dy = inputs["x"], inputs["dy"]
    affine = [inputs[name].detach().to(dtype).requires_grad_() for name in ("weight", "bias")]

    def call(function: Callable, x: Tensor, dy: Tensor, *affine: Tensor) -> Callable:
        if not back:
            return partial(torch.no_grad()(lambda *arguments: (function(*arguments),)), x, *affine)
        y = function(x, *affine)
        gradients = partial(torch.autograd.grad, y, (x, *affine), dy.to(y.dtype), retain_graph=True)
        return lambda: [dx.contiguous(memory_format=LAYOUTS[layout]) if dx.ndim == 4 else dx for dx in gradients()]

    def calls(function: Callable, n: int) -> list[Callable]:
        return [call(function, *tensors, *affine) for tensors in zip(clones(x, n), clones(dy, n), strict=True)]

    exact = [each.detach().double().requires_grad_() for each in (x, dy, *affine)]
    true = call(lambda x, *affine: group_norm_silu_plain(x, norm.groups, *affine), *exact)()
    return Work(f"{network} {'backward' if back else 'forward'} {layout} {norm.C}x{norm.H}x{norm.W}",
                norm_candidates(norm.groups, layout), calls,
                error=lambda function: error_of(call(function, x, dy, *affine)(), true),
                tolerance=2 * ROUNDING[dtype] + 1e-5, size=(3 if back else 2) * x.numel() * dtype.itemsize)


def cases() -> list[tuple]:
    """The networks' distinct shapes, their optional arguments aside: network, norm, batch and dtype."""
    if not CUDA:
        return [("small", Norm(64, 16, 16, 32, (), True), 8, torch.float32)]
    return list(dict.fromkeys((network, norm._replace(rows=(), silu=True), B, torch.bfloat16)
                              for network, B in (("cifar10", 128), ("lsun256", 16)) for norm in norms(network)))


def name_of(case: tuple) -> str:
    return " ".join(f"{part.C}x{part.H}" if isinstance(part, Norm) else str(part) for part in case[:-2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", cases(), ids=name_of)
@pytest.mark.parametrize("layout", [*reversed(LAYOUTS)])
@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
def test_norm(benchmark, name, back, case, layout):
    measure(benchmark, norm_work(*case, layout, back), name)
