"""A picture of any U-Net, made of its UNetConfig: levels, blocks, skips, where time and attention enter, and the cost.

    python -m docs.pages.unet_picture --network cifar10
    python -m docs.pages.unet_picture --network cifar10 --change "widths=(64, 128) heads=(0, 4, 4)" --size 64
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from data import parse_size
from data.files import writing
from ddpm import check_choice
from docs.pages import TEMPLATES
from run.cli import parse, script
from unet import CONFIGS, ResBlock, UNet, UNetConfig, check_size, nearest_up


@dataclass(frozen=True)
class Config:
    """Makes a picture of a U-Net: its blocks, skips, and the cost of each."""
    network: str = "cifar10"                    # a name in unet.CONFIGS
    change: str = ""                            # other values of its fields, as: blocks=3 widths=(64, 128)
    size: str = "32"                            # pixels, as 64 or 48x64 (H x W)
    out: str = "out/unet.svg"                   # the picture


class Block(NamedTuple):
    """A block of the network, at a batch of one picture."""
    name: str                       # kind and channels
    size: tuple[int, int]           # H, W of what it returns
    parameters: int
    flops: int                      # of one evaluation; a multiplication and an addition are two
    time: bool                      # whether it takes the time
    heads: int                      # of its attention, 0 for none
    resamples: bool                 # whether it changes H and W


# What is in the network

def measure(config: UNetConfig, H: int, W: int) -> dict[str, Block]:
    """Every block by its name in the UNet, downs.0 say, and the whole as "". On meta: nothing is computed."""
    check_size(config, config.in_channels, H, W)
    sizes = {}
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet = UNet(config).eval()
        parts = {name: module for name, module in unet.named_modules()
                 if re.fullmatch(r"|first|last|(downs|middle|ups)\.\d+", name)}
        for name, module in parts.items():
            module.register_forward_hook(lambda module, inputs, output, name=name: sizes.update(
                {name: tuple(output.shape[2:])}))
        labels = torch.zeros(1, dtype=torch.int64) if config.classes else None
        unet(torch.zeros(1, config.in_channels, H, W), torch.ones(1, dtype=torch.int64), labels)
    counts = counter.get_flop_counts()
    return {name: Block(describe(name, module, config.patch), sizes[name], sum(w.numel() for w in module.parameters()),
                        sum(counts[f"UNet.{name}" if name else "Global"].values()),
                        bool(getattr(module, "time_width", 0)),
                        getattr(getattr(module, "attention", None), "heads", 0), getattr(module, "resamples", False))
            for name, module in parts.items()}


def describe(name: str, module: torch.nn.Module, patch: int) -> str:
    """What a box says: kind and channels; the first and the last also fold and unfold the patches."""
    if isinstance(module, ResBlock):
        how = "" if not module.resamples else "up, " if module.resample is nearest_up else "down, "
        return f"{how}res {module.conv2.out_channels}"
    if isinstance(module, UNet):
        return "U-Net"
    kinds = {"first": "fold, conv" if patch > 1 else "conv", "last": "norm, conv"}
    kind, end = kinds.get(name, type(module).__name__.lower()), ", unfold" if name == "last" and patch > 1 else ""
    return f"{kind} {module.out_channels}{end}"


# The picture

def short(n: float) -> str:
    """1.23 M for 1234567."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f}"


def pairs(blocks: dict[str, Block]) -> list[tuple[str, list[str]]]:
    """Each block that leaves a skip, from the top, and what takes it, with the upsampling that follows, if any."""
    left = ["first", *(name for name in blocks if name.startswith("downs"))]
    beside, row = [[] for _ in left], len(left)
    for name, block in blocks.items():
        if name.startswith("ups"):
            row -= not block.resamples
            beside[row].append(name)
    return list(zip(left, beside, strict=True))


def picture(config: UNetConfig, H: int, W: int) -> str:
    """The network as SVG, from the top: what goes down on the left, what goes up on the right, skips between."""
    blocks = measure(config, H, W)
    whole = blocks.pop("")
    boxes, skips, row = [(blocks["last"], "right", 1)], [], 2
    for name, (taker, *up) in pairs(blocks):
        if up:                                                  # a level begins here
            boxes.append((blocks[up[0]], "right", row))
            row += 1
        skips.append((row, blocks[name].size if up or name == "first" else None))
        boxes += [(blocks[name], "left", row), (blocks[taker], "right", row)]
        row += 1
    boxes += [(blocks[f"middle.{k}"], "middle", row + k) for k in range(2)]
    return TEMPLATES.get_template("unet.svg").render(
        config=config, H=H, W=W, whole=whole, boxes=boxes, skips=skips, rows=row, short=short,
        most=max(block.flops for block in blocks.values()))


def change(config: UNetConfig, text: str) -> UNetConfig:
    """The configuration with the fields that text changes. Raises ValueError for what is no configuration."""
    pattern = r"(\w+)=(\([^)]*\)|[^\s(]+)"
    try:
        values = {name: ast.literal_eval(value) for name, value in re.findall(pattern, text)}
        fits = all(type(value) is type(getattr(config, name)) for name, value in values.items())
        if re.sub(pattern, "", text).strip() or not fits:
            raise ValueError
    except (ValueError, SyntaxError, AttributeError):
        raise ValueError(f"change is {text!r}; it must be fields of UNetConfig, as: blocks=3 resample='res' "
                         f"widths=(64, 128)") from None
    return replace(config, **values)


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    check_choice("network", config.network, CONFIGS)
    if not (size := parse_size(config.size)):
        raise ValueError("size is empty; it must be pixels, as 32 or 48x64")
    svg = picture(change(CONFIGS[config.network], config.change), *size)
    with writing(config.out) as file:
        file.write(svg.encode())
    print(config.out)


if __name__ == "__main__":
    main()
