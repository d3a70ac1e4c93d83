"""Dialects: how other programs name the tensors of unet.UNet, and their order within them."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unet import Attention, UNet, UNetConfig


class Dialect(NamedTuple):
    """How another program names our tensors."""
    names: dict[str, str]                       # our layer, of a block or of the U-Net -> theirs, side by side
    attention: tuple[str, str]                  # a block's place ends or continues so; its attention's so
    places: Callable[[UNet], Iterator[str]]     # where the blocks are: downs, middle, ups


def diffusers_places(unet: UNet) -> Iterator[str]:
    """Levels, each of resnets and, between levels, one resampler."""
    def stage(blocks: nn.ModuleList, name: str, resampler: str) -> Iterator[str]:
        level = i = 0
        for block in blocks:
            yield f"{name}.{level}.{resampler}.0" if block.resamples else f"{name}.{level}.resnets.{i}"
            level, i = (level + 1, 0) if block.resamples else (level, i + 1)

    yield from stage(unet.downs, "down_blocks", "downsamplers")
    yield from ("mid_block.resnets.0", "mid_block.resnets.1")
    yield from stage(unet.ups, "up_blocks", "upsamplers")


def openai_places(unet: UNet) -> Iterator[str]:
    """Numbered stacks: a block, its attention; on the way up a resampler rides on the stack before it."""
    yield from (f"input_blocks.{k}.0" for k in range(1, len(unet.downs) + 1))
    yield from ("middle_block.0", "middle_block.2")
    k, height = -1, 0
    for block in unet.ups:
        k, height = (k, height) if block.resamples else (k + 1, 0)
        yield f"output_blocks.{k}.{height}"
        height = 2 if isinstance(getattr(block, "attention", None), Attention) else 1


DIFFUSERS = Dialect({
    "first": "conv_in", "time_in": "time_embedding.linear_1", "time_out": "time_embedding.linear_2",
    "classes": "class_embedding", "norm": "conv_norm_out", "last": "conv_out", "Down": "conv", "Up": "conv",
    "norm1": "norm1", "conv1": "conv1", "time": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
    "skip": "conv_shortcut", "attention.norm": "group_norm", "attention.qkv": "to_q to_k to_v",
    "attention.out": "to_out.0"}, ("resnets", "attentions"), diffusers_places)


OPENAI = Dialect({
    "first": "input_blocks.0.0", "time_in": "time_embed.0", "time_out": "time_embed.2",
    "classes": "label_emb", "norm": "out.0", "last": "out.2", "Down": "op", "Up": "conv",
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "skip": "skip_connection", "attention.norm": "norm", "attention.qkv": "qkv",
    "attention.out": "proj_out"}, (".0", ".1"), openai_places)


def their_names(unet: UNet, dialect: Dialect) -> dict[str, list[str]]:
    """Our tensors -> theirs, of which ours is the concatenation."""
    blocks = [f"{stage}.{k}" for stage in ("downs", "middle", "ups") for k in range(len(getattr(unet, stage)))]
    places = dict(zip(blocks, dialect.places(unet), strict=True))

    def names(ours: str) -> list[str]:
        path, kind = ours.rsplit(".", 1)
        block, leaf = re.fullmatch(r"(\w+\.\d+|)\.?(.*)", path).groups()
        if leaf == "time":
            timed = zip(places.values(), unet.time_widths, strict=True)
            return [f"{place}.{dialect.names[leaf]}.{kind}" for place, width in timed if width]
        place = places.get(block, "")
        if leaf.startswith("attention"):
            head, _, tail = place.rpartition(dialect.attention[0])
            place = head + dialect.attention[1] + tail
        layers = dialect.names[leaf or type(unet.get_submodule(block)).__name__].split()
        return [".".join(filter(None, (place, layer, kind))) for layer in layers]

    return {ours: names(ours) for ours in unet.state_dict()}


def export_weights(unet: UNet, dialect: Dialect) -> dict[str, Tensor]:
    """The weights under their names."""
    weights, state = {}, unet.state_dict()
    for ours, names in their_names(unet, dialect).items():
        w = state[ours]
        equal = [len(w) // len(names)] * len(names)
        parts = w.split([*filter(None, unet.time_widths)] if ours.startswith("time.") else equal)
        weights.update(zip(names, parts, strict=True))
    return weights


def load_weights(config: UNetConfig, dialect: Dialect, given: dict[str, Tensor]) -> UNet:
    """The U-Net with these weights, in float32. Raises ValueError that lists what is missing, extra or misshaped."""
    def shape(w: Tensor) -> torch.Size:
        return w.squeeze(-1).shape if w.ndim == 3 else w.shape                    # a 1-wide Conv1d is our Linear

    with torch.device("meta"):
        unet = UNet(config)
    wanted = export_weights(unet, dialect)
    misshaped = [f"{name} {tuple(w.shape)} for {tuple(wanted[name].shape)}" for name, w in given.items()
                 if name in wanted and shape(w) != wanted[name].shape]
    wrong = {"missing": wanted.keys() - given.keys(), "extra": given.keys() - wanted.keys(), "misshaped": misshaped}
    if any(wrong.values()):
        lists = "; ".join(f"{len(names)} {what}: {', '.join(sorted(names))}" for what, names in wrong.items() if names)
        raise ValueError(f"the weights do not fit {config}; change its settings or take other weights. {lists}")
    weights = unet.state_dict()
    for ours, names in their_names(unet, dialect).items():
        weights[ours] = torch.cat([given[name].float() for name in names]).view_as(weights[ours])
    unet.load_state_dict(weights, assign=True)
    return unet.eval()


def cos_first(unet: UNet) -> None:
    """For networks whose sinusoid is cosines, then sines: turns the layer that reads it, in place."""
    unet.time_in.weight.data = unet.time_in.weight.data.roll(unet.config.D // 2, dims=1)


def by_head(unet: UNet) -> None:
    """For networks whose rows of qkv are in (head, qkv, width) order: brings them into ours, in place."""
    for layer in unet.modules():
        if isinstance(layer, Attention):
            for w in layer.qkv.parameters():
                w.data = w.data.unflatten(0, (layer.heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def heads(widths: tuple, attends: Sequence[bool], count: int, width: int | None) -> tuple[int, ...]:
    """Heads of each level and the middle: so many or, if width is given, so wide; 0 where nothing attends."""
    return tuple((C // width if width else count) if on else 0
                 for C, on in zip((*widths, widths[-1]), attends, strict=True))
