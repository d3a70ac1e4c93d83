"""Damaged and wrong files: of this project's tensors, of a run's log, and of published models.

As a script it is evaluate.py fid with features of the pixels, in the place of a network that would have to be fetched.
"""

import copy
import io
import json
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from run import cli, tensors
from run.checkpoint import LAST, PREVIOUS
from scores import fid
from tests.attack.harness import Case
from tests.helpers import Trap
from tests.published import networks

TRAIN = [f"--{flag}" for flag in ("T=4", "batch=4", "warmup=1", "log_every=1", "save_every=1", "sample_every=100",
                                  "out=run")]
RESUME = ["train.py", *TRAIN, "--steps", "6"]
SAMPLE = ["sample.py", "--n", "2", "--steps", "2", "--out", "out"]
COPY = ["-m", "run.checkpoint", "--source", "x.safetensors", "--to", "new.safetensors"]
CLASSES = ["evaluate.py", "classes", "--n", "20", "--steps", "1", "--classifier", "x.safetensors", "--checkpoint"]
FID = ["-m", "tests.attack.files", "--pictures", "few.npz", "--data", "few.npz", "--cache", "cache"]
CONVERT = ["convert.py", "--to", "new.safetensors", "--source"]

VALUES = [None, True, -1, 0, 1, 3, 1.5, 2**31, 10**12, 10**30, float("nan"), float("inf"), "", "x", "1", "\udcff", [],
          [1], [None], [[1, 2], [3]], [64] * 1000, {}, {"x": 10**30}]
TEXTS = ("", "{", "[]", "null", "3", "{}", "NaN", '{"sample_size": 16}')
SCHEDULER = {"num_train_timesteps": 500, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear",
             "trained_betas": None, "prediction_type": "epsilon", "variance_type": "fixed_large", "clip_sample": True,
             "clip_sample_range": 1., "thresholding": False, "timestep_spacing": "leading", "steps_offset": 0}


@cli.script
def main(argv: list[str]) -> None:
    fid.fid(argv, lambda device: lambda pixels: torch.nn.functional.adaptive_avg_pool2d(
        pixels.float() / 255, 2).flatten(1))


# What can be wrong with a file, by chance

def with_wrong_tensor(rng: random.Random, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy in which one tensor is another that could stand there and should not, is missing, or has another name."""
    name = rng.choice([*weights])
    rest, w = {key: w for key, w in weights.items() if key != name}, weights[name].float()
    others = [w.flatten()[:-1].clone(), w.flatten().repeat(2), torch.tensor(1.), torch.empty(0), w * torch.nan,
              w + torch.inf, -w.abs() - 1, w.half(), w.double(), w.long(), w > 0,
              w.mT.contiguous() if w.ndim > 1 else w[:, None]]
    return rest | rng.choice([*({name: other} for other in others), {}, {f"{name}x": weights[name]}])


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place within nested dicts and lists: what holds it, and its key or index there."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield value, key
        yield from places(part)


def with_wrong_value(rng: random.Random, facts: dict) -> dict:
    """A copy in which one place has a wrong value, or is missing."""
    facts = copy.deepcopy(facts) or {"a fact": 1}
    holder, key = rng.choice([*places(facts)])
    if rng.random() < 0.15:
        del holder[key]
    else:
        holder[key] = rng.choice(VALUES)
    return facts


def damaged(rng: random.Random, raw: bytes) -> bytes:
    """The bytes with a few bits flipped, mostly early ones, or cut, or with others put in."""
    spoilt = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(len(raw), rng.choice([40, 400, len(raw)])))
        spoilt[place] ^= 1 << rng.randrange(8)
    how, place = rng.random(), rng.randrange(len(raw))
    if how < 0.3:
        return bytes(spoilt[:place]) + (rng.randbytes(rng.randint(1, 64)) + spoilt[place:] if how > 0.2 else b"")
    return bytes(spoilt)


def wrong_files(rng: random.Random, raw: bytes, n: int) -> dict[str, bytes]:
    """What can happen to any file, by name: it is empty, another, cut, longer, and n times damaged by chance."""
    return {"empty": b"", "a text": b"a text", "a pickle": pickle.dumps(Trap()), "a byte more": raw + b"x",
            **{f"cut at {k}": raw[:k] for k in (7, len(raw) // 2, -1)},
            **{f"bits {k}": damaged(rng, raw) for k in range(n)}}


# Files of this project's

def changed_copy(sound: Path, change: Callable[[dict, dict], tuple[dict, Any]]) -> Callable[[Path], object]:
    """What writes the file of tensors to a path, after a change of its tensors and facts, which may become a text."""
    def write(path: Path) -> None:
        content, facts = change(*tensors.load(sound))
        text = facts if isinstance(facts, str) else json.dumps(facts)
        path.write_bytes(save({name: w.contiguous() for name, w in content.items()}, {"facts": text}))
    return write


def tensor_files(rng: random.Random, sound: Path, n: int) -> dict[str, bytes | Callable[[Path], object]]:
    """Variants of a file of this project's, by name: the fixed ones, and n of each kind by chance."""
    contents = wrong_files(rng, sound.read_bytes(), n)
    for text in TEXTS:
        contents[f"facts {text!r}"] = changed_copy(sound, lambda content, facts, text=text: (content, text))
    for seed in rng.sample(range(2**31), n):
        contents[f"a tensor {seed}"] = changed_copy(sound, lambda content, facts, seed=seed: (
            with_wrong_tensor(random.Random(seed), content), facts))
        contents[f"a fact {seed}"] = changed_copy(sound, lambda content, facts, seed=seed: (
            content, with_wrong_value(random.Random(seed), facts)))
    return contents


def own_files(base: Path, rng: random.Random) -> Iterator[Case]:
    """Checkpoints to sample from, to resume and to copy; the classifier; statistics of the FID."""
    last, [statistics] = base / "run" / LAST, (base / "cache").iterdir()
    resumed = {"run": base / "run", f"run/{PREVIOUS}": Path.unlink}
    for kind, n, sound, file, files, command in (
            ("sampled checkpoint", 10, last, "x.safetensors", {}, [*SAMPLE, "--checkpoint", "x.safetensors"]),
            ("resumed checkpoint", 12, last, f"run/{LAST}", resumed, RESUME),
            ("copied checkpoint", 2, last, "x.safetensors", {}, COPY),
            ("classifier", 3, base / "classifier.safetensors", "x.safetensors", {},
             [*CLASSES, str(base / "digits.safetensors")]),
            ("FID cache", 3, statistics, f"cache/{statistics.name}", {"few.npz": base / "few.npz"}, FID)):
        for name, content in tensor_files(rng, sound, n).items():
            yield Case(kind, name, {**files, file: content}, command)


def logs(base: Path, rng: random.Random) -> Iterator[Case]:
    """Wrong lines of log.jsonl, among sound ones."""
    whole = (base / "run" / "log.jsonl").read_bytes()
    for line in (b"", b" ", b"{", b"[]", b"3", b"null", b'"x"', b"{}", b'{"step": null}', b'{"step": "2"}',
                 b'{"step": NaN}', b"\0" * 100, b"\xff"):
        for where, log in {"first": line + b"\n" + whole, "torn": whole + line}.items():
            yield Case("log", f"{where}: {line[:40]!r}", {"run": base / "run", "run/log.jsonl": log}, RESUME)


# Published models

def settings(base: Path, rng: random.Random) -> Iterator[Case]:
    """Wrong config.json, scheduler_config.json and flags of published models."""
    openai, model = {"model.pt": base / "openai.pt"}, {"model": base / "bin"}
    for kind, n, file, sound, files, source in (
            ("config.json", 40, "model/unet/config.json", networks.CONFIG, model, "model"),
            ("config.json", 20, "model/scheduler/scheduler_config.json", SCHEDULER, model, "model"),
            ("published flags", 30, "model.json", json.loads((base / "openai.json").read_text()), openai, "model.pt")):
        for text in (*TEXTS, *(json.dumps(with_wrong_value(rng, sound)) for _ in range(n))):
            yield Case(kind, text[-70:], {**files, file: text.encode()}, [*CONVERT, source])
    for text in ("--image_size", "--image_size x", "--x 1", "--image_size 64 --image_size -3", "--channel_mult 1,0",
                 "--attention_resolutions 0", "--channel_mult nan", "--num_head_channels 0", "--dropout inf",
                 "nowhere.json", "model.pt", ".", "--", "--learn_sigma maybe", "--noise_schedule sqrt"):
        yield Case("published flags", text, openai, [*CONVERT, "model.pt", "--flags", text])


def saved(content: Any, **how) -> bytes:
    """What torch.save writes."""
    torch.save(content, file := io.BytesIO(), **how)
    return file.getvalue()


def pickled_files(rng: random.Random, sound: Path) -> dict[str, bytes]:
    """Variants of a file of torch.save's, by name."""
    weights = torch.load(sound, weights_only=True)
    first = next(iter(weights))
    others = {"a trap": Trap(), "no tensor": 3, "none": None, "sparse": torch.eye(3).to_sparse(),
              "complex": weights[first].cfloat()}
    return {**wrong_files(rng, sound.read_bytes(), 6),
            **{f"a tensor {k}": saved(with_wrong_tensor(rng, weights)) for k in range(6)},
            **{name: saved({**weights, first: value}) for name, value in others.items()},
            "the old format": saved(weights, _use_new_zipfile_serialization=False),
            "a list": saved([*weights.values()]), "in a dict": saved({"model": weights})}


def weights(base: Path, rng: random.Random) -> Iterator[Case]:
    """Damaged and wrong weights: .bin, .safetensors and .pt."""
    for form, variants in (("bin", pickled_files), ("safetensors", lambda *sound: wrong_files(
            sound[0], sound[1].read_bytes(), 10))):
        file = f"unet/diffusion_pytorch_model.{form}"
        for name, raw in variants(rng, base / form / file).items():
            yield Case("published weights", f"{form} {name}", {"model": base / form, f"model/{file}": raw},
                       [*CONVERT, "model"])
    for name, raw in pickled_files(rng, base / "openai.pt").items():
        yield Case("published weights", f"pt {name}", {"model.pt": raw, "model.json": base / "openai.json"},
                   [*SAMPLE, "--from", "model.pt"])
