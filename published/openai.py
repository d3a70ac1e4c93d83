"""Import of improved-diffusion and guided-diffusion weights, described by their published command-line flags."""

from typing import Any

import torch
from torch import Tensor

import ddpm
from ddpm import Schedule
from published.files import strip_prefix
from published.names import OPENAI, heads_per_level, load_weights, reorder_qkv, swap_sin_cos
from unet import UNet, UNetConfig

FIRST = "input_blocks.0.0.weight"
FLAGS = {"image_size": 64, "num_channels": 128, "num_res_blocks": 2, "channel_mult": "", "num_heads": 4,
         "num_heads_upsample": -1, "num_head_channels": -1, "attention_resolutions": "16,8", "dropout": 0.0,
         "use_scale_shift_norm": True, "resblock_updown": False, "use_new_attention_order": False,
         "diffusion_steps": 1000, "noise_schedule": "linear", "rescale_timesteps": True, "sigma_small": False,
         "predict_xstart": False}
# Flags of training and sampling, which do not change the network
IGNORED = {"use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas", "timestep_respacing", "batch_size", "lr",
           "num_samples", "model_path", "use_ddim", "clip_denoised", "classifier_path", "classifier_scale"}
CHANNEL_MULT = {512: "0.5,1,1,2,2,4,4", 256: "1,1,2,2,4,4", 128: "1,1,2,3,4", 64: "1,2,3,4", 32: "1,2,2,2"}


def from_openai(state_dict: dict[str, Tensor], flags: dict) -> tuple[UNet, Schedule, dict]:
    """The network, schedule and {target, variance, clip} of an improved- or guided-diffusion model.

    flags: as published for the command line, {"image_size": 64, "attention_resolutions": "32,16,8", ...}.
    learn_sigma and class_cond default to the weights'. Raises ValueError for unsupported flags or other weights.
    """
    state_dict = strip_prefix(state_dict, FIRST)
    values = flag_values(state_dict, flags)
    unet = load_weights(openai_config(values), OPENAI, state_dict)
    swap_sin_cos(unet)
    if not values["use_new_attention_order"]:
        reorder_qkv(unet)
    T = values["diffusion_steps"]
    schedules = {"linear": lambda: ddpm.linear_schedule(T, 0.1 / T, 20 / T), "cosine": lambda: ddpm.cosine_schedule(T)}
    ddpm.check_choice("noise_schedule", values["noise_schedule"], schedules)
    variance = "learned" if values["learn_sigma"] else "beta_tilde" if values["sigma_small"] else "beta"
    return unet, schedules[values["noise_schedule"]](), {"target": "x0" if values["predict_xstart"] else "eps",
                                                       "variance": variance, "clip": True}


def flag_values(weights: dict[str, Tensor], flags: dict) -> dict[str, Any]:
    """All flags, converted to their types, with in_channels and classes from the weights. Raises ValueError."""
    first, last, table = (weights.get(name, torch.empty(0)) for name in (FIRST, "out.2.weight", "label_emb.weight"))
    C = first.shape[1] if first.ndim == 4 else 3
    defaults = {**FLAGS, "learn_sigma": len(last) == 2 * C, "class_cond": "label_emb.weight" in weights}
    if unknown := flags.keys() - defaults.keys() - IGNORED:
        raise ValueError(f"flags have {', '.join(sorted(unknown))}; use {', '.join([*defaults, *sorted(IGNORED)])}")

    def typed(name: str, value: Any) -> Any:
        if isinstance(defaults[name], bool):
            ddpm.check_choice(name, str(value).lower(), ("true", "false", "1", "0"))
            return str(value).lower() in ("true", "1")
        value = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        try:
            return type(defaults[name])(str(value))
        except ValueError:
            raise ValueError(f"{name} is {value!r}; it must be a number, as {defaults[name]}") from None

    return {**defaults, **{name: typed(name, value) for name, value in flags.items() if name in defaults},
            "in_channels": C, "classes": len(table) or 1000}


def numbers(name: str, text: str, kind: type) -> list:
    """The numbers of "1,2,4". Raises ValueError for other text."""
    try:
        return [kind(part) for part in text.split(",") if part]
    except ValueError:
        raise ValueError(f"{name} is {text!r}; it must be numbers, as 1,2,4") from None


def openai_config(values: dict[str, Any]) -> UNetConfig:
    """The UNetConfig of flag values. Raises ValueError for those without one."""
    D, size, C, per_head = (values[k] for k in ("num_channels", "image_size", "in_channels", "num_head_channels"))
    if not values["channel_mult"] and size not in CHANNEL_MULT:
        raise ValueError(f"image_size {size} has no default channel_mult; pass one, as 1,2,3,4")
    if values["num_heads_upsample"] not in (-1, values["num_heads"]) and per_head == -1:
        raise ValueError(f"num_heads_upsample is {values['num_heads_upsample']}; it must be -1 or num_heads")
    widths = tuple(int(m * D) for m in numbers("channel_mult", values["channel_mult"] or CHANNEL_MULT[size], float))
    factors = {size // r for r in numbers("attention_resolutions", values["attention_resolutions"], int)}
    attends = (*(2**level in factors for level in range(len(widths))), True)
    return UNetConfig(
        C, 2 * C if values["learn_sigma"] else C, D=D, widths=widths, blocks=values["num_res_blocks"],
        heads=heads_per_level(widths, attends, values["num_heads"], None if per_head == -1 else per_head),
        classes=values["classes"] if values["class_cond"] else 0, scale_shift=values["use_scale_shift_norm"],
        resample="res" if values["resblock_updown"] else "conv", dropout=values["dropout"], norm_eps=1e-5, freq_shift=0,
        time_scale=1000 / values["diffusion_steps"] if values["rescale_timesteps"] else 1.)
