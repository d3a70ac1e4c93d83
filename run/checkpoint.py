"""One file that knows everything: weights, their average, the optimizer, the step, the settings, the data's facts.

    python -m run.checkpoint --source runs/digits/last.pt --to weights/digits.pt      # to give away
    python -m run.checkpoint --source runs/x/last.pt --to x.pt --average --dtype bf16 # an eighth of the size

No code in a file is ever executed, and nothing in it is used before it has been checked (run/checks.py).
"""

import copy
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import PIL
import torch
from torch import Tensor

from data.files import writing
from ddpm import check_choice, from_betas
from run import checks
from run.cli import DTYPES, choose_device, limit_threads, parse, script
from run.memory import cast
from unet import UNet, UNetConfig, group_norm_silu_plain

FORMAT = "minimal-diffusion 1"
PARTS = ("weights", "ema", "optimizer")
WEIGHTS = {"ema": "ema", "raw": "weights"}      # of --weights, their place in a checkpoint


class Checkpoint(NamedTuple):
    """All that resuming a run and sampling from it need. The random state is (settings["seed"], step)."""
    network: UNetConfig
    weights: dict[str, Tensor]      # empty if given away without them
    ema: dict[str, Tensor]
    step: int
    beta: Tensor                    # the schedule, beta_1..beta_T
    settings: dict[str, Any]        # train.py's, every field
    data: dict[str, Any]            # name, shape, classes, and since they are kept the digest of its pictures
    optimizer: dict[str, Any]       # empty if given away
    losses: list[Tensor]            # records of the steps since the last line of the log
    versions: dict[str, str]        # of what wrote the file
    history: Tensor | None = None   # the latest losses of each t, for importance sampling

    @property
    def variance(self) -> str:
        """Of the sampler's steps, unless another is asked for."""
        return self.settings.get("variance", self.network.variance)

    @property
    def clip(self) -> bool:
        """Whether the sampler clips x0_hat to [-1, 1], unless asked not to."""
        return self.settings.get("clip_x0", True)


def save(path: Path, checkpoint: Checkpoint, previous: Path | None = None,
         check: Callable[[], None] = lambda: None) -> None:
    """Writes the file whole or not at all.

    previous: the name that the file that was there gets. check: called before the new one takes its place.
    """
    content = checkpoint._replace(network=asdict(checkpoint.network))._asdict()
    with writing(path, previous, check) as file:
        torch.save({"format": FORMAT, **content}, file)


def load(path: Path, parts: Sequence[str] = PARTS) -> Checkpoint:
    """Reads what `save` wrote, onto the CPU; never executes code from the file. Raises ValueError for others.

    parts: which of PARTS are wanted. The others are empty, and take no memory.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint {path}; train one with: python train.py")
    previous = path.with_name("previous.pt")
    mend = f"use {previous}" if path.name == "last.pt" and previous.is_file() else "use another file"
    content = unpack(path, mend)
    try:
        last = Checkpoint(**content)
        left_out = {name: {} for name in PARTS if name not in parts}
        last = last._replace(network=check(last, path.stat().st_size), **left_out)
        return copy.deepcopy(last)                                  # out of the map, which may change under us
    except Exception as error:                                      # what does not fit together fails in many ways
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path} does not fit its own network or settings: {reason}; {mend}") from error


def unpack(path: Path, mend: str) -> dict[str, Any]:
    """The content of a file that `save` wrote, its tensors mapped. Raises ValueError for any other."""
    try:
        content = checks.load(path, mmap=True)
    except PermissionError:
        raise
    except Exception as error:                                      # torch and zipfile raise many kinds
        raise ValueError(f"{path} is damaged or no checkpoint of train.py; {mend}") from error
    fields = {*Checkpoint._fields}
    if type(content) is not dict or content.pop("format", None) != FORMAT or not (
            fields - {*Checkpoint._field_defaults} <= {*content} <= fields):
        raise ValueError(f"{path} is no checkpoint of train.py; use one that train.py or run.checkpoint wrote")
    return content


def check(last: Checkpoint, size: int) -> UNetConfig:
    """The network, still a dict, of what a file of `size` bytes held. Raises an error unless all of it fits together.
    """
    checks.check_tensors(list(checks.plain_tensors(last._asdict())), size)
    network = checks.sound_network(last.network)
    checks.check_facts(last.data, network)
    checks.check_settings(last.settings, network)
    averaged_alone = last.weights == last.optimizer == {}
    checks.check_weights(network, last.data["shape"], last.ema, *([] if averaged_alone else [last.weights]))
    if not isinstance(last.beta, Tensor):
        raise ValueError("its schedule is no tensor")
    from_betas(last.beta)
    if type(last.step) is not int or not 0 <= last.step < 2**31:
        raise ValueError(f"step is {last.step}")
    if not all(type(version) is str for version in last.versions.values()):
        raise ValueError("a version is no text")
    return network


def versions() -> dict[str, str]:
    """Of what computes here."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__,
            "pillow": PIL.__version__}


def load_unet(last: Checkpoint, weights: str = "ema", dtype: str = "float32", device: str = "auto",
              norm: Callable = group_norm_silu_plain, override: dict[str, Tensor] | None = None) -> UNet:
    """The checkpoint's network, frozen, with the weights asked for, or with those of `override`.

    Raises ValueError for weights that were not given away.
    """
    place, chosen = choose_device(device), override or getattr(last, WEIGHTS[weights])
    if not chosen:
        raise ValueError(f"weights is {weights!r}; the checkpoint has only the averaged ones, use ema")
    with torch.device("meta"):                                      # its weights come from the file
        unet = UNet(last.network, norm)
    unet.load_state_dict(cast(chosen, DTYPES[dtype]), assign=True)
    limit_threads(unet)
    return unet.to(place).eval().requires_grad_(False)


@dataclass(frozen=True)
class Config:
    """Copies a checkpoint without its optimizer: half the size, to give away."""
    source: str = "runs/digits/last.pt"         # the checkpoint to copy
    to: str = "weights/digits.pt"               # where to
    average: bool = False                       # the averaged weights alone: half of that
    dtype: str = "float32"                      # of the weights but the norms': float32, or bf16, half again
    classes: str = ""                           # names of the classes, as cat,dog, for those that the data gave


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    check_choice("dtype", config.dtype, DTYPES)
    last = load(config.source)
    weights, ema = (cast(part, DTYPES[config.dtype]) for part in ({} if config.average else last.weights, last.ema))
    names = tuple(config.classes.split(",")) if config.classes else tuple(last.data["classes"])
    if len(names) != len(last.data["classes"]) or len({*names, ""}) <= len(names):
        raise ValueError(f"classes is {config.classes!r}; name each of the {len(last.data['classes'])} classes once: "
                         f"{', '.join(last.data['classes'][:20])}")
    save(config.to, last._replace(weights=weights, ema=ema, optimizer={}, data={**last.data, "classes": names}))
    print(f"{config.to}: {Path(config.to).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
