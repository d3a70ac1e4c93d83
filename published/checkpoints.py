"""Converts published models to this project's checkpoints, and checkpoints to diffusers folders."""

from typing import Any

import ddpm
from data.files import reading, some
from published import diffusers, openai
from published.files import diffusers_files, flatten, locate, read_flags
from run import checkpoint, tensors
from run.checkpoint import LAST, MOMENTS, Checkpoint
from unet import UNet, UNetConfig, check_size

PICKLED = "minimal-diffusion 1"         # the format of this project's checkpoints before they were safetensors


def read(source: str, flags: str = "") -> Checkpoint:
    """The checkpoint of a diffusers folder, file or hub id, an OpenAI .pt or our own. Raises ValueError for others."""
    path = locate(source)
    path = path.parent if path.suffix == ".json" else path
    path = path / LAST if (path / LAST).is_file() else path                       # a run's folder
    ours = path.suffix == tensors.SUFFIX and bool(tensors.load(path)[1])
    weights, config, scheduler = ({}, None, None) if ours else diffusers_files(path)
    names, published = [name for name, _ in flatten(weights)], not ours and "format" not in weights
    layers = {layer for layer in (diffusers.FIRST, openai.FIRST) if any(name.endswith(layer) for name in names)}
    if published and config is None and not layers:
        raise ValueError(f"{source} has no network of diffusers or OpenAI; its weights are named {some(names, 2)}")
    if published and openai.FIRST in layers:
        settings = {**openai.FLAGS, **read_flags(flags, path.with_suffix(".json"))}
        with reading(path, "correct its flags, or use another model"):
            return new_checkpoint(str(source), *openai.from_openai(weights, settings), int(settings["image_size"]))
    if flags:
        raise ValueError(f"flags is {flags!r}; only an OpenAI .pt takes them, leave them out for {source}")
    if ours:
        return checkpoint.load(path)
    if not published:
        with reading(path):
            return from_pickled(weights)
    with reading(path, "correct its config.json, or use another model"):
        parts = diffusers.from_diffusers(weights, config, scheduler)
        if not config.get("sample_size"):
            raise ValueError("it does not specify the picture size; add sample_size to its config.json")
        return new_checkpoint(str(source), *parts, config["sample_size"], config.get(diffusers.OURS, {}))


def new_checkpoint(name: str, unet: UNet, schedule: ddpm.Schedule, choice: dict, size: int | list,
                   facts: dict[str, Any] | None = None) -> Checkpoint:
    """The checkpoint of a model for pictures of this size. Raises an error unless the network takes them.

    size: of what the network's first convolution sees. facts: those that `write_diffusers` kept.
    """
    facts, sides = facts or {}, size if isinstance(size, (list, tuple)) else (size, size)
    shape = unet.config.in_channels, *(side * unet.config.patch for side in sides)
    check_size(unet.config, *shape)
    classes = tuple(map(str, range(unet.config.classes)))
    known = {"step": facts.get("step", 0), "updates": 0, "versions": checkpoint.versions(),
             "data": {"name": name, "classes": classes, **tensors.with_tuples(facts.get("data", {})), "shape": shape},
             "settings": {**facts.get("settings", {}), "target": choice["target"], "variance": choice["variance"],
                          "clip_x0": choice["clip"]}}
    checkpoint.check_facts(known, unet.config)
    return Checkpoint(unet.config, {}, unet.state_dict(), beta=schedule.beta[1:], **known)


def from_pickled(content: dict[str, Any]) -> Checkpoint:
    """The checkpoint in a .pt of this project, from before its files were safetensors."""
    if content["format"] != PICKLED:
        raise ValueError(f"its format is {content['format']!r}, not {PICKLED}")
    weights, ema = ({name: w.clone() for name, w in content[part].items()} for part in ("weights", "ema"))
    adam = [state for _, state in sorted(content["optimizer"].get("state", {}).items())]    # empty if given away
    moments = {part: dict(zip(weights, (state[part] for state in adam), strict=bool(adam))) for part in MOMENTS}
    network, step, beta, settings, data, versions = (content[name] for name in (
        "network", "step", "beta", "settings", "data", "versions"))
    return Checkpoint(
        UNetConfig(**network), weights, ema, step, beta, settings, data, versions, **moments,
        updates=int(adam[0]["step"]) if adam else 0, losses=content["losses"], history=content.get("history"))


def write_diffusers(saved: Checkpoint, folder: str) -> None:
    """Writes a diffusers folder of the checkpoint's EMA weights, with all that `read` needs to bring them back."""
    unet = checkpoint.empty_unet(saved.network)
    unet.load_state_dict(saved.ema, assign=True)
    diffusers.to_diffusers(
        unet, ddpm.from_betas(saved.beta), folder, target=saved.settings["target"], variance=saved.variance,
        clip=saved.clip, size=saved.data["shape"][1:],
        facts={"step": saved.step, "settings": saved.settings, "data": saved.data})
