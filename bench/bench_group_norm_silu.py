"""GroupNorm+SiLU, forward and backward, and between two convolutions: eager, torch.compile, Triton, both, Liger."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measure import CUDA, Work, device, error_of, time_with
from bench.packages import installed
from kernels import group_norm_silu, group_norm_silu_plain
from kernels.equivalence import LAYOUTS, ROUNDING, Norm, leaves, norms
from kernels.group_norm_silu import INTERPRET

FUSED = CUDA or INTERPRET                                   # else the fused op is the plain lines
NAMES = ("eager", "compiled", "triton", "triton compiled", "liger")


def candidates(groups: int, layout: str) -> dict[str, Callable]:
    """(x, weight, bias) -> y in x's own layout, for NHWC too where PyTorch's operator returns NCHW."""
    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, groups, weight, bias)).contiguous(memory_format=LAYOUTS[layout])

    def triton(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm_silu(x, groups, weight, bias)

    functions = {"eager": eager, "compiled": compiled(eager)}
    if FUSED:
        functions |= {"triton": triton, "triton compiled": compiled(triton)}
    if CUDA and layout == "nchw" and installed("liger-kernel"):
        from liger_kernel.ops.group_norm import LigerGroupNormFunction
        functions["liger"] = lambda x, w, b: F.silu(LigerGroupNormFunction.apply(x, w, b, x.shape[1], groups, 1e-5))
    return functions


def compiled(function: Callable) -> Callable:
    return torch.compile(function, fullgraph=True, dynamic=False)


def clones(inputs: dict[str, Tensor], n: int) -> list[dict[str, Tensor]]:
    """n sets of the same arguments in different places."""
    return [inputs, *({k: v.detach().clone().requires_grad_(v.requires_grad) for k, v in inputs.items()}
                     for _ in range(n - 1))]


def norm_work(norm: Norm, B: int, dtype: torch.dtype, layout: str, back: bool) -> Work:
    """y, or from dy the gradients of x, weight and bias. Useful: x read, y written; x and dy read, dx written."""
    inputs = leaves(norm, B, dtype, layout, device())
    inputs |= {k: inputs[k].detach().to(dtype).requires_grad_() for k in ("weight", "bias")}
    groups = norm.groups

    def result(function: Callable, inputs: dict[str, Tensor]) -> Callable:
        wanted = [inputs[k] for k in ("x", "weight", "bias")]
        if back:
            y = function(*wanted)
            grad = partial(torch.autograd.grad, y, wanted, inputs["dy"].to(y.dtype), retain_graph=True)
            return lambda: [dx.contiguous(memory_format=LAYOUTS[layout]) if dx.ndim == 4 else dx for dx in grad()]
        return partial(torch.no_grad()(lambda *arguments: (function(*arguments),)), *wanted)

    exact = {k: v.detach().double().requires_grad_() for k, v in inputs.items()}
    true = result(lambda x, *affine: group_norm_silu_plain(x, groups, *affine), exact)()
    case = f"({B}, {norm.C}, {norm.H}, {norm.W}) {str(dtype).removeprefix('torch.')} {layout}"
    return Work(f"GroupNorm+SiLU {'backward' if back else 'forward'} {case}", candidates(groups, layout),
                calls=lambda function, n: [result(function, each) for each in clones(inputs, n)],
                error=lambda function: error_of(result(function, inputs)(), true), tolerance=2 * ROUNDING[dtype] + 1e-5,
                size=(3 if back else 2) * inputs["x"].numel() * dtype.itemsize)


def chain_work(norm: Norm, B: int, dtype: torch.dtype, layout: str) -> Work:
    """conv -> norm -> SiLU -> conv, as in a U-Net: what the fused norm is worth among its neighbours."""
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

    functions = {"eager": eager, "compiled": compiled(eager)}
    if FUSED:
        functions |= {"triton": triton, "triton compiled": compiled(triton)}
    true = eager(x[:2].double(), *(w.double() for w in (w1, b1, w2, weight, bias)))

    def calls(function: Callable, n: int) -> list[Callable]:
        return [partial(torch.no_grad()(function), each["x"]) for each in clones({"x": x}, n)]

    return Work(f"conv, GroupNorm+SiLU, conv ({B}, {C}, {norm.H}, {norm.W}) {layout}", functions, calls,
                error=lambda function: error_of([torch.no_grad()(function)(x)[:2]], [true]),
                tolerance=2 * ROUNDING[dtype] + 1e-4, size=0)


def shapes(network: str) -> list[Norm]:
    """The network's distinct shapes, its optional arguments aside."""
    return list(dict.fromkeys(norm._replace(rows=(), silu=True) for norm in norms(network)))


SMALL = (Norm(64, 16, 16, 32, (), True), 8, torch.float32)
CASES = [(norm, 128, torch.bfloat16) for norm in shapes("cifar10")] if CUDA else [SMALL]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].C}x{case[0].H}")
@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", NAMES)
def test_norm(benchmark, name, back, case, layout):
    work = norm_work(*case, layout, back)
    if name not in work.candidates:
        pytest.skip(f"{name} does not run here")
    time_with(benchmark, work, name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES[:1], ids=lambda case: f"{case[0].C}x{case[0].H}")
@pytest.mark.parametrize("name", NAMES[:4])
def test_chain(benchmark, name, case, layout):
    work = chain_work(*case, layout)
    if name not in work.candidates:
        pytest.skip(f"{name} does not run here")
    time_with(benchmark, work, name)
