"""The fused step is samplers.step: every kind of row, the same noise, nothing read that is not needed."""

import math
import sys

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import noise
import samplers
from kernels import sampling_step
from kernels.equivalence import KINDS, STEPS, one_row, rows_of, sound, step_case
from kernels.sampling_step import step_op

room = sys.modules["kernels.sampling_step"]
COPY_Z = one_row(t=7, s=5, clip=math.inf, cz=1)             # a row that returns its noise

pytestmark = pytest.mark.usefixtures("poison")


def case(shape, device, channels=1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    B, C = shape[:2]
    xt, x0_prev, z, x0_prev2 = torch.randn(4, *shape, generator=g).to(device)
    output = torch.randn(B, channels * C, *shape[2:], generator=g).to(device)
    seeds = noise.image_seeds(2**31 - 1, torch.arange(B) + 2**32 - B).to(device)
    return {"xt": xt, "output": output, "x0_prev": x0_prev, "x0_prev2": x0_prev2, "seeds": seeds, "z": z}


def arguments(rows: Tensor, k: int, c: dict[str, Tensor]) -> tuple:
    """What a step takes of this case at row k, with noise from the seeds."""
    device = c["xt"].device
    return rows.to(device), torch.tensor([k], device=device), c["xt"], c["output"], None, c["seeds"]


def close(got, want) -> None:
    for name, a, b in zip(("xs", "x0_hat"), got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=3e-6 * (1 + b.abs().max()), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", STEPS, ids=lambda case: f"{case} {case.dtype} {case.layout}")
def test_every_kind_of_row(case, device):
    """First, second, third and last step."""
    report = step_case(case, (2, 3, 5, 7), device)
    assert sound(report), report["errors"]


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 9)])
def test_a_fixed_variance_ignores_the_learned_one(shape, device):
    """An output of twice the channels for rows that need one half of them."""
    c = case(shape, device, 2)
    both, half = (sampling_step(*arguments(rows_of("ancestral"), 1, c | {"output": output}))
                  for output in (c["output"], c["output"][:, :shape[1]]))
    assert all(torch.equal(a, b) for a, b in zip(both, half, strict=True))


@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (2, 3, 5, 7), (1, 1, 1, 1), (2, 9), (1, 2, 3, 5, 7), (1, 1, 30, 35)])
def test_noise_is_that_of_noise_normal(shape, device):
    """Word e % 4 of counter e // 4 with the image's key, across program borders and odd ends."""
    c = case(shape, device)
    xs, _ = sampling_step(*arguments(COPY_Z, 0, c))
    torch.testing.assert_close(xs, noise.normal(c["seeds"], 5, shape[1:]), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("s", [0.5, 1.25, 910.4318920183, 999.9999, 3999.7, 2**-20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_that_lands_between_the_steps(s, dtype, device):
    """The fraction of s is in the counter: as float32 has it, whatever the rows' dtype."""
    c = case((2, 3, 5, 7), device)
    xs, _ = sampling_step(*arguments(one_row(s=s, clip=math.inf, cz=1).to(dtype), 0, c))
    torch.testing.assert_close(xs, noise.normal(c["seeds"], s, (3, 5, 7)), rtol=1e-5, atol=2e-6)
    assert (xs - noise.normal(c["seeds"], math.floor(s), (3, 5, 7))).abs().mean() > 0.5


def test_z_goes_before_seeds(device):
    c = case((2, 3, 4, 4), device)
    xs, _ = sampling_step(*arguments(COPY_Z, 0, c), z=c["z"])
    assert torch.equal(xs, c["z"])


def test_float32_rows_give_the_same_bits(device):
    c, rows = case((2, 3, 5, 4), device, 2), rows_of("learned")
    assert all(map(torch.equal, sampling_step(*arguments(rows, 1, c)), sampling_step(*arguments(rows.float(), 1, c))))


def test_memory_of_any_stride(device):
    """An xt in channels_last, an output that is a slice or transposed: the same numbers, contiguous results."""
    rows, c = rows_of("ancestral"), case((2, 4, 6, 6), device, 2)
    want = samplers.step(*arguments(rows, 1, c | {"output": c["output"][:, 2:6]}))
    for xt, output in ((c["xt"].to(memory_format=torch.channels_last), c["output"][:, 2:6]),
                       (c["xt"], c["output"].to(memory_format=torch.channels_last)[:, 2:6]),
                       (c["xt"], c["output"].transpose(2, 3).contiguous().transpose(2, 3)[:, 2:6])):
        got = sampling_step(*arguments(rows, 1, c | {"xt": xt, "output": output}))
        close(got, want)
        assert got[0].is_contiguous() and got[1].is_contiguous()


def test_nan_stays_nan(device):
    """A clip that turned NaN into 1 would hide a broken network."""
    c = case((1, 1, 3, 3), device)
    c["output"][0, 0, 1, 1], c["output"][0, 0, 0, 0], c["output"][0, 0, 2, 2] = math.nan, math.inf, -math.inf
    xs, x0_hat = sampling_step(*arguments(rows_of("ddim"), 1, c))
    assert xs.isnan().nonzero().tolist() == x0_hat.isnan().nonzero().tolist() == [[0, 0, 1, 1]]
    assert x0_hat[0, 0, 0, 0] == -1 and x0_hat[0, 0, 2, 2] == 1


def test_what_is_not_needed_is_not_read(device):
    """A zero coefficient never meets its NaN: x0_prev outside 2m's inner rows, z and v in the last row."""
    c = case((1, 2, 3, 3), device, 2)
    nan = torch.full_like(c["xt"], math.nan)
    c["output"][:, 2:] = math.nan
    for kind in {*KINDS} - {"table"}:                                             # whose last row reads them
        rows = rows_of(kind)
        xs, _ = sampling_step(*arguments(rows, len(rows) - 1, c)[:4], nan, z=nan, x0_prev2=nan)
        assert xs.isfinite().all()
    xs, _ = sampling_step(*arguments(one_row(t=7, s=5, clip=1, cp=1), 0, c)[:4], nan)
    assert xs.isnan().all()


def test_x0_hat_only_when_asked(device):
    ancestral = arguments(rows_of("ancestral"), 1, case((2, 3, 4, 4), device))
    xs, x0_hat = sampling_step(*ancestral, keep_x0=False)
    assert x0_hat is None and torch.equal(xs, sampling_step(*ancestral)[0])
    assert step_op(*ancestral[:5], None, *ancestral[5:], None, False)[1].numel() == 0


@pytest.mark.parametrize("layout, full", [(torch.contiguous_format, False), (torch.channels_last, True)])
def test_opcheck(layout, full, device):
    c = case((2, 3, 2, 4), device, 2)
    c["output"] = c["output"].to(memory_format=layout)
    rest = (c["x0_prev"], c["x0_prev2"], None, c["z"], False) if full else (None, None, c["seeds"], None, True)
    torch.library.opcheck(step_op, (*arguments(rows_of("learned"), 1, c)[:4], *rest))


def test_one_graph_for_every_batch_and_step(device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(sampling_step, fullgraph=True, backend=counter)
    for B, k in ((2, 0), (3, 2)):
        c = case((B, 3, 2, 4), device)
        for name in ("xt", "output", "seeds"):
            torch._dynamo.mark_dynamic(c[name], 0)
        ancestral = arguments(rows_of("ancestral"), k, c)
        close(compiled(*ancestral), samplers.step(*ancestral))
    assert counter.frame_count == 1


def test_derivatives_are_right_or_refused(device):
    """Not zero in silence: forward mode and torch.func, and backward, which no kernel does."""
    _, i, xt, output, *rest = arguments(rows_of("ancestral"), 1, case((2, 3, 4, 4), device))
    rows = rows_of("ancestral").to(device)

    def tangent(step):
        return torch.func.jvp(lambda output: step(rows, i, xt, output, *rest)[0], (output,), (output,))[1]

    torch.testing.assert_close(tangent(sampling_step), tangent(samplers.step))
    assert tangent(samplers.step).abs().max() > 0.01
    with pytest.raises(RuntimeError, match="no autograd formula"):
        sampling_step(rows, i, xt, output.clone().requires_grad_(), *rest)[0].sum().backward()


def test_on_a_cpu_it_is_the_plain_step(monkeypatch):
    monkeypatch.setattr(room, "INTERPRET", False)
    c = case((2, 3, 4, 4), "cpu")
    ancestral = arguments(rows_of("ancestral"), 1, c | {"xt": c["xt"].double()})
    assert all(torch.equal(a, b) for a, b in zip(sampling_step(*ancestral), samplers.step(*ancestral), strict=True))
    assert sampling_step(*ancestral, keep_x0=False)[1] is None


@pytest.mark.parametrize("change, message", [
    ({"rows": torch.zeros(5, 10)}, r"rows is torch.float32, shape \(5, 10\); it must be a table of sampler_rows"),
    ({"i": torch.tensor(0)}, r"i is torch.int64, shape \(\); it must be int64, shape \(1,\)"),
    ({"output": torch.zeros(2, 4, 4, 4)}, r"output has shape \(2, 4, 4, 4\) and xt \(2, 3, 4, 4\)"),
    ({"xt": torch.zeros(3)}, r"xt must be \(B, C, ...\)"),
    (dict.fromkeys(("xt", "output"), torch.empty(1, 4, 2**15, 2**15, device="meta")), r"fewer than 2\*\*31"),
    ({"x0_prev": torch.zeros(2, 1, 4, 4)}, r"x0_prev is torch.float32, shape \(2, 1, 4, 4\); it must be like xt"),
    ({"z": torch.zeros(2, 3, 4, 4, dtype=torch.float16)}, r"z is torch.float16"),
    ({"seeds": torch.zeros(3, dtype=torch.int64)}, r"seeds is torch.int64, shape \(3,\); .* one per image: \(2,\)"),
    ({"output": torch.zeros(2, 3, 4, 4, device="meta")}, r"lie on cpu and meta"),
    ({"xt": torch.zeros(2, 3, 4, 4).double()}, r"xt is torch.float64, .*the fused step takes a float32 xt"),
    ({"output": torch.zeros(2, 3, 4, 4).double()}, r"output is torch.float64"),
])
def test_errors(change, message, monkeypatch):
    monkeypatch.setattr(room, "INTERPRET", True)            # where there is a GPU, these tensors are not on it
    tensors = {"rows": torch.zeros(5, 12), "i": torch.tensor([0]), "xt": torch.zeros(2, 3, 4, 4),
               "output": torch.zeros(2, 3, 4, 4)} | change
    with pytest.raises(ValueError, match=message):
        sampling_step(**tensors)
