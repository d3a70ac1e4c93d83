"""Every flag of train.py and sample.py acts, and flags that cannot work end in one sentence with exit status 2.

tests/attack plays arbitrary flags of every script.
"""

import random
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import data
import ddpm
import sample
import train
from run import cli, tensors
from run import folder as run_folder
from tests.attack.flags import FILES, known_flags
from tests.attack.harness import judge, make
from tests.forks import load
from tests.published.networks import folder as published_folder
from unet import CONFIGS


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Weights, a published model and pictures."""
    folder = tmp_path_factory.mktemp("sound")
    make(folder, FILES | {f"pictures/{k}.png": Image.effect_noise((16, 8), 50).save for k in range(4)})
    published_folder(folder / "published")
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    """What makes a folder, of this name, in which all of these are."""
    def make_folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        for path in sound.iterdir():
            (tmp_path / name / path.name).symlink_to(path)
        return tmp_path / name
    yield make_folder
    torch.use_deterministic_algorithms(False)


KNOWN = [case for case in known_flags(Path(), random.Random()) if "memory" not in case.says]     # no limit is set here


@pytest.mark.parametrize("case", KNOWN, ids=range(len(KNOWN)))
def test_flags_that_once_caused_a_traceback_or_a_wrong_result(case, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder("here"))
    main, argv = load(case.run)
    monkeypatch.setattr(sys, "argv", [case.run[0]])             # what argparse calls itself; -c in a worker of xdist
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert judge(end.value.code, *capsys.readouterr(), case.says) == "sentence"


# Every flag acts: its value, and what it needs beside it

TRAIN = {
    "resume": "other", "init": "weights/digits.safetensors",
    "preset": "cifar10 --data digits --size 8 --network digits",
    "data": "pictures", "size": "16", "fit": "pad --data pictures --size 8", "channels": "3", "flip": "",
    "network": "other", "target": "x0", "loss": "l1", "space": "x0", "sampling": "importance", "schedule": "linear",
    "zero_snr": "",
    "T": "5", "null": "0.9", "steps": "3", "minutes": "0.001", "batch": "8", "accumulate": "2", "lr": "0.1",
    "optimizer": "adam", "warmup": "1", "final": "0.5",
    "clip": "0.01", "ema": "0.01", "dtype": "bf16", "recompute": "", "compile": "", "deterministic": "",
    "device": "cuda", "seed": "1", "workers": "1", "log_every": "2", "sample_every": "1", "save_every": "1",
    "tensorboard": "",
    "out": "other"}
SAMPLE = {
    "checkpoint": "weights/fashion.safetensors", "from_": "published", "n": "3", "batch": "1", "seed": "1",
    "labels": "7", "sampler": "2m --steps 3", "table": "out/rows.csv", "steps": "3", "spacing": "leading",
    "shift": "3 --spacing flow", "eta": "1", "churn": "1 --sampler heun",
    "s_tmin": "100 --sampler heun --churn 1 --steps 3", "s_tmax": "0.1 --sampler heun --churn 1 --steps 3",
    "s_noise": "2 --sampler heun --churn 1 --steps 3", "variance": "beta --eta 1",
    "clip": "no", "guidance": "2", "guidance_interval": "0.1,5 --guidance 2 --steps 3",
    "guidance_rescale": "0.5 --guidance 2", "start": "pictures/0.png",
    "strength": "0.3 --start pictures/0.png --steps 10",
    "weights": "raw", "snapshots": "1000,0", "gif": "", "png": "", "npz": "",
    "dtype": "bf16", "compile": "", "device": "cuda", "out": "other"}


def traces(main, flags: list[str], monkeypatch) -> list:
    """What a script leaves: how it exits, calls that no file shows, and every file without its times and settings."""
    calls = []

    def watch(module, name: str, note=lambda args: None) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: (
            calls.append((name, note(args))), function(*args, **kwargs))[1])

    for module, name in ((train, "objective"), (train, "recompute"), (ddpm, "sample")):
        watch(module, name)
    watch(data, "batches", lambda args: args[5])                                # workers
    for module, name in ((train, "compile_trained"), (sample, "compile_denoiser")):
        monkeypatch.setattr(module, name, lambda *args: sys.exit("compiles"))   # which takes a minute
    monkeypatch.setitem(CONFIGS, "other", replace(CONFIGS["digits"], blocks=2))
    try:
        end = main(flags)
    except SystemExit as stop:
        end = stop.code
    return [end, calls, torch.are_deterministic_algorithms_enabled(),
            {path: content_of(path) for path in sorted(Path().glob("o*/**/*"))}]           # out, or other


def content_of(path: Path) -> object:
    """What can be compared of a file."""
    if path.suffix == ".safetensors":
        return {name: hash(w.float().numpy().tobytes()) for name, w in tensors.load(path)[0].items()}
    if path.suffix == ".jsonl":
        lines = run_folder.read_log(path.parent)
        return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]
    return path.read_bytes() if path.is_file() else None


BASES = {train: "--T 4 --batch 4 --steps 2 --warmup 2 --log_every 1 --sample_every 2 --save_every 2 --out out",
         sample: "--n 2 --steps 2 --out out"}
BASELINES = {}                                      # what is left without the flag, by script and other flags


@pytest.mark.parametrize("script, name, value", [
    *((train, *flag) for flag in TRAIN.items()), *((sample, *flag) for flag in SAMPLE.items())])
def test_every_flag_acts(script, name, value, folder, monkeypatch):
    value, _, others = value.partition(" ")
    flag = ["--no-clip"] if value == "no" else [f"--{name.rstrip('_')}", *value.split()]

    def left(place: str, *flags: str) -> list:
        with monkeypatch.context() as patch:
            patch.chdir(folder(place))
            return traces(script.main, [*BASES[script].split(), *others.split(), *flags], patch)

    if (script, others) not in BASELINES:
        BASELINES[script, others] = left("without")
    assert BASELINES[script, others][0] is None and BASELINES[script, others] != left("with", *flag)


def test_no_flag_is_left_out():
    assert {*TRAIN, "accept_changes"} == {f.name for f in fields(train.Config)}    # in test_resume
    assert {*SAMPLE} == {f.name for f in fields(sample.Config)}


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("Storage size calculation overflowed with sizes=[4611686018427387904]"),
    RuntimeError("std::bad_alloc")])
def test_every_way_to_run_out_of_memory(error, refused):
    @cli.script
    def main(argv):
        raise error

    assert "not enough memory" in refused(main, [])
