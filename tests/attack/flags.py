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

TEXTS = [
    "", ".", "folder", "garbage", "nowhere", "nowhere.pt", "garbage/x.png", "new/x.png", "a.xyz", "x" * 300,
    "folder.png", "garbage.safetensors", "garbage.npz", "/dev/null", "/proc/nowhere/x.png", "0", "-1", "1", "1,0",
    "2,1", "1,1", ",", "1.5", "nan", "8", "16x8", "0x8", "8x", "x", "9" * 40, "é", "²", "\udcff", "a\nb", "%s", "{0}",
    "none", "all", "dead-leaves", "digits", "digits:x", "mnist:nowhere", "stream:digits", "cifar10:folder", "crop",
    "pad", "cpu", "cuda", "auto", "ema", "raw", "eps", "v", "beta", "learned", "2m", "trailing", "leading", "linear",
    "bound", "importance", "bf16", "heun", "unipc", "consistency", "karras", "logsnr", "flow", "x0", "min-snr",
    "--image_size 64", "--image_size 8 --x y"]
HUGE = [2**31, 2**32, 2**63, 10**30]
VALUES = {int: [0, 1, 2, 3, 598, -1, *HUGE, *(-n for n in HUGE)], str: TEXTS,
          float: [0., -0., 0.5, 1., 2., -1., 1e-300, 1e300, float("inf"), -float("inf"), float("nan")]}
SMALL = [0, 1, 2, 3, -1, 10**30]                        # for flags that work and memory grow with
FILES = {"weights": ROOT / "weights", "folder": Path.mkdir, "folder.png": Path.mkdir,
         **dict.fromkeys(("garbage", "garbage.safetensors", "garbage.npz"), bytes(range(256)) * 4)}


class Script(NamedTuple):
    """A script, and the flags with which it has little to do."""
    run: str                                            # the command, with flags for little work
    small: str = ""                                     # flags whose values are limited, to bound the work
    long: str = ""                                      # its function that takes long, where the case ends
    config: str = ""                                    # where its flags are described, if not in its module's Config
    never: str = ""                                     # flags that are never varied

    @property
    def module(self) -> str:
        """As it is imported."""
        return self.run.removeprefix("-m ").split()[0].removesuffix(".py").replace("/", ".")

    def case(self, kind: str, flags: list[str], says: str = "") -> Case:
        """The script with these flags."""
        return Case(kind, f"{self.run.split(' --')[0]} {flags}"[:90], FILES, [*self.run.split(), *flags], says,
                    partial(stop_at, self.module, self.long) if self.long else None)


SCRIPTS = {
    # compile takes a minute; the other networks are large
    "train": Script("train.py --T 2 --steps 1 --batch 2 --warmup 1 --out new", "T steps batch accumulate workers",
                    never="compile network"),
    "sample": Script("sample.py --n 1 --steps 1 --out new", "n", never="compile"),
    "classes": Script("evaluate.py classes --n 40 --steps 1", "n", config="evaluate.Classes"),
    "nll": Script("evaluate.py nll --n 2 --times 1 --out new.png", "times", config="scores.likelihood.Config",
                  never="n"),
    "neighbours": Script("evaluate.py neighbours --n 2 --steps 1 --among 5 --k 1", "n", config="evaluate.Neighbours"),
    "fid": Script("evaluate.py fid --pictures digits --data digits", "n", config="scores.fid.Config"),
    "classifier": Script("evaluate.py classifier --steps 2 --out new.safetensors", "steps",
                         config="evaluate.Classifier"),
    "convert": Script("convert.py --source weights/digits.safetensors --to new.safetensors"),
    "checkpoint": Script("-m run.checkpoint --source weights/digits.safetensors --to new.safetensors"),
    "swiss_roll": Script("swiss_roll.py --steps 1", "steps", "train"),
    "denoise_1d": Script("examples/denoise_1d.py --steps 1 --batch 1", "steps batch", "denoised"),
    "heartbeat": Script("examples/heartbeat.py --steps 1 --n 1", "steps n", "train"),
    "inpaint": Script("examples/inpaint.py --n 1 --samples 1 --steps 1 --rounds 1", "draws rounds"),
    "interpolate": Script("examples/interpolate.py --pairs 1 --stops 2 --steps 1", "stops"),
    "invert": Script("examples/invert.py --n 1 --steps 1"),
    "low_dimension": Script("examples/low_dimension.py --steps 1 --batch 1 --n 1", long="sampled"),
    "memorise": Script("examples/memorise.py --n 1 --steps 1", "n"),
    "swiss_roll_variants": Script("examples/swiss_roll_variants.py --steps 1", "steps", "learn"),
    "kernels": Script("-m kernels.__main__", long="comparisons"),
    "bench": Script("-m bench.__main__ --out new", long="pytest"),
    "work_precision": Script("-m bench.work_precision --n 4 --steps 1", long="state_error"),
    "tables": Script("-m bench.tables --out folder"),
}


def flags(base: Path, rng: random.Random) -> Iterator[Case]:
    """One to three flags of each script, with arbitrary values of their types."""
    for name, script in SCRIPTS.items():
        module, config = (script.config or f"{script.module}.Config").rsplit(".", 1)
        choices = [f for f in fields(getattr(import_module(module), config)) if f.name not in script.never.split()]
        for _ in range(14 if name in ("train", "sample") else 4):
            argv = []
            for field in rng.sample(choices, min(len(choices), rng.randint(1, 3))):
                flag = field.name.rstrip("_")
                values = SMALL if flag in script.small.split() else VALUES.get(field.type)
                argv.append(f"--{flag}={rng.choice(values)}" if values else rng.choice([f"--{flag}", f"--no-{flag}"]))
            yield script.case("flags", argv)


KNOWN = {
    "train": {"batch=" + "9" * 31: "batch is 9+; it must be less than 2..31", "lr=inf": "lr is inf",
              "steps=2147483648": "steps is", "T=2000000": "T is 2000000", "batch=2147483647": "batch is 2147483647",
              "size=" + "9" * 5000: "size is", "size=²": "size is", "workers=5000": "workers is 5000",
              "T=" + "9" * 5000: "invalid int", "data=a\nb": "no data set 'a.*nb'", "size=9999": "not enough memory"},
    "sample": {"checkpoint=a\nb": "no checkpoint a b", "n=2147483647": "not enough memory",
               "n=1" + "0" * 30: "n is 10+; it", "guidance=1e300": "not finite"},
    "classes": {"n=3": "n is 3", "guidance=1e300": "not finite", "among=-1": "among is -1",
                "held_out=dead-leaves-grey": "has no end"},
    "classifier": {"data=dead-leaves": "no held-out pictures of 'dead-leaves'", "steps=0": "steps is 0",
                   "out=": "a folder", "out=" + "x" * 300: "too long"},
    "neighbours": {"among=-1": "among is -1", "among=1": "of 1 pictures"},
    "nll": {"n=-1": "n is -1", "times=-1": "times is -1", "batch=0": "batch is 0", "weights=best": "weights is 'best'",
            "data=dead-leaves-grey": "has no labels", "out=nll.xyz": "xyz", "variance=learned": "output is .4, 1"},
    "fid": {"n=-1": "n is -1", "batch=0": "batch is 0"},
    "invert": {"n=0": "n is 0", "n=598": "n is 598", "checkpoint=none": "no checkpoint none"},
    "memorise": {"n=-1": "n is -1", "checkpoint=none": "no checkpoint none"},
    "interpolate": {"pairs=0": "pairs is 0", "pairs=299": "pairs is 299", "stops=-1": "stops is -1",
                    "checkpoint=none": "no checkpoint none"},
    "inpaint": {"n=598": "n is 598", "rounds=0": "rounds is 0", "sigma=nan": "sigma is nan",
                "checkpoint=none": "no checkpoint none"},
    "denoise_1d": {"batch=0": "batch is 0", "sigma=nan": "sigma is nan", "steps=0": "steps is 0"},
    "low_dimension": {"steps=0": "steps is 0", "dimensions=1": "dimensions is .1.; it must list numbers from 2",
                      "out=/proc/nowhere/x.png": "/proc/nowhere"},
    **{name: {"steps=0": "steps is 0", "seed=-1": "seed is -1", "out=/proc/nowhere/x.png": "/proc/nowhere"}
       for name in ("swiss_roll", "heartbeat", "swiss_roll_variants")},
    "kernels": {"networks=nowhere": "networks is 'nowhere'"}}


def known_flags(base: Path, rng: random.Random) -> Iterator[Case]:
    """What once caused a traceback or a wrong result."""
    for name, sentences in KNOWN.items():
        for flag, says in sentences.items():
            yield SCRIPTS[name].case("known flags", [f"--{flag}"], says)
