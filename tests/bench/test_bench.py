"""What is timed is right, and the tables say what was measured. Nothing is compiled here."""

import contextlib
import gc
import weakref
from functools import partial
from unittest.mock import MagicMock

import pytest
import torch

import train
from bench import bench_sampler, measure, peers, tables
from bench import bench_sampling_loop as loops
from bench import bench_training_step as training
from bench.bench_group_norm_silu import chain_work, norm_work
from bench.bench_sampling_step import step_work
from bench.lines import append
from bench.markdown import fill
from kernels import group_norm_silu, group_norm_silu_plain
from kernels.compile import capture
from kernels.equivalence import Norm
from unet import Norm as NormModule
from unet import UNet

TINY = Norm(8, 4, 3, 2, (), True)
each_peer = pytest.mark.parametrize("name", ["diffusers nchw", "diffusers float32", "diffusers compiled",
                                             f"{loops.LUCIDRAINS} channels_last"])


def skip_where_missing(name: str) -> None:
    if measure.missing(name):
        pytest.skip(measure.missing(name))


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """torch.compile is tested elsewhere, and takes minutes for all of this."""
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **kwargs: None)


@pytest.mark.parametrize("make", [
    partial(norm_work, "tiny", TINY, 2, torch.float32, "nchw", back=False),
    partial(norm_work, "tiny", TINY, 2, torch.float32, "channels_last", back=True),
    partial(chain_work, TINY, 2, torch.float32, "channels_last"),
    partial(step_work, (2, 3, 4, 4), torch.float32, "channels_last", noise=False),
    partial(step_work, (2, 3, 4, 4), torch.bfloat16, "nchw", noise=True)],
    ids=["norm", "norm backward", "chain", "step", "noisy step"])
def test_every_candidate_does_the_work(make):
    work = make()
    assert {"eager", "compiled", "triton", "triton compiled"} <= work.candidates.keys()
    for name, candidate in work.candidates.items():
        assert work.error(candidate) <= work.tolerance, name
        assert len(work.calls(candidate, 2)) == 2


class FakeGraph:
    """Where there is no GPU: captures nothing, replays nothing."""
    def replay(self) -> None:
        pass


@pytest.fixture
def fake_graphs(monkeypatch):
    for name, fake in {"CUDAGraph": FakeGraph, "graph": lambda *args, **kwargs: contextlib.nullcontext(),
                       "stream": contextlib.nullcontext, "Stream": MagicMock, "current_stream": MagicMock}.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def test_what_a_graph_reads_lives_as_long(fake_graphs, monkeypatch):
    """A graph holds addresses. What lies there must not be freed, and given to others, before it."""
    monkeypatch.setattr(measure, "CUDA", True)
    monkeypatch.setattr(measure, "seconds", lambda run: 0.01)
    x = torch.ones(1)
    run, launches = measure.captured([x.clone, x.exp])
    x = weakref.ref(x)
    assert launches == 5 and x() is not None
    rows = loops.ddpm.sampler_rows(loops.ddpm.linear_schedule(), [2, 1])
    table = torch.zeros(2, 1, 4, 4)
    run = capture(lambda xt, t, table=table: table[t - 1], rows, (1, 4, 4), torch.arange(2))
    table = weakref.ref(table)
    with pytest.raises(ValueError, match="there are 1 seeds; the loop was captured for 2"):
        next(run(torch.arange(1)))
    chain = run(torch.arange(2))
    next(chain)
    del run
    gc.collect()
    assert table() is not None and len([*chain]) == 1


class Benchmark:
    """What a case needs of pytest-benchmark's fixture; it notes down what is timed."""

    def __init__(self):
        self.extra_info, self.timed = {}, 0

    def pedantic(self, run, **options):
        run()
        self.timed += 1


def test_a_wrong_candidate_is_not_timed():
    work = step_work((2, 3, 4, 4), torch.float32, "nchw", noise=False)
    right = work.candidates["eager"]
    work = work._replace(candidates={
        "wrong": lambda *args: right(*args) + 0.01, "nan": lambda *args: right(*args) * torch.nan,
        "broken": lambda *args: 1 / 0, "eager": right})
    errors = {"wrong": (AssertionError, "wrong by"), "nan": (AssertionError, "wrong by inf%"),
              "broken": (ZeroDivisionError, "division"), "liger": (pytest.skip.Exception, "does not run")}
    for name, (error, message) in errors.items():
        benchmark = Benchmark()
        with pytest.raises(error, match=message):
            measure.measure(benchmark, work, name)
        assert not benchmark.timed, name
    for name in ("eager", "copy"):
        benchmark = Benchmark()
        measure.measure(benchmark, work, name)
        assert benchmark.timed == 1 and benchmark.extra_info["cold us"] > 0


@pytest.mark.parametrize("name", loops.STAGES if measure.CUDA else ["eager", "bf16", "channels_last", "time path"])
def test_every_stage_samples_the_same_network(name, monkeypatch):
    monkeypatch.setattr(loops, "group_norm_silu", loops.group_norm_silu_plain)
    monkeypatch.setattr(loops, "sampling_step", loops.ddpm.step)
    loop = loops.build(name, loops.Chain("digits", 2, 2, 1.))
    assert loop.error() <= loop.tolerance and loop.sample().isfinite().all()


@pytest.mark.parametrize("B", [1, 2])
def test_an_error_is_seen_by_the_graph_that_samples(B, monkeypatch):
    """torch.compile makes another one for every grad mode and stride."""
    seen, right = set(), loops.denoiser

    def denoiser(*args):
        model = right(*args)
        return lambda *inputs: (seen.add((torch.is_grad_enabled(), *(x.stride() for x in inputs))), model(*inputs))[1]
    monkeypatch.setattr(loops, "denoiser", denoiser)
    loop = loops.build("bf16", loops.Chain("digits", B, 2, 0.))
    loop.error()
    loop.sample()
    assert len(seen) == 1


@each_peer
def test_peers_sample(name):
    skip_where_missing(name)
    loop = loops.build(name, loops.Chain("digits", 2, 2, 0.))
    assert loop.error() <= loop.tolerance and loop.sample().shape == (2, 1, 8, 8)


def test_the_same_network_has_the_same_size():
    pytest.importorskip("diffusers")
    ours = loops.count(loops.UNet(loops.CONFIGS["cifar10"]))
    with torch.device("meta"):
        assert loops.count(loops.diffusers_unet("cifar10")) == ours


@pytest.mark.parametrize("name", ["eager", "bf16"])
def test_our_update_learns(name):
    learner = training.build(name, "digits", 4)
    assert learner.error() <= training.TOLERANCE
    learner.update()


@pytest.mark.parametrize("name, norm", [("bf16 compiled", group_norm_silu_plain),
                                        ("bf16 compiled kernels", group_norm_silu)])
def test_only_the_kernels_update_has_the_fused_norm(name, norm, monkeypatch):
    monkeypatch.setattr(train, "fast_unet", lambda config, device: UNet(config, group_norm_silu))
    unet = training.build(name, "digits", 2).error.args[0].unet
    assert {module.norm for module in unet.modules() if isinstance(module, NormModule)} == {norm}


@each_peer
def test_peers_learn(name):
    skip_where_missing(name)
    learner = training.build(name, "digits", 4)
    assert learner.error() <= training.TOLERANCE
    learner.update()


@pytest.mark.parametrize("name", ["eager", "bf16"])
def test_an_update_whose_gradient_is_wrong_is_not_timed(name):
    """Though its loss is right."""
    learner = training.build(name, "digits", 4)
    right = learner.error.args[1]

    class Wrong(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.clone())
        backward = staticmethod(lambda ctx, dy: 1.05 * dy)
    assert training.errors(learner.error.args[0], lambda *inputs: Wrong.apply(right(*inputs)),
                           learner.error.args[2]) > training.TOLERANCE


@pytest.mark.parametrize("name", bench_sampler.NAMES)
def test_samplers_have_their_own_cost(name):
    """Ours sample the same pictures, whenever their noise is computed."""
    skip_where_missing(name) if name in ("diffusers", loops.LUCIDRAINS) else None
    output = torch.full((2, 1, 4, 4), 0.1)
    x0 = bench_sampler.build(name, output)()
    assert x0.shape == output.shape
    if name.startswith(("eager", "compiled")):
        torch.testing.assert_close(x0, bench_sampler.ours(output)())


def test_flops_are_those_of_the_paper():
    assert sum(tables.flops("cifar10").values()) == pytest.approx(12.44e9, rel=1e-2)
    assert tables.floors_us("cifar10", 128, 4300, 790)["fused norm"] == pytest.approx(401, rel=1e-2)


def write(path, name: str, group: str = "", **facts) -> None:
    """A line of results, made up."""
    append(path, {"case": f"{group}-{name}", "outcome": "passed", "name": name, "group": group, "seconds": 1.,
                  "stamp": {"gpu": "none"}, **facts})


def page(folder) -> str:
    tables.main(["--out", str(folder.parent)])
    return (folder / "bench.md").read_text()


@pytest.fixture
def folder(tmp_path):
    """A machine's folder, its copy at 4000 GB/s and its matrices at 800 TFLOP/s."""
    path = tmp_path / "gpu/bench.jsonl"
    write(path, "copy", "machine", us=500., bytes=2 * 10**9)
    write(path, "matrices", "machine", us=1000., flop=8 * 10**11)
    return path.parent


LOOP = {"steps": 50, "B": 512, "network": "cifar10", "parameters": 10**6, "error": 0., "prepared s": 1.}
TIMES = {"eager": 40., "bf16": 20., "channels_last": 25., "graph": 10., "diffusers nchw": 30.,
         "diffusers channels_last": 20., "diffusers compiled": 15., f"{loops.LUCIDRAINS} nchw": 9.}


def test_the_waterfall_says_what_each_stage_wins(folder):
    for name, ms in TIMES.items():
        write(folder / "bench.jsonl", name, "DDIM-50 cifar10 batch 512", us=5e4 * ms, **LOOP)
    write(folder / "bench.jsonl", "eager", "DDIM-50 cifar10 batch 1", us=1e5, **LOOP | {"B": 1})
    write(folder / "bench.jsonl", "bf16", "training cifar10 batch 128", us=1e5, **LOOP | {"steps": None, "B": 128})
    done = tables.load(folder / "bench.jsonl")
    name, stages, others, floor = tables.waterfall_of(done[done.parameters.notna()], 800.)
    assert name.endswith("512") and [*stages] == ["eager", "bf16", "channels_last", "graph"]
    assert [*others.values()] == [30., 20., 15.] and floor == pytest.approx(7.96, rel=1e-2)
    text = page(folder)
    assert "A copy moved 4000 GB/s, and bf16 matrices multiplied at 800 TFLOP/s." in text
    assert "- bf16, weights and activations in bf16: 40 to 20 ms per step, 2 times as fast" in text
    assert "together: 40 to 10 ms, 4 times as fast; the network's products alone take 7.96 ms" in text
    assert "times as fast as diffusers channels_last" in text and "| graph | 1024 | 2 | 79.6 | 500 | 10 |" in text
    assert "| bf16 | 1280 | 1 | 5.97 | 100 |" in text and (folder / "waterfall.png").stat().st_size > 10_000


def test_the_summary_of_kernels_is_a_geometric_mean(folder):
    def kernel(layout: str, shape: str, **times: float) -> None:
        for name, us in times.items():
            facts = {"kind": "cifar10 forward", "layout": layout, "shape": shape, "bytes": 9 * 10**6}
            write(folder / "bench.jsonl", name, f"{layout} {shape}", us=us, **facts | {"cold us": us})
    kernel("nchw", "8x8", eager=8., compiled=2., triton=2., copy=1.)
    kernel("nchw", "8x4", eager=8., compiled=8., triton=2., copy=1.)
    assert "| cifar10 forward | nchw | 2 | 4 | 4 | 2 | 1 | 50 |" in page(folder)
    kernel("channels_last", "8x8", eager=6., compiled=2., triton=2., copy=1.)
    text = page(folder)
    assert "| cifar10 forward | nchw | 2 | 3.46 | 4 | 2 | 1 | 50 |" in text            # the root of 3 * 4
    assert "| cifar10 forward | channels_last | 1 | 3 | 3 | 1 | 1 | 50 |" in text
    assert "| cifar10 forward | nchw | 8x8 | 8 | 2 | 2 | 1 |" in text and "](roofline.png)" in text
    points = tables.roofline_points(tables.load(folder / "bench.jsonl"))
    assert points[points.name == "copy"]["GB/s"].tolist() == [9000.] * 3 and set(points.MB) == {9.}


def test_what_failed_is_said(folder):
    write(folder / "bench.jsonl", "eager", "a")
    append(folder / "bench.jsonl", {"case": "b", "outcome": "failed", "why": "wrong by 3 %"})
    append(folder / "bench.jsonl", {"case": "c", "outcome": "begun"})
    assert "| b | failed | wrong by 3 % |\n| c | begun |  |" in page(folder)


@pytest.mark.parametrize("kernel, kind", [
    ("forward_kernel", "fused norm"), ("forward_part_kernel", "fused norm"), ("step_kernel", "sampling step"),
    ("triton_poi_fused_add_convolution_3", "compiled pointwise"), ("triton_tem_fused_convolution_3", "convolution"),
    ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
    ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16_128x128>", "convolution"),
    ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "matrix product"), ("Memcpy DtoD (Device -> Device)", "copy"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x64x256", "attention"),
    ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<long>>", "pointwise"),
    ("void at::native::elementwise_kernel<at::native::direct_copy_kernel_cuda>", "copy"), ("mystery", "other")])
def test_kernels_are_of_a_kind(kernel, kind):
    assert tables.kind(kernel) == kind


def test_the_profile_adds_up(folder):
    kernels = {"fprop": [40., 3000.], "forward_kernel": [51., 500.], "dgrad": [3., 100.]}
    write(folder / "bench.jsonl", "graph", "profile cifar10 batch 128", us=4000., network="cifar10", B=128,
          kernels=kernels)
    text = page(folder)
    for row in ("fused norm | 51 | 500 | 12.5 | 431", "convolution | 43 | 3100 | 77.5 | 1828",
                "between kernels |  | 400 | 10 | ", "a step | 94 | 4000 | 100 | 2422"):
        assert f"| {row} |" in text


def test_peers_are_named_with_their_ratios(tmp_path, capsys):
    path = tmp_path / "bench.jsonl"
    for name, us in (("eager", 3e3), ("diffusers float32", 2e3)):
        write(path, name, "training digits batch 64", us=us)
    write(path, "eager", "DDIM-5 digits batch 4", us=1e4, steps=5)
    peers.main(["--lines", str(path), "--out", str(tmp_path / "peers.md")])
    text = (tmp_path / "peers.md").read_text()
    assert "| training digits batch 64 | eager | 3.000 | 1.50 |" in text and "<!-- stamp -->gpu none<!-- -->" in text
    assert "| DDIM-5 digits batch 4 | eager | 2.000 |" in text
    assert f"{loops.LUCIDRAINS} was not measured" in capsys.readouterr().out


def test_no_results_are_one_sentence(tmp_path, refused):
    assert "holds no results; make some with pytest bench" in refused(tables.main, ["--out", str(tmp_path)])
    assert "has no results" in refused(peers.main, ["--lines", str(tmp_path / "none.jsonl")])


def test_a_page_keeps_its_text(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a <!-- x -->1<!-- --> b <!-- y --><!-- -->")
    fill(page, {"y": "3", "x": "2"})
    assert page.read_text() == "a <!-- x -->2<!-- --> b <!-- y -->3<!-- -->"
    with pytest.raises(ValueError, match="no place for z"):
        fill(page, {"z": ""})
