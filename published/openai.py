"""improved-diffusion and guided-diffusion: weights, and the published command-line flags that say what they are."""

from typing import Any

import torch
from torch import Tensor

import ddpm
from ddpm import Schedule
from published.names import OPENAI, by_head, cos_first, heads, load_weights
from unet import UNet, UNetConfig

FLAGS = {"image_size": 64, "num_channels": 128, "num_res_blocks": 2, "channel_mult": "", "num_heads": 4,
         "num_heads_upsample": -1, "num_head_channels": -1, "attention_resolutions": "16,8", "dropout": 0.0,
         "use_scale_shift_norm": True, "resblock_updown": False, "use_new_attention_order": False,
         "diffusion_steps": 1000, "noise_schedule": "linear", "rescale_timesteps": True, "sigma_small": False,
         "predict_xstart": False}


IGNORED = {"use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas", "timestep_respacing"}  # not the function


CHANNEL_MULT = {512: "0.5,1,1,2,2,4,4", 256: "1,1,2,2,4,4", 128: "1,1,2,3,4", 64: "1,2,3,4", 32: "1,2,2,2"}


def from_openai(state_dict: dict[str, Tensor], flags: dict) -> tuple[UNet, Schedule, dict]:
    """The network, its schedule, and target, variance and clip, of an improved- or guided-diffusion model.

    flags: as published for the command line, {"image_size": 64, "attention_resolutions": "32,16,8", ...}.
    learn_sigma and class_cond are read from the weights unless given.
    """
    said = flag_values(state_dict, flags)
    unet = load_weights(openai_config(said), OPENAI, state_dict)
    cos_first(unet)
    if not said["use_new_attention_order"]:
        by_head(unet)
    T = said["diffusion_steps"]
    schedules = {"linear": lambda: ddpm.linear_schedule(T, 0.1 / T, 20 / T), "cosine": lambda: ddpm.cosine_schedule(T)}
    ddpm.check_choice("noise_schedule", said["noise_schedule"], schedules)
    variance = "learned" if said["learn_sigma"] else "beta_tilde" if said["sigma_small"] else "beta"
    return unet, schedules[said["noise_schedule"]](), {"target": "x0" if said["predict_xstart"] else "eps",
                                                       "variance": variance, "clip": True}


def flag_values(weights: dict[str, Tensor], flags: dict) -> dict[str, Any]:
    """All flags, each of its own type, be they text or not, and what the weights say. Raises ValueError."""
    first, last, table = (weights.get(f"{name}.weight", torch.empty(0)) for name in (
        "input_blocks.0.0", "out.2", "label_emb"))
    C = first.shape[1] if first.ndim == 4 else 3
    known = {**FLAGS, "learn_sigma": len(last) == 2 * C, "class_cond": "label_emb.weight" in weights}
    if unknown := flags.keys() - known.keys() - IGNORED:
        raise ValueError(f"flags have {', '.join(sorted(unknown))}; known are {', '.join([*known, *sorted(IGNORED)])}")

    def typed(name: str, value: Any) -> Any:
        if isinstance(known[name], bool):
            ddpm.check_choice(name, str(value).lower(), ("true", "false", "1", "0"))
            return str(value).lower() in ("true", "1")
        try:
            return type(known[name])(",".join(map(str, value)) if isinstance(value, (list, tuple)) else value)
        except ValueError:
            raise ValueError(f"{name} is {value!r}; it must be a number, as {known[name]}") from None

    return {**known, **{name: typed(name, value) for name, value in flags.items() if name in known},
            "in_channels": C, "classes": len(table) or 1000}


def openai_config(said: dict[str, Any]) -> UNetConfig:
    """The flags as a UNetConfig. Raises ValueError."""
    D, size, C, per_head = (said[k] for k in ("num_channels", "image_size", "in_channels", "num_head_channels"))
    if not said["channel_mult"] and size not in CHANNEL_MULT:
        raise ValueError(f"image_size {size} has no published channel_mult; give it, as 1,2,3,4")
    if said["num_heads_upsample"] not in (-1, said["num_heads"]) and per_head == -1:
        raise ValueError(f"num_heads_upsample is {said['num_heads_upsample']}; it must be -1 or as num_heads")
    widths = tuple(int(float(m) * D) for m in (said["channel_mult"] or CHANNEL_MULT[size]).split(","))
    factors = {size // int(resolution) for resolution in filter(None, said["attention_resolutions"].split(","))}
    attends = (*(2**level in factors for level in range(len(widths))), True)
    return UNetConfig(
        C, 2 * C if said["learn_sigma"] else C, D=D, widths=widths, blocks=said["num_res_blocks"],
        heads=heads(widths, attends, said["num_heads"], None if per_head == -1 else per_head),
        classes=said["classes"] if said["class_cond"] else 0, scale_shift=said["use_scale_shift_norm"],
        resample="res" if said["resblock_updown"] else "conv", dropout=said["dropout"], norm_eps=1e-5, freq_shift=0,
        time_scale=1000 / said["diffusion_steps"] if said["rescale_timesteps"] else 1.)
