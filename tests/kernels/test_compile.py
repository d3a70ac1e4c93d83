"""Compiled sampling is the plain sampling: the same function, the same pictures."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

import ddpm
import samplers
from kernels import compile, group_norm_silu, sampling_step
from kernels.compile import SubpixelUp, capture, check_compiler, compile_denoiser, compile_loop, time_table
from noise import image_seeds, normal
from tests import helpers
from unet import CONFIGS, UNetConfig, Up

CONFIG = UNetConfig(2, 2, D=8, widths=(8, 16), blocks=1, heads=(0, 2, 2), classes=3, groups=4)


@pytest.fixture
def uncompiled(monkeypatch):
    """torch.compile returns what it is given: everything but the compiler's own work."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def awake(config=CONFIG, **kwargs):
    return helpers.awake(config, **kwargs).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rewritten_network_is_the_plain_one(dtype):
    plain, fast = awake(replace(CONFIG, classes=0)), awake(replace(CONFIG, classes=0))
    compile.rewrite(fast, pad=True)
    assert fast.first.in_channels == fast.last.out_channels == 8
    assert not any(p.requires_grad for part in (fast.first, fast.last, *fast.ups) for p in part.parameters())
    xt, t = torch.randn(2, 2, 8, 8), torch.tensor([3, 900])
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 0.02}[dtype]
    output = fast.to(dtype)(xt, t).float()
    assert (output - plain(xt, t)).norm() <= tolerance * plain(xt, t).norm() and output.shape == xt.shape


@pytest.mark.parametrize("step", [samplers.step, sampling_step], ids=["plain", "fused"])
@pytest.mark.parametrize("times", [[100, 50], [99.5, 50.25]], ids=str)
def test_the_first_noise_is_that_of_the_plain_loop(step, times):
    rows = samplers.sampler_rows(ddpm.cosine_schedule(100), times, eta=1.)
    seeds, zeros = image_seeds(3, torch.arange(5)), torch.zeros(5, 2, 3, 3)
    for table in (rows, rows.float()):
        x, _ = step(compile.first_row(table), torch.tensor([0]), zeros, zeros, None, seeds)
        plain = normal(seeds, table[0, 0], (2, 3, 3))
        assert torch.equal(x, plain) if step is samplers.step else torch.allclose(x, plain, rtol=0, atol=2e-6)


def test_subpixel_weights_are_summed_in_float32():
    up = Up(6, CONFIG)
    full = SubpixelUp(up).weight
    half = SubpixelUp(up.bfloat16())
    assert half.weight.dtype == torch.bfloat16
    exact = SubpixelUp(up.float()).weight               # up's weights are now rounded, their sums are not
    assert_close(half.weight, exact.bfloat16(), rtol=0, atol=0)
    assert (exact - full).abs().max() > 0


SCHEDULE = ddpm.cosine_schedule(100)
CHAINS = {"ddim": {}, "ddpm": {"eta": 1.}, "2m": {"sampler": "2m"}, "unipc": {"sampler": "unipc"},
          "heun churn": {"sampler": "heun", "churn": 1., "times": [90, 60, 30, 10]},      # from T, where sigma is 2000,
          "consistency": {"sampler": "consistency"},                  # Heun multiplies the rounding of x0_hat by 400
          "karras": {"sampler": "2m", "eta": 1., "times": samplers.spaced_times(SCHEDULE, 4, "karras")}}


def chain_rows(name):
    return samplers.sampler_rows(SCHEDULE, **{"times": [100, 60, 30, 10], "target": "v"} | CHAINS[name])


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("times", [[900, 400, 7], [900, 400, 400, 7], [900.25, 400, 399.5, 7]])
def test_time_table_is_embed(times, classes):
    """By the time itself, whole or not, and however often the chain visits it."""
    unet, times = awake(replace(CONFIG, classes=classes)), torch.tensor(times)
    t, labels = times[[3 % len(times), 0, 1, 1]], torch.tensor([0, 1, 2, 2]) if classes else None
    assert_close(time_table(unet, times)(t, labels), unet.embed(t, labels))


def test_a_table_too_large_is_computed_instead(uncompiled):
    unet = awake(replace(CONFIG, classes=3))
    unet.time.out_features = 2**30                      # as if it were so wide
    embed = time_table(unet, torch.tensor([5, 2]))
    t, labels = torch.tensor([5, 2]), torch.tensor([0, 2])
    assert_close(embed(t, labels), unet.embed(t, labels))


def guided_at_last(model, labels, rows):
    """A denoiser for each row: with the label, and in the last row alone guided."""
    by_weight = [ddpm.guided(model, labels % 2, 2, w) for w in (0, 1.5)]
    return [by_weight[k == len(rows) - 1] for k in range(len(rows))]


def compiled_is_plain(name, batch):
    """The compiled chain yields the pictures of the plain one, guided in some rows, and others for other seeds."""
    plain, compiled, rows = awake(), awake(), chain_rows(name)
    seeds, labels = image_seeds(3, torch.arange(batch)), torch.arange(batch) * 2 % 3
    model = compile_denoiser(compiled, samplers.network_times(rows))
    run = compile_loop(guided_at_last(model, labels, rows), rows, (2, 8, 8), seeds)
    ours = ddpm.sample(guided_at_last(plain, labels, rows), rows, (2, 8, 8), seeds)
    for (s, xs, x0), (s_plain, xs_plain, x0_plain) in zip(run(seeds), ours, strict=True):
        assert s == s_plain
        assert_close((xs, x0), (xs_plain, x0_plain), rtol=1e-4, atol=1e-4)
    other = image_seeds(4, torch.arange(batch))
    assert not torch.equal([*run(other)][-1][1], xs)


def test_what_is_asked_of_the_compiler_and_of_the_network_on_either_device(monkeypatch):
    """Which no output shows."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options["options"]) or function)
    for device in ("cpu", "cuda"):
        compile.compile_trained(awake(), torch.device(device))
    compile_denoiser(awake(), torch.tensor([3, 2]))
    once = {"cpp_wrapper": True, "cpp_wrapper_build_separate": True, "cpp_cache_precompile_headers": False}
    assert asked == [once, {"combo_kernels": True}, {"freezing": True, **once}]
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert all(p.is_contiguous() for p in compile.fast_unet(CONFIG, torch.device("cpu")).parameters())


@pytest.mark.parametrize("name, batch", [("ddim", 3), ("unipc", 3), ("karras", 3), ("ddpm", 1), ("ddpm", 8)])
def test_rewritten_loop_samples_the_plain_pictures(name, batch, uncompiled):
    compiled_is_plain(name, batch)


@pytest.mark.slow
@pytest.mark.parametrize("name, batch", [("unipc", 3), ("karras", 3), ("ddpm", 8)])
def test_compiled_loop_samples_the_plain_pictures(name, batch):
    torch._dynamo.reset()                               # every compilation of trunk counts as one more of the last
    torch._dynamo.utils.counters.clear()
    compiled_is_plain(name, batch)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the guided row's batch is another


@pytest.mark.parametrize("batch", [1, 3, 8] if torch.cuda.is_available() else [2])
def test_pictures_of_the_fused_kernels_are_the_plain_ones(batch):
    """On a CPU the interpreted kernels, on a GPU the real ones, at three batch sizes: the same images."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = replace(CONFIGS["digits"], classes=0, widths=(8, 16), groups=4, heads=(0, 2, 0), blocks=1)
    plain, fused = awake(config).to(device), awake(config, norm=group_norm_silu).to(device)
    rows = ddpm.sampler_rows(ddpm.linear_schedule(50), [50, 5], eta=1.).to(device)
    seeds = image_seeds(1, torch.arange(8, device=device))
    *_, (_, whole, _) = ddpm.sample(plain, rows, (1, 4, 4), seeds)
    *_, (_, part, _) = ddpm.sample(fused, rows, (1, 4, 4), seeds[:batch], step=sampling_step)
    assert_close(part, whole[:batch], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_what_is_compiled_to_be_trained_has_the_plain_gradients():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    block = awake().downs[0].requires_grad_().to(device)
    x, time = torch.randn(2, 8, 4, 4, device=device), torch.randn(2, 8, device=device)
    plain, compiled = block(x, time), compile.compile_trained(block, device)(x, time)
    gradients = [torch.autograd.grad(y.square().sum(), [*block.parameters()], allow_unused=True)
                 for y in (plain, compiled)]
    assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
    assert_close(*([g for g in each if g is not None] for each in gradients), rtol=1e-4, atol=1e-4)
    assert sum(g is not None for g in gradients[1]) == 7                # all but conv1's bias, which is in `time`


class Graph:
    """What stands for a CUDA graph on a CPU: it replays by running the step again."""

    def replay(self):
        self.reads()


@pytest.mark.parametrize("name", ["ddpm", "unipc", "heun churn", "karras"])
def test_the_step_that_is_captured(name, monkeypatch):
    """Its buffers and its index, three times: everything of `capture` but the graphs themselves, which may be two."""
    still = SimpleNamespace(wait_stream=lambda other: None)
    for part, stand_in in {"Stream": lambda: still, "current_stream": lambda: still, "CUDAGraph": Graph,
                           "stream": lambda s: nullcontext(), "graph": lambda g: nullcontext()}.items():
        monkeypatch.setattr(torch.cuda, part, stand_in)
    unet, rows, seeds = awake(replace(CONFIG, classes=0)), chain_rows(name), image_seeds(3, torch.arange(2))
    unlike = [unet, lambda xt, t: unet(torch.cat([xt, -xt]), torch.cat([t, t]))[2:]]      # the other of twice the batch
    for denoise in unet, [unlike[k % 3 == 1] for k in range(len(rows))]:
        run = capture(denoise, rows, (2, 8, 8), seeds + 1)
        for x_T in None, torch.ones(2, 2, 8, 8), None:
            plain = samplers.sample(denoise, rows, (2, 8, 8), seeds, x_T=x_T)
            for (s, xs, x0), (s_plain, xs_plain, x0_plain) in zip(run(seeds, x_T=x_T), plain, strict=True):
                assert s == s_plain
                assert_close((xs, x0), (xs_plain, x0_plain), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_captured_loop_samples_the_plain_pictures_twice(name, batch):
    plain, fast, rows = awake().cuda(), awake(norm=group_norm_silu).cuda(), chain_rows(name).cuda()
    seeds, labels = image_seeds(3, torch.arange(batch)).cuda(), (torch.arange(batch) % 3).cuda()
    model = compile_denoiser(fast, samplers.network_times(rows))
    run = compile_loop(guided_at_last(model, labels, rows), rows, (2, 8, 8), seeds + 1)
    first, second = ([xs for _, xs, _ in run(seeds)] for _ in range(2))
    ours = ddpm.sample(guided_at_last(plain, labels, rows), rows, (2, 8, 8), seeds)
    for xs, again, (_, xs_plain, _) in zip(first, second, ours, strict=True):
        assert_close(xs, again, rtol=0, atol=0)
        assert_close(xs, xs_plain, rtol=1e-3, atol=1e-3)


def test_a_loop_is_captured_with_the_quickest_convolutions(monkeypatch):
    monkeypatch.setattr(compile, "capture", lambda *_: torch.backends.cudnn.benchmark)
    rows = SimpleNamespace(device=torch.device("cuda"))
    assert compile.compile_loop(None, rows, (), None) is True and torch.backends.cudnn.benchmark is False


def test_a_missing_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        check_compiler(torch.device("cpu"))
