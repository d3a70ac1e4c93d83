"""Hostile values in the place of sound ones, and damaged bytes."""

import json
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from run import tensors
from tests.helpers import Trap

TEXTS = ("", "{", "[]", "null", "3", "[" * 10**5, '{"a":' * 10**5, "{}", '{"sample_size": 16}', "NaN", "\0" * 9)


def other_tensors(w: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors, by name, that could stand where w does, and should not."""
    return {"cut": w.flatten()[:-1].clone(), "longer": w.flatten().repeat(2), "scalar": torch.tensor(1.),
            "empty": torch.empty(0), "nan": w * torch.nan, "inf": w + torch.inf, "negative": -w.abs() - 1,
            "half": w.half(), "double": w.double(), "int": w.long(), "bool": w > 0, "turned": w.mT.contiguous()
            if w.ndim > 1 else w[:, None]}


def with_hostile_tensor(rng: random.Random, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy in which one tensor is another, is missing, or has another name."""
    name = rng.choice([*weights])
    rest = {key: w for key, w in weights.items() if key != name}
    others = [{name: w} for w in other_tensors(weights[name].float()).values()]
    return rest | rng.choice([*others, {}, {f"{name}x": weights[name]}])


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


# Variants of a file of tensors; each of these functions returns what writes one to a path

def damaged_copy(sound: Path, seed: int) -> Callable[[Path], object]:
    """The file with damaged bytes."""
    return lambda path: path.write_bytes(damaged(random.Random(seed), sound.read_bytes()))


def changed_copy(sound: Path, change: Callable[[dict, dict], tuple[dict, dict]]) -> Callable[[Path], object]:
    """The file after a change of its tensors and facts."""
    def write(path: Path) -> None:
        content, facts = change(*tensors.load(sound))
        path.write_bytes(save({name: w.contiguous() for name, w in content.items()}, {"facts": json.dumps(facts)}))
    return write


def copy_with_text(sound: Path, text: str) -> Callable[[Path], object]:
    """The file with other text in the place of its facts."""
    return lambda path: path.write_bytes(save(tensors.load(sound)[0], {"facts": text}))


def copy_with_header(sound: Path, value: Any) -> Callable[[Path], object]:
    """The file whose first tensor has another description."""
    def write(path: Path) -> None:
        raw = sound.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:8 + size])
        first = next(name for name in header if name != "__metadata__")
        text = json.dumps({**header, first: value}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size:])
    return write


DESCRIPTIONS = [
    [], None, {}, "x", {"dtype": "F32"}, {"dtype": "X", "shape": [1], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
    {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]},
    {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}]


def tensor_files(rng: random.Random, sound: Path, n: int) -> Iterator[tuple[str, bytes | Callable[[Path], object]]]:
    """Names, and contents, of n variants of a file of this project's: a third fixed, the others by chance."""
    raw = sound.read_bytes()
    size = 8 + int.from_bytes(raw[:8], "little")
    fixed = {"empty": b"", "a text": b"a text", "a pickle": pickle.dumps(Trap()),
             "a header of 2^63 bytes": (2**63 - 1).to_bytes(8, "little") + raw[8:1000],
             "a byte more": lambda path: path.write_bytes(raw + b"x"),
             **{f"cut at {k}": raw[:k] for k in (7, 8, size // 2, size)},
             **{f"cut at {k}": lambda path, k=k: path.write_bytes(raw[:k]) for k in (len(raw) // 2, -1)},
             **{f"facts {text[:9]!r}": copy_with_text(sound, text) for text in TEXTS},
             **{f"first tensor {value}": copy_with_header(sound, value) for value in DESCRIPTIONS}}
    yield from rng.sample([*fixed.items()], n // 3)
    for k in range(n - n // 3):
        seed = rng.randrange(2**31)
        if k % 2:
            yield f"bits {seed}", damaged_copy(sound, seed)
        else:
            yield f"a tensor {seed}", changed_copy(sound, lambda content, facts, seed=seed: (
                with_hostile_tensor(random.Random(seed), content), facts))
