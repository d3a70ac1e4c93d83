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
from run import muon, tensors
from run.cli import DTYPES, choose_device, limit_threads, parse, script
from run.memory import cast
from run.tensors import SUFFIX
from unet import UNet, UNetConfig, group_norm_silu_plain

FORMAT = "minimal-diffusion 2"
LAST, PREVIOUS = f"last{SUFFIX}", f"previous{SUFFIX}"                           # of a run
MOMENTS = ("exp_avg", "exp_avg_sq")             # Adam's, by the name of the weight
PARTS = ("weights", "ema", *MOMENTS)            # what a checkpoint has of every weight
FACTS = ("step", "updates", "settings", "data", "versions", "scaler", "seconds")
WEIGHTS = {"ema": "ema", "raw": "weights"}      # of --weights, their place in a checkpoint


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
    scaler: dict[str, float] = {}   # the state of the GradScaler, in fp16
    seconds: float = 0.             # that the run has taken

    @property
    def variance(self) -> str:
        """Of the sampler's steps, unless another is asked for."""
        return self.settings.get("variance", self.network.variance)

    @property
    def clip(self) -> bool:
        """Whether the sampler clips x0_hat to [-1, 1], unless asked not to."""
        return self.settings.get("clip_x0", True)


def save(path: str | Path, checkpoint: Checkpoint, previous: Path | None = None) -> None:
    """Writes the file whole or not at all. previous: the name that the file that was there gets."""
    content = {f"{part}.{name}": w for part in PARTS for name, w in getattr(checkpoint, part).items()}
    content["beta"] = checkpoint.beta
    if checkpoint.losses:
        content["losses"] = torch.stack([*checkpoint.losses])
    if checkpoint.history is not None:
        content["history"] = checkpoint.history
    facts = {name: getattr(checkpoint, name) for name in FACTS}
    tensors.save(path, content, {"format": FORMAT, "network": asdict(checkpoint.network), **facts}, previous)


def load(path: str | Path, parts: Sequence[str] = PARTS) -> Checkpoint:
    """Reads what `save` wrote, onto the CPU. Raises ValueError for other files, and for weights of another network.

    path: a file, or the folder of a run, whose newest is read. parts: which of PARTS are wanted. The others are empty,
    and take no memory.
    """
    path = Path(path)
    if path.is_dir():
        path /= LAST
    old, new, previous = path.with_suffix(".pt"), path.with_suffix(SUFFIX), path.with_name(PREVIOUS)
    if old.is_file() and (path == old or not path.is_file()):
        raise ValueError(f"{old} is a checkpoint from before safetensors; convert it with: "
                         f"python convert.py --source {old} --to {new}")
    if not path.is_file():
        other = next(filter(Path.is_file, (new, previous)), None)
        remedy = f"use {other}" if other else "train one with: python train.py"
        raise ValueError(f"no checkpoint {path}; {remedy}")
    remedy = f"use {previous}" if path.name == LAST and previous.is_file() else "use another file"
    content, facts = tensors.load(path, tuple(f"{part}." for part in PARTS if part not in parts), remedy)
    with reading(path, remedy):
        if facts.get("format") != FORMAT:
            raise ValueError("it is no checkpoint of train.py")
        network, copies = UNetConfig(**facts["network"]), {}
        facts = {"scaler": {}, "seconds": 0., **facts}                            # older files lack them
        check_facts(facts, network)
        unet = empty_unet(network)
        for part in PARTS:
            copy = {name.removeprefix(f"{part}."): w for name, w in content.items() if name.startswith(f"{part}.")}
            averaged = part == "exp_avg_sq" and facts["settings"].get("optimizer") == "muon"
            absent = {*muon.matrices(unet.state_dict())} if averaged else set()
            if copy and (other := absent ^ {name for names in unet.load_state_dict(copy, strict=False, assign=True)
                                            for name in names}):
                raise ValueError(f"{part} has too much or too little: {', '.join(sorted(other)[:3])}")
            if wrong := [name for name, w in copy.items() if not w.is_floating_point()
                         or part in MOMENTS and not (w.dtype == torch.float32 and w.isfinite().all())]:
                raise ValueError(f"{part}.{wrong[0]} is {copy[wrong[0]].dtype}, or not finite")
            copies[part] = {name: copy[name] for name in unet.state_dict() if name in copy}
        from_betas(content["beta"])
        return Checkpoint(network, beta=content["beta"], losses=[*content.get("losses", ())],
                          history=content.get("history"), **copies, **{name: facts[name] for name in FACTS})


def check_facts(facts: dict[str, Any], network: UNetConfig) -> None:
    """Raises an error unless the facts are of the kinds that `save` writes, and the classes are the network's."""
    data, settings, K = facts["data"], facts["settings"], len(facts["data"]["classes"])
    counts = [*data.get("counts", ())]                                  # of the pictures of each class, if known
    texts = (data["name"], data.get("digest", ""), *data["classes"], *facts["versions"].values())
    numbers = (facts["step"], facts["updates"], *data["shape"], *counts)
    if (not all(isinstance(text, str) for text in texts) or {*map(type, numbers)} != {int} or min(numbers) < 0
            or len(data["shape"]) != 3 or len(counts) not in (0, K) or network.classes not in (0, K, K + 1)
            or not all(isinstance(value, str | int | float) for value in settings.values())):
        raise ValueError("its facts are not those of a training run")
    check_choice("target", settings["target"], TARGETS)
    check_choice("variance", settings.get("variance", network.variance), VARIANCES)


def empty_unet(network: UNetConfig, norm: Callable = group_norm_silu_plain) -> UNet:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return UNet(network, norm)


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
    unet = empty_unet(checkpoint.network, norm)
    unet.load_state_dict(cast(chosen, DTYPES[dtype]), assign=True)
    limit_threads(unet)
    return unet.to(place).eval().requires_grad_(False)


@dataclass(frozen=True)
class Config:
    """Copies a checkpoint without its optimizer: half the size, to give away."""
    source: str = "runs/digits/last.safetensors"                    # the checkpoint to copy
    to: str = "weights/digits.safetensors"      # where to
    average: bool = False                       # the averaged weights alone: half of that
    dtype: str = "float32"                      # of the weights but the norms': float32, or bf16 or fp16, half again
    classes: str = ""                           # new names, as cat,dog; the last class without one is the null class


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    check_choice("dtype", config.dtype, DTYPES)
    checkpoint = load(config.source, ("weights", "ema"))
    weights = {} if config.average else cast(checkpoint.weights, DTYPES[config.dtype])
    old = checkpoint.data["classes"]
    names = tuple(config.classes.split(",")) if config.classes else old
    if len(names) not in (len(old), checkpoint.network.classes - 1) or len({*names, ""}) <= len(names):
        raise ValueError(f"classes is {config.classes!r}; name each of the {len(old)} classes once: "
                         f"{', '.join(old[:20])}")
    save(config.to, checkpoint._replace(weights=weights, ema=cast(checkpoint.ema, DTYPES[config.dtype]), losses=(),
                                        history=None, data={**checkpoint.data, "classes": names}))
    print(f"{config.to}: {Path(config.to).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
