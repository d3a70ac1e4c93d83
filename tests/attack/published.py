"""Damaged and hostile settings and weights of published models."""

import copy
import io
import pickle
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.attack.damage import (
    DESCRIPTIONS,
    TEXTS,
    copy_with_header,
    damaged,
    damaged_copy,
    with_hostile_tensor,
)
from tests.attack.harness import Case
from tests.helpers import Trap

CONVERT = ["convert.py", "--to", "new.safetensors", "--source"]
SAMPLE = ["sample.py", "--from", "model.pt", "--n", "1", "--steps", "1", "--out", "out"]


def settings(base: Path, rng: random.Random) -> Iterator[Case]:
    """Texts that are no config.json or scheduler_config.json, and wrong flags."""
    for file in ("unet/config.json", "scheduler/scheduler_config.json"):
        for text in TEXTS:
            yield Case("config.json", f"{text[:40]!r}", {"model": base / "bin", f"model/{file}": text.encode()},
                       [*CONVERT, "model"])
    for text in ("--image_size", "--image_size x", "--x 1", "--image_size 64 --image_size -3", "--channel_mult 1,0",
                 "--attention_resolutions 0", "--diffusion_steps 1000000000000",
                 "--channel_mult nan", "--num_head_channels 0", "--dropout inf", "nowhere.json", "model.pt", ".", "--",
                 "--num_channels 99999999999999999999", "--learn_sigma maybe", "--noise_schedule sqrt", "\0",
                 "x" * 5000):
        yield Case("published flags", text[:60], {"model.pt": base / "openai.pt"}, [*CONVERT, "model.pt", "--flags",
                                                                                    text])


PICKLES = {"empty": b"", "no end": b"\x80\x02}q\0", "no memo": b"\x80\x02h\x07.", "a number": b"\x80\x02K\x01.",
           "a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.", "os.mkdir": pickle.dumps(Trap(), 2),
           "protocol 5": pickle.dumps({"a": 1}, 5), "a list of itself": b"\x80\x02]q\0h\0a.",
           "a huge text": b"\x80\x02X\xff\xff\xff\x7fa.", "nested lists": b"\x80\x02" + b"]" * 10**5 + b"."}


def with_pickle(raw: bytes, content: bytes) -> bytes:
    """A file of torch.save's with another pickle, its checksums being right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, content if entry.filename.endswith("data.pkl") else old.read(entry))
    return file.getvalue()


def saved(content: Any, **how) -> bytes:
    """What torch.save writes."""
    torch.save(content, file := io.BytesIO(), **how)
    return file.getvalue()


def pickled_files(rng: random.Random, sound: Path) -> Iterator[tuple[str, bytes]]:
    """Names, and contents, of variants of a file of torch.save's."""
    raw, weights = sound.read_bytes(), torch.load(sound, weights_only=True)
    first = next(iter(weights))
    for name, content in PICKLES.items():
        yield f"pickle: {name}", with_pickle(raw, content)
    for k in range(4):
        yield f"bits {k}", damaged(rng, raw)
        yield f"a tensor {k}", saved(with_hostile_tensor(rng, copy.copy(weights)))
    for name, value in {"a trap": Trap(), "no tensor": 3, "none": None, "sparse": torch.eye(3).to_sparse(),
                        "complex": weights[first].cfloat(), "on meta": torch.empty(3, device="meta"),
                        "strides of 0": torch.zeros(1).expand(weights[first].shape)}.items():
        yield name, saved({**weights, first: value})
    yield "the old format", saved(weights, _use_new_zipfile_serialization=False)
    yield "a list", saved([*weights.values()])
    yield "in a dict", saved({"model": weights})


def published_weights(base: Path, rng: random.Random) -> Iterator[Case]:
    """Damaged and hostile weights of published models: .bin, .pt and .safetensors."""
    for name, raw in pickled_files(rng, base / "bin/unet/diffusion_pytorch_model.bin"):
        yield Case("published weights", name, {
            "model": base / "bin", "model/unet/diffusion_pytorch_model.bin": raw}, [*CONVERT, "model"])
    for name, raw in pickled_files(rng, base / "openai.pt"):
        yield Case("published weights", name, {"model.pt": raw, "model.json": base / "openai.json"}, SAMPLE)
    file = "unet/diffusion_pytorch_model.safetensors"
    sound = base / "safetensors" / file
    contents = {f"first tensor {value}": copy_with_header(sound, value) for value in DESCRIPTIONS}
    contents |= {f"bits {k}": damaged_copy(sound, rng.randrange(2**31)) for k in range(10)}
    for name, content in contents.items():
        yield Case("safetensors", name, {"model": base / "safetensors", f"model/{file}": content}, [*CONVERT, "model"])
