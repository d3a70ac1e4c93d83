"""Import and export of diffusers' UNet2DModel and schedulers: config.json, scheduler_config.json and weights."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes

import ddpm
from data.files import say, writing
from ddpm import Schedule
from published.files import INDEX, SCHEDULER_FILE, diffusers_files, locate, strip_prefix
from published.names import DIFFUSERS, export_weights, heads_per_level, load_weights, swap_sin_cos
from unet import UNet, UNetConfig

# Defaults of config.json and scheduler_config.json; ONLY: the supported values of other scheduler settings. OURS: what
# we write into config.json of a checkpoint: its data, settings, step and patch. Diffusers leaves out names with a _.
FIRST, OURS = "conv_in.weight", "_minimal_diffusion"
MODEL = {"_class_name": "UNet2DModel", "in_channels": 3, "out_channels": 3, "center_input_sample": False,
         "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
         "mid_block_type": "UNetMidBlock2D", "layers_per_block": 2, "mid_block_scale_factor": 1,
         "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "dropout": 0.0,
         "act_fn": "silu", "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None,
         "norm_eps": 1e-5, "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None,
         "num_class_embeds": None}
SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02,
             "beta_schedule": "linear", "trained_betas": None, "variance_type": None, "clip_sample": True,
             "prediction_type": "epsilon", "rescale_betas_zero_snr": False}
CLIP = dict.fromkeys(("DDPM", "DDIM", "DDPMParallel", "DDIMParallel"), True) | dict.fromkeys((
    "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "EulerDiscrete",
    "EulerAncestralDiscrete", "LMSDiscrete"), False)                # whether they clip, if their file does not say
ONLY = {"_class_name": [f"{name}Scheduler" for name in CLIP], "thresholding": (False,)}
TARGET = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCE = {"fixed_small": "beta_tilde", "fixed_small_log": "beta_tilde", "fixed_large": "beta",
            "learned_range": "learned", None: ""}       # that of the network
BETAS = {"linear": ddpm.linear_schedule, "scaled_linear": ddpm.quadratic_schedule,
         "squaredcos_cap_v2": lambda T, start, end: ddpm.cosine_schedule(T),
         "sigmoid": lambda T, start, end: ddpm.from_betas(
             start + (end - start) * torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid())}

CARD = ("batch", "lr", "ema", "loss", "target", "schedule", "zero_snr", "T", "null")   # settings that it tells
README = """---
library_name: diffusers
tags: [diffusion, {kind}]
---

# A diffusion model of {name}

{described}

Licence: add `license:` above. The model's is yours to choose, within the terms of the data that it learned from.

## Sampling

`DDPMPipeline` opens this folder, but it passes no labels, and it does not unfold a patch of pixels. These lines do:

    import torch
    from diffusers import DDPMPipeline

    pipe = DDPMPipeline.from_pretrained({folder!r})
    labels = {labels}
    xt = torch.randn({shape})
    pipe.scheduler.set_timesteps({steps})
    for t in pipe.scheduler.timesteps:
        with torch.no_grad():
            output = pipe.unet(xt, t, class_labels=labels).sample
        xt = pipe.scheduler.step(output, t, xt).prev_sample
    x0 = torch.pixel_shuffle(xt, {patch})
    images = pipe.numpy_to_pil((x0 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())

{classes}
"""


def from_diffusers(source, config: dict | None = None, scheduler: dict | None = None) -> tuple[UNet, Schedule, dict]:
    """The network, schedule and {target, variance, clip} of a UNet2DModel. Raises ValueError for unsupported ones.

    source: a folder, a .bin or .safetensors file, a hub id, or a state dict. config, scheduler: the contents
    of config.json and scheduler_config.json; by default those in the folder of the weights.
    """
    if not isinstance(source, dict):
        source, *configs = diffusers_files(locate(source))
        config, scheduler = config or configs[0], scheduler or configs[1]
    if config is None:
        raise ValueError("weights alone do not describe their network; put its config.json beside them, or pass config")
    source, scheduled = strip_prefix(source, FIRST), from_scheduler_config(scheduler or {})
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    tensors = {re.sub(r"(?<=\.)(query|key|value|proj_attn)(?=\.)", lambda m: old[m[0]], name): w
               for name, w in source.items()}
    unet = load_weights(from_model_config(config), DIFFUSERS, tensors)
    if {**MODEL, **config}["flip_sin_to_cos"]:
        swap_sin_cos(unet)
    schedule, choice = scheduled
    if choice["variance"] == "learned" and not unet.config.learns_variance:
        raise ValueError(f"variance_type is learned_range, but the network has {unet.config.out_channels} outputs for "
                         f"{unet.config.in_channels} channels")
    choice["variance"] = choice["variance"] or unet.config.variance
    if not scheduler:
        say(f"no {SCHEDULER_FILE} beside or above the weights; assuming a linear schedule, T = 1000, target eps and "
            f"clipping")
    return unet, schedule, choice


def from_model_config(config: dict) -> UNetConfig:
    """The UNetConfig of config.json. Raises ValueError for settings that unet.UNet does not support."""
    values = {**MODEL, **{key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}}
    widths, res = values["block_out_channels"], values["downsample_type"] == "resnet"
    attends = (*("Attn" in kind for kind in values["down_block_types"]), values["add_attention"])
    patch = values.get(OURS, {}).get("patch", 1)
    result = UNetConfig(
        values["in_channels"] // patch**2, values["out_channels"] // patch**2, patch=patch, D=widths[0], widths=widths,
        blocks=values["layers_per_block"],
        heads=heads_per_level(widths, attends, 1, values["attention_head_dim"]),
        classes=values["num_class_embeds"] or 0, scale_shift=values["resnet_time_scale_shift"] == "scale_shift",
        resample="res" if res else {0: "conv_end", 1: "conv"}.get(values["downsample_padding"], "conv"),
        groups=values["norm_num_groups"], dropout=values["dropout"], norm_eps=values["norm_eps"],
        freq_shift=values["freq_shift"])
    synonyms = {"act_fn": {"swish": "silu"}, "time_embedding_dim": {4 * result.D: None},
                "attn_norm_num_groups": {} if result.scale_shift else {None: result.groups},
                "downsample_padding": {0: 1} if res else {}}
    converted = {"flip_sin_to_cos", "attention_head_dim"}
    for key, value in to_model_config(result).items():
        if key not in converted and synonyms.get(key, {}).get(values[key], values[key]) != value:
            raise ValueError(f"config.json has {key} {values[key]!r}; it must be {value!r}")
    return result


def to_model_config(config: UNetConfig) -> dict[str, Any]:
    """config.json of the equivalent UNet2DModel. Raises ValueError if there is none."""
    pairs = [(C, heads) for C, heads in zip((*config.widths, config.widths[-1]), config.heads, strict=True) if heads]
    head_widths = {C // heads for C, heads in pairs}
    one_head = all(heads == 1 for _, heads in pairs)
    res, attends = config.resample == "res", [bool(heads) for heads in config.heads[:-1]]
    for name, value, only in (("time_scale", config.time_scale, 1), ("D", config.D, config.widths[0])):
        if value != only:
            raise ValueError(f"{name} is {value}; for a UNet2DModel it must be {only}")
    if len(head_widths) > 1 and not one_head:
        raise ValueError(f"heads are {sorted(head_widths)} wide; for a UNet2DModel all must have the same width")

    def kinds(way: str) -> tuple[str, ...]:
        plain = f"Resnet{way}sampleBlock2D" if res else f"{way}Block2D"
        return tuple(f"Attn{way}Block2D" if on else plain for on in attends)

    return {**MODEL, "in_channels": config.in_channels * config.patch**2,
            "out_channels": config.out_channels * config.patch**2,
            "block_out_channels": config.widths, "layers_per_block": config.blocks, "down_block_types": kinds("Down"),
            "up_block_types": kinds("Up")[::-1], "freq_shift": config.freq_shift, "flip_sin_to_cos": False,
            "downsample_padding": 0 if config.resample == "conv_end" else 1, "norm_num_groups": config.groups,
            "downsample_type": "resnet" if res else "conv", "upsample_type": "resnet" if res else "conv",
            "attn_norm_num_groups": config.groups, "norm_eps": config.norm_eps, "dropout": config.dropout,
            "attention_head_dim": None if one_head else head_widths.pop(), "num_class_embeds": config.classes or None,
            "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
            "add_attention": bool(config.heads[-1])}


def from_scheduler_config(config: dict) -> tuple[Schedule, dict[str, Any]]:
    """The schedule and {target, variance, clip} of scheduler_config.json. Raises ValueError for unsupported ones."""
    name = config.get("_class_name", SCHEDULER["_class_name"])
    values = {**SCHEDULER, "clip_sample": CLIP.get(name.removesuffix("Scheduler")), **config}
    for key, allowed in {**ONLY, "prediction_type": TARGET, "variance_type": VARIANCE, "beta_schedule": BETAS,
                         "clip_sample": (True, False), "clip_sample_range": (1,) if values["clip_sample"] else (),
                         "rescale_betas_zero_snr": {False, values["prediction_type"] != "epsilon"}}.items():
        if allowed and values.get(key, [*allowed][0]) not in [*allowed]:
            raise ValueError(f"scheduler_config.json has {key} {values[key]!r:.100}; it must be one of {[*allowed]}")
    if values["trained_betas"]:
        schedule = ddpm.from_betas(values["trained_betas"])
    else:
        T, start, end = (values[key] for key in ("num_train_timesteps", "beta_start", "beta_end"))
        schedule = BETAS[values["beta_schedule"]](T, start, end)
    if values["rescale_betas_zero_snr"]:
        schedule = ddpm.rescale_zero_snr(schedule)
    return schedule, {"target": TARGET[values["prediction_type"]], "variance": VARIANCE[values["variance_type"]],
                      "clip": bool(values["clip_sample"])}


def to_diffusers(unet: UNet, schedule: Schedule, folder: str | Path, *, target: str = "eps",
                 variance: str = "beta_tilde", clip: bool = True, size: tuple[int, int] = (32, 32),
                 facts: dict[str, Any] | None = None) -> None:
    """Writes a folder for `DDPMPipeline.from_pretrained`. Raises ValueError if no UNet2DModel is equivalent.

    With a patch, its pixels are those squares. The folder's README.md says how to sample from it. facts: of the
    checkpoint, for the way back.
    """
    ddpm.check_choice("target", target, TARGET.values())
    ddpm.check_choice("variance", variance, [*filter(None, VARIANCE.values())])
    prediction, kind = ({value: name for name, value in reversed(table.items())}[choice]
                        for table, choice in ((TARGET, target), (VARIANCE, variance)))
    beta, patch = schedule.beta[1:].tolist(), unet.config.patch
    config = {**to_model_config(unet.config), "sample_size": [side // patch for side in size],
              OURS: {"patch": patch, **(facts or {})}}
    files = {"unet/config.json": config,
             f"scheduler/{SCHEDULER_FILE}": {
                 **SCHEDULER, "num_train_timesteps": len(beta), "trained_betas": beta, "clip_sample": clip,
                 "prediction_type": prediction, "variance_type": kind, "timestep_spacing": "trailing"},
             INDEX: {"_class_name": "DDPMPipeline", "scheduler": ("diffusers", "DDPMScheduler"),
                                  "unet": ("diffusers", "UNet2DModel")}}
    weights = {name: w.detach().cpu().clone() for name, w in export_weights(unet, DIFFUSERS).items()}
    contents = {"unet/diffusion_pytorch_model.safetensors": to_bytes(weights, {"format": "pt"}),
                "README.md": usage(config, str(folder), len(beta)).encode(),
                **{name: json.dumps(content, indent=1).encode() for name, content in files.items()}}
    for name, content in contents.items():
        with writing(Path(folder, name)) as file:
            file.write(content)


def usage(config: dict[str, Any], folder: str, T: int) -> str:
    """README.md of a folder for diffusers."""
    facts, rows = config[OURS], config["num_class_embeds"] or 0
    names = facts.get("data", {}).get("classes") or [*map(str, range(rows))]
    legend = ["The labels:", "", *(f"- {k}: {name}" for k, name in enumerate(names)),
              *[f"- {len(names)}: no label"] * (rows > len(names))]
    shape = min(10, len(names)) if rows else 4, config["in_channels"], *config["sample_size"]
    data, settings, side = facts.get("data", {}), facts.get("settings", {}), facts["patch"]
    described = {"pictures": "{} x {} x {}".format(shape[1] // side**2, *(side * n for n in shape[2:])),
                 "training": f"{facts.get('step', 0):,} steps" if facts.get("step") else "not known"}
    described |= {name: settings[name] for name in CARD if settings.get(name)}
    return README.format(name=data.get("name", "pictures"), kind="class-conditional" if rows else "unconditional",
                         described="\n".join(f"- {name}: {value}" for name, value in described.items()),
                         folder=folder, labels=f"torch.arange({shape[0]})" if rows else None, shape=shape,
                         steps=min(50, T), patch=facts["patch"], classes="\n".join(legend) if rows else "")
