"""Wrong values in the place of sound ones, and damaged bytes."""

import copy
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

VALUES = [None, True, -1, 0, 1, 3, 1.5, 2**31, 10**12, 10**30, float("nan"), float("inf"), "", "x", "1", "\udcff", [],
          [1], [None], [[1, 2], [3]], [64] * 1000, {}, {"x": 10**30}]
TEXTS = ("", "{", "[]", "null", "3", "{}", "NaN", '{"sample_size": 16}')


def other_tensors(w: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors, by name, that could stand where w does, and should not."""
    return {"cut": w.flatten()[:-1].clone(), "longer": w.flatten().repeat(2), "scalar": torch.tensor(1.),
            "empty": torch.empty(0), "nan": w * torch.nan, "inf": w + torch.inf, "negative": -w.abs() - 1,
            "half": w.half(), "double": w.double(), "int": w.long(), "bool": w > 0,
            "turned": w.mT.contiguous() if w.ndim > 1 else w[:, None]}


def with_wrong_tensor(rng: random.Random, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy in which one tensor is another, is missing, or has another name."""
    name = rng.choice([*weights])
    rest = {key: w for key, w in weights.items() if key != name}
    others = [{name: w} for w in other_tensors(weights[name].float()).values()]
    return rest | rng.choice([*others, {}, {f"{name}x": weights[name]}])


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
