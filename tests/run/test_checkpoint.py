"""run/checkpoint.py and run/tensors.py: one file that holds a run, read only if all of it fits together."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

import sample
import train
from run import checkpoint, tensors
from run.checkpoint import Checkpoint
from unet import UNet, UNetConfig

ROOT = Path(__file__).parents[2]


def example(step=3):
    config = UNetConfig(D=8, widths=(4,), blocks=1, heads=(0, 0), classes=3, groups=2)
    weights = UNet(config).state_dict()
    moments = {part: {name: torch.rand_like(w) for name, w in weights.items()} for part in checkpoint.MOMENTS}
    return Checkpoint(config, weights, {k: w + 1 for k, w in weights.items()}, step, torch.rand(10).double(),
                      {"seed": 1, "target": "v", "clip": math.inf, "lr": 1e-4, "flip": True},
                      {"name": "x\udcff", "shape": (3, 8, 8), "classes": ("ü", "b")}, checkpoint.versions(),
                      **moments, updates=2, losses=[torch.ones(4, 2).double()] * 3, history=torch.rand(10, 10),
                      scaler={"scale": 512., "_growth_tracker": 7})


def test_round_trip(tmp_path):
    """Tuples, the order of weights and classes, infinity, and names that are no UTF-8."""
    before = example()
    checkpoint.save(tmp_path / "new" / "last.safetensors", before)
    after = checkpoint.load(tmp_path / "new" / "last.safetensors")
    assert all(getattr(after, name) == getattr(before, name) for name in (
        "network", "step", "settings", "data", "versions", "updates", "scaler"))
    for name in (*checkpoint.PARTS, "beta", "losses", "history"):
        assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=0)
    assert [*after.weights] == [*after.exp_avg] == [*before.weights]
    assert os.listdir(tmp_path / "new") == ["last.safetensors"]


def test_weights_of_any_layout_are_saved(tmp_path):
    before = example()
    other = {name: w.to(memory_format=torch.channels_last) if w.ndim == 4 else w for name, w in before.weights.items()}
    checkpoint.save(tmp_path / "x.safetensors", before._replace(weights=other))
    assert_close(checkpoint.load(tmp_path / "x.safetensors").weights, before.weights, rtol=0, atol=0)


def test_parts_that_are_not_wanted_are_not_read(tmp_path):
    checkpoint.save(tmp_path / "x.safetensors", example())
    part = checkpoint.load(tmp_path / "x.safetensors", ["ema"])
    assert part.weights == part.exp_avg == part.exp_avg_sq == {} and len(part.ema) == len(example().ema)


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_the_old_file_survives_a_failure(tmp_path, monkeypatch, when):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, example(step=2))

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, when, fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, example(step=3))
    monkeypatch.undo()
    assert checkpoint.load(path).step == 2
    checkpoint.save(path, example(step=4))
    assert checkpoint.load(path).step == 4


def test_a_damaged_last_checkpoint_names_the_one_before(tmp_path, refused):
    damaged, previous = tmp_path / "last.safetensors", tmp_path / "previous.safetensors"
    checkpoint.save(damaged, example())
    whole = damaged.read_bytes()
    for content in (b"", b"damaged", whole[:len(whole) // 2], whole[:-len(whole) // 100]):
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match="it is damaged, cut short or no safetensors file .*; use another file"):
            checkpoint.load(damaged)
    checkpoint.save(previous, example())
    error = refused(sample.main, ["--checkpoint", str(damaged), "--out", str(tmp_path / "out")])
    assert f"cannot read {damaged}: it is damaged, cut short" in error and error.endswith(f"; use {previous}\n")


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {"facts": "{"}, {"facts": json.dumps({"format": "other"})}])
def test_another_program_s_file_is_refused(tmp_path, metadata):
    save_file({"weights.first.bias": torch.zeros(4)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(ValueError, match="cannot read .*x.safetensors: .*; use another file"):
        checkpoint.load(tmp_path / "x.safetensors")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint .*nowhere.safetensors; train one with"):
        checkpoint.load(tmp_path / "nowhere.safetensors")
    checkpoint.save(tmp_path / "x.safetensors", example())
    with pytest.raises(ValueError, match=r"no checkpoint .*x.pt; use .*x.safetensors"):
        checkpoint.load(tmp_path / "x.pt")
    checkpoint.save(tmp_path / "previous.safetensors", example())
    with pytest.raises(ValueError, match=r"no checkpoint .*last.safetensors; use .*previous.safetensors"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("change", [
    lambda content, facts: facts["network"].update(classes=4), lambda content, facts: facts["network"].update(wings=2),
    lambda content, facts: facts.pop("settings"), lambda content, facts: content.pop("ema.first.bias"),
    lambda content, facts: content.update({"exp_avg.first.bias": torch.zeros(3)}),
    lambda content, facts: content["exp_avg_sq.first.bias"].fill_(math.nan),
    lambda content, facts: content.update({"exp_avg.first.bias": content["exp_avg.first.bias"].half()}),
    lambda content, facts: content.update({"ema.first.bias": content["ema.first.bias"].long()}),
    lambda content, facts: facts["data"].update(counts=0.5),
    lambda content, facts: facts["data"].update(counts=[1] * 9),
    lambda content, facts: facts["settings"].update(target="score"), lambda content, facts: content["beta"].zero_()])
def test_parts_that_do_not_fit_together_are_a_sentence(tmp_path, change):
    checkpoint.save(tmp_path / "x.safetensors", example())
    content, facts = tensors.load(tmp_path / "x.safetensors")
    change(content, facts)
    tensors.save(tmp_path / "x.safetensors", content, facts)
    with pytest.raises(ValueError, match="cannot read .*x.safetensors: .*; use another file"):
        checkpoint.load(tmp_path / "x.safetensors")


# To give away

def test_main_gives_away_without_the_optimizer(tmp_path, capsys):
    checkpoint.save(tmp_path / "a.safetensors", example())
    checkpoint.main(["--source", str(tmp_path / "a.safetensors"), "--to", str(tmp_path / "b.safetensors")])
    given_away = checkpoint.load(tmp_path / "b.safetensors")
    assert given_away.exp_avg == given_away.exp_avg_sq == {} and given_away.history is None
    assert given_away.losses == [] and "MB" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        checkpoint.main(["--source", str(tmp_path / "c.safetensors")])
    assert stop.value.code == 2


def test_main_gives_away_the_average_in_half_the_bits(tmp_path, refused):
    last, path = example(), str(tmp_path / "b.safetensors")
    checkpoint.save(tmp_path / "a.safetensors", last)
    checkpoint.main(["--source", str(tmp_path / "a.safetensors"), "--to", path, "--average", "--dtype", "bf16"])
    averaged = checkpoint.load(path)
    assert averaged.weights == averaged.exp_avg == {} and averaged.ema.keys() == last.ema.keys()
    assert {w.dtype for name, w in averaged.ema.items() if "norm" not in name} == {torch.bfloat16}
    for name, w in checkpoint.load_unet(averaged).named_parameters():
        assert torch.equal(w, last.ema[name].to(averaged.ema[name].dtype).float())
    error = refused(sample.main, ["--checkpoint", path, "--weights", "raw", "--out", str(tmp_path)])
    assert "weights is 'raw'; the checkpoint has only the averaged ones, use ema" in error


def test_main_names_the_classes(tmp_path, refused):
    checkpoint.save(tmp_path / "a.safetensors", example())
    flags = ["--source", str(tmp_path / "a.safetensors"), "--to", str(tmp_path / "b.safetensors"), "--classes"]
    checkpoint.main([*flags, "cat,dog"])
    assert checkpoint.load(tmp_path / "b.safetensors").data == {**example().data, "classes": ("cat", "dog")}
    for names in ("cat", "cat,cat", "cat,", "cat,dog,cow"):
        error = refused(checkpoint.main, [*flags, names])
        assert f"classes is '{names}'; name each of the 2 classes once: ü, b" in error


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs a folder that nobody can write")
def test_a_folder_that_cannot_be_written_is_a_sentence(refused):
    error = refused(train.main, ["--T", "20", "--batch", "8", "--steps", "1", "--out", "/proc/self/fd/run"])
    assert error.splitlines()[-1].startswith("train.py: ") and "/proc/self/fd" in error
