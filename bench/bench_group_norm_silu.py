"""GroupNorm+SiLU, forward and backward, and between two convolutions: eager, torch.compile, Triton, both, Liger."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measure import CUDA, Work, device, error_of, measure, missing
from kernels import group_norm_silu, group_norm_silu_plain
from kernels.equivalence import LAYOUTS, ROUNDING, Norm, leaves, norms
from kernels.group_norm_silu import INTERPRET

NAMES = ("triton", "compiled", "eager", "copy", "triton compiled", "liger")


def candidates(eager: Callable, triton: Callable) -> dict[str, Callable]:
    """Both as they are and compiled; without Triton, where the fused op is the plain lines, the first alone."""
    functions = {"eager": eager} | ({"triton": triton} if CUDA or INTERPRET else {})
    return functions | {"compiled" if name == "eager" else f"{name} compiled":
                        torch.compile(function, fullgraph=True, dynamic=False) for name, function in functions.items()}


def norm_candidates(groups: int, layout: str) -> dict[str, Callable]:
    """(x, weight, bias) -> y in x's layout, in NHWC too where PyTorch's operator returns NCHW."""
    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, groups, weight, bias)).contiguous(memory_format=LAYOUTS[layout])

    functions = candidates(eager, lambda x, weight, bias: group_norm_silu(x, groups, weight, bias))
    if CUDA and layout == "nchw" and not missing("liger-kernel"):
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
    return Work(f"{network} {'backward' if back else 'forward'}", layout, f"{norm.C}x{norm.H}x{norm.W}",
                norm_candidates(norm.groups, layout), calls,
                error=lambda function: error_of(call(function, x, dy, *affine)(), true),
                tolerance=2 * ROUNDING[dtype] + 1e-5, size=(3 if back else 2) * x.numel() * dtype.itemsize)


def chain_work(norm: Norm, B: int, dtype: torch.dtype, layout: str) -> Work:
    """conv -> norm -> SiLU -> conv, as in a U-Net: what the fused norm is worth among its neighbours.

    Its bytes are not counted, as it is timed warm: it is its own neighbour.
    """
    inputs, C, groups = leaves(norm, B, dtype, layout, device()), norm.C, norm.groups
    g = torch.Generator().manual_seed(1)
    w1, w2 = ((torch.randn(C, C, 3, 3, generator=g) / (9 * C) ** 0.5).to(device(), dtype, memory_format=LAYOUTS[layout])
              for _ in range(2))
    x, weight, bias = (inputs[k].detach().to(dtype) for k in ("x", "weight", "bias"))
    b1 = bias.flip(0)

    def eager(x: Tensor, w1=w1, b1=b1, w2=w2, weight=weight, bias=bias) -> Tensor:
        return F.conv2d(F.silu(F.group_norm(F.conv2d(x, w1, b1, padding=1), groups, weight, bias)), w2, padding=1)

    def triton(x: Tensor) -> Tensor:
        h = group_norm_silu(F.conv2d(x, w1, padding=1), groups, weight, bias, add=b1.expand(len(x), -1))
        return F.conv2d(h, w2, padding=1)

    true = eager(x[:2].double(), *(w.double() for w in (w1, b1, w2, weight, bias)))

    def calls(function: Callable, n: int) -> list[Callable]:
        return [partial(torch.no_grad()(function), x)] * n

    return Work("conv, norm, SiLU, conv", layout, f"{C}x{norm.H}x{norm.W}", candidates(eager, triton), calls,
                error=lambda function: error_of([torch.no_grad()(function)(x)[:2]], [true]),
                tolerance=2 * ROUNDING[dtype] + 1e-4, size=0)


def shapes(network: str) -> list[Norm]:
    """The network's distinct shapes, its optional arguments aside."""
    return list(dict.fromkeys(norm._replace(rows=(), silu=True) for norm in norms(network)))


SMALL = (Norm(64, 16, 16, 32, (), True), 8, torch.float32)
CASES = [(network, norm, B, torch.bfloat16) for network, B in {"cifar10": 128, "lsun256": 16}.items()
         for norm in shapes(network)] if CUDA else [("small", *SMALL)]
CHAINS = list({(norm.C, norm.H): (norm, B, dtype) for network, norm, B, dtype in CASES
               if network == "cifar10" and norm.C in (128, 256)}.values()) if CUDA else [SMALL]


def name_of(case: tuple) -> str:
    return " ".join(f"{part.C}x{part.H}" if isinstance(part, Norm) else str(part) for part in case[:-2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("layout", [*reversed(LAYOUTS)])
@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
def test_norm(benchmark, name, back, case, layout):
    measure(benchmark, norm_work(*case, layout, back), name)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("copy", "liger")])
@pytest.mark.parametrize("case", CHAINS, ids=name_of)
@pytest.mark.parametrize("layout", [*reversed(LAYOUTS)])
def test_chain(benchmark, name, case, layout):
    measure(benchmark, chain_work(*case, layout), name)
