"""Converts published models to this project's checkpoints, and checkpoints to diffusers folders."""

from typing import Any

import ddpm
from data.files import reading
from published.diffusers import from_diffusers, to_diffusers
from published.files import diffusers_files, locate, read_flags, read_tensors
from published.openai import FLAGS, from_openai
from run import checkpoint, tensors
from run.checkpoint import LAST, MOMENTS, Checkpoint
from unet import UNet, UNetConfig, check_size

PICKLED = "minimal-diffusion 1"         # the format of this project's checkpoints before they were safetensors


def read(source: str, flags: str = "") -> Checkpoint:
    """The checkpoint of a diffusers folder, file or hub id, an OpenAI .pt or our own. Raises ValueError for others."""
    path = locate(source)
    if (path / LAST).is_file():                         # the folder of a run
        path /= LAST
    ours = path.suffix == tensors.SUFFIX and bool(tensors.load(path)[1])
    diffusers = path.is_dir() or path.suffix in (".bin", tensors.SUFFIX) and not ours
    weights = {} if diffusers or ours else read_tensors(path)
    if flags and (diffusers or ours or "format" in weights):
        raise ValueError(f"flags is {flags!r}; only an OpenAI .pt takes them, leave them out for {source}")
    if ours:
        return checkpoint.load(path)
    if diffusers:
        weights, config, scheduler = diffusers_files(path)
        with reading(path, "correct its config.json, or use another model"):
            parts, size = from_diffusers(weights, config, scheduler), config.get("sample_size")
            if not size:
                raise ValueError("it does not specify the picture size; add sample_size to its config.json")
            return new_checkpoint(str(source), *parts, size)
    if "format" in weights:
        with reading(path):
            return from_pickled(weights)
    settings = {**FLAGS, **read_flags(flags, path.with_suffix(".json"))}
    with reading(path, "correct its flags, or use another model"):
        return new_checkpoint(str(source), *from_openai(weights, settings), int(settings["image_size"]))


def new_checkpoint(name: str, unet: UNet, schedule: ddpm.Schedule, choice: dict, size: int | list) -> Checkpoint:
    """The checkpoint of a model for pictures of this size. Raises an error unless the network takes them."""
    shape = unet.config.in_channels, *(size if isinstance(size, list) else (size, size))
    check_size(unet.config, *shape)
    settings = {"target": choice["target"], "variance": choice["variance"], "clip_x0": choice["clip"]}
    facts = {"name": name, "shape": shape, "classes": tuple(map(str, range(unet.config.classes)))}
    return Checkpoint(unet.config, {}, unet.state_dict(), 0, schedule.beta[1:], settings, facts, checkpoint.versions())


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
    """Writes a diffusers folder with the checkpoint's EMA weights, schedule and picture size."""
    unet = checkpoint.empty_unet(saved.network)
    unet.load_state_dict(saved.ema, assign=True)
    to_diffusers(unet, ddpm.from_betas(saved.beta), folder, target=saved.settings["target"],
                 variance=saved.variance, clip=saved.clip, size=saved.data["shape"][1:])
