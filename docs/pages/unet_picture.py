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
from run.cli import parse, script
from unet import CONFIGS, ResBlock, UNet, UNetConfig, check_size, nearest_up

BOX, ROW, LEFT, RIGHT, WIDTH = (136, 34), 42, 8, 236, 380                   # sizes and places, in pixels
STYLE = """
.unet text { font: 12px system-ui, sans-serif; fill: var(--ink, #1c1b19); }
.unet .small { font-size: 11px; fill: var(--soft, #5c5952); }
.unet .middle { text-anchor: middle; }
.unet .box { fill: var(--panel, #f5f2ec); stroke: var(--line, #cfc9bc); }
.unet .cost { fill: var(--blue, #2456a6); }
.unet .flow { fill: none; stroke: var(--soft, #5c5952); }
.unet .skip { stroke: var(--soft, #5c5952); stroke-dasharray: 2 3; }
.unet .time { fill: var(--red, #b03a2e); }
.unet .attention { fill: var(--green, #2e7d4f); }
"""


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
    kinds = {"first": "fold, " * (patch > 1) + "conv", "last": "norm, conv"}
    return f"{kinds.get(name) or name_of(module)} {module.out_channels}" + ", unfold" * (name == "last" and patch > 1)


def name_of(module: torch.nn.Module) -> str:
    return type(module).__name__.lower()


# The picture

def number(n: float) -> str:
    """1.23 M for 1234567."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f}"


def text(x: float, y: float, words: str, small: bool = False, middle: bool = False) -> str:
    style = " ".join(["small"] * small + ["middle"] * middle)
    return f'<text class="{style}" x="{x:g}" y="{y:g}">{words}</text>'


def box(block: Block, x: float, y: float, most: int) -> str:
    """A block at x, y; the bar at its foot is its FLOPs as a share of `most`."""
    (width, height), cost = BOX, f"{number(block.parameters)} parameters, {number(block.flops)}FLOP"
    marks = f'<circle class="time" cx="{x + width - 10:g}" cy="{y + 10:g}" r="3.5"/>' if block.time else ""
    heads = f", attention of {block.heads} heads" if block.heads else ""
    if block.heads:
        marks += f'<path class="attention" d="M{x + width - 25:g} {y + 10:g}l4 -4l4 4l-4 4z"/>'
    return (f'<g><title>{block.name}, {block.size[0]} x {block.size[1]}: {cost}{heads}</title>'
            f'<rect class="box" x="{x:g}" y="{y:g}" width="{width}" height="{height}" rx="3"/>'
            f'<rect class="cost" x="{x:g}" y="{y + height - 2:g}" width="{width * block.flops / most:.1f}" height="2"/>'
            f'{text(x + 7, y + 13, block.name)}'
            f'{text(x + 7, y + 26, f"{number(block.parameters)} · {number(block.flops)}FLOP", small=True)}{marks}</g>')


def pairs(blocks: dict[str, Block]) -> list[tuple[str, list[str]]]:
    """Each block that leaves a skip, from the top, and what takes it, with the upsampling that follows, if any."""
    left = ["first", *(name for name in blocks if name.startswith("downs"))]
    beside, row = [[] for _ in left], len(left)
    for name, block in blocks.items():
        if name.startswith("ups"):
            row -= not block.resamples
            beside[row].append(name)
    return list(zip(left, beside, strict=True))


def picture(config: UNetConfig, H: int, W: int, alone: bool = False) -> str:
    """The network as SVG; alone: with its style, to be a file of its own."""
    blocks = measure(config, H, W)
    most, (width, height) = max(block.flops for name, block in blocks.items() if name), BOX
    centre, y, boxes, skips = WIDTH / 2, 2 * ROW, [("last", RIGHT, ROW)], ""
    for name, (taker, *up) in pairs(blocks):
        if up:                                                  # a level begins here
            boxes.append((up[0], RIGHT, y))
            y += ROW
        skips += f'<path class="skip" d="M{LEFT + width} {y + height / 2:g}H{RIGHT}"/>'
        if up or name == "first":
            skips += text(centre, y + height / 2 - 6, " × ".join(map(str, blocks[name].size)), small=True, middle=True)
        boxes += [(name, LEFT, y), (taker, RIGHT, y)]
        y += ROW
    boxes += [(f"middle.{k}", centre - width / 2, y + k * ROW + 8) for k in range(2)]
    y += 8 + height / 2
    flow = (f'<path class="flow" d="M{LEFT + width / 2:g} {ROW + 8}V{y:g}H{centre:g}V{y + ROW:g}H{RIGHT + width / 2:g}'
            f'V{ROW}"/>')
    body = flow + skips + "".join(box(blocks[name], x, at, most) for name, x, at in boxes)
    end = y + ROW + height / 2 + 24
    body += ends(config, blocks[""], H, W) + legend(end)
    return (f'<svg class="unet" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {end + 10:g}" role="img" '
            f'aria-label="The U-Net, block by block">{f"<style>{STYLE}</style>" if alone else ""}{body}</svg>')


def ends(config: UNetConfig, whole: Block, H: int, W: int) -> str:
    """What goes in and comes out, and the cost of all."""
    return (text(LEFT + BOX[0] / 2, ROW, f"x_t, {config.in_channels} × {H} × {W}", middle=True)
            + text(RIGHT + BOX[0] / 2, ROW - 8, f"output, {config.out_channels} × {H} × {W}", middle=True)
            + text(WIDTH / 2, 14, f"{number(whole.parameters)} parameters, {number(whole.flops)}FLOP per evaluation",
                   middle=True))


def legend(y: float) -> str:
    """What the marks mean."""
    return (f'<circle class="time" cx="{LEFT + 6}" cy="{y - 4:g}" r="3.5"/>{text(LEFT + 14, y, "takes the time")}'
            f'<path class="attention" d="M{LEFT + 110} {y - 4:g}l4 -4l4 4l-4 4z"/>{text(LEFT + 123, y, "attention")}'
            f'<rect class="cost" x="{LEFT + 190}" y="{y - 5:g}" width="24" height="2"/>'
            f'{text(LEFT + 220, y, "share of the most FLOPs")}')


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
    svg = picture(change(CONFIGS[config.network], config.change), *size, alone=True)
    with writing(config.out) as file:
        file.write(svg.encode())
    print(config.out)


if __name__ == "__main__":
    main()
