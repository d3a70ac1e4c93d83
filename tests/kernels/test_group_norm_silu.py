"""The fused norm is the plain lines: forward, every gradient, every way through the kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import kernels.group_norm_silu_triton as triton_file
from kernels import group_norm_silu, group_norm_silu_plain
from kernels.group_norm_silu import backward_op, forward_op

ops = sys.modules["kernels.group_norm_silu"]
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
ROWS = ("scale", "shift", "add")
WAYS = {"resident": (4096, 4096, 96 * 1024), "loop": (1, 64, 96 * 1024), "split": (1, 64, 0)}
SHAPES = {
    "even": (2, 8, 8, 8, 2),                # B C H W G
    "three a group": (1, 6, 7, 5, 2),
    "twelve a group": (2, 24, 3, 5, 2),
    "one a group": (2, 3, 8, 9, 3),
    "one group": (1, 10, 11, 3, 1),
}
# Half a unit in the last place; the interpreter rounds to bfloat16 towards zero, which costs up to a whole one.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-7 if ops.INTERPRET else 2**-8}

pytestmark = [pytest.mark.usefixtures("poison"), pytest.mark.filterwarnings("ignore:overflow encountered in exp2")]


@pytest.fixture
def way(monkeypatch):
    """Makes small shapes go the way of large ones, or several groups share a program."""
    def choose(name: str, programs: int = 4) -> str:
        resident, loop, slab = WAYS[name]
        for sizes in ("FORWARD", "BACKWARD"):
            small = {"resident": resident, "loop": loop, "slab": slab, "programs": programs}
            monkeypatch.setattr(triton_file, sizes, getattr(triton_file, sizes)._replace(**small))
        return name
    return choose


def taken(x: Tensor, G: int, sizes: triton_file.Sizes) -> str:
    plan = triton_file.plan(x.shape, G, x.element_size(), not x.is_contiguous(), sizes)
    return "split" if plan.chunk else "resident" if plan.pixels >= x[0, 0].numel() else "loop"


def case(shape, device, layout="nchw", dtype=torch.float32, rows=ROWS, param=torch.float32, mean=3.) -> dict:
    """Hostile leaves: a mean far from zero that differs between channels, random affine, slopes of every sign."""
    B, C, H, W, _ = shape
    g = torch.Generator().manual_seed(0)
    x = (mean + torch.randn(1, C, 1, 1, generator=g) + 1.5 * torch.randn(B, C, H, W, generator=g)).to(dtype)
    leaves = {"x": x.to(memory_format=LAYOUTS[layout]), "weight": torch.randn(C, generator=g).to(param),
              "bias": torch.randn(C, generator=g).to(param),
              **{name: torch.randn(B, C, generator=g).to(param) for name in ROWS if name in rows}}
    dy = torch.randn(B, C, H, W, generator=g).to(dtype).to(memory_format=LAYOUTS[layout])
    return {name: leaf.to(device).requires_grad_() for name, leaf in leaves.items()} | {"dy": dy.to(device)}


def run(function, G: int, leaves: dict[str, Tensor], double: bool = False, **options) -> dict[str, Tensor]:
    """y and the gradient of every leaf, by name."""
    dy = leaves["dy"]
    leaves = {k: v.detach().double().requires_grad_() if double else v for k, v in leaves.items() if k != "dy"}
    y = function(leaves["x"], G, **{k: v for k, v in leaves.items() if k != "x"}, **options)
    grads = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype))
    return {"y": y.detach()} | {f"d{k}": v for k, v in zip(leaves, grads, strict=True)}


def close(got: dict[str, Tensor], want: dict[str, Tensor], tol: float = 2e-6) -> None:
    """Each to one rounding of its dtype, plus tol of its largest element for the float32 arithmetic before."""
    for name, true in want.items():
        torch.testing.assert_close(got[name].double(), true, rtol=1.01 * ROUNDING[got[name].dtype],
                                   atol=tol * (1 + true.abs().max()), msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", WAYS)
def test_forward_and_every_gradient(name, layout, shape, way, device):
    way(name)
    leaves, G = case(SHAPES[shape], device, layout), SHAPES[shape][-1]
    assert taken(leaves["x"], G, triton_file.FORWARD) == taken(leaves["x"], G, triton_file.BACKWARD) == name
    got = run(group_norm_silu, G, leaves)
    close(got, run(group_norm_silu_plain, G, leaves, double=True))
    for y in (got["y"], got["dx"]):
        assert y.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("options", [{"rows": ()}, {"rows": ("add",)}, {"rows": ("scale", "shift")}, {"silu": False}],
                         ids=["none", "add", "scale shift", "no silu"])
def test_options(name, options, way, device):
    way(name)
    options = dict(options)
    leaves = case((1, 6, 4, 7, 2), device, "channels_last", rows=options.pop("rows", ROWS))
    close(run(group_norm_silu, 2, leaves, norm_eps=0.1, **options),
          run(group_norm_silu_plain, 2, leaves, double=True, norm_eps=0.1, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("param", [torch.float32, None], ids=["float32 affine", "same affine"])
@pytest.mark.parametrize("name", WAYS)
def test_half_precision(dtype, param, name, way, device):
    way(name)
    leaves = case((2, 6, 5, 4, 2), device, "channels_last", dtype, param=param or dtype)
    got = run(group_norm_silu, 2, leaves)
    assert all(got[f"d{k}"].dtype == v.dtype for k, v in leaves.items() if k != "dy") and got["y"].dtype == dtype
    close(got, run(group_norm_silu_plain, 2, leaves, double=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", WAYS)
def test_mean_far_from_zero(name, layout, way, device):
    """Mean 1000, deviation 1: the inputs' own rounding is 6e-5; E[x^2] - mean^2 would be wrong by more than 0.01.

    A first row of zeros would spoil sums shifted by a first pixel.
    """
    way(name)
    leaves = case((1, 4, 9, 8, 1), device, layout, mean=1000.)
    close(run(group_norm_silu, 1, leaves), run(group_norm_silu_plain, 1, leaves, double=True), tol=2e-4)
    with torch.no_grad():
        leaves["x"][:, :, 0] = 0
    close(run(group_norm_silu, 1, leaves), run(group_norm_silu_plain, 1, leaves, double=True), tol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_pixel(layout, device):
    leaves = case((1, 6, 1, 1, 2), device, layout)
    close(run(group_norm_silu, 2, leaves), run(group_norm_silu_plain, 2, leaves, double=True), tol=1e-5)
    alone = run(group_norm_silu, 6, leaves)                 # one value a group: it is its own mean
    close({"y": alone["y"]}, {"y": run(group_norm_silu_plain, 6, leaves, double=True)["y"]})
    assert alone["dx"].abs().max() < 1e-3


def test_wide_group_is_split(device):
    """More channels a group than a tile has lanes."""
    leaves = case((1, 5000, 1, 3, 1), device, rows=())
    assert taken(leaves["x"], 1, triton_file.FORWARD) == "split"
    close(run(group_norm_silu, 1, leaves), run(group_norm_silu_plain, 1, leaves, double=True))


@pytest.mark.parametrize("name", WAYS)
def test_rows_of_any_stride(name, way, device):
    """A bias for all images (stride 0), slices of a wide row, a transposed one; a weight with gaps."""
    way(name)
    B, C, G = 2, 6, 2
    leaves = case((B, C, 4, 3, G), device, rows=())
    wide, bias = torch.randn(B, 3 * C, device=device), torch.randn(C, device=device)
    leaves |= {"scale": wide[:, C:2 * C].requires_grad_(), "shift": torch.randn(C, B, device=device).T.requires_grad_(),
               "add": bias.expand(B, C).requires_grad_(), "weight": wide[0, ::3].requires_grad_()}
    close(run(group_norm_silu, G, leaves), run(group_norm_silu_plain, G, leaves, double=True))


@pytest.mark.parametrize("how", ["every second image", "half the channels", "transposed", "expanded"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_of_any_stride(how, layout, device):
    x = case((4, 12, 5, 6, 1), device, layout)["x"].detach()
    x = {"every second image": lambda: x[::2], "half the channels": lambda: x.chunk(2, dim=1)[1],
         "transposed": lambda: x.transpose(2, 3), "expanded": lambda: x[:1].expand(3, -1, -1, -1)}[how]()
    leaves = case((*x.shape, 2), device) | {"x": x.requires_grad_()}
    leaves["dy"] = torch.tensor(0.7, device=device).expand(x.shape)                     # what .sum() sends back
    close(run(group_norm_silu, 2, leaves), run(group_norm_silu_plain, 2, leaves, double=True))


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


def test_empty_batch(device):
    leaves = case((0, 4, 3, 3, 2), device, rows=())
    got = run(group_norm_silu, 2, leaves)
    assert got["y"].shape == (0, 4, 3, 3) and (got["dweight"] == 0).all() and (got["dbias"] == 0).all()


@pytest.mark.parametrize("name", WAYS)
def test_twice_the_same_bits(name, way, device):
    way(name)
    leaves = case((2, 6, 5, 5, 2), device, "channels_last", torch.float16)
    first, second = (run(group_norm_silu, 2, leaves) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_no_second_tensor_of_the_picture_s_size_is_kept(device):
    leaves, kept = case((2, 8, 8, 8, 2), device), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        group_norm_silu(leaves["x"], 2, **{name: leaves[name] for name in ("weight", "bias", *ROWS)})
    large, small = ([x for x in kept if (x.numel() >= leaves["x"].numel()) == large] for large in (True, False))
    assert [x.data_ptr() for x in large] == [leaves["x"].data_ptr()]
    assert sorted(x.numel() for x in small) == [2 * 2 * 2, 8, 8, 16, 16, 16]            # mean, rstd; the arguments


@pytest.mark.parametrize("name", ["x", "weight", "bias", *ROWS, None])
def test_y_has_a_history_only_where_a_gradient_is_wanted(name, device):
    leaves = {k: v.detach().requires_grad_(k == name) for k, v in case((1, 4, 2, 3, 2), device).items() if k != "dy"}
    x = leaves.pop("x")
    assert group_norm_silu(x, 2, **leaves).requires_grad == (name is not None)
    with torch.no_grad():
        assert not group_norm_silu(x, 2, **leaves).requires_grad


@pytest.mark.parametrize("rows", [(), ROWS], ids=["bare", "all rows"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout, rows, device):
    leaves = case((2, 4, 3, 3, 2), device, layout, rows=rows)
    dy = leaves.pop("dy")
    x, *params = (leaves.get(k) for k in ("x", "weight", "bias", *ROWS))
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
        leaves = case((B, 4, 3, 3, 2), device, "channels_last")
        for leaf in leaves.values():
            if leaf.ndim > 1:
                torch._dynamo.mark_dynamic(leaf, 0)
        close(run(compiled, 2, leaves), run(group_norm_silu_plain, 2, leaves, double=True))
    assert counter.frame_count == 1


def test_export(device):
    class Net(torch.nn.Module):
        def forward(self, x, weight, add):
            return group_norm_silu(x, 2, weight, weight, add=add)

    x, weight, add = (case((3, 4, 3, 2, 2), device)[k].detach() for k in ("x", "weight", "add"))
    batch = torch.export.Dim("batch")
    program = torch.export.export(Net(), (x, weight, add), dynamic_shapes=({0: batch}, None, {0: batch}))
    assert [n.target for n in program.graph.nodes if "group_norm" in str(n.target)] == [forward_op]
    torch.testing.assert_close(program.module()(x[:2], weight, add[:2]),
                               group_norm_silu_plain(x[:2], 2, weight, weight, add=add[:2]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_lines_gradcheck(layout):
    leaves = case((2, 4, 2, 3, 2), "cpu", layout)
    del leaves["dy"]
    names, values = zip(*leaves.items(), strict=True)
    assert torch.autograd.gradcheck(lambda x, *v: group_norm_silu_plain(x, 2, **dict(zip(names[1:], v, strict=True))),
                                    [v.detach().double().requires_grad_() for v in values])


def test_on_a_cpu_it_is_the_plain_lines(monkeypatch):
    monkeypatch.setattr(ops, "INTERPRET", False)
    leaves = case((2, 4, 3, 3, 2), "cpu")
    got, want = run(group_norm_silu, 2, leaves, double=True), run(group_norm_silu_plain, 2, leaves, double=True)
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
    ({"groups": 0}, r"groups is 0"),
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
