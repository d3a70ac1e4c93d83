"""run/resume.py: what is resumed, what is refused, and that nothing saved is lost by either."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import train
from run import checkpoint, folder, state, tensors
from tests.helpers import same_run

FLAGS = ["--T", "20", "--batch", "8", "--warmup", "2", "--final", "1", "--log_every", "3", "--sample_every", "100",
         "--save_every", "1"]                       # a learning rate that does not depend on the number of steps


def resumed(out, *flags, steps=4):
    train.main([*FLAGS, *flags, "--steps", str(steps), "--out", str(out)])


@pytest.fixture(scope="module", autouse=True)
def unplotted():
    """Curves and grids take longer than these runs, and are not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "plot_log", lambda out: (out / "loss.png").touch())
        patch.setattr(state, "score_samples", lambda run: {})
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of three steps, in folders named after how their t are sampled."""
    base = tmp_path_factory.mktemp("runs")
    for sampling in ("stratified", "importance"):
        resumed(base / sampling, "--sampling", sampling, steps=3)
    return base


@pytest.fixture
def both(runs, tmp_path):
    """A copy of the first run, which has two checkpoints."""
    return Path(shutil.copytree(runs / "stratified", tmp_path / "run"))


@pytest.fixture
def out(both):
    """The same without its previous checkpoint."""
    (both / "previous.safetensors").unlink()
    return both


def rewrite(path, change):
    """Changes the checkpoint's tensors and facts as another program could; returns the file's bytes."""
    content, facts = tensors.load(path)
    change(content, facts)
    tensors.save(path, content, facts)
    return path.read_bytes()


WRONG = {
    "shape of a moment": lambda content, facts: content.update({"exp_avg.first.bias": torch.zeros(3)}),
    "flat": lambda content, facts: content.update({"exp_avg.first.weight": content["exp_avg.first.weight"].flatten()}),
    "a moment less": lambda content, facts: content.pop("exp_avg.first.bias"),
    "average less": lambda content, facts: content.pop("ema.first.bias"),
    "other setting": lambda content, facts: facts["settings"].update(lr=1.),
    "classes": lambda content, facts: facts["data"].update(classes=["a"]),
    "pixels": lambda content, facts: facts["data"].update(shape=[1, 8, 16]),
    "network": lambda content, facts: facts["network"].update(dropout=0.5)}


@pytest.mark.parametrize("name", WRONG)
def test_a_checkpoint_that_cannot_be_resumed_is_a_sentence_and_kept(out, refused, name):
    """Moments of another shape made fused Adam corrupt the memory."""
    before = rewrite(out / "last.safetensors", WRONG[name])
    log = (out / "log.jsonl").read_bytes()
    error = refused(train.main, [*FLAGS, "--steps", "4", "--out", str(out)])
    assert "last.safetensors" in error and error.strip().count("\n") == 0, error
    assert (out / "last.safetensors").read_bytes() == before and (out / "log.jsonl").read_bytes() == log


def test_a_checkpoint_given_away_is_not_resumed(out, refused):
    path = str(out / "last.safetensors")
    checkpoint.main(["--source", path, "--to", path])
    error = refused(train.main, [*FLAGS, "--steps", "4", "--out", str(out)])
    assert "last.safetensors was given away without its optimizer; choose another --out" in error


def test_a_run_whose_first_updates_failed_resumes_to_the_bit(tmp_path, monkeypatch):
    """Adam has moments then, of 0 updates."""
    objective, failing = train.objective, iter([math.nan] * 4)

    def failing_first(*args):
        return {"loss": objective(*args)["loss"] * next(failing, 1.)}

    monkeypatch.setattr(train, "objective", failing_first)
    resumed(tmp_path / "broken", steps=4)
    assert checkpoint.load(tmp_path / "broken" / "last.safetensors").updates == 0
    resumed(tmp_path / "broken", steps=6)
    failing = iter([math.nan] * 4)
    resumed(tmp_path / "unbroken", steps=6)
    same_run(tmp_path / "broken", tmp_path / "unbroken", log=False)


def test_other_versions_are_said(out, capsys):
    rewrite(out / "last.safetensors", lambda content, facts: facts["versions"].update(torch="1.0.0"))
    resumed(out)
    said = capsys.readouterr().out
    assert f"saved with torch 1.0.0 (now {torch.__version__}); the run resumes, but not to the bit" in said
    resumed(out, steps=5)
    assert "1.0.0" not in capsys.readouterr().out


# The two newest checkpoints

def test_the_last_two_checkpoints_are_kept(out):
    resumed(out, steps=6)
    assert [checkpoint.load(out / name).step for name in ("last.safetensors", "previous.safetensors")] == [6, 5]
    assert {each.name for each in out.iterdir()} == {"last.safetensors", "previous.safetensors", "log.jsonl",
                                                    "loss.png", "samples", "progress.gif"}


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(path.read_bytes()[:1000]), Path.unlink,
    lambda path: rewrite(path, WRONG["shape of a moment"])])
def test_a_damaged_checkpoint_falls_back_on_the_one_before(runs, both, tmp_path, capsys, spoil):
    """And the damaged one never takes its place."""
    out, whole = both, tmp_path / "whole"
    spoil(out / "last.safetensors")
    sound = (out / "previous.safetensors").read_bytes()
    resumed(out, "--save_every", "2", steps=4)
    said = capsys.readouterr().out
    assert "warning: " in said and "last.safetensors" in said
    assert f"resuming {out / 'previous.safetensors'} at step 2" in said
    assert checkpoint.load(out / "last.safetensors").step == 4 and (out / "previous.safetensors").read_bytes() == sound
    shutil.copytree(runs / "stratified", whole)
    resumed(whole, steps=4)
    same_run(out, whole, log=False)
    resumed(out, steps=5)
    assert [checkpoint.load(out / name).step for name in ("last.safetensors", "previous.safetensors")] == [5, 4]


def test_two_damaged_checkpoints_are_refused_and_kept(both, refused):
    out = both
    for name in ("last.safetensors", "previous.safetensors"):
        (out / name).write_bytes(name.encode())
    assert "previous.safetensors: it is damaged" in refused(train.main, [*FLAGS, "--steps", "4", "--out", str(out)])
    (out / "last.safetensors").unlink()
    assert "previous.safetensors: it is damaged" in refused(train.main, [*FLAGS, "--steps", "4", "--out", str(out)])
    assert (out / "previous.safetensors").read_bytes() == b"previous.safetensors"


def test_another_run_s_checkpoint_is_refused_not_fallen_back_from(both, refused):
    before = (both / "last.safetensors").read_bytes()
    flags = [*FLAGS, "--lr", "1e-3", "--target", "eps", "--steps", "4", "--out", str(both)]
    assert "--target v --lr 0.005" in refused(train.main, flags)
    assert (both / "last.safetensors").read_bytes() == before


# The data

def pictures(folder, n=6, shade=0):
    folder.mkdir(exist_ok=True)
    for k in range(n):
        pixels = np.random.default_rng(k).integers(0, 255, (8, 8), np.uint8)
        Image.fromarray(pixels + np.uint8(shade if k == 3 else 0)).save(folder / f"{k}.png", compress_level=0)


@pytest.mark.parametrize("lazy, change", [
    (False, lambda path: pictures(path, shade=1)), (True, lambda path: pictures(path, n=7)),
    (True, lambda path: (path / "2.png").rename(path / "9.png"))])
def test_changed_data_are_refused_unless_accepted(tmp_path, monkeypatch, refused, capsys, lazy, change):
    if lazy:
        monkeypatch.setattr(data.sets, "IN_MEMORY", 0)
    flags, out = ["--data", str(tmp_path / "pictures")], tmp_path / "run"
    pictures(tmp_path / "pictures")
    resumed(out, *flags, steps=2)
    resumed(out, *flags, steps=3)
    before = (out / "last.safetensors").read_bytes()
    change(tmp_path / "pictures")
    error = refused(train.main, [*FLAGS, *flags, "--steps", "4", "--out", str(out)])
    assert "pictures has changed since" in error and "--accept_changes" in error
    assert (out / "last.safetensors").read_bytes() == before
    resumed(out, *flags, "--accept_changes")
    assert "warning: the data set" in capsys.readouterr().out
    resumed(out, *flags, steps=5)                                   # it is the run's data set now
    assert checkpoint.load(out / "last.safetensors").step == 5 and "warning" not in capsys.readouterr().out
