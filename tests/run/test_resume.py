"""run/resume.py: what is resumed, what is refused, and that nothing saved is lost by either."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

import data
import train
from run import checkpoint

FLAGS = ["--T", "20", "--batch", "8", "--warmup", "2", "--final", "1", "--log_every", "3", "--sample_every", "100",
         "--save_every", "1"]                       # a learning rate that does not depend on the number of steps


def resumed(out, *flags, steps=4):
    train.main([*FLAGS, *flags, "--steps", str(steps), "--out", str(out)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of three steps, in folders named after how their t are sampled."""
    folder = tmp_path_factory.mktemp("runs")
    for sampling in ("stratified", "importance"):
        resumed(folder / sampling, "--sampling", sampling, steps=3)
    return folder


@pytest.fixture
def out(runs, tmp_path):
    """A copy of the first run, without its previous.pt."""
    shutil.copytree(runs / "stratified", tmp_path / "run")
    (tmp_path / "run" / "previous.pt").unlink()
    return tmp_path / "run"


def rewrite(path, change):
    """Changes the checkpoint's content as another program could; returns the file's."""
    values = torch.load(path, weights_only=True)
    change(values)
    torch.save(values, path)
    return path.read_bytes()


def moments(values, k=0):
    return values["optimizer"]["state"][k]


def group(values):
    return values["optimizer"]["param_groups"][0]


def put(place, name, change):
    """A change of one entry: its new value, or what makes it of the old one."""
    def apply(values):
        entries = place(values)
        entries[name] = change(entries[name]) if callable(change) else change
    return apply


def poisoned(w):
    return torch.where(torch.arange(w.numel()).view(w.shape) == w.numel() - 1, math.nan, w)


OPTIMIZER = {
    "shape": put(moments, "exp_avg", torch.zeros(3)), "square's shape": put(moments, "exp_avg_sq", torch.ones(1)),
    "flat": put(moments, "exp_avg", Tensor.flatten), "empty": put(moments, "exp_avg", torch.zeros(0)),
    "dtype": put(moments, "exp_avg", Tensor.double), "half": put(moments, "exp_avg_sq", Tensor.half),
    "whole": put(moments, "exp_avg", Tensor.int), "complex": put(moments, "exp_avg", lambda w: w.to(torch.complex64)),
    "nan": put(moments, "exp_avg", poisoned), "inf": put(moments, "exp_avg_sq", lambda w: w / 0),
    "negative square": put(moments, "exp_avg_sq", lambda w: w - 1),
    "expanded": put(moments, "exp_avg", lambda w: torch.zeros(1).expand(w.shape)),
    "meta": put(moments, "exp_avg", lambda w: w.to("meta")), "sparse": put(moments, "exp_avg", Tensor.to_sparse),
    "no tensor": put(moments, "exp_avg", [0.] * 16), "none": put(moments, "exp_avg", None),
    "step": put(moments, "step", torch.tensor(-1.)), "late step": put(moments, "step", torch.tensor(1e6)),
    "step nan": put(moments, "step", torch.tensor(math.nan)), "step shape": put(moments, "step", torch.ones(3)),
    "step dtype": put(moments, "step", torch.tensor(3)), "step number": put(moments, "step", 3),
    "more": lambda v: moments(v).update(max_exp_avg_sq=torch.zeros(1)),
    "less": lambda values: moments(values).pop("exp_avg"), "a weight less": lambda v: v["optimizer"]["state"].pop(0),
    "a weight more": lambda v: v["optimizer"]["state"].update({1000: moments(v)}),
    "names": lambda v: v["optimizer"].update(state={str(k): m for k, m in v["optimizer"]["state"].items()}),
    "state list": lambda v: v["optimizer"].update(state=[*v["optimizer"]["state"].values()]),
    "swapped": lambda v: v["optimizer"]["state"].update({0: moments(v, 1), 1: moments(v, 0)}),
    "no state": lambda v: v["optimizer"].pop("state"), "no groups": lambda v: v["optimizer"].pop("param_groups"),
    "two groups": lambda v: v["optimizer"]["param_groups"].append(dict(group(v))),
    "group": lambda v: v["optimizer"].update(param_groups=[3]), "list": lambda v: v.update(optimizer=[1, 2]),
    "tensor": lambda v: v.update(optimizer=torch.ones(3)),
    "betas": put(group, "betas", (0.9, 0.999)), "beta": put(group, "betas", 0.9), "eps": put(group, "eps", 1.),
    "eps tensor": put(group, "eps", torch.ones(3)), "beta tensors": put(group, "betas", (torch.ones(2), torch.ones(2))),
    "weight decay": put(group, "weight_decay", 0.1), "amsgrad": put(group, "amsgrad", True),
    "maximize": put(group, "maximize", True), "not fused": put(group, "fused", False),
    "capturable": put(group, "capturable", True), "order": put(group, "params", lambda p: p[::-1]),
    "fewer": put(group, "params", lambda p: p[:-1])}


def at(name):
    return lambda values: values[name]


OTHERS = {
    **{f"{name} {what}": put(at(name), "first.weight", change) for name in ("weights", "ema") for what, change in {
        "nan": poisoned, "double": Tensor.double, "half": Tensor.half, "shape": torch.zeros(3), "none": None,
        "expanded": lambda w: torch.zeros(1).expand(w.shape), "sparse": Tensor.to_sparse, "integers": Tensor.int,
        "meta": lambda w: w.to("meta"), "whole": 3, "parameter": [1.]}.items()},
    "order of weights": lambda v: v.update(weights=dict(reversed(v["weights"].items()))),
    "ema less": lambda v: v["ema"].pop("first.bias"), "ema more": lambda v: v["ema"].update(wings=torch.ones(1)),
    "ema list": lambda v: v.update(ema=[*v["ema"].values()]),
    "history": lambda v: v.update(history=torch.zeros(20, 10)), "history list": lambda v: v.update(history=[1]),
    "losses": lambda v: v.update(losses=[torch.zeros(4, 2)]), "loss shape": lambda v: v.update(losses=[torch.zeros(3)]),
    "losses other": lambda v: v.update(losses=[1, 2]), "losses tensor": lambda v: v.update(losses=torch.zeros(4, 2)),
    "losses none": lambda v: v.update(losses=None), "losses sets": lambda v: v.update(losses={3}),
    "step": lambda v: v.update(step=-1), "step fraction": lambda v: v.update(step=1.5),
    "step true": lambda v: v.update(step=True), "step text": lambda v: v.update(step="3"),
    "step huge": lambda v: v.update(step=2**31), "step tensor": lambda v: v.update(step=torch.tensor(3)),
    "longer chain": lambda v: v.update(beta=torch.full((21,), 0.1).double()),
    "beta": lambda v: v.update(beta=torch.full((20,), 2.)), "beta expanded": lambda v: v.update(
        beta=torch.full((1,), 0.1).expand(2**40)), "beta meta": lambda v: v.update(beta=torch.ones(20, device="meta")),
    "settings": lambda v: v.update(settings=3), "no settings": lambda v: v.update(settings={}),
    "other seed": put(at("settings"), "seed", "0"), "seed list": put(at("settings"), "seed", [0]),
    "tensor set": put(at("settings"), "lr", torch.ones(2)), "number": lambda v: v["settings"].update({3: 3}),
    "counter": put(at("settings"), "lr", Counter("lr")),
    "huge number": put(at("settings"), "lr", 10**5000), "long text": put(at("settings"), "data", "x" * 10**6),
    "classes": put(at("data"), "classes", ("a",)), "classes shared": put(at("data"), "classes", None),
    "shape": put(at("data"), "shape", (1, 8, 16)), "huge shape": put(at("data"), "shape", (1, 2**15, 2**15)),
    "digest": lambda v: v["data"].update(digest=3), "version": put(at("versions"), "torch", 2.),
    "version list": lambda v: v.update(versions=[1]),
    "network": put(at("network"), "dropout", 0.5), "deep widths": put(at("network"), "widths", (16,) * 40)}


@pytest.mark.parametrize("name", [*OPTIMIZER, *OTHERS])
def test_a_checkpoint_that_cannot_be_resumed_is_a_sentence_and_kept(out, refused, name):
    """Moments of another shape made fused Adam corrupt the memory."""
    before = rewrite(out / "last.pt", {**OPTIMIZER, **OTHERS}[name])
    log = (out / "log.jsonl").read_bytes()
    error = refused(train.main, [*FLAGS, "--steps", "4", "--out", str(out)])
    assert "last.pt" in error and error.strip().count("\n") == 0, error
    assert (out / "last.pt").read_bytes() == before and (out / "log.jsonl").read_bytes() == log


def test_a_run_whose_first_updates_failed_resumes_to_the_bit(tmp_path, monkeypatch):
    """Adam has moments then, of 0 steps."""
    objective, failing = train.objective, iter([math.nan] * 4)

    def failing_first(*args):
        return objective(*args) * next(failing, 1.)

    monkeypatch.setattr(train, "objective", failing_first)
    resumed(tmp_path / "broken", steps=4)
    adam = checkpoint.load(tmp_path / "broken" / "last.pt").optimizer["state"].values()
    assert {float(state["step"]) for state in adam} == {0.}
    resumed(tmp_path / "broken", steps=6)
    failing = iter([math.nan] * 4)
    resumed(tmp_path / "unbroken", steps=6)
    weights = [checkpoint.load(tmp_path / name / "last.pt").weights for name in ("broken", "unbroken")]
    assert_close(*weights, rtol=0, atol=0)


def nested(values, depth=5, width=1000):
    """A value that fits in a few kilobytes and would fill the memory if it were written out."""
    part = ["x"] * width
    for _ in range(depth):
        part = [part] * width
    return part


@pytest.mark.parametrize("where", ["settings", "data", "versions", "network", "optimizer", "losses"])
def test_shared_lists_cost_neither_time_nor_memory(out, refused, where):
    def change(values):
        if where == "optimizer":
            group(values)["betas"] = nested(values)
        elif where == "losses":
            values["losses"] = nested(values)
        else:
            values[where][next(iter(values[where]))] = nested(values)

    rewrite(out / "last.pt", change)
    assert "last.pt" in refused(train.main, [*FLAGS, "--steps", "4", "--out", str(out)])


@pytest.mark.parametrize("change", [
    lambda h: h[:-1], lambda h: h.double(), lambda h: h[:, :-1], lambda h: h.flatten(), lambda h: None, lambda h: [1],
    lambda h: torch.full_like(h, math.inf), lambda h: torch.zeros(1, 1).expand(h.shape)])
def test_a_history_of_another_shape_is_refused(runs, tmp_path, refused, change):
    shutil.copytree(runs / "importance", tmp_path / "run")
    (tmp_path / "run" / "previous.pt").unlink()
    rewrite(tmp_path / "run" / "last.pt", lambda v: v.update(history=change(v["history"])))
    error = refused(train.main, [*FLAGS, "--sampling", "importance", "--steps", "4", "--out", str(tmp_path / "run")])
    assert "last.pt" in error


def test_layouts_of_moments_follow_the_weights(out):
    """As saved by a network that was channels_last: another layout, the same numbers."""
    whole = out.with_name("whole")
    shutil.copytree(out, whole)

    def change(values):
        for each in values["optimizer"]["state"].values():
            for name in ("exp_avg", "exp_avg_sq"):
                if each[name].ndim == 4:
                    each[name] = each[name].to(memory_format=torch.channels_last)

    rewrite(out / "last.pt", change)
    for folder in (out, whole):
        resumed(folder)
    ours, theirs = (checkpoint.load(folder / "last.pt") for folder in (out, whole))
    assert_close(ours.weights, theirs.weights, rtol=0, atol=0)
    assert_close(ours.optimizer, theirs.optimizer, rtol=0, atol=0)


def test_old_checkpoints_are_resumed(out, capsys):
    """From before the digest, and with fewer settings and versions."""
    def change(values):
        del values["data"]["digest"], values["settings"]["accept_changes"], values["settings"]["sampling"]
        values["versions"] = {"python": values["versions"]["python"], "torch": values["versions"]["torch"]}
        del values["history"]

    rewrite(out / "last.pt", change)
    resumed(out)
    assert checkpoint.load(out / "last.pt").step == 4 and "warning" not in capsys.readouterr().out
    assert checkpoint.load("weights/digits.pt").step == 3000


def test_other_versions_are_said(out, capsys):
    rewrite(out / "last.pt", lambda v: v["versions"].update(torch="1.0.0"))
    resumed(out)
    said = capsys.readouterr().out
    assert f"saved with torch 1.0.0 (now {torch.__version__}); the run resumes, but not to the bit" in said
    resumed(out, steps=5)
    assert "1.0.0" not in capsys.readouterr().out


# The two newest checkpoints

def test_the_last_two_checkpoints_are_kept(out):
    resumed(out, steps=6)
    assert [checkpoint.load(out / name).step for name in ("last.pt", "previous.pt")] == [6, 5]
    assert {each.name for each in out.iterdir()} == {"last.pt", "previous.pt", "log.jsonl", "loss.png", "samples",
                                                    "progress.gif"}


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(path.read_bytes()[:1000]), lambda path: path.write_bytes(b""), Path.unlink,
    lambda path: rewrite(path, put(at("ema"), "first.bias", poisoned)),
    lambda path: rewrite(path, put(moments, "exp_avg", torch.zeros(3)))])
def test_a_damaged_checkpoint_falls_back_on_the_one_before(runs, tmp_path, capsys, spoil):
    """And the damaged one never takes its place."""
    out = tmp_path / "run"
    shutil.copytree(runs / "stratified", out)
    spoil(out / "last.pt")
    sound = (out / "previous.pt").read_bytes()
    resumed(out, "--save_every", "2", steps=4)
    said = capsys.readouterr().out
    assert "warning: " in said and "last.pt" in said and f"resuming {out / 'previous.pt'} at step 2" in said
    assert checkpoint.load(out / "last.pt").step == 4 and (out / "previous.pt").read_bytes() == sound
    whole = tmp_path / "whole"
    shutil.copytree(runs / "stratified", whole)
    resumed(whole, steps=4)
    assert_close(checkpoint.load(out / "last.pt").weights, checkpoint.load(whole / "last.pt").weights, rtol=0, atol=0)
    resumed(out, steps=5)
    assert [checkpoint.load(out / name).step for name in ("last.pt", "previous.pt")] == [5, 4]


def test_two_damaged_checkpoints_are_refused_and_kept(runs, tmp_path, refused):
    out = tmp_path / "run"
    shutil.copytree(runs / "stratified", out)
    for name in ("last.pt", "previous.pt"):
        (out / name).write_bytes(name.encode())
    assert "last.pt is damaged" in refused(train.main, [*FLAGS, "--steps", "4", "--out", str(out)])
    (out / "last.pt").unlink()
    assert "previous.pt is damaged" in refused(train.main, [*FLAGS, "--steps", "4", "--out", str(out)])
    assert (out / "previous.pt").read_bytes() == b"previous.pt"


def test_another_run_s_checkpoint_is_refused_not_fallen_back_from(runs, tmp_path, refused):
    out = tmp_path / "run"
    shutil.copytree(runs / "stratified", out)
    before = (out / "last.pt").read_bytes()
    assert "--lr 0.005" in refused(train.main, [*FLAGS, "--lr", "1e-3", "--steps", "4", "--out", str(out)])
    assert (out / "last.pt").read_bytes() == before


# The data

def pictures(folder, n=6, shade=0):
    folder.mkdir(exist_ok=True)
    for k in range(n):
        pixels = np.random.default_rng(k).integers(0, 255, (8, 8), np.uint8)
        Image.fromarray(pixels + np.uint8(shade if k == 3 else 0)).save(folder / f"{k}.png", compress_level=0)


@pytest.mark.parametrize("lazy, change", [
    (False, lambda path: pictures(path, shade=1)), (False, lambda path: (path / "2.png").unlink()),
    (False, lambda path: pictures(path, n=7)), (True, lambda path: pictures(path, n=7)),
    (True, lambda path: (path / "2.png").rename(path / "9.png")),
    (True, lambda path: (path / "2.png").write_bytes((path / "2.png").read_bytes() + b"more"))])
def test_changed_data_are_refused_unless_accepted(tmp_path, monkeypatch, refused, capsys, lazy, change):
    if lazy:
        monkeypatch.setattr(data.sets, "IN_MEMORY", 0)
    flags, out = ["--data", str(tmp_path / "pictures")], tmp_path / "run"
    pictures(tmp_path / "pictures")
    resumed(out, *flags, steps=2)
    resumed(out, *flags, steps=3)
    before = (out / "last.pt").read_bytes()
    change(tmp_path / "pictures")
    error = refused(train.main, [*FLAGS, *flags, "--steps", "4", "--out", str(out)])
    assert "pictures has changed since" in error and "--accept_changes" in error
    assert (out / "last.pt").read_bytes() == before
    resumed(out, *flags, "--accept_changes")
    assert "warning: the data set" in capsys.readouterr().out
    resumed(out, *flags, steps=5)                                   # it is the run's data set now
    assert checkpoint.load(out / "last.pt").step == 5 and "warning" not in capsys.readouterr().out


def test_a_log_with_a_blank_line_is_resumed(out, capsys):
    with (out / "log.jsonl").open("a") as file:
        file.write("\n")
    resumed(out, "--log_every", "1", steps=5)
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [3, 3, 4, 5, 5]
    assert capsys.readouterr().out.count("are no lines of a log") == 1
