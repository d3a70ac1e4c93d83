"""Tensor names and orders of other programs, mapped to those of unet.UNet."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.files import some
from run.checkpoint import empty_unet
from unet import Attention, UNet, UNetConfig


class Naming(NamedTuple):
    """The tensor names of another program."""
    names: dict[str, str]                       # layer of unet.UNet -> external layers to concatenate
    attention: tuple[str, str]                  # part of a block's prefix -> its attention's
    prefixes: Callable[[UNet], Iterator[str]]   # prefixes of the blocks: downs, middle, ups


def diffusers_prefixes(unet: UNet) -> Iterator[str]:
    """Prefixes by level: the resnets, then the resampler to the next level."""
    def stage(blocks: nn.ModuleList, name: str, resampler: str) -> Iterator[str]:
        level = i = 0
        for block in blocks:
            yield f"{name}.{level}.{resampler}.0" if block.resamples else f"{name}.{level}.resnets.{i}"
            level, i = (level + 1, 0) if block.resamples else (level, i + 1)

    yield from stage(unet.downs, "down_blocks", "downsamplers")
    yield from ("mid_block.resnets.0", "mid_block.resnets.1")
    yield from stage(unet.ups, "up_blocks", "upsamplers")


def openai_prefixes(unet: UNet) -> Iterator[str]:
    """Prefixes in numbered stacks of a block and its attention; an upsampler belongs to the stack before it."""
    yield from (f"input_blocks.{k}.0" for k in range(1, len(unet.downs) + 1))
    yield from ("middle_block.0", "middle_block.2")
    k, height = -1, 0
    for block in unet.ups:
        k, height = (k, height) if block.resamples else (k + 1, 0)
        yield f"output_blocks.{k}.{height}"
        height = 2 if isinstance(getattr(block, "attention", None), Attention) else 1


DIFFUSERS = Naming({
    "first": "conv_in", "time_in": "time_embedding.linear_1", "time_out": "time_embedding.linear_2",
    "classes": "class_embedding", "norm": "conv_norm_out", "last": "conv_out", "Down": "conv", "Up": "conv",
    "norm1": "norm1", "conv1": "conv1", "time": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
    "skip": "conv_shortcut", "attention.norm": "group_norm", "attention.qkv": "to_q to_k to_v",
    "attention.out": "to_out.0"}, ("resnets", "attentions"), diffusers_prefixes)
OPENAI = Naming({
    "first": "input_blocks.0.0", "time_in": "time_embed.0", "time_out": "time_embed.2",
    "classes": "label_emb", "norm": "out.0", "last": "out.2", "Down": "op", "Up": "conv",
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "skip": "skip_connection", "attention.norm": "norm", "attention.qkv": "qkv",
    "attention.out": "proj_out"}, (".0", ".1"), openai_prefixes)


def external_names(unet: UNet, naming: Naming) -> dict[str, list[str]]:
    """Tensor names of unet.UNet -> the external tensors whose concatenation each is."""
    blocks = [f"{stage}.{k}" for stage in ("downs", "middle", "ups") for k in range(len(getattr(unet, stage)))]
    prefixes = dict(zip(blocks, naming.prefixes(unet), strict=True))

    def names(key: str) -> list[str]:
        path, kind = key.rsplit(".", 1)
        block, leaf = re.fullmatch(r"(\w+\.\d+|)\.?(.*)", path).groups()
        if leaf == "time":
            timed = zip(prefixes.values(), unet.time_widths, strict=True)
            return [f"{prefix}.{naming.names[leaf]}.{kind}" for prefix, width in timed if width]
        prefix = prefixes.get(block, "")
        if leaf.startswith("attention"):
            head, _, tail = prefix.rpartition(naming.attention[0])
            prefix = head + naming.attention[1] + tail
        layers = naming.names[leaf or type(unet.get_submodule(block)).__name__].split()
        return [".".join(filter(None, (prefix, layer, kind))) for layer in layers]

    return {key: names(key) for key in unet.state_dict()}


def export_weights(unet: UNet, naming: Naming) -> dict[str, Tensor]:
    """The U-Net's weights under the external names."""
    weights, state = {}, unet.state_dict()
    for key, names in external_names(unet, naming).items():
        w = state[key]
        equal = [len(w) // len(names)] * len(names)
        parts = w.split([*filter(None, unet.time_widths)] if key.startswith("time.") else equal)
        weights.update(zip(names, parts, strict=True))
    return weights


def load_weights(config: UNetConfig, naming: Naming, tensors: dict[str, Tensor]) -> UNet:
    """The U-Net with these weights in float32. Raises ValueError naming missing, extra and misshaped tensors."""
    def shape(w: Tensor) -> torch.Size:
        return w.squeeze(-1).shape if w.ndim == 3 else w.shape                    # a Conv1d of width 1 is a Linear here

    unet = empty_unet(config)
    expected = export_weights(unet, naming)
    misshaped = [f"{name} {tuple(w.shape)} for {tuple(expected[name].shape)}" for name, w in tensors.items()
                 if name in expected and shape(w) != expected[name].shape]
    wrong = {"missing": expected.keys() - tensors.keys(), "extra": tensors.keys() - expected.keys(),
             "misshaped": misshaped}
    if any(wrong.values()):
        lists = "; ".join(f"{len(names)} {kind}: {some(sorted(names), 2)}" for kind, names in wrong.items() if names)
        raise ValueError(f"the weights do not fit its settings: {lists}")
    weights = unet.state_dict()
    for key, names in external_names(unet, naming).items():
        weights[key] = torch.cat([tensors[name].float() for name in names]).view_as(weights[key])
    unet.load_state_dict(weights, assign=True)
    return unet.eval()


def swap_sin_cos(unet: UNet) -> None:
    """Permutes time_in, in place, for weights whose time embedding has the cosines before the sines."""
    unet.time_in.weight.data = unet.time_in.weight.data.roll(unet.config.D // 2, dims=1)


def reorder_qkv(unet: UNet) -> None:
    """Permutes the rows of qkv, in place, from (head, qkv, width) to (qkv, head, width) order."""
    for layer in unet.modules():
        if isinstance(layer, Attention):
            for w in layer.qkv.parameters():
                w.data = w.data.unflatten(0, (layer.heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def heads_per_level(widths: tuple, attends: Sequence[bool], count: int, width: int | None) -> tuple[int, ...]:
    """Heads of each level and the middle: `count` or, with `width`, C // width; 0 without attention."""
    return tuple((C // width if width else count) if on else 0
                 for C, on in zip((*widths, widths[-1]), attends, strict=True))
