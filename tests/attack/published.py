"""Damaged and wrong settings and weights of published models."""

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from published.diffusers import MODEL, SCHEDULER
from published.openai import FLAGS
from tests.attack.damage import TEXTS, VALUES, with_wrong_tensor, wrong_files
from tests.attack.harness import Case
from tests.helpers import Trap
from tests.published import networks

CONVERT = ["convert.py", "--to", "new.safetensors", "--source"]
SAMPLE = ["sample.py", "--from", "model.pt", "--n", "1", "--steps", "1", "--out", "out"]


def settings(base: Path, rng: random.Random) -> Iterator[Case]:
    """Wrong config.json, scheduler_config.json and flags of published models."""
    openai, scheduler = {"model.pt": base / "openai.pt"}, "scheduler/scheduler_config.json"
    network = [*networks.CONFIG, *MODEL, "sample_size", "block_out_channels"]
    for kind, n, file, sound, keys, files, source in (
            ("config.json", 40, "model/unet/config.json", networks.CONFIG, network, {"model": base / "bin"}, "model"),
            ("config.json", 20, f"model/{scheduler}", json.loads((base / "bin" / scheduler).read_text()),
             [*SCHEDULER, "trained_betas", "thresholding"], {"model": base / "bin"}, "model"),
            ("published flags", 30, "model.json", json.loads((base / "openai.json").read_text()), [*FLAGS], openai,
             "model.pt")):
        changes = ({rng.choice(keys): rng.choice(VALUES) for _ in range(rng.choice([1, 1, 2]))} for _ in range(n))
        for text in (*TEXTS, *(json.dumps({**sound, **change}) for change in changes)):
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
        yield Case("published weights", f"pt {name}", {"model.pt": raw, "model.json": base / "openai.json"}, SAMPLE)
