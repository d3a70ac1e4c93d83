"""Damaged and wrong files of tensors of this project's: checkpoints, classifiers, statistics; and a run's log.

As a script it is evaluate.py fid with features of the pixels, in the place of a network that would have to be fetched.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch

from run import cli
from run.checkpoint import LAST, PREVIOUS
from scores import fid
from tests.attack.damage import tensor_files
from tests.attack.harness import Case

TRAIN = [f"--{flag}" for flag in ("T=4", "batch=4", "warmup=1", "log_every=1", "save_every=1", "sample_every=100",
                                  "out=run")]
RESUME = ["train.py", *TRAIN, "--steps", "6"]
SAMPLE = ["sample.py", "--checkpoint", "x.safetensors", "--n", "2", "--steps", "2", "--out", "out"]
COPY = ["-m", "run.checkpoint", "--source", "x.safetensors", "--to", "new.safetensors"]
CLASSES = ["evaluate.py", "classes", "--n", "20", "--steps", "1", "--classifier", "x.safetensors", "--checkpoint"]
FID = ["-m", "tests.attack.tensors", "--pictures", "few.npz", "--data", "few.npz", "--cache", "cache"]


@cli.script
def main(argv: list[str]) -> None:
    fid.fid(argv, lambda device: lambda pixels: torch.nn.functional.adaptive_avg_pool2d(
        pixels.float() / 255, 2).flatten(1))


def checkpoints(base: Path, rng: random.Random) -> Iterator[Case]:
    """To sample from, to resume and to copy."""
    for kind, n, command in (("sampled", 10, SAMPLE), ("resumed", 12, RESUME), ("copied", 2, COPY)):
        for name, content in tensor_files(rng, base / "run" / LAST, n).items():
            files = {"x.safetensors": content} if command != RESUME else {
                "run": base / "run", f"run/{PREVIOUS}": Path.unlink, f"run/{LAST}": content}
            yield Case(f"{kind} checkpoint", name, files, command)


def caches(base: Path, rng: random.Random) -> Iterator[Case]:
    """Weights of the classifier, and statistics of the FID."""
    for name, content in tensor_files(rng, base / "classifier.safetensors", 3).items():
        yield Case("classifier", name, {"x.safetensors": content}, [*CLASSES, str(base / "digits.safetensors")])
    [sound] = (base / "cache").iterdir()
    for name, content in tensor_files(rng, sound, 3).items():
        yield Case("FID cache", name, {"few.npz": base / "few.npz", f"cache/{sound.name}": content}, FID)


def logs(base: Path, rng: random.Random) -> Iterator[Case]:
    """Wrong lines of log.jsonl, among sound ones."""
    whole = (base / "run" / "log.jsonl").read_bytes()
    for line in (b"", b" ", b"{", b"[]", b"3", b"null", b'"x"', b"{}", b'{"step": null}', b'{"step": "2"}',
                 b'{"step": NaN}', b"\0" * 100, b"\xff"):
        for where, log in {"first": line + b"\n" + whole, "torn": whole + line}.items():
            yield Case("log", f"{where}: {line[:40]!r}", {"run": base / "run", "run/log.jsonl": log}, RESUME)
