import errno
import math
import os
import pickle
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import train
from run import checkpoint
from run.checkpoint import Checkpoint
from unet import UNet, UNetConfig

ROOT = Path(__file__).parents[2]


def example(step=3):
    config = UNetConfig(D=8, widths=(4,), blocks=1, heads=(0, 0), classes=3, groups=2)
    weights = UNet(config).state_dict()
    return Checkpoint(config, weights, {k: w + 1 for k, w in weights.items()}, step, torch.rand(10).double(),
                      {"seed": 1, "target": "v"}, {"name": "x", "shape": (3, 8, 8), "classes": ("a", "b")},
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


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device", "last.pt.tmp")


def test_a_run_survives_being_killed():
    """At random times, also in a save; `python -m tests.kills` kills 50 times."""
    told = subprocess.run([sys.executable, "-m", "tests.kills", "--kills", "6", "--steps", "150", "--wait", "1.2"],
                          cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0 and "the same end at step 150" in told.stdout, told


@pytest.mark.parametrize("where", ["torch.save", "os.fsync"])
def test_a_full_disk_is_a_sentence_and_the_old_checkpoint_goes_on(tmp_path, monkeypatch, capsys, where):
    flags = ["--T", "20", "--batch", "8", "--sample_every", "100", "--out", str(tmp_path)]
    train.main([*flags, "--steps", "2"])
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(where, full)
        train.main([*flags, "--steps", "4"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("train.py: ") and "No space left" in error
    assert checkpoint.load(tmp_path / "last.pt").step == 2
    train.main([*flags, "--steps", "4"])
    assert checkpoint.load(tmp_path / "last.pt").step == 4


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs a folder that nobody can write")
def test_a_folder_that_cannot_be_written_is_a_sentence(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--T", "20", "--batch", "8", "--steps", "1", "--out", "/proc/self/fd/run"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("train.py: ") and "/proc/self/fd" in error


def test_flipped_bits_and_cut_files_are_a_sentence_or_read(tmp_path):
    """And never anything else, wherever the damage is."""
    checkpoint.save(tmp_path / "last.pt", example())
    whole, times = (tmp_path / "last.pt").read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole[:times.choice([len(whole), times.randrange(len(whole))])])
        for _ in range(times.randrange(1, 4)):
            if damaged:
                damaged[times.randrange(len(damaged))] ^= 1 << times.randrange(8)
        (tmp_path / "x.pt").write_bytes(damaged)
        try:
            assert isinstance(checkpoint.load(tmp_path / "x.pt"), Checkpoint)
        except ValueError as error:
            assert "x.pt" in str(error)


@pytest.mark.parametrize("part, changes", [
    ("network", {"widths": 4}), ("network", {"widths": (2**40,)}), ("network", {"widths": ("4",)}),
    ("network", {"widths": ()}), ("network", {"groups": 0}), ("network", {"groups": 2.}), ("network", {"D": -8}),
    ("network", {"D": 2**62}), ("network", {"blocks": 10**12}), ("network", {"classes": 5}),
    ("network", {"classes": 10**30}), ("network", {"norm_eps": "small"}), ("network", {"time_scale": None}),
    ("network", {"dropout": 2.}), ("network", {"heads": (3, 0)}), ("network", {"wings": 2}), ("network", [1, 2]),
    ("settings", {"target": "y"}), ("settings", {"target": None}), ("settings", None),
    ("data", {"shape": (3, 8)}), ("data", {"shape": (1, 8, 8)}), ("data", {"shape": (3, -8, 8)}),
    ("data", {"shape": (3, 2**40, 2**40)}), ("data", {"shape": "3x8"}), ("data", {"classes": 2}),
    ("data", {"classes": (1, 2)}), ("data", {"name": None}), ("data", "digits"),
    ("beta", torch.ones(3, 4)), ("beta", torch.full((10,), math.nan)), ("beta", torch.zeros(10)), ("beta", "linear"),
    ("step", -1), ("step", "3"), ("weights", {}), ("weights", None), ("ema", {"first.bias": torch.zeros(7)}),
    ("ema", {"first.bias": 4}), ("ema", {"first.bias": torch.zeros(4).int()})])
def test_a_checkpoint_that_makes_no_sense_is_a_sentence(tmp_path, part, changes):
    """In no time and no memory, whatever size it speaks of."""
    before = example()._asdict() | {"network": asdict(example().network), "format": checkpoint.FORMAT}
    changes = {**before[part], **changes} if isinstance(changes, dict) and changes else changes
    torch.save({**before, part: changes}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="x.pt does not fit its own network or settings: .*use another file"):
        checkpoint.load(tmp_path / "x.pt")


def test_a_run_does_not_go_on_from_what_was_given_away(tmp_path, capsys):
    flags = ["--T", "20", "--batch", "8", "--steps", "1", "--out", str(tmp_path)]
    train.main(flags)
    checkpoint.main(["--source", str(tmp_path / "last.pt"), "--to", str(tmp_path / "last.pt")])
    with pytest.raises(SystemExit) as stop:
        train.main([*flags[:-3], "2", *flags[-2:]])
    assert stop.value.code == 2 and "last.pt was given away without its optimizer" in capsys.readouterr().err
