"""The fused step is samplers.step: every kind of row, the same noise, nothing read that is not needed."""

import math
import sys

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import ddpm
import noise
import samplers
from kernels import equivalence, sampling_step
from kernels.sampling_step import step_op

room = sys.modules["kernels.sampling_step"]
SCHEDULE = ddpm.linear_schedule()
TIMES = samplers.timesteps(1000, 5)
KINDS = {
    "ancestral": {"eta": 1.}, "beta": {"eta": 1., "variance": "beta"}, "ddim": {}, "2m": {"sampler": "2m"},
    "2m sde": {"sampler": "2m", "eta": 1.}, "heun": {"sampler": "heun"}, "heun churn": {"sampler": "heun", "churn": 1.},
    "unipc": {"sampler": "unipc"}, "unipc-bh1 v": {"sampler": "unipc-bh1", "target": "v"},
    "consistency": {"sampler": "consistency"},
    "half v": {"eta": 0.5, "target": "v"}, "x0 unclipped": {"eta": 1., "target": "x0", "clip": False},
    "learned": {"eta": 1., "variance": "learned"},
}
COPY_Z = [[7, 5, 0, 0, math.inf, 0, 0, 0, 0, 1, 0, 0]]       # a row that returns its noise
KEEP_PREV = [[7, 5, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0]]           # and one that returns x0_prev

pytestmark = pytest.mark.usefixtures("poison")


def case(shape, device, channels=1, dtype=torch.float32, layout=torch.contiguous_format) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    B, C = shape[:2]
    xt, x0_prev, z, x0_prev2 = torch.randn(4, *shape, generator=g).to(device)
    output = torch.randn(B, channels * C, *shape[2:], generator=g).to(device, dtype)
    if len(shape) == 4:
        output = output.to(memory_format=layout)
    seeds = noise.image_seeds(2**31 - 1, torch.arange(B) + 2**32 - B).to(device)
    return {"xt": xt, "output": output, "x0_prev": x0_prev, "x0_prev2": x0_prev2, "seeds": seeds, "z": z}


def index(k: int, device) -> Tensor:
    return torch.tensor([k], device=device)


def table(rows, device) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, device=device)


def close(got, want) -> None:
    for name, a, b in zip(("xs", "x0_hat"), got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=3e-6 * (1 + b.abs().max()), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", ["seeds", "z", "neither"])
def test_every_kind_of_row(kind, given, device):
    """First, middle and last step; an output of twice the channels for all: fixed variances ignore its second half."""
    rows = samplers.sampler_rows(SCHEDULE, TIMES, **KINDS[kind]).to(device)
    for channels, layout in ((1, torch.contiguous_format), (2, torch.channels_last), (2, torch.contiguous_format)):
        if kind == "learned" and channels == 1:
            continue
        c = case((2, 3, 5, 7), device, channels, layout=layout)
        noises = {k: c[k] for k in ("seeds", "z") if k == given}
        _, second, third, _ = samplers.needs(rows)
        for k in (0, 1, 2, len(rows) - 1):
            arguments = rows, index(k, device), c["xt"], c["output"], c["x0_prev"] if second else None
            noises["x0_prev2"] = c["x0_prev2"] if third else None
            close(sampling_step(*arguments, **noises), samplers.step(*arguments, **noises))


@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (2, 3, 5, 7), (1, 1, 1, 1), (2, 9), (1, 2, 3, 5, 7), (1, 1, 30, 35)])
def test_noise_is_that_of_noise_normal(shape, device):
    """Word e % 4 of counter e // 4 with the image's key, across program borders and odd ends."""
    c = case(shape, device)
    xs, _ = sampling_step(table(COPY_Z, device), index(0, device), c["xt"], c["output"], None, c["seeds"])
    torch.testing.assert_close(xs, noise.normal(c["seeds"], 5, shape[1:]), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("s", [0.5, 1.25, 910.4318920183, 999.9999, 3999.7, 2**-20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_that_lands_between_the_steps(s, dtype, device):
    """The fraction of s is in the counter: as float32 has it, whatever the rows' dtype."""
    c = case((2, 3, 5, 7), device)
    rows = table(COPY_Z, device).to(dtype)
    rows[0, 1] = s
    xs, _ = sampling_step(rows, index(0, device), c["xt"], c["output"], None, c["seeds"])
    torch.testing.assert_close(xs, noise.normal(c["seeds"], s, (3, 5, 7)), rtol=1e-5, atol=2e-6)
    assert (xs - noise.normal(c["seeds"], math.floor(s), (3, 5, 7))).abs().mean() > 0.5


def test_noise_of_negative_and_small_seeds(device):
    seeds = torch.tensor([-1, 0, 2**63 - 1, 2**32, -2**63], device=device)
    x = torch.zeros(5, 1, 3, 3, device=device)
    xs, _ = sampling_step(table(COPY_Z, device), index(0, device), x, x, None, seeds)
    torch.testing.assert_close(xs, noise.normal(seeds, 5, (1, 3, 3)), rtol=1e-5, atol=2e-6)


def test_an_image_does_not_see_its_batch(device):
    rows = samplers.sampler_rows(SCHEDULE, TIMES, eta=1.).to(device)
    c = case((3, 3, 5, 7), device)
    xs, _ = sampling_step(rows, index(1, device), c["xt"], c["output"], None, c["seeds"])
    alone, _ = sampling_step(rows, index(1, device), c["xt"][1:2], c["output"][1:2], None, c["seeds"][1:2])
    assert torch.equal(xs[1:2], alone)


def test_z_goes_before_seeds(device):
    c = case((2, 3, 4, 4), device)
    xs, _ = sampling_step(table(COPY_Z, device), index(0, device), c["xt"], c["output"], None, c["seeds"], z=c["z"])
    assert torch.equal(xs, c["z"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_output_of_every_dtype(dtype, layout, device):
    rows = samplers.sampler_rows(SCHEDULE, TIMES, eta=1., variance="learned").to(device)
    c = case((2, 3, 5, 4), device, 2, dtype, layout)
    arguments = index(1, device), c["xt"], c["output"], None, c["seeds"]
    got = sampling_step(rows, *arguments)
    close(got, samplers.step(rows, *arguments))
    assert all(torch.equal(a, b) for a, b in zip(got, sampling_step(rows.float(), *arguments), strict=True))


def test_memory_of_any_stride(device):
    """An xt in channels_last, an output that is a slice or transposed: the same numbers, contiguous results."""
    rows = samplers.sampler_rows(SCHEDULE, TIMES, eta=1.).to(device)
    c = case((2, 4, 6, 6), device, 2)
    want = samplers.step(rows, index(1, device), c["xt"], c["output"][:, 2:6], None, c["seeds"])
    for xt, output in ((c["xt"].to(memory_format=torch.channels_last), c["output"][:, 2:6]),
                       (c["xt"], c["output"].to(memory_format=torch.channels_last)[:, 2:6]),
                       (c["xt"], c["output"].transpose(2, 3).contiguous().transpose(2, 3)[:, 2:6])):
        got = sampling_step(rows, index(1, device), xt, output, None, c["seeds"])
        close(got, want)
        assert got[0].is_contiguous() and got[1].is_contiguous()


def test_nan_stays_nan(device):
    """A clip that turned NaN into 1 would hide a broken network."""
    rows = samplers.sampler_rows(SCHEDULE, TIMES).to(device)
    c = case((1, 1, 3, 3), device)
    c["output"][0, 0, 1, 1], c["output"][0, 0, 0, 0], c["output"][0, 0, 2, 2] = math.nan, math.inf, -math.inf
    xs, x0_hat = sampling_step(rows, index(1, device), c["xt"], c["output"])
    assert xs.isnan().nonzero().tolist() == x0_hat.isnan().nonzero().tolist() == [[0, 0, 1, 1]]
    assert x0_hat[0, 0, 0, 0] == -1 and x0_hat[0, 0, 2, 2] == 1


def test_what_is_not_needed_is_not_read(device):
    """A zero coefficient never meets its NaN: x0_prev outside 2m's inner rows, z and v in the last row."""
    c = case((1, 2, 3, 3), device, 2)
    nan = torch.full_like(c["xt"], math.nan)
    c["output"][:, 2:] = math.nan
    for kind in KINDS:
        rows = samplers.sampler_rows(SCHEDULE, TIMES, **KINDS[kind]).to(device)
        xs, _ = sampling_step(rows, index(len(rows) - 1, device), c["xt"], c["output"], nan, z=nan, x0_prev2=nan)
        assert xs.isfinite().all()
    xs, _ = sampling_step(table(KEEP_PREV, device), index(0, device), c["xt"], c["output"], nan)
    assert xs.isnan().all()


def test_x0_hat_only_when_asked(device):
    rows = samplers.sampler_rows(SCHEDULE, TIMES, eta=1.).to(device)
    c = case((2, 3, 4, 4), device)
    arguments = rows, index(1, device), c["xt"], c["output"], None, c["seeds"]
    xs, x0_hat = sampling_step(*arguments, keep_x0=False)
    assert x0_hat is None and torch.equal(xs, sampling_step(*arguments)[0])
    assert step_op(*arguments[:5], None, *arguments[5:], None, False)[1].numel() == 0


@pytest.mark.parametrize("kind", ["ancestral", "2m", "heun churn", "unipc", "consistency"])
def test_a_whole_chain(kind, device):
    """ddpm.sample with the fused step in place of the plain one."""
    rows = samplers.sampler_rows(SCHEDULE, TIMES, **KINDS[kind]).to(device)
    data = torch.randn(5, 1, 3, 3, device=device).clamp(-1, 1)
    denoise = ddpm.exact_denoiser(ddpm.Schedule(*(t.to(device) for t in SCHEDULE)), data)
    seeds = noise.image_seeds(3, torch.arange(2)).to(device)
    chains = [list(samplers.sample(denoise, rows, (1, 3, 3), seeds, step=step))
              for step in (sampling_step, samplers.step)]
    for (s, *got), (s_plain, *want) in zip(*chains, strict=True):
        assert s == s_plain
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck(layout, device):
    rows = samplers.sampler_rows(SCHEDULE, TIMES, eta=1., variance="learned").to(device)
    c = case((2, 3, 2, 4), device, 2, layout=layout)
    state = rows, index(1, device), c["xt"], c["output"]
    torch.library.opcheck(step_op, (*state, None, None, c["seeds"], None, True))
    torch.library.opcheck(step_op, (*state, c["x0_prev"], c["x0_prev2"], None, c["z"], False))


def test_one_graph_for_every_batch_and_step(device):
    rows = samplers.sampler_rows(SCHEDULE, TIMES, eta=1.).to(device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(sampling_step, fullgraph=True, backend=counter)
    for B, k in ((2, 0), (3, 2)):
        c = case((B, 3, 2, 4), device)
        for name in ("xt", "output", "seeds"):
            torch._dynamo.mark_dynamic(c[name], 0)
        arguments = rows, index(k, device), c["xt"], c["output"], None, c["seeds"]
        close(compiled(*arguments), samplers.step(*arguments))
    assert counter.frame_count == 1


def test_on_a_cpu_it_is_the_plain_step(monkeypatch):
    monkeypatch.setattr(room, "INTERPRET", False)
    rows = samplers.sampler_rows(SCHEDULE, TIMES, eta=1.)
    c = case((2, 3, 4, 4), "cpu")
    arguments = rows, index(1, "cpu"), c["xt"].double(), c["output"], None, c["seeds"]
    assert all(torch.equal(a, b) for a, b in zip(sampling_step(*arguments), samplers.step(*arguments), strict=True))
    assert sampling_step(*arguments, keep_x0=False)[1] is None


def test_empty_batch(device):
    rows = samplers.sampler_rows(SCHEDULE, TIMES, eta=1.).to(device)
    c = case((0, 3, 4, 4), device)
    assert sampling_step(rows, index(0, device), c["xt"], c["output"], None, c["seeds"])[0].shape == (0, 3, 4, 4)


@pytest.mark.parametrize("change, message", [
    ({"rows": torch.zeros(5, 10)}, r"rows is torch.float32, shape \(5, 10\); it must be a table of sampler_rows"),
    ({"i": torch.tensor(0)}, r"i is torch.int64, shape \(\); it must be int64, shape \(1,\)"),
    ({"i": torch.zeros(1)}, r"i is torch.float32"),
    ({"output": torch.zeros(2, 4, 4, 4)}, r"output has shape \(2, 4, 4, 4\) and xt \(2, 3, 4, 4\)"),
    ({"xt": torch.zeros(3)}, r"xt must be \(B, C, ...\)"),
    ({"x0_prev": torch.zeros(2, 1, 4, 4)}, r"x0_prev is torch.float32, shape \(2, 1, 4, 4\); it must be like xt"),
    ({"z": torch.zeros(2, 3, 4, 4, dtype=torch.float16)}, r"z is torch.float16"),
    ({"x0_prev2": torch.zeros(2, 3, 4, 3)}, r"x0_prev2 is torch.float32, shape \(2, 3, 4, 3\); it must be like xt"),
    ({"seeds": torch.zeros(3, dtype=torch.int64)}, r"seeds is torch.int64, shape \(3,\); .* one per image: \(2,\)"),
    ({"seeds": torch.zeros(2)}, r"seeds is torch.float32"),
    ({"output": torch.zeros(2, 3, 4, 4, device="meta")}, r"lie on cpu and meta"),
    ({"xt": torch.zeros(2, 3, 4, 4).double()}, r"xt is torch.float64, .*the fused step takes a float32 xt"),
    ({"output": torch.zeros(2, 3, 4, 4).double()}, r"output is torch.float64"),
])
def test_errors(change, message, monkeypatch):
    monkeypatch.setattr(room, "INTERPRET", True)            # where there is a GPU, these tensors are not on it
    arguments = {"rows": torch.zeros(5, 12), "i": torch.tensor([0]), "xt": torch.zeros(2, 3, 4, 4),
                 "output": torch.zeros(2, 3, 4, 4)} | change
    with pytest.raises(ValueError, match=message):
        sampling_step(**arguments)


@pytest.mark.parametrize("wrong, ok", [(0., True), (1e-4, False)])
def test_rounding_of_many_pixels_is_no_error(monkeypatch, wrong, ok):
    """At T, x0_hat is the difference of products of 157: of 400,000 pixels some cancel badly in any float32."""
    def step(*arguments, **options):
        return tuple(value + wrong for value in samplers.step(*arguments, **options))

    monkeypatch.setattr(equivalence, "sampling_step", step)
    rows = samplers.sampler_rows(SCHEDULE, TIMES)
    found = equivalence.step_case(rows, (128, 3, 32, 32), torch.bfloat16, "nchw")["errors"]
    assert all(error["ok"] for error in found.values()) == ok
