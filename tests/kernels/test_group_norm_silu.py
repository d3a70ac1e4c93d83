"""The fused norm is the plain lines: forward, every gradient, every way through the kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from kernels import group_norm_silu, group_norm_silu_plain
from kernels.equivalence import LAYOUTS, NORMS, ROUNDING, ROWS, Norm, forced, gradients, leaves, norm_case, sound, ways
from kernels.group_norm_silu import backward_op, forward_op

ops = sys.modules["kernels.group_norm_silu"]

pytestmark = [pytest.mark.usefixtures("poison"), pytest.mark.filterwarnings("ignore:overflow encountered in exp2")]


def case(shape, device, layout="nchw", dtype=torch.float32, rows=ROWS) -> dict[str, Tensor]:
    """The leaves of x of shape (B, C, H, W), and dy."""
    B, *shape = shape
    return leaves(Norm(*shape, 1, rows, True), B, dtype, layout, device)


def close(got: dict[str, Tensor], want: dict[str, Tensor], tol: float = 2e-6) -> None:
    """Each to one rounding of its dtype, plus tol of its largest element for the float32 arithmetic before."""
    for name, true in want.items():
        rounding = max(2e-6, ROUNDING[got[name].dtype])
        torch.testing.assert_close(got[name].double(), true, rtol=1.01 * rounding, atol=tol * (1 + true.abs().max()),
                                   msg=lambda m, name=name: f"{name}: {m}")


def compare(arguments: dict[str, Tensor], groups: int, tol: float = 2e-6) -> dict[str, Tensor]:
    """y and every gradient, once they are seen to be those of the plain lines in float64."""
    got = gradients(group_norm_silu, arguments, groups=groups)
    close(got, gradients(group_norm_silu_plain, arguments, double=True, groups=groups), tol)
    return got


@pytest.mark.parametrize("case", NORMS, ids=lambda case: f"{case.way} {case} {case.dtype} {case.layout}")
def test_forward_and_every_gradient(case, device):
    """On a GPU also twice the same bits."""
    report = norm_case(case, device, tolerance=2e-6)
    assert sound(report), report
    assert report["way"] == f"{case.way}/{case.way}"


@pytest.mark.parametrize("way, layout", [("resident", "nchw"), ("loop", "nchw"), ("loop", "channels_last"),
                                         ("split", "channels_last")])
def test_mean_far_from_zero(way, layout, device):
    """Mean 1000, deviation 1: the inputs' own rounding is 6e-5; E[x^2] - mean^2 would be wrong by more than 0.01.

    A first row of zeros would spoil sums shifted by a first pixel.
    """
    arguments = case((1, 4, 9, 8), device, layout)
    with forced(way), torch.no_grad():
        arguments["x"] += 1000
    with forced(way):
        compare(arguments, 1, tol=2e-4)
        with torch.no_grad():
            arguments["x"][:, :, 0] = 0
        compare(arguments, 1, tol=2e-5)


def test_one_pixel(device):
    arguments = case((1, 6, 1, 1), device)
    compare(arguments, 2, tol=1e-5)
    alone = gradients(group_norm_silu, arguments, groups=6)             # one value per group: it is its own mean
    close({"y": alone["y"]}, {"y": gradients(group_norm_silu_plain, arguments, double=True, groups=6)["y"]})
    assert alone["dx"].abs().max() < 1e-3


def test_wide_group_is_split(device):
    """More channels per group than a tile has lanes."""
    arguments = case((1, 3072, 1, 3), device, rows=())
    assert ways(arguments["x"], 1).startswith("split")
    compare(arguments, 1)


@pytest.mark.parametrize("way", ["resident", "split"])
def test_rows_of_any_stride(way, device):
    """A bias for all images (stride 0), slices of a wide row, a transposed one; a weight with gaps."""
    B, C = 2, 6
    arguments = case((B, C, 4, 3), device, rows=())
    wide, bias = torch.randn(B, 3 * C, device=device), torch.randn(C, device=device)
    arguments |= {"scale": wide[:, C:2 * C].requires_grad_(), "add": bias.expand(B, C).requires_grad_(),
                  "shift": torch.randn(C, B, device=device).T.requires_grad_(),
                  "weight": wide[0, ::3].requires_grad_()}
    with forced(way):
        compare(arguments, 2)


@pytest.mark.parametrize("how, layout", [("every second image", "channels_last"), ("half the channels", "nchw"),
                                         ("half the channels", "channels_last"), ("transposed", "nchw"),
                                         ("expanded", "channels_last")])
def test_input_of_any_stride(how, layout, device):
    x = case((4, 12, 5, 6), device, layout)["x"].detach()
    x = {"every second image": lambda: x[::2], "half the channels": lambda: x.chunk(2, dim=1)[1],
         "transposed": lambda: x.transpose(2, 3), "expanded": lambda: x[:1].expand(3, -1, -1, -1)}[how]()
    copied = (how, layout) in (("half the channels", "channels_last"), ("transposed", "nchw"))
    assert (ops.in_layout(x, LAYOUTS[layout]).data_ptr() != x.data_ptr()) == copied
    arguments = case(x.shape, device) | {"x": x.requires_grad_()}
    arguments["dy"] = torch.tensor(0.7, device=device).expand(x.shape)                  # what .sum() sends back
    compare(arguments, 2)


def test_batch_stride_beyond_32_bits(device):
    """The third image begins 2^31 elements after the first. (The memory between is reserved, never touched.)"""
    torch.use_deterministic_algorithms(False)                                           # or it would all be filled
    stride = 2**30 + 64
    x = torch.empty(2 * stride + 64, dtype=torch.float16, device=device).as_strided((3, 4, 4, 4), (stride, 16, 4, 1))
    x[:] = torch.randn(3, 4, 4, 4)
    weight = bias = torch.ones(4, device=device)
    got = group_norm_silu(x, 2, weight, bias)
    assert torch.equal(got, group_norm_silu(x.contiguous(), 2, weight, bias))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs 20 GB of GPU memory")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_than_2_to_31_elements(layout, device):
    torch.use_deterministic_algorithms(False)
    x = torch.empty(33, 64, 1024, 1024, dtype=torch.float16, device=device, memory_format=LAYOUTS[layout])
    x[-1] = torch.randn(64, 1024, 1024, device=device)
    x.requires_grad_()
    weight, bias = torch.randn(2, 64, device=device)
    y = group_norm_silu(x, 32, weight, bias)
    dx, = torch.autograd.grad(y, x, y)
    last = x[-1:].detach().requires_grad_()
    want = group_norm_silu_plain(last, 32, weight, bias)
    torch.testing.assert_close(y[-1:], want, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(dx[-1:], torch.autograd.grad(want, last, y[-1:])[0], rtol=2e-3, atol=1e-4)


def test_no_second_tensor_of_the_picture_s_size_is_kept(device):
    arguments, kept = case((2, 8, 8, 8), device), []
    del arguments["dy"]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        group_norm_silu(groups=2, **arguments)
    large, small = ([x for x in kept if (x.numel() >= arguments["x"].numel()) == large] for large in (True, False))
    assert [x.data_ptr() for x in large] == [arguments["x"].data_ptr()]
    assert sorted(x.numel() for x in small) == [2 * 2 * 2, 8, 8, 16, 16, 16]            # mean, rstd; the arguments


@pytest.mark.parametrize("name", ["x", "weight", "bias", *ROWS, None])
def test_y_has_a_history_only_where_a_gradient_is_wanted(name, device):
    arguments = {k: v.detach().requires_grad_(k == name) for k, v in case((1, 4, 2, 3), device).items() if k != "dy"}
    assert group_norm_silu(groups=2, **arguments).requires_grad == (name is not None)
    with torch.no_grad():
        assert not group_norm_silu(groups=2, **arguments).requires_grad


def penalty(norm, arguments):
    """The gradients of a penalty on a gradient, of x and of the weight, whose own dy needs no gradient."""
    leaves = {name: value.detach().requires_grad_() for name, value in arguments.items() if name != "dy"}
    first = torch.autograd.grad(norm(groups=2, **leaves).sum(), leaves["x"], create_graph=True)[0]
    return torch.autograd.grad(first.square().sum(), [leaves["x"], leaves["weight"]])


def tangent(norm, arguments):
    """The directional derivative along the weight, in forward mode."""
    with torch.autograd.forward_ad.dual_level():
        weight = torch.autograd.forward_ad.make_dual(arguments["weight"].detach(), torch.ones_like(arguments["bias"]))
        y = norm(groups=2, **{k: v for k, v in arguments.items() if k != "dy"} | {"weight": weight})
        return [torch.autograd.forward_ad.unpack_dual(y).tangent]


def per_sample(norm, arguments):
    """The gradient of the weight for each picture alone."""
    def loss(weight, x):
        return norm(x[None], 2, weight, arguments["bias"]).square().sum()
    return [torch.vmap(torch.func.grad(loss), (None, 0))(arguments["weight"].detach(), arguments["x"].detach())]


def hessian_product(norm, arguments):
    return [torch.autograd.functional.hvp(lambda w: norm(arguments["x"], 2, w, arguments["bias"]).square().sum(),
                                          arguments["weight"].detach(), torch.ones_like(arguments["bias"]))[1]]


@pytest.mark.parametrize("derivative", [penalty, tangent, per_sample, hessian_product])
def test_derivatives_that_the_kernels_do_not_know_are_right(derivative, device):
    """Not zero in silence: second ones, forward mode, and those of torch.func."""
    arguments = case((2, 4, 3, 3), device)
    got, want = (derivative(norm, arguments) for norm in (group_norm_silu, group_norm_silu_plain))
    assert all(value.abs().max() > 1e-3 for value in want)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_compiled_twice_differentiated_it_raises(device):
    with pytest.raises(RuntimeError, match="double backward"):
        penalty(torch.compile(group_norm_silu, backend="aot_eager"), case((2, 4, 3, 3), device))


@pytest.mark.parametrize("layout, rows", [("nchw", ()), ("channels_last", ROWS)])
def test_opcheck(layout, rows, device):
    arguments = case((2, 4, 3, 3), device, layout, rows=rows)
    dy = arguments.pop("dy")
    x, *params = (arguments.get(k) for k in ("x", "weight", "bias", *ROWS))
    torch.library.opcheck(forward_op, (x, *params, 2, 1e-5, True))
    _, *stats = forward_op(x, *params, 2, 1e-5, True)
    assert not any(s.requires_grad for s in stats)
    tensors = [None if t is None else t.detach() for t in (dy, x, *stats, *params)]
    torch.library.opcheck(backward_op, (*tensors, True))


def test_one_graph_for_every_batch(device):
    """Forward and backward under fullgraph, the batch size left free: compiled once."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(group_norm_silu, fullgraph=True, backend=counter)
    for B in (2, 3):
        arguments = case((B, 4, 3, 3), device, "channels_last")
        for leaf in arguments.values():
            if leaf.ndim > 1:
                torch._dynamo.mark_dynamic(leaf, 0)
        close(gradients(compiled, arguments, groups=2),
              gradients(group_norm_silu_plain, arguments, double=True, groups=2))
    assert counter.frame_count == 1


def test_on_a_cpu_it_is_the_plain_lines(monkeypatch):
    monkeypatch.setattr(ops, "INTERPRET", False)
    arguments = case((2, 4, 3, 3), "cpu")
    got, want = (gradients(function, arguments, double=True, groups=2)
                 for function in (group_norm_silu, group_norm_silu_plain))
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_runs_where_triton_is_missing():
    code = ("import sys; sys.modules['triton'] = None\n"
            "import torch, kernels, unet\n"
            "x = torch.randn(2, 4, 3, 3); w = torch.ones(4)\n"
            "assert torch.equal(kernels.group_norm_silu(x, 2, w, w), kernels.group_norm_silu_plain(x, 2, w, w))\n"
            "assert 'kernels.group_norm_silu_triton' not in sys.modules")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("change, message", [
    ({"x": torch.randn(2, 4, 3)}, r"x is torch.float32, shape \(2, 4, 3\); it must be \(B, C, H, W\)"),
    ({"x": torch.randn(2, 4, 0, 3)}, r"shape \(2, 4, 0, 3\).*at least one pixel"),
    ({"groups": 3}, r"groups is 3; it must divide the 4 channels"),
    ({"weight": torch.ones(5)}, r"weight is torch.float32, shape \(5,\).*must be floating, shape \(4,\)"),
    ({"bias": torch.ones(4, dtype=torch.int64)}, r"bias is torch.int64"),
    ({"add": torch.ones(1, 4)}, r"add is torch.float32, shape \(1, 4\).*shape \(2, 4\)"),
    ({"scale": torch.ones(2, 4, device="meta")}, r"scale is .*on meta"),
    ({"x": torch.randn(2, 4, 3, 3).double()}, r"x is torch.float64, .*; the fused norm takes float32"),
    ({"x": torch.empty(1, 4, 2**15, 2**15, dtype=torch.float16, device="meta")}, r"fewer than 2\*\*31"),
])
def test_errors(change, message, monkeypatch):
    monkeypatch.setattr(ops, "INTERPRET", True)             # where there is a GPU, these tensors are not on it
    arguments = {"x": torch.randn(2, 4, 3, 3), "groups": 2, "weight": torch.ones(4), "bias": torch.ones(4)} | change
    with pytest.raises(ValueError, match=message):
        group_norm_silu(**arguments)
