"""Hostile values in the place of sound ones."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch

NUMBERS = [None, True, -1, 0, 1, 3, 1.5, 2**31, 10**9, 10**12, 10**30, float("nan"), float("inf")]
VALUES = [*NUMBERS, "", "x", "1", "9" * 400, "\udcff", [], [1], [None], {}, {"a": [[[]]]}, [[1, 2], [3]], [64] * 1000,
          ["x", {}], {"x": 10**30}]


def tensors(w: torch.Tensor) -> dict[str, Any]:
    """Tensors, by name, that could stand where w does, and should not."""
    return {"cut": w.flatten()[:-1].clone(), "longer": w.flatten().repeat(2), "scalar": torch.tensor(1.),
            "empty": torch.empty(0), "nan": w * torch.nan, "inf": w + torch.inf, "half": w.half(), "double": w.double(),
            "int": w.long(), "bool": w > 0, "complex": w.cfloat(), "sparse": w.to_sparse(),
            "backwards": w.mT.clone().mT if w.ndim > 1 else -w, "strides of 0": torch.zeros(()).expand(w.shape),
            "csr": torch.eye(3).to_sparse_csr(), "meta": torch.empty_like(w, device="meta"),
            "endless": torch.zeros(1).expand(2**40),
            "quantized": torch.quantize_per_tensor(w.float(), 1., 0, torch.quint8)}


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place within nested dicts, lists and tuples, as keys one after the other."""
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def changed(value: Any, path: tuple, change: Callable[[Any], Any]) -> Any:
    """A copy of the nested value in which what is at the path is change(it); None removes it from its dict."""
    if not path:
        return change(value)
    kind, (key, *rest) = type(value), path
    parts = dict(value.items() if isinstance(value, dict) else enumerate(value))
    parts[key] = changed(parts[key], tuple(rest), change)
    if parts[key] is REMOVED:
        del parts[key]
    return parts if isinstance(value, dict) else kind(parts.values())


REMOVED = object()


def hostile_change(rng: random.Random, value: Any) -> tuple[str, Any]:
    """A name and a value for what replaces this one."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and rng.random() < 0.8:
        name, other = rng.choice([*tensors(value).items()])
        return name, other
    if rng.random() < 0.15:
        return "removed", REMOVED
    other = rng.choice(VALUES)
    return repr(other)[:30], other


def mutated(rng: random.Random, content: Any) -> tuple[str, Any]:
    """The content with something hostile at one of its places, each of its top keys being as likely; and a name."""
    content = copy.copy(content)
    top = rng.choice([*content])
    path = rng.choice([*places(content[top], (top,))])
    here = content
    for key in path:
        here = here[key]
    name, other = hostile_change(rng, here)
    return f"{'.'.join(map(str, path))} {name}", changed(content, path, lambda _: other)


def damaged(rng: random.Random, raw: bytes) -> bytes:
    """The bytes with a few bits flipped, mostly early ones, or cut, or with others put in."""
    spoilt = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(len(raw), rng.choice([40, 400, len(raw)])))
        spoilt[place] ^= 1 << rng.randrange(8)
    how = rng.random()
    if how < 0.2:
        return bytes(spoilt[:rng.randrange(len(raw))])
    if how < 0.3:
        place = rng.randrange(len(raw))
        return bytes(spoilt[:place] + rng.randbytes(rng.randint(1, 64)) + spoilt[place:])
    return bytes(spoilt)
