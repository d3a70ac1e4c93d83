"""One file that knows everything: weights, their average, the optimizer, the step, the settings, the data's facts.

    python checkpoint.py --source runs/digits/last.pt --to weights/digits.pt      # to give away
"""

import copy
import os
import pickle
import platform
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm import TARGETS, check_choice, from_betas
from run.cli import DTYPES, choose_device, limit_threads, make_parent, parse, script
from run.memory import cast
from unet import UNet, UNetConfig, group_norm_silu_plain

FORMAT = "minimal-diffusion 1"
PARTS = ("weights", "ema", "optimizer")
WEIGHTS = {"ema": "ema", "raw": "weights"}      # of --weights, their place in a checkpoint


class Checkpoint(NamedTuple):
    """All that resuming a run and sampling from it need. The random state is (settings["seed"], step)."""
    network: UNetConfig
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    step: int
    beta: Tensor                    # the schedule, beta_1..beta_T
    settings: dict[str, Any]        # train.py's, every field
    data: dict[str, Any]            # name, shape, classes
    optimizer: dict[str, Any]       # empty if given away
    losses: list[Tensor]            # records of the steps since the last line of the log
    versions: dict[str, str]
    history: Tensor | None = None   # the last losses of each t, where they choose the next t's

    @property
    def variance(self) -> str:
        """Of the sampler's steps, unless another is asked for."""
        return self.settings.get("variance", self.network.variance)

    @property
    def clip(self) -> bool:
        """Whether the sampler clips x0_hat to [-1, 1], unless asked not to."""
        return self.settings.get("clip_x0", True)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the file whole or not at all: to a temporary name, to the disk, then renamed over the old one."""
    path = make_parent(Path(path))
    temporary = path.with_name(f"{path.name}.tmp")
    content = checkpoint._replace(network=asdict(checkpoint.network))._asdict()
    with open(temporary, "wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path, parts: Sequence[str] = PARTS) -> Checkpoint:
    """Reads what `save` wrote, onto the CPU; never executes code from the file. Raises ValueError for others.

    parts: which of PARTS are wanted. The others are empty, and take no memory.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint {path}; train one with: python train.py")
    try:
        with zipfile.ZipFile(path) as file:                         # torch.load does not look at the checksums
            if any(entry.compress_type for entry in file.infolist()) or file.testzip():
                raise zipfile.BadZipFile
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile,
            NotImplementedError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint of train.py; use another file") from error
    fields = {*Checkpoint._fields}
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT or not (
            fields - {*Checkpoint._field_defaults} <= {*content} <= fields):
        raise ValueError(f"{path} is no checkpoint of train.py; use one that train.py or checkpoint.py wrote")
    try:
        last = checked(Checkpoint(**content)._replace(network=UNetConfig(**content["network"])))
        left_out = {name: {} for name in PARTS if name not in parts}
        return copy.deepcopy(last._replace(**left_out))             # out of the map, which may change under us
    except Exception as error:                                      # what does not fit together fails in many ways
        raise ValueError(f"{path} does not fit its own network or settings: {' '.join(str(error).split())}; use "
                         f"another file") from None


def checked(last: Checkpoint) -> Checkpoint:
    """The checkpoint, whose weights are its network's, which takes its pictures; raises something for any other."""
    classes, shape = last.data["classes"], tuple(last.data["shape"])
    if last.network.blocks > len(last.weights):                     # else a wrong number would be endless work
        raise ValueError(f"blocks is {last.network.blocks}")
    with torch.device("meta"):                                      # no memory, whatever the widths
        unet = UNet(last.network)
        unet(torch.ones(1, *shape), torch.ones(1).long(), torch.ones(1).long() if unet.classes else None)
        for weights in (last.weights, last.ema):
            unet.load_state_dict(weights, assign=True)
    from_betas(last.beta)
    check_choice("target", last.settings["target"], TARGETS)
    rows = 0, len(classes), len(classes) + 1                        # no classes asked for, all, and a null class
    if not all(isinstance(name, str) for name in classes) or last.network.classes not in rows:
        raise ValueError(f"there are {last.network.classes} rows for the classes {classes}")
    if not isinstance(last.step, int) or last.step < 0 or not isinstance(last.data["name"], str):
        raise ValueError(f"step is {last.step} and the data {last.data['name']}")
    return last


def check_same_run(path: Path, last: Checkpoint, settings: dict[str, Any], free: set[str], shape: tuple,
                   classes: tuple[str, ...]) -> None:
    """Raises ValueError unless the checkpoint at path is of a run with these settings, but for the free ones, and data.
    """
    changed = [name for name, value in last.settings.items() if name not in free and settings.get(name) != value]
    if changed or tuple(last.data["shape"]) != shape or tuple(last.data["classes"]) != classes:
        was = " ".join(f"--{name} {last.settings[name]}" for name in changed) or f"other data, {last.data}"
        raise ValueError(f"{path} was trained with {was}; repeat that, or choose another --out")
    if not last.optimizer:
        raise ValueError(f"{path} was given away without its optimizer; choose another --out")


def versions() -> dict[str, str]:
    """What wrote the file."""
    return {"python": platform.python_version(), "torch": str(torch.__version__)}


def load_unet(last: Checkpoint, weights: str = "ema", dtype: str = "float32", device: str = "auto",
              norm: Callable = group_norm_silu_plain, override: dict[str, Tensor] | None = None) -> UNet:
    """The checkpoint's network, frozen, with the weights asked for, or with those of `override`."""
    place = choose_device(device)
    with torch.device("meta"):                                      # its weights come from the file
        unet = UNet(last.network, norm)
    unet.load_state_dict(cast(override or getattr(last, WEIGHTS[weights]), DTYPES[dtype]), assign=True)
    limit_threads(unet)
    return unet.to(place).eval().requires_grad_(False)


@dataclass(frozen=True)
class Config:
    """Copies a checkpoint without its optimizer: half the size, to give away."""
    source: str = "runs/digits/last.pt"         # the checkpoint to copy
    to: str = "weights/digits.pt"               # where to


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    save(config.to, load(config.source)._replace(optimizer={}))
    print(f"{config.to}: {Path(config.to).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
