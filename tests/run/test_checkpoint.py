import copy
import math
import os
import pickle
import random
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import sample
import train
from run import checkpoint
from run.checkpoint import Checkpoint
from tests.helpers import Trap
from unet import UNet, UNetConfig

ROOT = Path(__file__).parents[2]


def example(step=3):
    config = UNetConfig(D=8, widths=(4,), blocks=1, heads=(0, 0), classes=3, groups=2)
    weights = UNet(config).state_dict()
    return Checkpoint(config, weights, {k: w + 1 for k, w in weights.items()}, step, torch.rand(10).double(),
                      {"seed": 1, "target": "v"}, {"name": "x", "shape": (3, 8, 8), "classes": ("a", "b")},
                      {"state": {0: {"step": torch.tensor(3.)}}}, [torch.ones(4, 2).double()], checkpoint.versions())


def unpickled(path, pickled):
    """A file like torch.save's, which holds these bytes for a pickle."""
    entries = {"data.pkl": pickled, "version": b"3", "byteorder": b"little", "data/0": bytes(64)}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(f"x/{name}", content)


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


REBUILD = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpuJ\x10\0\0\0tQ"
HUGE = pickle.dumps(2**40, 2)[2:-1]


@pytest.mark.parametrize("pickled", [
    b"", b".", b"\x80\x02.", b"\x80\x020.", b"\x80\x02R.", b"\x80\x02(", b"\x80\x02}u.", b"\x80\x02h\x05.", b"\xff",
    b"\x80\x02cos\nsystem\n(X\x04\0\0\0truetR.", REBUILD + b")R.", REBUILD + b"(K\x01K\x02K\x03K\x04tR.",
    REBUILD + STORAGE + b"K\0(" + HUGE + b"t(K\x01t\x89)tR.", REBUILD + STORAGE + b"K\0(K\x10t(" + HUGE + b"t\x89)tR.",
    REBUILD + STORAGE + b"K\0(K\x10t(K\x01t\x89)tR.", REBUILD + STORAGE + b"J\xff\xff\xff\xff(K\x01t(K\x01t\x89)tR.",
    b"\x80\x02c__builtin__\nbytearray\n(" + HUGE + b"tR.", b"\x80\x02ctorch\nTensor\n(" + HUGE + b"tR.",
    b"\x80\x02(" + b"(" * 10**5 + b"t" * 10**5 + b"t."])
def test_hostile_pickles_are_a_sentence(tmp_path, pickled):
    """In no time and no memory."""
    unpickled(tmp_path / "x.pt", pickled)
    with pytest.raises(ValueError, match="x.pt is (damaged or )?no checkpoint of train.py"):
        checkpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize("spoil", [
    lambda file: file.writestr("more", bytes(100), zipfile.ZIP_DEFLATED),
    lambda file: file.writestr("x/data.pkl", b".")])
def test_archives_of_another_kind_are_refused(tmp_path, spoil):
    checkpoint.save(tmp_path / "x.pt", example())
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "x.pt", "a") as file:
        warnings.simplefilter("ignore")
        spoil(file)
    with pytest.raises(ValueError, match="x.pt is damaged or no checkpoint"):
        checkpoint.load(tmp_path / "x.pt")


def test_entries_that_overlap_are_not_added_up(tmp_path):
    """Many entries that are one and the same would take the memory and time of all."""
    checkpoint.save(tmp_path / "x.pt", example())
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as file:
        largest = max(file.infolist(), key=lambda entry: entry.file_size)
        for k in range(1000):
            same = copy.copy(largest)
            same.filename = f"x/data/{1000 + k}"
            file.filelist.append(same)
        file._didModify = True
    with pytest.raises(ValueError, match="x.pt is damaged or no checkpoint"):
        checkpoint.load(tmp_path / "x.pt")


def test_a_damaged_last_checkpoint_names_the_one_before(tmp_path, refused):
    (tmp_path / "last.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="use another file"):
        checkpoint.load(tmp_path / "last.pt")
    checkpoint.save(tmp_path / "previous.pt", example())
    said = refused(sample.main, ["--checkpoint", str(tmp_path / "last.pt"), "--out", str(tmp_path / "out")])
    assert f"last.pt is damaged or no checkpoint of train.py; use {tmp_path / 'previous.pt'}" in said


def test_code_in_a_file_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoint.FORMAT, "weights": Trap()}, "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(ValueError, match=f"{name} is damaged or no checkpoint"):
            checkpoint.load(name)
    assert not os.path.exists("trap-was-here")


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


def test_main_gives_away_the_average_in_half_the_bits(tmp_path, capsys):
    last = example()
    checkpoint.save(tmp_path / "a.pt", last)
    flags = ["--source", str(tmp_path / "a.pt"), "--to", str(tmp_path / "b.pt")]
    checkpoint.main([*flags, "--average", "--dtype", "bf16"])
    given = checkpoint.load(tmp_path / "b.pt")
    assert given.weights == given.optimizer == {} and given.ema.keys() == last.ema.keys()
    assert {w.dtype for name, w in given.ema.items() if "norm" not in name} == {torch.bfloat16}
    unet = checkpoint.load_unet(given)
    assert all(torch.equal(w, last.ema[name].to(given.ema[name].dtype).float()) for name, w in unet.named_parameters())
    with pytest.raises(ValueError, match="weights is 'raw'; the checkpoint has only the averaged ones, use ema"):
        checkpoint.load_unet(given, weights="raw")
    with pytest.raises(SystemExit):
        sample.main(["--checkpoint", str(tmp_path / "b.pt"), "--weights", "raw", "--out", str(tmp_path)])
    assert "the checkpoint has only the averaged ones" in capsys.readouterr().err


def test_main_names_the_classes(tmp_path, capsys):
    checkpoint.save(tmp_path / "a.pt", example())
    flags = ["--source", str(tmp_path / "a.pt"), "--to", str(tmp_path / "b.pt"), "--classes"]
    checkpoint.main([*flags, "cat,dog"])
    assert checkpoint.load(tmp_path / "b.pt").data == {**example().data, "classes": ("cat", "dog")}
    for names in ("cat", "cat,cat", "cat,", "cat,dog,cow"):
        with pytest.raises(SystemExit):
            checkpoint.main([*flags, names])
        assert f"classes is '{names}'; name each of the 2 classes once: a, b" in capsys.readouterr().err


def test_a_run_survives_being_killed():
    """At random times, also in a save; `python -m tests.kills` kills 50 times."""
    told = subprocess.run([sys.executable, "-m", "tests.kills", "--kills", "6", "--steps", "150", "--wait", "1.2"],
                          cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0 and "the same end at step 150" in told.stdout, told
    assert int(told.stdout.split(" kills")[0].split()[-1]) > 1, told


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


def endless():
    part = ["x"] * 1000
    for _ in range(5):
        part = [part] * 1000
    return part


@pytest.mark.parametrize("part, changes", [
    ("network", {"widths": 4}), ("network", {"widths": (2**40,)}), ("network", {"widths": ("4",)}),
    ("network", {"widths": ()}), ("network", {"widths": [4]}), ("network", {"widths": (4,) * 10**5}),
    ("network", {"widths": endless()}), ("network", {"heads": endless()}), ("network", {"resample": endless()}),
    ("network", {"groups": 0}), ("network", {"groups": 2.}), ("network", {"groups": True}), ("network", {"D": -8}),
    ("network", {"D": 2**62}), ("network", {"blocks": 10**12}), ("network", {"classes": 5}),
    ("network", {"classes": 10**30}), ("network", {"norm_eps": "small"}), ("network", {"norm_eps": math.nan}),
    ("network", {"time_scale": None}), ("network", {"time_scale": torch.ones(1)}), ("network", {"freq_shift": -1}),
    ("network", {"dropout": 2.}), ("network", {"heads": (3, 0)}), ("network", {"wings": 2}), ("network", [1, 2]),
    ("network", None), ("network", {}), ("network", {"scale_shift": 1}), ("network", {"resample": 3}),
    ("settings", {"target": "y"}), ("settings", {"target": None}), ("settings", None), ("settings", {"lr": endless()}),
    ("settings", {"variance": "learned"}), ("settings", {"variance": "none"}), ("settings", {"variance": 3}),
    ("settings", {"clip_x0": "yes"}), ("settings", {3: 3}), ("settings", {"target": ["v"]}),
    ("data", {"shape": (3, 8)}), ("data", {"shape": (1, 8, 8)}), ("data", {"shape": (3, -8, 8)}),
    ("data", {"shape": (3, 2**40, 2**40)}), ("data", {"shape": (3, 2**14, 2**14)}), ("data", {"shape": "3x8"}),
    ("data", {"shape": 3}), ("data", {"shape": (3, 8., 8)}), ("data", {"shape": (3, True, 8)}),
    ("data", {"classes": 2}), ("data", {"classes": (1, 2)}), ("data", {"classes": endless()}),
    ("data", {"name": None}), ("data", "digits"), ("data", {"digest": 3}),
    ("versions", {"torch": 2}), ("versions", None), ("versions", {"torch": endless()}),
    ("beta", torch.ones(3, 4)), ("beta", torch.full((10,), math.nan)), ("beta", torch.zeros(10)), ("beta", "linear"),
    ("beta", torch.full((1,), 0.1).expand(2**40)), ("beta", torch.rand(10).to("meta")), ("beta", [0.1] * 10),
    ("step", -1), ("step", "3"), ("step", True), ("step", 2**31), ("step", 1.), ("weights", {}), ("weights", None),
    ("weights", [1]), ("ema", {"first.bias": torch.zeros(7)}), ("ema", {"first.bias": 4}), ("ema", {3: torch.zeros(4)}),
    ("ema", {"first.bias": torch.zeros(4).int()}), ("ema", {"first.bias": torch.zeros(4).to(torch.float8_e4m3fn)}),
    ("ema", {"first.bias": torch.zeros(4).to(torch.complex64)}), ("ema", {"first.bias": torch.zeros(4).to("meta")}),
    ("ema", {"first.bias": torch.zeros(4).to_sparse()}), ("ema", {"first.bias": torch.zeros(1).expand(4)}),
    ("ema", {"first.weight": torch.zeros(4, 3, 3, 3).to_sparse()}), ("optimizer", {"state": endless()}),
    ("optimizer", {"state": {3}}), ("losses", endless()), ("losses", [torch.zeros(1).expand(2**40)]),
    ("history", torch.zeros(3).to_sparse()), ("losses", Counter("x"))])
@pytest.mark.parametrize("parts", [checkpoint.PARTS, ["ema"]])
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_that_makes_no_sense_is_a_sentence(tmp_path, part, changes, parts):
    """In no time and no memory, whatever size it speaks of, and whether it is to be resumed or sampled from."""
    before = example()._asdict() | {"network": asdict(example().network), "format": checkpoint.FORMAT}
    changes = {**before[part], **changes} if type(changes) is dict and changes else changes
    torch.save({**before, part: changes}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="x.pt (does not fit its own network or settings: |is damaged).*use another"):
        checkpoint.load(tmp_path / "x.pt", parts)


@pytest.mark.filterwarnings("ignore")
def test_quantized_weights_are_refused(tmp_path):
    weights = {name: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8) for name, w in example().ema.items()}
    checkpoint.save(tmp_path / "x.pt", example()._replace(ema=weights))
    with pytest.raises(ValueError, match="x.pt "):
        checkpoint.load(tmp_path / "x.pt")


def test_networks_that_claim_more_than_the_file_holds_are_refused(tmp_path):
    """Every weight is one number, repeated: the shapes fit the network, and would fill the memory."""
    config = UNetConfig(D=8, widths=(2**15,), blocks=1, heads=(0, 0), groups=2)
    with torch.device("meta"):
        weights = {name: torch.zeros(1, device="cpu").expand(w.shape) for name, w in UNet(config).state_dict().items()}
    checkpoint.save(tmp_path / "x.pt", example()._replace(network=config, weights=weights, ema=weights))
    assert (tmp_path / "x.pt").stat().st_size < 10**6
    with pytest.raises(ValueError, match="a tensor of shape .* has a storage of 4 bytes"):
        checkpoint.load(tmp_path / "x.pt")


def test_what_was_given_away_is_not_resumed(tmp_path, capsys):
    flags = ["--T", "20", "--batch", "8", "--steps", "1", "--out", str(tmp_path)]
    train.main(flags)
    checkpoint.main(["--source", str(tmp_path / "last.pt"), "--to", str(tmp_path / "last.pt")])
    with pytest.raises(SystemExit) as stop:
        train.main([*flags[:-3], "2", *flags[-2:]])
    assert stop.value.code == 2 and "last.pt was given away without its optimizer" in capsys.readouterr().err
