"""Converts published models to this project's checkpoints, and checkpoints to diffusers folders."""

import torch

import ddpm
from data.files import reading
from published.diffusers import from_diffusers, to_diffusers
from published.files import check_number, diffusers_files, locate, read_flags, read_tensors
from published.openai import FLAGS, from_openai
from run import checkpoint, checks
from run.checkpoint import Checkpoint
from unet import UNet


def read(source: str, flags: str = "") -> Checkpoint:
    """The checkpoint of a diffusers folder, file or hub id, an OpenAI .pt or our own. Raises ValueError for others."""
    path = locate(source)
    diffusers = path.is_dir() or path.suffix in (".bin", ".safetensors")
    weights = {} if diffusers else read_tensors(path)
    if flags and (diffusers or "format" in weights):
        raise ValueError(f"flags is {flags!r}; only an OpenAI .pt takes them, leave them out for {source}")
    if diffusers:
        weights, config, scheduler = diffusers_files(path)
        with reading(path, "correct its config.json, or use another model"):
            parts, size = from_diffusers(weights, config, scheduler), config.get("sample_size")
            if not size:
                raise ValueError("it does not specify the picture size; add sample_size to its config.json")
            return new_checkpoint(str(source), *parts, size)
    if "format" in weights:
        return checkpoint.load(path)
    settings = {**FLAGS, **read_flags(flags, path.with_suffix(".json"))}
    with reading(path, "correct its flags, or use another model"):
        return new_checkpoint(str(source), *from_openai(weights, settings), int(settings["image_size"]))


def new_checkpoint(name: str, unet: UNet, schedule: ddpm.Schedule, choice: dict, size: int | list) -> Checkpoint:
    """The checkpoint of a model for pictures of this size. Raises an error unless the network takes them."""
    H, W = size if isinstance(size, list) else (size, size)
    for side in (H, W):
        check_number("sample_size", side, 1, 2**13)
    config, weights = unet.config, unet.state_dict()
    settings = {"target": choice["target"], "variance": choice["variance"], "clip_x0": choice["clip"]}
    facts = {"name": name, "shape": (config.in_channels, H, W), "classes": tuple(map(str, range(config.classes)))}
    checks.check_facts(facts, config)
    checks.check_weights(config, facts["shape"], weights)
    return Checkpoint(config, weights, weights, 0, schedule.beta[1:], settings, facts, {}, [], checkpoint.versions())


def write_diffusers(last: Checkpoint, folder: str) -> None:
    """Writes a diffusers folder with the checkpoint's EMA weights, schedule and picture size."""
    with torch.device("meta"):
        unet = UNet(last.network)
    unet.load_state_dict(last.ema, assign=True)
    to_diffusers(unet, ddpm.from_betas(last.beta), folder, target=last.settings["target"],
                 variance=last.variance, clip=last.clip, size=tuple(last.data["shape"][1:]))
