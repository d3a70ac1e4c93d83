"""Converts published models to this project's checkpoints, and checkpoints to diffusers folders."""

import torch

import ddpm
from published.diffusers import from_diffusers, to_diffusers
from published.files import diffusers_files, locate, read_flags, read_tensors
from published.openai import FLAGS, from_openai
from run import checkpoint
from run.checkpoint import Checkpoint
from unet import UNet


def read(source: str, flags: str = "") -> Checkpoint:
    """The checkpoint of a diffusers folder, file or hub id, an OpenAI .pt or our own. Raises ValueError for others."""
    path = locate(source)
    if path.is_dir() or path.suffix in (".bin", ".safetensors"):
        weights, config, scheduler = diffusers_files(path)
        parts, size = from_diffusers(weights, config, scheduler), (config or {}).get("sample_size")
        if not size:
            raise ValueError(f"{path} does not specify the picture size; add sample_size to its config.json")
    else:
        weights = read_tensors(path)
        if "format" in weights:
            return checkpoint.load(path)
        settings = {**FLAGS, **read_flags(flags, path.with_suffix(".json"))}
        parts, size = from_openai(weights, settings), int(settings["image_size"])
    unet, schedule, choice = parts
    settings = {"target": choice["target"], "variance": choice["variance"], "clip_x0": choice["clip"]}
    weights, shape = unet.state_dict(), (unet.config.in_channels, *(size if isinstance(size, list) else (size, size)))
    facts = {"name": str(source), "shape": shape, "classes": tuple(map(str, range(unet.config.classes)))}
    return Checkpoint(unet.config, weights, weights, 0, schedule.beta[1:], settings, facts, {}, [],
                      checkpoint.versions())


def write_diffusers(last: Checkpoint, folder: str) -> None:
    """Writes a diffusers folder with the checkpoint's EMA weights, schedule and picture size."""
    with torch.device("meta"):
        unet = UNet(last.network)
    unet.load_state_dict(last.ema, assign=True)
    to_diffusers(unet, ddpm.from_betas(last.beta), folder, target=last.settings["target"],
                 variance=last.variance, clip=last.clip, size=tuple(last.data["shape"][1:]))
