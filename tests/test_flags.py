"""For any flags, a script either works or ends in one sentence with exit status 2."""

import contextlib
import functools
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bench.__main__
import bench.memory
import bench.tables
import bench.work_precision
import convert
import data
import evaluate
import kernels.__main__
import sample
import swiss_roll
import train
from examples import (
    denoise_1d,
    heartbeat,
    inpaint,
    interpolate,
    invert,
    low_dimension,
    memorise,
    swiss_roll_variants,
)
from run import checkpoint, cli
from scores import classifier, fid, likelihood

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "weights" / "digits.safetensors")
HUGE = [2**31, 2**32, 2**63 - 1, 2**63, 10**30]
INTS = [0, 1, 2, 3, 598, -1, -2**31, *HUGE, *(-n for n in HUGE)]
FLOATS = [0., -0., 0.5, 1., 2., -1., 1e-300, 1e300, float("inf"), -float("inf"), float("nan")]
TEXTS = [
    "", ".", "folder", "garbage", "nowhere", "nowhere.safetensors", "garbage/x.png", "new/x.png", "a.xyz", "x" * 300,
    "folder.png", "garbage.safetensors", "garbage.npz", "/dev/null", "/proc/nowhere/x.png",
    "0", "-1", "1", "1,0", "2,1", "1,1", ",", "1.5", "nan", "8", "16x8", "0x8", "8x", "x", "9" * 40, "9" * 5000,
    "9" * 9 + "x8", "é", "数字", "٣", "²", "\udcff", "a\nb", "%s", "{0}", "none", "all", "dead-leaves", "digits",
    "digits:x", "mnist:nowhere", "stream:digits", "cifar10:folder", "crop", "pad", "cpu", "cuda", "auto", "ema", "raw",
    "eps", "v", "beta", "learned", "2m", "trailing", "leading", "linear", "bound", "importance", "bf16",
    "heun", "unipc", "consistency", "karras", "logsnr", "flow", "x0", "min-snr",
    "--image_size 64", "--image_size 8 --x y"]
VALUES = {int: INTS, float: FLOATS, str: TEXTS}
FLAGS = {int: st.sampled_from(INTS), float: st.sampled_from(FLOATS),
         str: st.one_of(st.sampled_from(TEXTS), st.text(max_size=5).filter(lambda s: "\0" not in s))}
SMALL = [0, 1, 2, 3, -1, 10**30]                        # for flags that work and memory grow with


class Script(NamedTuple):
    """A script, and the flags with which it has little to do."""
    main: Callable
    config: type
    base: str                                           # flags for little work
    never: str = ""                                     # flags that are never varied
    small: str = ""                                     # flags whose values are limited, to bound the work
    command: str = ""
    examples: int = 15


SCRIPTS = {
    # compile takes a minute; the other networks are large
    "train": Script(train.main, train.Config, "--T 2 --steps 1 --batch 2 --warmup 1 --out new",
                    "compile network", "T steps batch accumulate workers", examples=40),
    "sample": Script(sample.main, sample.Config, f"--checkpoint {DIGITS} --n 1 --steps 1 --out new", "compile", "n",
                     examples=40),
    "classes": Script(evaluate.main, evaluate.Classes, f"--checkpoint {DIGITS} --n 40 --steps 1", "", "n", "classes"),
    "nll": Script(evaluate.main, likelihood.Config, f"--checkpoint {DIGITS} --n 2 --times 1 --out new.png", "n",
                  "times", "nll"),
    "neighbours": Script(evaluate.main, evaluate.Neighbours, f"--checkpoint {DIGITS} --n 2 --steps 1 --among 5 --k 1",
                         "", "n", "neighbours"),
    "fid": Script(evaluate.main, fid.Config, "--pictures digits --data digits", "", "n", "fid"),
    "classifier": Script(evaluate.main, evaluate.Classifier, "--steps 2 --out new.safetensors", "", "steps",
                         "classifier"),
    "convert": Script(convert.main, convert.Config, f"--source {DIGITS} --to new.safetensors"),
    "checkpoint": Script(checkpoint.main, checkpoint.Config, f"--source {DIGITS} --to new.safetensors"),
    "swiss_roll": Script(swiss_roll.main, swiss_roll.Config, "--steps 1", "", "steps"),
    "denoise_1d": Script(denoise_1d.main, denoise_1d.Config, "--steps 1 --batch 1", "", "steps batch"),
    "heartbeat": Script(heartbeat.main, heartbeat.Config, "--steps 1 --n 1", "", "steps n"),
    "inpaint": Script(inpaint.main, inpaint.Config, f"--checkpoint {DIGITS} --n 1 --samples 1 --steps 1 --rounds 1",
                      "", "draws rounds"),
    "interpolate": Script(interpolate.main, interpolate.Config,
                          f"--checkpoint {DIGITS} --pairs 1 --stops 2 --steps 1", "", "stops"),
    "invert": Script(invert.main, invert.Config, f"--checkpoint {DIGITS} --n 1 --steps 1"),
    "low_dimension": Script(low_dimension.main, low_dimension.Config, "--steps 1 --batch 1 --n 1"),
    "work_precision": Script(bench.work_precision.main, bench.work_precision.Config,
                             f"--checkpoint {DIGITS} --n 4 --steps 1"),
    "memorise": Script(memorise.main, memorise.Config, f"--checkpoint {DIGITS} --n 1 --steps 1", "", "n"),
    "swiss_roll_variants": Script(swiss_roll_variants.main, swiss_roll_variants.Config, "--steps 1", "", "steps"),
    "kernels": Script(kernels.__main__.main, kernels.__main__.Config, ""),
    "bench": Script(bench.__main__.main, bench.__main__.Config, ""),
    "memory": Script(bench.memory.main, bench.memory.Config, "--networks digits --out new.md"),
    "tables": Script(bench.tables.main, bench.tables.Config, ""),
}


@st.composite
def flags_of(draw, script: Script) -> list[str]:
    """One to three flags of the script, with arbitrary values of their types."""
    changeable = [f for f in fields(script.config) if f.name not in script.never.split()]
    argv = []
    for field in draw(st.lists(st.sampled_from(changeable), min_size=1, max_size=3, unique_by=lambda f: f.name)):
        name = field.name.rstrip("_")
        if field.type is bool:
            argv.append(draw(st.sampled_from([f"--{name}", f"--no-{name}"])))
        else:
            values = st.sampled_from(SMALL) if name in script.small.split() else FLAGS[field.type]
            argv.append(f"--{name}={draw(values)}")
    return argv


class Started(Exception):
    """Raised when the flags are checked and the work would start."""


def start(*args, **kwargs) -> None:
    raise Started


# work that is long for any flags
LONG = ((swiss_roll, "train"), (swiss_roll_variants, "learn"), (heartbeat, "train"), (denoise_1d, "denoised"),
        (low_dimension, "sampled"), (bench.work_precision, "digits"), (kernels.__main__, "report"),
        (bench.__main__, "pytest"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Stops work that is long for any flags before it starts; nothing is downloaded."""
    for module, name in LONG:
        monkeypatch.setattr(module, name, start)
    for name, path in classifier.FILES.items():
        monkeypatch.setitem(classifier.FILES, name, ROOT / path)
    monkeypatch.setattr(data, "digits", functools.cache(data.digits))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    yield
    torch.use_deterministic_algorithms(False)


def lay_out(folder: Path) -> None:
    """Creates paths of TEXTS: a folder, a folder named as a picture, and garbage under several names."""
    for name in ("folder", "folder.png"):
        (folder / name).mkdir()
    for name in ("garbage", "garbage.safetensors", "garbage.npz"):
        (folder / name).write_bytes(bytes(range(256)) * 4)


def ends_well(script: Script, argv: list[str]) -> str:
    """Runs the script; returns its error message, checked to be one sentence, or "" if it succeeds."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            script.main([*script.command.split(), *script.base.split(), *argv])
            return ""
        except Started:
            return ""
        except SystemExit as stop:
            assert stop.code == 2, argv
    progress = re.compile(r"\d%\|.*/s")
    lines = [x for x in re.split("[\r\n]+", err.getvalue()) if x.strip() and not progress.search(x)]
    assert "usage: " in lines[0] or len(lines) == 1 and re.match(r"\w+\.py: .{10}", lines[0]), (argv, lines)
    return lines[-1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_any_flags(name, tmp_path_factory, monkeypatch):
    script = SCRIPTS[name]

    @settings(max_examples=script.examples, derandomize=True, database=None, deadline=None)
    @given(flags_of(script))
    def check(argv: list[str]) -> None:
        monkeypatch.chdir(tmp_path_factory.mktemp("flags"))
        lay_out(Path.cwd())
        ends_well(script, argv)

    check()


@pytest.mark.parametrize("name, argv, message", [
    ("train", "--batch=" + "9" * 31, "batch is 9+; it must be less than 2..31"), ("train", "--lr=inf", "lr is inf"),
    ("train", "--steps=2147483648", "steps is"), ("train", "--T=2000000", "T is 2000000"),
    ("train", "--batch=2147483647", "batch is 2147483647"),
    ("train", "--size=" + "9" * 5000, "size is"), ("train", "--size=٣", "size is"), ("train", "--size=²", "size is"),
    ("train", "--workers=5000", "workers is 5000"), ("train", "--T=" + "9" * 5000, "invalid int"),
    ("train", "--data=a\nb", "no data set 'a.*nb'"), ("sample", "--checkpoint=a\nb", "no checkpoint a b"),
    ("sample", "--n=1" + "0" * 30, "n is 10+; it"), ("sample", "--guidance=1e300", "not finite"),
    ("classes", "--n=3", "n is 3"), ("classes", "--guidance=1e300", "not finite"),
    ("classes", "--among=-1", "among is -1"), ("classes", "--held_out=dead-leaves-grey", "has no end"),
    ("classifier", "--data=dead-leaves", "has no held-out pictures"),
    ("neighbours", "--among=-1", "among is -1"),
    ("neighbours", "--among=1", "of 1 pictures"), ("nll", "--n=-1", "n is -1"), ("fid", "--n=-1", "n is -1"),
    ("fid", "--batch=0", "batch is 0"), ("classifier", "--steps=0", "steps is 0"),
    ("classifier", "--out=", "a folder"), ("classifier", "--out=" + "x" * 300, "too long"),
    ("interpolate", "--pairs=0", "pairs is 0"), ("interpolate", "--pairs=299", "pairs is 299"),
    ("interpolate", "--stops=-1", "stops is -1"), ("invert", "--n=0", "n is 0"), ("invert", "--n=-1", "n is -1"),
    ("memorise", "--n=0", "n is 0"), ("memorise", "--n=-1", "n is -1"), ("inpaint", "--n=598", "n is 598"),
    ("inpaint", "--rounds=0", "rounds is 0"), ("inpaint", "--sigma=nan", "sigma is nan"),
    ("denoise_1d", "--batch=0", "batch is 0"), ("denoise_1d", "--sigma=nan", "sigma is nan")])
def test_flags_that_once_caused_a_traceback_or_a_wrong_result(name, argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = ends_well(SCRIPTS[name], [argv])
    assert re.search(message, error), error


@settings(max_examples=20, derandomize=True, database=None, deadline=None)
@given(flags=flags_of(SCRIPTS["train"]._replace(never="compile network out")))
def test_a_run_is_not_lost_whatever_the_next_flags_are(flags, tmp_path_factory, run):
    before = checkpoint.load(run / "last.safetensors").step
    ends_well(SCRIPTS["train"], [*flags, f"--out={run}"])
    assert checkpoint.load(run / "last.safetensors").step >= before


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a training run of one step."""
    folder = tmp_path_factory.mktemp("run")
    train.main([*SCRIPTS["train"].base.split(), f"--out={folder}"])
    return folder


# Out of memory

LIMITED = """
import resource, runpy, sys
import torch
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("argv", [
    "train.py --size 9999 --T 2 --steps 1 --out new", f"sample.py --checkpoint {DIGITS} --n 2147483647 --out new"])
def test_too_little_memory_is_a_sentence(argv, tmp_path):
    script, *flags = argv.split()
    result = subprocess.run([sys.executable, "-c", LIMITED, str(ROOT / script), *flags], cwd=tmp_path, text=True,
                            capture_output=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    lines = [line for line in result.stderr.splitlines() if "%|" not in line]
    assert result.returncode == 2 and lines == [f"{script}: there is not enough memory; use a smaller batch, size, "
                                                f"network or number of pictures"], result


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("Storage size calculation overflowed with sizes=[4611686018427387904]"),
    RuntimeError("std::bad_alloc")])
def test_every_way_to_run_out_of_memory(error, capsys):
    @cli.script
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2 and "not enough memory" in capsys.readouterr().err
