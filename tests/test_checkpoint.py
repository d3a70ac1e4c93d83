import os
import pickle

import pytest
import torch
from torch.testing import assert_close

import checkpoint
from checkpoint import Checkpoint
from unet import UNetConfig


def example(step=3):
    weights = {"a": torch.randn(3, 4), "b": torch.randn(2)}
    return Checkpoint(UNetConfig(D=64), weights, {k: w + 1 for k, w in weights.items()}, step, torch.rand(10).double(),
                      {"seed": 1, "lr": 0.1}, {"name": "x", "shape": (3, 8, 8), "classes": ("a", "b")},
                      {"state": {0: {"step": torch.tensor(3.)}}}, [torch.tensor(1.)], checkpoint.versions())


def test_round_trip(tmp_path):
    before = example()
    checkpoint.save(tmp_path / "new" / "last.pt", before)
    after = checkpoint.load(tmp_path / "new" / "last.pt")
    assert after.network == before.network and after.settings == before.settings and after.data == before.data
    for name in ("weights", "ema", "beta", "optimizer", "losses"):
        assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=0)
    assert os.listdir(tmp_path / "new") == ["last.pt"]


@pytest.mark.parametrize("when", ["save", "fsync", "replace"])
def test_the_old_file_survives_a_failure(tmp_path, monkeypatch, when):
    path = tmp_path / "last.pt"
    checkpoint.save(path, example(step=1))

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(torch if when == "save" else os, when, fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, example(step=2))
    monkeypatch.undo()
    assert checkpoint.load(path).step == 1
    checkpoint.save(path, example(step=3))
    assert checkpoint.load(path).step == 3


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def test_code_in_a_file_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoint.FORMAT, "weights": Evil()}, "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(ValueError, match=f"{name} is damaged or no checkpoint"):
            checkpoint.load(name)
    assert not os.path.exists("evil-was-here")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "last.pt"
    checkpoint.save(path, example())
    whole = path.read_bytes()
    path.write_bytes(whole[:keep if keep in (0, 10) else int(len(whole) * keep)])
    with pytest.raises(ValueError, match="last.pt is damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [{"weights": {}}, [1, 2], torch.zeros(3), {"format": "other"}])
def test_another_program_s_file_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no checkpoint of train.py"):
        checkpoint.load(tmp_path / "x.pt")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint .*nowhere.pt"):
        checkpoint.load(tmp_path / "nowhere.pt")


def test_main_gives_away_without_the_optimizer(tmp_path, capsys):
    checkpoint.save(tmp_path / "a.pt", example())
    checkpoint.main(["--source", str(tmp_path / "a.pt"), "--to", str(tmp_path / "b.pt")])
    assert checkpoint.load(tmp_path / "b.pt").optimizer == {} and "MB" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        checkpoint.main(["--source", str(tmp_path / "c.pt")])
    assert stop.value.code == 2
