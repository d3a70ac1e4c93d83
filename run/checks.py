"""Reads files of tensors, and tells whether what a checkpoint holds fits together, before anything is made of it."""

import math
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.sets import CLASSES
from ddpm import TARGETS, VARIANCES, check_choice
from unet import UNet, UNetConfig

LARGEST, LEVELS = 2**20, 32     # the largest number, and the most levels, of a network
PIXELS = 2**26                  # the most numbers of a picture
LONGEST = 4000                  # characters of a text or a number
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MOMENTS = ("exp_avg", "exp_avg_sq")


def plain_tensors(value: Any, depth: int = 5, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors in nested dicts, lists and tuples. Raises ValueError for anything else than these and scalars."""
    seen = set() if seen is None else seen
    if type(value) in (Tensor, nn.Parameter):
        yield value
    elif type(value) in (dict, OrderedDict, list, tuple, torch.Size) and depth:
        if id(value) not in seen:                                   # a container may be shared, even endlessly
            seen.add(id(value))
            for part in (*value, *value.values()) if isinstance(value, dict) else value:
                yield from plain_tensors(part, depth - 1, seen)
    elif type(value) not in (str, int, float, bool, type(None)):
        raise ValueError(f"it holds a {type(value).__name__}{'' if depth else ', nested too deeply'}")
    elif len(str(value)) > LONGEST:
        raise ValueError(f"it holds a {type(value).__name__} of more than {LONGEST} characters")


def load(path: Path, mmap: bool = False) -> Any:
    """What `torch.save` wrote, on the CPU, checksums compared; never executes code from the file.

    mmap: leaves the tensors in the file. Raises many kinds of error for damaged files, and for packed ones, which could
    be as large as they like.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:                         # torch.load looks at neither
            entries = file.infolist()
            claimed = sum(entry.file_size for entry in entries)
            if any(e.compress_type for e in entries) or claimed > 2 * path.stat().st_size or file.testzip():
                raise zipfile.BadZipFile
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def load_tensors(path: Path) -> Any:
    """Nested dicts and lists of plain values and dense tensors. Raises ValueError for a file of anything else."""
    try:
        content = load(path)
        check_tensors(list(plain_tensors(content)), path.stat().st_size)
        return content
    except Exception as error:
        raise ValueError(f"{path} is damaged or contains more than tensors; use another file") from error


def check_tensors(tensors: list[Tensor], size: int) -> None:
    """Raises ValueError unless these are dense numbers on the CPU that can come from a file of `size` bytes."""
    storages = {}
    for w in tensors:
        if w.layout != torch.strided or w.device.type != "cpu" or w.is_quantized or vars(w):
            raise ValueError(f"a tensor is {w.layout} on {w.device}, not dense on the CPU")
        storage = w.untyped_storage()
        if w.numel() * w.element_size() > storage.nbytes():
            raise ValueError(f"a tensor of shape {tuple(w.shape)} has a storage of {storage.nbytes()} bytes")
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(storages.values()) > 2 * size:                           # twice: the file may have been replaced meanwhile
        raise ValueError(f"its tensors take {sum(storages.values())} bytes, the file {size}")


def sound_network(values: dict[str, Any]) -> UNetConfig:
    """The configuration with these values, each of its field's type, and of a size that a network can have."""
    for field in fields(UNetConfig):
        value = values.get(field.name, field.default)
        parts = value if field.type is tuple is type(value) else (value,)
        kinds = {tuple: (int,), float: (int, float)}.get(field.type, (field.type,))
        if len(parts) > LEVELS + 1 or not all(type(part) in kinds for part in parts) or not all(
                0 <= part <= LARGEST for part in parts if type(part) is not str):
            raise ValueError(f"{field.name} of the network is of the wrong type or size")
    return UNetConfig(**values)


def check_weights(network: UNetConfig, shape: tuple, *copies: dict[str, Tensor]) -> None:
    """Raises an error unless all copies of the weights are this network's, and it takes pictures of this shape."""
    if network.blocks * len(network.widths) > len(copies[0]):       # else a wrong number would be endless work
        raise ValueError(f"blocks is {network.blocks}, on {len(network.widths)} levels")
    with torch.device("meta"):                                      # no memory, whatever the widths
        unet = UNet(network)
        unet(torch.ones(1, *shape), torch.ones(1).long(), torch.ones(1).long() if unet.classes else None)
        for weights in copies:
            unet.load_state_dict(weights, assign=True)
            if other := [name for name, w in weights.items() if w.dtype not in FLOATS]:
                raise ValueError(f"{other[0]} is {weights[other[0]].dtype}")


def check_facts(data: dict[str, Any], network: UNetConfig) -> None:
    """Raises an error unless these are facts of a data set that the network can have been trained on."""
    name, shape, classes = data["name"], data["shape"], data["classes"]
    if type(name) is not str or type(data.get("digest", "")) is not str:
        raise ValueError("the name or the digest of the data is no text")
    check_shape(shape)
    rows = 0, len(classes), len(classes) + 1                        # trained without labels, with all, and a null class
    if len(classes) > CLASSES or not all(type(c) is str for c in classes) or network.classes not in rows:
        raise ValueError(f"there are {network.classes} rows for {len(classes)} classes")


def check_shape(shape: Any) -> None:
    """Raises ValueError unless it is C, H, W of a picture."""
    if len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape) or math.prod(shape) > PIXELS:
        raise ValueError(f"the shape of the pictures is {shape}")


def check_settings(settings: dict[str, Any], network: UNetConfig) -> None:
    """Raises an error unless these are settings of a run, and the sampler's are possible ones."""
    if not all(type(name) is str and type(value) in (str, int, float, bool) for name, value in settings.items()):
        raise ValueError("a setting is neither a number nor text")
    check_choice("target", settings["target"], TARGETS)
    variance = settings.get("variance", network.variance)
    check_choice("variance", variance, VARIANCES)
    if variance == "learned" and not network.learns_variance or type(settings.get("clip_x0", True)) is not bool:
        raise ValueError(f"variance is {variance} and clip_x0 {settings.get('clip_x0')}")


def check_optimizer(optimizer: dict[str, Any], weights: dict[str, Tensor], step: int) -> None:
    """Raises an error unless these are the moments that Adam has of these weights, in their order, after `step` steps.

    Fused Adam believes what it is given: moments of another shape would corrupt the memory.
    """
    state, [group] = optimizer["state"], optimizer["param_groups"]
    if list(plain_tensors(dict(group))):
        raise ValueError("the optimizer's settings are tensors")
    if state and {*state} != {*range(len(weights))}:                # empty before the first update
        raise ValueError(f"the optimizer has moments of {len(state)} weights, the network {len(weights)}")
    for k, (name, w) in enumerate(weights.items() if state else ()):
        moments, count = [state[k][each] for each in MOMENTS], state[k]["step"]
        if {*state[k]} != {"step", *MOMENTS} or any(m.shape != w.shape or m.dtype != w.dtype for m in moments):
            raise ValueError(f"the optimizer's moments of {name} are of another shape or dtype")
        if not all(m.isfinite().all() for m in moments) or (moments[1] < 0).any():
            raise ValueError(f"the optimizer's moments of {name} are not finite, or a square is negative")
        if count.shape or count.dtype != torch.float32 or not 0 <= count <= step:
            raise ValueError(f"the optimizer's count of steps for {name} is not between 0 and {step}")
