"""diffusers' UNet2DModel and its schedulers: config.json, scheduler_config.json and weights, in and out."""

import json
import re
from pathlib import Path
from typing import Any

import ddpm
from ddpm import Schedule
from published.files import SCHEDULER_FILE, diffusers_files, locate, optional
from published.names import DIFFUSERS, cos_first, export_weights, heads, load_weights
from run.cli import make_parent
from unet import UNet, UNetConfig

# config.json and scheduler_config.json and scheduler_config.json, whose unsaid settings are these

MODEL = {"_class_name": "UNet2DModel", "in_channels": 3, "out_channels": 3, "center_input_sample": False,
         "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
         "mid_block_type": "UNetMidBlock2D", "layers_per_block": 2, "mid_block_scale_factor": 1,
         "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "dropout": 0.0,
         "act_fn": "silu", "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None,
         "norm_eps": 1e-5, "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None,
         "num_class_embeds": None}
SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02,
             "beta_schedule": "linear", "trained_betas": None, "variance_type": "fixed_small", "clip_sample": True,
             "prediction_type": "epsilon"}
ONLY = {"_class_name": ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler"), "thresholding": (False,),
        "clip_sample_range": (1,), "rescale_betas_zero_snr": (False,)}
TARGET = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCE = {"fixed_small": "beta_tilde", "fixed_small_log": "beta_tilde", "fixed_large": "beta",
            "learned_range": "learned"}
BETAS = {"linear": ddpm.linear_schedule, "scaled_linear": ddpm.quadratic_schedule,
         "squaredcos_cap_v2": lambda T, start, end: ddpm.cosine_schedule(T)}


def from_diffusers(source, config: dict | None = None, scheduler: dict | None = None) -> tuple[UNet, Schedule, dict]:
    """The network, its schedule, and target, variance and clip, of a UNet2DModel.

    source: a folder, a .bin or .safetensors file, a hub id, or a state dict. config, scheduler: the contents
    of config.json and scheduler_config.json, read from beside the weights unless given.
    """
    if not isinstance(source, dict):
        source, *found = diffusers_files(locate(source))
        config, scheduler = config or found[0], scheduler or found[1]
    if config is None:
        raise ValueError("a state dict alone does not say what network it is of; give config, the dict of config.json")
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    given = {re.sub(r"(?<=\.)(query|key|value|proj_attn)(?=\.)", lambda m: old[m[0]], name): w
             for name, w in source.items()}
    unet = load_weights(from_model_config(config), DIFFUSERS, given)
    if {**MODEL, **config}["flip_sin_to_cos"]:
        cos_first(unet)
    return unet, *from_scheduler_config(scheduler or {})


def from_model_config(config: dict) -> UNetConfig:
    """config.json as a UNetConfig. Raises ValueError for what it cannot say."""
    said = {**MODEL, **{key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}}
    widths, res = said["block_out_channels"], said["downsample_type"] == "resnet"
    attends = (*("Attn" in kind for kind in said["down_block_types"]), said["add_attention"])
    ours = UNetConfig(
        said["in_channels"], said["out_channels"], D=widths[0], widths=widths, blocks=said["layers_per_block"],
        heads=heads(widths, attends, 1, said["attention_head_dim"]),
        classes=said["num_class_embeds"] or 0, scale_shift=said["resnet_time_scale_shift"] == "scale_shift",
        resample="res" if res else {0: "conv_end", 1: "conv"}.get(said["downsample_padding"], "conv"),
        groups=said["norm_num_groups"], dropout=said["dropout"], norm_eps=said["norm_eps"],
        freq_shift=said["freq_shift"])
    same = {"act_fn": {"swish": "silu"}, "time_embedding_dim": {4 * ours.D: None},
            "attn_norm_num_groups": {} if ours.scale_shift else {None: ours.groups},
            "downsample_padding": {0: 1} if res else {}}
    absorbed = {"flip_sin_to_cos", "attention_head_dim"}
    for key, value in to_model_config(ours).items():
        if key not in absorbed and same.get(key, {}).get(said[key], said[key]) != value:
            raise ValueError(f"config.json says {key} {said[key]!r}; this U-Net can only be {value!r} there")
    return ours


def to_model_config(config: UNetConfig) -> dict[str, Any]:
    """config.json of the UNet2DModel that is this network. Raises ValueError if none is."""
    pairs = [(C, heads) for C, heads in zip((*config.widths, config.widths[-1]), config.heads, strict=True) if heads]
    head_widths = {C // heads for C, heads in pairs}
    one_head = all(heads == 1 for _, heads in pairs)
    res, attends = config.resample == "res", [bool(heads) for heads in config.heads[:-1]]
    for what, value, only in (("time_scale", config.time_scale, 1), ("D", config.D, config.widths[0])):
        if value != only:
            raise ValueError(f"{what} is {value}; a UNet2DModel of this network can only have {only}")
    if len(head_widths) > 1 and not one_head:
        raise ValueError(f"heads are {sorted(head_widths)} wide; those of a UNet2DModel have the same width everywhere")

    def kinds(way: str) -> tuple[str, ...]:
        plain = f"Resnet{way}sampleBlock2D" if res else f"{way}Block2D"
        return tuple(f"Attn{way}Block2D" if on else plain for on in attends)

    return {**MODEL, "in_channels": config.in_channels, "out_channels": config.out_channels,
            "block_out_channels": config.widths, "layers_per_block": config.blocks, "down_block_types": kinds("Down"),
            "up_block_types": kinds("Up")[::-1], "freq_shift": config.freq_shift, "flip_sin_to_cos": False,
            "downsample_padding": 0 if config.resample == "conv_end" else 1, "norm_num_groups": config.groups,
            "downsample_type": "resnet" if res else "conv", "upsample_type": "resnet" if res else "conv",
            "attn_norm_num_groups": config.groups, "norm_eps": config.norm_eps, "dropout": config.dropout,
            "attention_head_dim": None if one_head else head_widths.pop(), "num_class_embeds": config.classes or None,
            "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
            "add_attention": bool(config.heads[-1])}


def from_scheduler_config(config: dict) -> tuple[Schedule, dict[str, Any]]:
    """scheduler_config.json as a schedule, and target, variance and clip. Raises ValueError for another process."""
    said = {**SCHEDULER, **config}
    for key, allowed in {**ONLY, "prediction_type": TARGET, "variance_type": VARIANCE, "beta_schedule": BETAS}.items():
        if said.get(key, allowed[0] if key in ONLY else None) not in allowed:
            raise ValueError(f"scheduler_config.json says {key} {said[key]!r}; it must be one of {[*allowed]}")
    if said["trained_betas"]:
        schedule = ddpm.from_betas(said["trained_betas"])
    else:
        schedule = BETAS[said["beta_schedule"]](said["num_train_timesteps"], said["beta_start"], said["beta_end"])
    return schedule, {"target": TARGET[said["prediction_type"]], "variance": VARIANCE[said["variance_type"]],
                      "clip": said["clip_sample"]}


def to_diffusers(unet: UNet, schedule: Schedule, folder: str | Path, *, target: str = "eps",
                 variance: str = "beta_tilde", clip: bool = True, size: tuple[int, int] = (32, 32)) -> None:
    """Writes the folder that `DDPMPipeline.from_pretrained` opens. Raises ValueError for what a UNet2DModel is not."""
    ddpm.check_choice("target", target, TARGET.values())
    ddpm.check_choice("variance", variance, VARIANCE.values())
    prediction, kind = ({ours: name for name, ours in reversed(table.items())}[asked]
                        for table, asked in ((TARGET, target), (VARIANCE, variance)))
    beta, folder = schedule.beta[1:].tolist(), Path(folder)
    files = {"unet/config.json": {**to_model_config(unet.config), "sample_size": size},
             f"scheduler/{SCHEDULER_FILE}": {
                 **SCHEDULER, "num_train_timesteps": len(beta), "trained_betas": beta, "clip_sample": clip,
                 "prediction_type": prediction, "variance_type": kind},
             "model_index.json": {"_class_name": "DDPMPipeline", "scheduler": ("diffusers", "DDPMScheduler"),
                                  "unet": ("diffusers", "UNet2DModel")}}
    save_file = optional("safetensors.torch", "writing weights for diffusers").save_file
    for name, content in files.items():
        make_parent(folder / name).write_text(json.dumps(content, indent=1))
    weights = {name: w.detach().cpu().clone() for name, w in export_weights(unet, DIFFUSERS).items()}
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
