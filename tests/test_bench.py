"""What is timed is right, and the report of the times begins where it stopped. Nothing is compiled here."""

import json

import pytest
import torch

from bench import bench_sampling_loop as loops
from bench import bench_training_step as training
from bench import measure, report, tables
from bench.bench_group_norm_silu import chain_work, norm_work
from bench.bench_sampling_step import step_work
from kernels.equivalence import LAYOUTS, Norm

TINY = Norm(8, 4, 3, 2, (), True)
peers = pytest.mark.parametrize("name", ["diffusers", "diffusers compiled", loops.LUCIDRAINS])


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


def test_a_wrong_candidate_is_not_timed():
    work = step_work((2, 3, 4, 4), torch.float32, "nchw", noise=False)
    right = work.candidates["eager"]
    found = measure.measure(work._replace(candidates={
        "wrong": lambda *args: right(*args) + 0.01, "nan": lambda *args: right(*args) * torch.nan,
        "broken": lambda *args: 1 / 0, "eager": right}), cold=True)
    assert found["wrong"]["failed"].startswith("wrong by")
    assert found["nan"]["failed"] == "wrong by inf of the largest element"
    assert found["broken"]["failed"].startswith("ZeroDivisionError") and found["eager"]["us"] > 0
    assert not any("us" in found[name] for name in ("wrong", "nan", "broken"))


@pytest.mark.parametrize("name", loops.STAGES if measure.CUDA else ["eager", "bf16", "channels_last", "time path"])
def test_every_stage_draws_the_same_network(name, monkeypatch):
    monkeypatch.setattr(loops, "group_norm_silu", loops.group_norm_silu_plain)
    monkeypatch.setattr(loops, "sampling_step", loops.ddpm.step)
    loop = loops.build(name, loops.Chain("digits", 2, 2, 1.))
    assert loop.error() <= loop.tolerance and loop.draw().isfinite().all()


@peers
def test_peers_draw(name):
    pytest.importorskip(name.split()[0].replace("-", "_"))
    loop = loops.build(name, loops.Chain("digits", 2, 2, 0.))
    assert loop.error() <= loop.tolerance and loop.draw().shape == (2, 1, 8, 8)


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


@peers
def test_peers_learn(name):
    pytest.importorskip(name.split()[0].replace("-", "_"))
    learner = training.build(name, "digits", 4)
    assert learner.error() <= training.TOLERANCE
    learner.update()


def test_the_report_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "peers_here", lambda: [])
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
    assert report.run(path, {"one": lambda: 1 / 0, "two": dict}, minutes=1) == 1
    assert report.run(path, {"one": dict, "two": lambda: 1 / 0}, minutes=1) == 0
    assert report.run(path, {"three": dict}, minutes=-1) == 1
    assert [json.loads(line)["case"] for line in path.read_text().splitlines()] == ["one", "two", "one"]


def test_flops_are_those_of_the_paper():
    assert tables.flops("cifar10") == pytest.approx(12.44e9, rel=1e-2)


@pytest.mark.skipif(measure.CUDA, reason="there is a GPU")
@pytest.mark.parametrize("argv, message", [
    (["kernels"], "there is no GPU here"), ([], "no command ''"), (["kernels", "--smoke"], "measures nothing")])
def test_a_cpu_is_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        report.main(argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (report.RESULTS / "cpu").exists()
