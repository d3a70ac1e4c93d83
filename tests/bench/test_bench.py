"""What is timed is right, and the report of the times begins where it stopped. Nothing is compiled here."""

import contextlib
import gc
import json
import re
import subprocess
import sys
import time
import weakref
from unittest.mock import MagicMock

import pytest
import torch

import train
from bench import bench_sampling_loop as loops
from bench import bench_training_step as training
from bench import cases, measure, packages, pages, report, runner, same, tables, training_run
from bench import peers as bench_peers
from bench.bench_group_norm_silu import chain_work, norm_work
from bench.bench_sampling_step import step_work
from bench.lines import read
from kernels import group_norm_silu, group_norm_silu_plain
from kernels.compile import capture
from kernels.equivalence import LAYOUTS, Norm
from unet import Norm as NormModule
from unet import UNet

TINY = Norm(8, 4, 3, 2, (), True)
peers = pytest.mark.parametrize("name", ["diffusers nchw", "diffusers compiled", f"{loops.LUCIDRAINS} channels_last"])


def skip_unless_installed(name: str) -> None:
    if not packages.installed(name):
        pytest.skip(f"{name} is not installed")


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """torch.compile is tested elsewhere, and takes minutes for all of this."""
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **kwargs: None)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [
    lambda layout: norm_work(TINY, 2, torch.float32, layout, back=False),
    lambda layout: norm_work(TINY, 2, torch.float32, layout, back=True),
    lambda layout: chain_work(TINY, 2, torch.float32, layout),
    lambda layout: step_work((2, 3, 4, 4), torch.float32, layout, noise=False),
    lambda layout: step_work((2, 3, 4, 4), torch.bfloat16, layout, noise=True)],
    ids=["norm", "norm backward", "chain", "step", "noisy step"])
def test_every_candidate_does_the_work(make, layout):
    work = make(layout)
    assert {"eager", "compiled", "triton", "triton compiled"} <= work.candidates.keys()
    for name in work.candidates:
        assert measure.refused(work, name)[1] == "", name
        assert len(work.calls(work.candidates[name], 2)) == 2


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
    monkeypatch.setattr(measure, "once", lambda run: 0.01)
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


def test_a_wrong_candidate_is_not_timed():
    work = step_work((2, 3, 4, 4), torch.float32, "nchw", noise=False)
    right = work.candidates["eager"]

    def silent(*args):
        raise NotImplementedError

    found = measure.measure(work._replace(candidates={
        "silent": silent, "wrong": lambda *args: right(*args) + 0.01, "nan": lambda *args: right(*args) * torch.nan,
        "broken": lambda *args: 1 / 0, "eager": right}), cold=True)
    assert found["wrong"]["failed"].startswith("wrong by")
    assert found["nan"]["failed"] == "wrong by inf%" and found["silent"]["failed"] == "NotImplementedError: "
    assert found["broken"]["failed"].startswith("ZeroDivisionError") and found["eager"]["us"] > 0
    assert not any("us" in found[name] for name in ("wrong", "nan", "broken"))


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


@peers
def test_peers_sample(name):
    skip_unless_installed(name)
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


@peers
def test_peers_learn(name):
    skip_unless_installed(name)
    learner = training.build(name, "digits", 4)
    assert learner.error() <= training.TOLERANCE
    learner.update()


def test_the_report_resumes_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cases, "peers_here", lambda: [])
    runs = [[command, "--smoke", "--out", str(tmp_path), "--only", only] for command, only in
            (("kernels", "without"), ("loops", ""))]
    for argv in runs:
        report.main(argv)
    folder = next(tmp_path.iterdir())
    before = {path: path.read_text() for path in folder.glob("*.jsonl")}
    report.main(runs[0])
    report.main(runs[1])
    assert {path: path.read_text() for path in folder.glob("*.jsonl")} == before and len(before) == 2
    path = folder / "loops.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    report.main(runs[1])
    assert json.loads(path.read_text().splitlines()[-1])["case"] == json.loads(before[path].splitlines()[-1])["case"]
    assert "| triton over eager |" in (folder / "kernels.md").read_text() and (folder / "waterfall.png").exists()
    page = (folder / "loops.md").read_text()
    assert "% of the floor" in page and "Not measured" not in page
    assert "0 of" in capsys.readouterr().out


def test_what_fails_is_said_and_tried_again(tmp_path):
    path = tmp_path / "kernels.jsonl"
    later = time.monotonic() + 1000
    assert runner.run(path, {"one": lambda: 1 / 0, "two": dict}, later) == 1
    assert "ZeroDivisionError" in read(path)["one"]["failed"]
    assert runner.run(path, {"one": dict, "two": lambda: 1 / 0}, later) == 0
    assert runner.run(path, {"three": dict}, time.monotonic() - 1) == 1
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["case"] for line in lines] == ["one", "one", "two", "two", "one", "one"]    # begun, and ended


def test_flops_are_those_of_the_paper():
    assert sum(pages.flops("cifar10").values()) == pytest.approx(12.44e9, rel=1e-2)
    assert pages.floor_ms("cifar10", 512, 790) == pytest.approx(8.06, rel=1e-2)
    norms = pages.floors_us("cifar10", 128, 4300, 790)["fused norm"]
    assert norms == pytest.approx(401, rel=1e-2)


def lines(**results) -> dict[str, dict]:
    """A file of results, made up."""
    return {case: {"case": case, "stamp": {"gpu": "none"}, "results": found} for case, found in results.items()}


def test_the_waterfall_says_what_each_stage_wins(tmp_path):
    machine = {"copy": {"GB/s": 4000.}, "matrices": {"TFLOP/s": 800.}}
    times = {"eager": 40., "bf16": 20., "channels_last": 25., "graph": 10., "diffusers nchw": 30.,
             "diffusers channels_last": 20., "diffusers compiled": 15., f"{loops.LUCIDRAINS} nchw": 9.}
    made = lines(machine=machine, **{f"DDIM-50 cifar10 batch 512: {who}": {"ms per step": ms, "us": 5e4 * ms, "p20": 1.,
                 "p80": 1., "images/s": 10240 / ms, "parameters": 1, "error": 0., "prepared s": 1.}
                 for who, ms in times.items()},
                 **{"DDIM-50 cifar10 batch 1: eager": {"ms per step": 5.}})
    (tmp_path / "loops.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made.values()))
    name, stages, peers, floor = pages.waterfall_of(made)
    assert name.endswith("512") and [*stages] == ["eager", "bf16", "channels_last", "graph"]
    assert [*peers.values()] == [30., 20., 15.] and floor == pytest.approx(7.96, rel=1e-2)
    text = pages.waterfall_section(made)
    assert "- bf16, weights and activations in bf16: 40 to 20 ms per step, 2 times as fast" in text
    assert "together: 40 to 10 ms, 4 times as fast; the network's products alone take 7.96 ms" in text
    del made["DDIM-50 cifar10 batch 1: eager"]
    (tmp_path / "loops.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made.values()))
    tables.write_tables(tmp_path)
    summary = (tmp_path / "summary.md").read_text()
    assert "| graph | 1024 | 2 | channels_last | 1.5 |" in summary and f"]({tmp_path}/waterfall.png)" in summary
    assert "bf16" not in summary and "roofline" not in summary and (tmp_path / "waterfall.png").exists()


def test_the_summary_of_kernels_is_a_geometric_mean(tmp_path):
    def cold(compiled: float) -> dict:
        times = {"eager": 8., "compiled": compiled, "triton": 2., "copy": 1.}
        return {"work": "", "bytes": 9, "cold": {who: {"us": us, "GB/s": 1.} for who, us in times.items()}}
    made = lines(**{"cifar10 forward nchw 8x8": cold(2.), "cifar10 forward nchw 8x4": cold(8.)})
    assert "| cifar10 forward nchw | 2 | 4 |  | 2 | 1 | 50 |" in tables.summary(tmp_path, {"kernels": made})
    other = lines(**{"cifar10 forward channels_last 8x8": cold(2.)})
    other["cifar10 forward channels_last 8x8"]["results"]["cold"]["eager"]["us"] = 6.
    both = tables.summary(tmp_path, {"kernels": made | other})
    assert "| cifar10 forward nchw | 2 | 4 | 3 | 2 | 1 | 50 |" in both
    assert "| cifar10 forward channels_last | 1 | 3 | 3 | 1 | 1 | 50 |" in both
    points = pages.roofline_points(made)
    assert points.keys() == {"copy", *(f"{who}, forward nchw" for who in ("eager", "compiled", "triton"))}
    tables.plots.roofline(tmp_path / "roofline.png", points)
    assert "/roofline.png)" in tables.summary(tmp_path, {"kernels": made})


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
    assert pages.kind(kernel) == kind


def test_the_profile_adds_up(tmp_path):
    report.main(["profile", "--smoke", "--out", str(tmp_path)])
    folder = next(tmp_path.iterdir())
    found = read(folder / "profile.jsonl")["digits batch 2"]["results"]
    assert sum(us for _, us in found["kernels"].values()) > 0
    assert "| convolution |" in (folder / "profile.md").read_text()
    page = pages.profile_tables("cifar10 batch 128", {"us": 4000., "kernels": {
        "fprop": [40., 3000.], "forward_kernel": [51., 500.], "dgrad": [3., 100.]}}, (4300., 790.))
    for row in ("fused norm | 51 | 500 | 12.5 | 401", "convolution | 43 | 3100 | 77.5 | 1851",
                "between kernels |  | 400 | 10 | ", "a step | 94 | 4000 | 100 | 2417"):
        assert f"| {row} |" in page


def test_the_same_pictures(tmp_path, monkeypatch):
    report.main(["same", "--smoke", "--out", str(tmp_path)])
    folder = next(tmp_path.iterdir())
    page = (folder / "same.md").read_text()
    assert "The same bytes." in page and "| yes |" in page and (folder / "same-weights.png").exists()
    others = iter((1., 2.))
    monkeypatch.setattr(same, "compiled", lambda config: same.sample.generate(config).x + 0.01)
    monkeypatch.setattr(loops, "ours", lambda *_: loops.Loop(lambda: torch.ones(1) * next(others, 3.), None, 0., 0))
    weights = report.Path("weights/digits.safetensors")
    made = lines(pictures=same.pictures(weights, 10, tmp_path), bytes=same.twice(None))
    assert "**no**" in pages.same_page(made) and "**Other bytes**" in pages.same_page(made)


@pytest.mark.parametrize("fault, wrong", [
    (lambda x, n: x, []), (lambda x, n: x * 1.01, ["captured float32", "captured bf16"]),
    (lambda x, n: x + 1e-6 * n, ["captured float32", "captured bf16"])])
def test_replays_are_compared_with_the_plain_loop(fault, wrong, monkeypatch):
    """A captured loop that makes other pictures, or others the second time, is seen."""
    right, calls = loops.ours, iter(range(1000))

    def ours(stage, chain, dtype=None):
        loop = right("eager" if stage == "graph" else stage, chain, dtype)
        return loop._replace(sample=lambda: fault(loop.sample(), next(calls))) if stage == "graph" else loop
    monkeypatch.setattr(loops, "ours", ours)
    monkeypatch.setattr(same, "CUDA", True)
    found = same.replays(loops.Chain("digits", 2, 3, 1.))["replays"]
    assert [name for name, each in found.items() if not each["ok"]] == wrong
    page = pages.same_page(lines(replays={"replays": found}))
    assert page.count("**no**") == (0 if not wrong else 2 if found["captured bf16"]["same twice"] else 4)


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


def test_a_training_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "run_until", lambda deadline, command: train.main(command[2:]))
    report.main(["training", "--smoke", "--steps", "4", "--out", str(tmp_path)])
    folder = next(tmp_path.iterdir())
    assert all((folder / name).exists() for name in ("training.png", "training_pictures.png"))
    runs = pages.training_runs(read(folder / "training.jsonl"))
    assert [run["flags"].split()[-2:] for run in runs.values()] == [["--warmup", "2"], ["--dtype", "bf16"]]
    assert all([step for step, _ in run["losses"]] == [2, 4] for run in runs.values())
    made = lines(**{name: {"steps": 4, "images/s": 1., "flags": "", "losses": [[k, loss * up] for k, loss in
                 ((1, 9.), (2, 7.), (3, 2.), (4, 4.))]} for name, up in (("one", 1.), ("other", 1.02))})
    assert "| other | 4 | 3.06 | +2.00 +- 0.00 |" in pages.training_page(made)


def test_a_training_stops_in_time_and_resumes(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text("import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), "
                      "sys.exit(0)))\nopen(sys.argv[1], 'w').close()\ntime.sleep(60)\n")
    began = time.monotonic()
    training_run.run_until(began + 2, [sys.executable, str(script), str(tmp_path / "ran")])
    assert (tmp_path / "ran").exists() and time.monotonic() - began < 30
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        training_run.run_until(time.monotonic() + 60, [sys.executable, "-c", "1 / 0"])
    monkeypatch.setattr(training_run, "run_until", lambda deadline, command: None)
    with pytest.raises(ValueError, match="stopped at step 0 of 4; the next run resumes"):
        training_run.trained([], tmp_path, 4, 0.)


@pytest.mark.skipif(measure.CUDA, reason="there is a GPU")
@pytest.mark.parametrize("argv, message", [
    (["kernels"], "there is no GPU here"), ([], "no command ''"), (["kernels", "--smoke"], "measures nothing")])
def test_a_cpu_is_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        report.main(argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (report.RESULTS / "cpu").exists()


def test_peers_that_are_missing_are_named_and_the_rest_is_measured(monkeypatch, capsys):
    missing = ("diffusers", "denoising-diffusion-pytorch")
    for package in missing:
        monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
        assert not packages.installed(package)
    for name in ("forwards", "cifar10_updates"):                    # large networks
        monkeypatch.setattr(bench_peers, name, lambda: {"ours": lambda: None})
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    bench_peers.main(["--rounds", "1"])
    printed = capsys.readouterr().out
    assert "ratio to the first line" in printed and printed.count("ours, noise of each step by itself") == 2
    for package in missing:
        assert f"{package} is not installed, so it was not measured; install it with: pip install {package}" in printed


def test_results_are_no_change_of_what_is_measured(monkeypatch, tmp_path):
    def git(*command: str) -> None:
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *command], cwd=tmp_path, check=True)

    def commit() -> str:
        return measure.commit.__wrapped__()

    results = tmp_path / "bench/results/first.jsonl"
    results.parent.mkdir(parents=True)
    results.write_text("a\n")
    (tmp_path / "ddpm.py").write_text("a\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "a")
    monkeypatch.chdir(results.parent)
    monkeypatch.delenv("COMMIT", raising=False)
    results.write_text("b\n")
    assert re.fullmatch("[0-9a-f]{7,}", commit())
    (tmp_path / "ddpm.py").write_text("b\n")
    assert commit().endswith(" with changes")
