"""What is timed is right, and the tables say what was measured. Nothing is compiled here."""

import gc
import weakref
from functools import partial
from unittest.mock import MagicMock

import pytest
import torch

import train
from bench import bench_sampler, measure, tables
from bench import bench_sampling_loop as loops
from bench import bench_training_step as training
from bench.bench_group_norm_silu import norm_work
from bench.bench_sampling_step import step_work
from bench.lines import append
from kernels import group_norm_silu, group_norm_silu_plain
from kernels.compile import capture
from kernels.equivalence import Norm
from run.markdown import fill
from unet import Norm as NormModule
from unet import UNet

TINY = Norm(8, 4, 3, 2, (), True)
EACH_PEER = ["diffusers nchw", "diffusers float32", "diffusers compiled", f"{loops.LUCIDRAINS} channels_last"]


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """torch.compile is tested elsewhere, and takes minutes for all of this."""
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **kwargs: None)


@pytest.mark.parametrize("make", [
    partial(norm_work, "tiny", TINY, 2, torch.float32, "nchw", back=False),
    partial(norm_work, "tiny", TINY, 2, torch.float32, "channels_last", back=True),
    partial(step_work, (2, 3, 4, 4), torch.float32, "channels_last", noise=False),
    partial(step_work, (2, 3, 4, 4), torch.bfloat16, "nchw", noise=True)],
    ids=["norm", "norm backward", "step", "noisy step"])
def test_every_candidate_does_the_work(make):
    work = make()
    assert {"eager", "compiled", "triton", "triton compiled"} <= work.candidates.keys()
    for name, candidate in work.candidates.items():
        assert work.error(candidate) <= work.tolerance, name
        assert len(work.calls(candidate, 2)) == 2


def test_what_a_graph_reads_lives_as_long(monkeypatch):
    """A graph holds addresses. What lies there must not be freed, and given to others, before it."""
    for name in ("CUDAGraph", "graph", "stream", "Stream", "current_stream"):           # which there may be no GPU for
        monkeypatch.setattr(torch.cuda, name, MagicMock())
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


STAGES = [*loops.STAGES] if measure.CUDA else ["eager", "bf16", "channels_last", "time path"]


@pytest.mark.parametrize("name", [*STAGES, *EACH_PEER])
def test_every_stage_and_peer_samples_by_the_right_network(name, monkeypatch):
    measure.skip_missing(name)
    monkeypatch.setattr(loops, "group_norm_silu", loops.group_norm_silu_plain)
    monkeypatch.setattr(loops, "sampling_step", loops.ddpm.step)
    loop = loops.build(name, loops.Chain("digits", 2, 2, 0. if name in EACH_PEER else 1.))
    assert loop.error() <= loop.tolerance
    x0 = loop.run()
    assert x0.shape == (2, 1, 8, 8) and x0.isfinite().all()


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
    loop.run()
    assert len(seen) == 1


def test_the_same_network_has_the_same_size():
    pytest.importorskip("diffusers")
    ours = loops.count(loops.UNet(loops.CONFIGS["cifar10"]))
    with torch.device("meta"):
        assert loops.count(loops.diffusers_unet("cifar10")) == ours


@pytest.mark.parametrize("name, norm, optimizer", [
    ("bf16 compiled", group_norm_silu_plain, "Adam"), ("bf16 compiled kernels", group_norm_silu, "Adam"),
    ("bf16 compiled muon", group_norm_silu_plain, "Muon")])
def test_an_update_has_the_norm_and_the_optimizer_of_its_name(name, norm, optimizer, monkeypatch):
    monkeypatch.setattr(train, "fast_unet", lambda config, device: UNet(config, group_norm_silu))
    run = training.build(name, "digits", 2).error.args[0]
    assert {module.norm for module in run.unet.modules() if isinstance(module, NormModule)} == {norm}
    assert type(run.optimizer).__name__ == optimizer


@pytest.mark.parametrize("name", ["eager", "bf16", *EACH_PEER])
def test_every_update_learns(name):
    measure.skip_missing(name)
    learner = training.build(name, "digits", 4)
    assert learner.error() <= training.TOLERANCE
    learner.run()


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


@pytest.mark.parametrize("name", bench_sampler.CANDIDATES)
def test_samplers_have_their_own_cost(name):
    """Ours sample the same pictures, whenever their noise is computed."""
    measure.skip_missing(name)
    output = torch.full((2, 1, 4, 4), 0.1)
    x0 = bench_sampler.CANDIDATES[name](output)()
    assert x0.shape == output.shape
    if name.startswith(("eager", "compiled")):
        torch.testing.assert_close(x0, bench_sampler.ours(output)())


def test_flops_are_those_of_the_paper():
    assert tables.flops("cifar10") == pytest.approx(12.44e9, rel=1e-2)


def write(folder, name: str, group: str = "", **facts) -> None:
    """A line of results, made up."""
    append(folder / "bench.jsonl", {"case": f"{group}-{name}", "outcome": "passed", "name": name, "group": group,
                                    "seconds": 1., "stamp": {"gpu": "none"}, **facts})


def sections(folder) -> dict:
    """The tables of these results by their titles."""
    lines = tables.load(folder / "bench.jsonl")
    return tables.sections(lines, lines[lines.outcome == "passed"])


LOOP = {"steps": 50, "B": 512, "network": "cifar10", "parameters": 10**6, "error": 0., "prepared s": 1.}


def test_loops_are_compared_with_diffusers_and_the_floor(tmp_path):
    write(tmp_path, "matrices", "machine", us=1000., flop=8 * 10**11)
    for name, ms in {"eager": 40., "graph": 10., "diffusers nchw": 30., "diffusers channels_last": 20.,
                     "diffusers compiled": 15., f"{loops.LUCIDRAINS} nchw": 9.}.items():
        write(tmp_path, name, "DDIM-50 cifar10 batch 512", us=5e4 * ms, **LOOP)
    write(tmp_path, "bf16", "training cifar10 batch 128", us=1e5, **LOOP | {"steps": None, "B": 128})
    table = sections(tmp_path)["Sampling loops and training steps"]
    loop = table.loc["DDIM-50 cifar10 batch 512"].set_index("candidate")
    graph = loop.loc["graph", ["images/s", "times as fast as diffusers", "% of the floor", "ms per step"]]
    assert graph.tolist() == pytest.approx([1024, 2, 79.6, 10], rel=1e-2)
    assert loop["% of the floor"].isna().tolist() == [False] * 5 + [True]
    assert table.loc["training cifar10 batch 128", "% of the floor"] == pytest.approx(5.97, rel=1e-2)


def test_triton_is_compared_by_a_geometric_mean(tmp_path):
    for shape, compiled in (("8x8", 2.), ("8x4", 8.)):
        for name, us in {"eager": 8., "compiled": compiled, "triton": 2.}.items():
            write(tmp_path, name, f"cifar10 forward nchw {shape}", us=us, **{"bytes": 9 * 10**6, "cold us": 2 * us})
    found = sections(tmp_path)
    warm = found["How many times as fast Triton is as the others, warm"].loc["cifar10 forward nchw"]
    assert warm[["eager", "compiled"]].tolist() == pytest.approx([4, 2])
    assert found["Microseconds of a call, cold"].loc["cifar10 forward nchw 8x4", "compiled"] == 16


def test_the_profile_adds_up(tmp_path):
    kernels = {"fprop": [40., 3000.], "forward_kernel": [51., 500.], "dgrad": [3., 100.]}
    write(tmp_path, "graph", "profile", us=4000., kernels=kernels)
    profile = sections(tmp_path)["profile"].T
    assert profile["a step"].tolist() == [94, 4000, 100] and profile["between kernels"]["us"] == 400
    assert profile["`forward_kernel`"].tolist() == [51, 500, 12.5]


def test_the_pages_say_what_was_measured_and_what_failed(tmp_path):
    folder = tmp_path / "cpu"
    for name, us in (("eager", 3e3), ("diffusers float32", 2e3)):
        write(folder, name, "training digits batch 64", us=us)
    append(folder / "bench.jsonl", {"case": "b", "outcome": "failed", "why": "wrong by 3 %"})
    append(folder / "bench.jsonl", {"case": "c", "outcome": "begun"})
    tables.main(["--out", str(tmp_path), "--docs", str(tmp_path)])
    assert "| b | failed | wrong by 3 % |\n| c | begun |  |" in (folder / "bench.md").read_text()
    page = (tmp_path / "peers.md").read_text()
    assert "| training digits batch 64 | eager | 3.000 | 1.50 |" in page and "<!-- stamp -->gpu none<!-- -->" in page


def test_no_results_are_one_sentence(tmp_path, refused):
    assert "holds no results; make some with pytest bench" in refused(tables.main, ["--out", str(tmp_path)])


def test_a_page_keeps_its_text(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a <!-- x -->1<!-- --> b <!-- y --><!-- -->")
    fill(page, {"y": "3", "x": "2"})
    assert page.read_text() == "a <!-- x -->2<!-- --> b <!-- y -->3<!-- -->"
    with pytest.raises(ValueError, match="no place for z"):
        fill(page, {"z": ""})
