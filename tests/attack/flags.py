"""Arbitrary flags of every script, and flags that once caused a traceback or a wrong result."""

import random
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from tests.attack.harness import Case, stop_at
from tests.forks import ROOT

HUGE = [2**31, 2**32, 2**63 - 1, 2**63, 10**30]
TEXTS = [
    "", ".", "folder", "garbage", "nowhere", "nowhere.pt", "garbage/x.png", "new/x.png", "a.xyz", "x" * 300,
    "folder.png", "garbage.safetensors", "garbage.npz", "/dev/null", "/proc/nowhere/x.png",
    "0", "-1", "1", "1,0", "2,1", "1,1", ",", "1.5", "nan", "8", "16x8", "0x8", "8x", "x", "9" * 40, "9" * 5000,
    "9" * 9 + "x8", "é", "数字", "٣", "²", "\udcff", "a\nb", "%s", "{0}", "none", "all", "dead-leaves", "digits",
    "digits:x", "mnist:nowhere", "stream:digits", "cifar10:folder", "crop", "pad", "cpu", "cuda", "auto", "ema", "raw",
    "eps", "v", "beta", "learned", "2m", "trailing", "leading", "linear", "bound", "importance", "bf16",
    "heun", "unipc", "consistency", "karras", "logsnr", "flow", "x0", "min-snr",
    "--image_size 64", "--image_size 8 --x y"]
VALUES = {int: [0, 1, 2, 3, 598, -1, -2**31, *HUGE, *(-n for n in HUGE)], str: TEXTS,
          float: [0., -0., 0.5, 1., 2., -1., 1e-300, 1e300, float("inf"), -float("inf"), float("nan")]}
SMALL = [0, 1, 2, 3, -1, 10**30]                        # for flags that work and memory grow with
FILES = {"weights": ROOT / "weights", "folder": Path.mkdir, "folder.png": Path.mkdir,
         **dict.fromkeys(("garbage", "garbage.safetensors", "garbage.npz"), bytes(range(256)) * 4)}


class Script(NamedTuple):
    """A script, and the flags with which it has little to do."""
    run: str                                            # the command, with flags for little work
    config: str                                         # where its flags are described
    never: str = ""                                     # flags that are never varied
    small: str = ""                                     # flags whose values are limited, to bound the work
    long: str = ""                                      # a function that takes long for any flags: the case ends there

    def case(self, kind: str, flags: list[str], says: str = "") -> Case:
        """The script with these flags."""
        return Case(kind, f"{self.run.split(' --')[0]} {flags}"[:90], FILES, [*self.run.split(), *flags], says,
                    partial(stop_at, self.long) if self.long else None)


SCRIPTS = {
    # compile takes a minute; the other networks are large
    "train": Script("train.py --T 2 --steps 1 --batch 2 --warmup 1 --out new", "train.Config", "compile network",
                    "T steps batch accumulate workers"),
    "sample": Script("sample.py --n 1 --steps 1 --out new", "sample.Config", "compile", "n"),
    "classes": Script("evaluate.py classes --n 40 --steps 1", "evaluate.Classes", "", "n"),
    "nll": Script("evaluate.py nll --n 2 --times 1 --out new.png", "scores.likelihood.Config", "n", "times"),
    "neighbours": Script("evaluate.py neighbours --n 2 --steps 1 --among 5 --k 1", "evaluate.Neighbours", "", "n"),
    "fid": Script("evaluate.py fid --pictures digits --data digits", "scores.fid.Config", "", "n"),
    "classifier": Script("evaluate.py classifier --steps 2 --out new.safetensors", "evaluate.Classifier", "", "steps"),
    "convert": Script("convert.py --source weights/digits.safetensors --to new.safetensors", "convert.Config"),
    "checkpoint": Script("-m run.checkpoint --source weights/digits.safetensors --to new.safetensors",
                         "run.checkpoint.Config"),
    "swiss_roll": Script("swiss_roll.py --steps 1", "swiss_roll.Config", "", "steps", "swiss_roll.train"),
    "denoise_1d": Script("examples/denoise_1d.py --steps 1 --batch 1", "examples.denoise_1d.Config", "", "steps batch",
                         "examples.denoise_1d.denoised"),
    "heartbeat": Script("examples/heartbeat.py --steps 1 --n 1", "examples.heartbeat.Config", "", "steps n",
                        "examples.heartbeat.train"),
    "inpaint": Script("examples/inpaint.py --n 1 --samples 1 --steps 1 --rounds 1", "examples.inpaint.Config", "",
                      "draws rounds"),
    "interpolate": Script("examples/interpolate.py --pairs 1 --stops 2 --steps 1", "examples.interpolate.Config", "",
                          "stops"),
    "invert": Script("examples/invert.py --n 1 --steps 1", "examples.invert.Config"),
    "low_dimension": Script("examples/low_dimension.py --steps 1 --batch 1 --n 1", "examples.low_dimension.Config",
                            long="examples.low_dimension.sampled"),
    "memorise": Script("examples/memorise.py --n 1 --steps 1", "examples.memorise.Config", "", "n"),
    "swiss_roll_variants": Script("examples/swiss_roll_variants.py --steps 1", "examples.swiss_roll_variants.Config",
                                  "", "steps", "examples.swiss_roll_variants.learn"),
    "kernels": Script("-m kernels.__main__", "kernels.__main__.Config", long="kernels.__main__.reports"),
    "bench": Script("-m bench.__main__ --out new", "bench.__main__.Config", long="bench.__main__.pytest"),
    "work_precision": Script("-m bench.work_precision --n 4 --steps 1", "bench.work_precision.Config",
                             long="bench.work_precision.state_error"),
    "tables": Script("-m bench.tables --out folder", "bench.tables.Config"),
    "memory": Script("-m bench.memory --networks digits --out new.md", "bench.memory.Config"),
}


def flags(base: Path, rng: random.Random) -> Iterator[Case]:
    """One to three flags of each script, with arbitrary values of their types."""
    for script in SCRIPTS.values():
        module, name = script.config.rsplit(".", 1)
        choices = [f for f in fields(getattr(import_module(module), name)) if f.name not in script.never.split()]
        for _ in range(12 if script.run.startswith(("train", "sample")) else 4):
            argv = []
            for field in rng.sample(choices, min(len(choices), rng.randint(1, 3))):
                flag = field.name.rstrip("_")
                values = SMALL if flag in script.small.split() else VALUES.get(field.type)
                argv.append(f"--{flag}={rng.choice(values)}" if values else rng.choice([f"--{flag}", f"--no-{flag}"]))
            yield script.case("flags", argv)


def known_flags(base: Path, rng: random.Random) -> Iterator[Case]:
    """What once caused a traceback or a wrong result."""
    for name, flag, says in [
            ("train", "--batch=" + "9" * 31, "batch is 9+; it must be less than 2..31"),
            ("train", "--lr=inf", "lr is inf"),
            ("train", "--steps=2147483648", "steps is"), ("train", "--T=2000000", "T is 2000000"),
            ("train", "--batch=2147483647", "batch is 2147483647"), ("train", "--size=" + "9" * 5000, "size is"),
            ("train", "--size=٣", "size is"), ("train", "--size=²", "size is"),
            ("train", "--workers=5000", "workers is 5000"), ("train", "--T=" + "9" * 5000, "invalid int"),
            ("train", "--data=a\nb", "no data set 'a.*nb'"), ("train", "--size=9999", "not enough memory"),
            ("sample", "--checkpoint=a\nb", "no checkpoint a b"), ("sample", "--n=2147483647", "not enough memory"),
            ("sample", "--n=1" + "0" * 30, "n is 10+; it"), ("sample", "--guidance=1e300", "not finite"),
            ("classes", "--n=3", "n is 3"), ("classes", "--guidance=1e300", "not finite"),
            ("classes", "--among=-1", "among is -1"), ("classes", "--held_out=dead-leaves-grey", "has no end"),
            ("classifier", "--data=dead-leaves", "no held-out pictures of 'dead-leaves'"),
            ("neighbours", "--among=-1", "among is -1"),
            ("neighbours", "--among=1", "of 1 pictures"), ("nll", "--n=-1", "n is -1"), ("fid", "--n=-1", "n is -1"),
            ("fid", "--batch=0", "batch is 0"), ("classifier", "--steps=0", "steps is 0"),
            ("classifier", "--out=", "a folder"), ("classifier", "--out=" + "x" * 300, "too long"),
            ("interpolate", "--pairs=0", "pairs is 0"), ("interpolate", "--pairs=299", "pairs is 299"),
            ("interpolate", "--stops=-1", "stops is -1"), ("invert", "--n=0", "n is 0"),
            ("invert", "--n=-1", "n is -1"),
            ("memorise", "--n=0", "n is 0"), ("memorise", "--n=-1", "n is -1"), ("inpaint", "--n=598", "n is 598"),
            ("inpaint", "--rounds=0", "rounds is 0"), ("inpaint", "--sigma=nan", "sigma is nan"),
            ("denoise_1d", "--batch=0", "batch is 0"), ("denoise_1d", "--sigma=nan", "sigma is nan")]:
        yield SCRIPTS[name].case("known flags", [flag], says)
