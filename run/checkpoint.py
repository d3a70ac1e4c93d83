"""One file that knows everything: weights, their average, Adam's moments, the step, the settings, the data's facts.

    python -m run.checkpoint --source runs/digits/last.safetensors --to weights/digits.safetensors     # to give away
    python -m run.checkpoint --source runs/x/last.safetensors --to x.safetensors --average --dtype bf16    # an eighth

The file is safetensors: tensors by name, and a header of JSON that describes them. Nothing in it can be executed.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import PIL
import torch
from torch import Tensor

from data.files import reading
from ddpm import TARGETS, VARIANCES, check_choice, from_betas
from run import tensors
from run.cli import DTYPES, choose_device, limit_threads, parse, script
from run.memory import cast
from run.tensors import SUFFIX
from unet import UNet, UNetConfig, check_size, group_norm_silu_plain

FORMAT = "minimal-diffusion 2"
LAST, PREVIOUS = f"last{SUFFIX}", f"previous{SUFFIX}"                           # of a run
MOMENTS = ("exp_avg", "exp_avg_sq")             # Adam's, by the name of the weight
PARTS = ("weights", "ema", *MOMENTS)            # what a checkpoint has of every weight
FACTS = ("step", "updates", "settings", "data", "versions")
WEIGHTS = {"ema": "ema", "raw": "weights"}      # of --weights, their place in a checkpoint
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Checkpoint(NamedTuple):
    """All that resuming a run and sampling from it need. The random state is (settings["seed"], step)."""
    network: UNetConfig
    weights: dict[str, Tensor]      # empty if given away without them
    ema: dict[str, Tensor]
    step: int
    beta: Tensor                    # the schedule, beta_1..beta_T
    settings: dict[str, Any]        # train.py's, every field
    data: dict[str, Any]            # name, shape, classes, and the digest of the pictures
    versions: dict[str, str]        # of what wrote the file
    exp_avg: dict[str, Tensor] = {}     # empty if given away
    exp_avg_sq: dict[str, Tensor] = {}
    updates: int = 0                # that Adam has counted: all but those whose gradient was not finite
    losses: Sequence[Tensor] = ()   # records of the steps since the last line of the log
    history: Tensor | None = None   # the latest losses of each t, for importance sampling

    @property
    def variance(self) -> str:
        """Of the sampler's steps, unless another is asked for."""
        return self.settings.get("variance", self.network.variance)

    @property
    def clip(self) -> bool:
        """Whether the sampler clips x0_hat to [-1, 1], unless asked not to."""
        return self.settings.get("clip_x0", True)


def save(path: str | Path, checkpoint: Checkpoint, previous: Path | None = None,
         check: Callable[[], None] = lambda: None) -> None:
    """Writes the file whole or not at all.

    previous: the name that the file that was there gets. check: called before the new one takes its place.
    """
    content = {f"{part}.{name}": w for part in PARTS for name, w in getattr(checkpoint, part).items()}
    content["beta"] = checkpoint.beta
    if checkpoint.losses:
        content["losses"] = torch.stack([*checkpoint.losses])
    if checkpoint.history is not None:
        content["history"] = checkpoint.history
    facts = {name: getattr(checkpoint, name) for name in FACTS}
    tensors.save(path, content, {"format": FORMAT, "network": asdict(checkpoint.network), **facts}, previous, check)


def load(path: str | Path, parts: Sequence[str] = PARTS) -> Checkpoint:
    """Reads what `save` wrote, onto the CPU. Raises ValueError for other files, and for what does not fit together.

    parts: which of PARTS are wanted. The others are empty, and take no memory.
    """
    path = Path(path)
    check_there(path)
    previous = path.with_name(PREVIOUS)
    remedy = f"use {previous}" if path.name == LAST and previous.is_file() else "use another file"
    content, facts = tensors.load(path, tuple(f"{part}." for part in PARTS if part not in parts), remedy)
    with reading(path, remedy):
        if facts.get("format") != FORMAT:
            raise ValueError("it is no checkpoint of train.py")
        copies = {part: {name.removeprefix(f"{part}."): w for name, w in content.items() if name.startswith(f"{part}.")}
                  for part in PARTS}
        return check(Checkpoint(
            UNetConfig(**facts["network"]), beta=content["beta"], losses=[*content.get("losses", ())],
            history=content.get("history"), **copies, **{name: facts[name] for name in FACTS}))


def check_there(path: Path) -> None:
    """Raises ValueError, with the remedy, if there is no file, or one of the format before safetensors."""
    old = path.with_suffix(".pt")
    if old.is_file() and (path == old or not path.is_file()):
        raise ValueError(f"{old} is a checkpoint from before safetensors; convert it with: "
                         f"python convert.py --source {old} --to {old.with_suffix(SUFFIX)}")
    if not path.is_file():
        new = path.with_suffix(SUFFIX)
        remedy = f"use {new}" if new.is_file() else "train one with: python train.py"
        raise ValueError(f"no checkpoint {path}; {remedy}")


def check(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, its weights in the network's order. Raises an error unless all of it fits together."""
    network, settings, step, updates = checkpoint.network, checkpoint.settings, checkpoint.step, checkpoint.updates
    check_data(checkpoint.data, network)
    in_order = {}
    for part in PARTS:
        if copy := getattr(checkpoint, part):
            unet = empty_unet(network, len(copy))
            unet.load_state_dict(copy, assign=True)                 # names and shapes are the network's
            if other := [name for name, w in copy.items() if w.dtype not in FLOATS]:
                raise ValueError(f"{part}.{other[0]} is {copy[other[0]].dtype}")
            in_order[part] = {name: copy[name] for name in unet.state_dict()}
    check_choice("target", settings["target"], TARGETS)
    check_choice("variance", checkpoint.variance, VARIANCES)
    if checkpoint.variance == "learned" and not network.learns_variance or type(checkpoint.clip) is not bool:
        raise ValueError(f"variance is {checkpoint.variance} and clip_x0 {checkpoint.clip}")
    if type(step) is not int or type(updates) is not int or not 0 <= updates <= step < 2**31:
        raise ValueError(f"step is {step}, of which {updates} changed the weights")
    if not all(type(version) is str for version in checkpoint.versions.values()):
        raise ValueError("a version is no text")
    from_betas(checkpoint.beta)
    return checkpoint._replace(**in_order)


def empty_unet(network: UNetConfig, count: int, norm: Callable = group_norm_silu_plain) -> UNet:
    """The network without memory for its weights. Raises ValueError for settings of another kind than its defaults.

    count: the number of its tensors, as far as they are known.
    """
    for name, value in asdict(network).items():
        default = getattr(UNetConfig, name)
        if type(value) is not type(default) and (type(value), type(default)) != (int, float):
            raise ValueError(f"{name} of the network is {value!r}")
    if network.blocks * len(network.widths) > count:                # else a wrong number would be endless work
        raise ValueError(f"{network.blocks} blocks on {len(network.widths)} levels do not fit {count} tensors")
    with torch.device("meta"):
        return UNet(network, norm)


def check_data(data: dict[str, Any], network: UNetConfig) -> None:
    """Raises an error unless these are facts of a data set that the network can have been trained on."""
    name, (C, H, W), classes = data["name"], data["shape"], data["classes"]
    if not all(type(text) is str for text in (name, data.get("digest", ""), *classes)):
        raise ValueError("the name or the digest of the data, or the name of a class, is no text")
    if not all(type(n) is int and n > 0 for n in (C, H, W)):
        raise ValueError(f"the shape of the pictures is {data['shape']}")
    check_size(network, C, H, W)
    if network.classes not in (0, len(classes), len(classes) + 1):  # trained without labels, with all, and a null class
        raise ValueError(f"there are {network.classes} rows for {len(classes)} classes")


def versions() -> dict[str, str]:
    """Of what computes here."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__,
            "pillow": PIL.__version__}


def load_unet(checkpoint: Checkpoint, weights: str = "ema", dtype: str = "float32", device: str = "auto",
              norm: Callable = group_norm_silu_plain, override: dict[str, Tensor] | None = None) -> UNet:
    """The checkpoint's network, frozen, with the weights asked for, or with those of `override`.

    Raises ValueError for weights that were not given away.
    """
    place, chosen = choose_device(device), override or getattr(checkpoint, WEIGHTS[weights])
    if not chosen:
        raise ValueError(f"weights is {weights!r}; the checkpoint has only the averaged ones, use ema")
    unet = empty_unet(checkpoint.network, len(chosen), norm)
    unet.load_state_dict(cast(chosen, DTYPES[dtype]), assign=True)
    limit_threads(unet)
    return unet.to(place).eval().requires_grad_(False)


@dataclass(frozen=True)
class Config:
    """Copies a checkpoint without its optimizer: half the size, to give away."""
    source: str = "runs/digits/last.safetensors"                    # the checkpoint to copy
    to: str = "weights/digits.safetensors"      # where to
    average: bool = False                       # the averaged weights alone: half of that
    dtype: str = "float32"                      # of the weights but the norms': float32, or bf16, half again
    classes: str = ""                           # names of the classes, as cat,dog, for those that the data gave


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    check_choice("dtype", config.dtype, DTYPES)
    checkpoint = load(config.source, ("weights", "ema"))
    weights = {} if config.average else cast(checkpoint.weights, DTYPES[config.dtype])
    old = checkpoint.data["classes"]
    names = tuple(config.classes.split(",")) if config.classes else old
    if len(names) != len(old) or len({*names, ""}) <= len(names):
        raise ValueError(f"classes is {config.classes!r}; name each of the {len(old)} classes once: "
                         f"{', '.join(old[:20])}")
    save(config.to, checkpoint._replace(weights=weights, ema=cast(checkpoint.ema, DTYPES[config.dtype]), losses=(),
                                        history=None, data={**checkpoint.data, "classes": names}))
    print(f"{config.to}: {Path(config.to).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
