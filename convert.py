"""Published checkpoints in and out of unet.UNet: diffusers' UNet2DModel, improved-diffusion, guided-diffusion.

    python convert.py --source google/ddpm-cifar10-32 --to weights/cifar10.pt
    python convert.py --source 64x64_diffusion.pt --to weights/adm64.pt --flags "--image_size 64 --class_cond True ..."
    python convert.py --source weights/cifar10.pt --to cifar10            # a folder for diffusers' DDPMPipeline

A dialect is a table of names: each tensor of ours is the concatenation of some of theirs. Files are read as
tensors and JSON; nothing in them is executed.
"""

import importlib
import json
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import checkpoint
import ddpm
from checkpoint import Checkpoint
from cli import parent_made, parse, script
from ddpm import Schedule
from unet import Attention, UNet, UNetConfig

# Names


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


def theirs(unet: UNet, dialect: Dialect) -> dict[str, list[str]]:
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


def exported(unet: UNet, dialect: Dialect) -> dict[str, Tensor]:
    """The weights under their names."""
    weights, state = {}, unet.state_dict()
    for ours, names in theirs(unet, dialect).items():
        w = state[ours]
        equal = [len(w) // len(names)] * len(names)
        parts = w.split([*filter(None, unet.time_widths)] if ours.startswith("time.") else equal)
        weights.update(zip(names, parts, strict=True))
    return weights


def filled(config: UNetConfig, dialect: Dialect, given: dict[str, Tensor]) -> UNet:
    """The U-Net with these weights, in float32. Raises ValueError that lists what is missing, extra or misshaped."""
    def shape(w: Tensor) -> torch.Size:
        return w.squeeze(-1).shape if w.ndim == 3 else w.shape                    # a 1-wide Conv1d is our Linear

    with torch.device("meta"):
        unet = UNet(config)
    wanted = exported(unet, dialect)
    misshaped = [f"{name} {tuple(w.shape)} for {tuple(wanted[name].shape)}" for name, w in given.items()
                 if name in wanted and shape(w) != wanted[name].shape]
    wrong = {"missing": wanted.keys() - given.keys(), "extra": given.keys() - wanted.keys(), "misshaped": misshaped}
    if any(wrong.values()):
        lists = "; ".join(f"{len(names)} {what}: {', '.join(sorted(names))}" for what, names in wrong.items() if names)
        raise ValueError(f"the weights do not fit {config}; change its settings or take other weights. {lists}")
    weights = unet.state_dict()
    for ours, names in theirs(unet, dialect).items():
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


# diffusers: config.json and scheduler_config.json, whose unsaid settings are these

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
SCHEDULER_FILE = "scheduler_config.json"
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
        source, *found = diffusers_files(located(source))
        config, scheduler = config or found[0], scheduler or found[1]
    if config is None:
        raise ValueError("a state dict alone does not say what network it is of; give config, the dict of config.json")
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    given = {re.sub(r"(?<=\.)(query|key|value|proj_attn)(?=\.)", lambda m: old[m[0]], name): w
             for name, w in source.items()}
    unet = filled(from_model_config(config), DIFFUSERS, given)
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


def heads(widths: tuple, attends: Sequence[bool], count: int, width: int | None) -> tuple[int, ...]:
    """Heads of each level and the middle: so many or, if width is given, so wide; 0 where nothing attends."""
    return tuple((C // width if width else count) if on else 0
                 for C, on in zip((*widths, widths[-1]), attends, strict=True))


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
    ddpm.one_of("target", target, TARGET.values())
    ddpm.one_of("variance", variance, VARIANCE.values())
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
        parent_made(folder / name).write_text(json.dumps(content, indent=1))
    weights = {name: w.detach().cpu().clone() for name, w in exported(unet, DIFFUSERS).items()}
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


# improved-diffusion and guided-diffusion: their command-line flags, whose unsaid values are these

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
    unet = filled(openai_config(said), OPENAI, state_dict)
    cos_first(unet)
    if not said["use_new_attention_order"]:
        by_head(unet)
    T = said["diffusion_steps"]
    schedules = {"linear": lambda: ddpm.linear_schedule(T, 0.1 / T, 20 / T), "cosine": lambda: ddpm.cosine_schedule(T)}
    ddpm.one_of("noise_schedule", said["noise_schedule"], schedules)
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
            ddpm.one_of(name, str(value).lower(), ("true", "false", "1", "0"))
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


# Files

def optional(name: str, use: str) -> ModuleType:
    """A package that only some published weights need. Raises ValueError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise ValueError(f"{use} needs the package {package}; install it with: pip install {package}") from None


def located(source: str | Path) -> Path:
    """The file or folder of this name or, if there is none, the folder of the hub's model, fetched."""
    path = Path(source)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w-]+/[\w.-]+", str(source)) or path.suffix in (".pt", ".bin", ".safetensors", ".json"):
        raise ValueError(f"no file or folder {source}; give one, or a hub id such as google/ddpm-cifar10-32")
    hub = optional("huggingface_hub", f"there is no folder {source} here, and fetching it from the hub")
    try:
        return Path(hub.snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no folder {source} here, and the hub did not give it ({type(error).__name__}: {reason}); "
                         f"download the model's folder by other means and give its path") from error


def diffusers_files(path: Path) -> tuple[dict[str, Tensor], dict | None, dict | None]:
    """Weights, config.json and scheduler_config.json of a pipeline's or a model's folder, or around a file."""
    home = path.parent if path.is_file() else path / "unet" if (path / "unet").is_dir() else path
    root = home.parent if home.name == "unet" else home

    def first(*paths: Path) -> Path | None:
        return next(filter(Path.is_file, paths), None)

    weights = first(path, *(home / f"diffusion_pytorch_model.{kind}" for kind in ("safetensors", "bin")))
    if weights is None:
        raise ValueError(f"{path} holds no diffusion_pytorch_model.safetensors or .bin; give a model's folder")
    jsons = first(home / "config.json"), first(root / "scheduler" / SCHEDULER_FILE, root / SCHEDULER_FILE)
    return tensors(weights), *(read_json(file) if file else None for file in jsons)


def read_json(path: Path) -> dict:
    """The dict in a JSON file. Raises ValueError for anything else."""
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no JSON of names and values ({error}); mend it or fetch it anew") from None


def tensors(path: Path) -> dict[str, Any]:
    """What a .pt, .bin or .safetensors file holds. Raises ValueError for anything but tensors and plain values."""
    errors = (RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, pickle.UnpicklingError)
    if path.suffix == ".safetensors":
        load = optional("safetensors.torch", f"reading {path}").load_file
        errors = (importlib.import_module("safetensors").SafetensorError, *errors)
    else:
        def load(file: Path) -> Any:
            return torch.load(file, map_location="cpu", weights_only=True)
    try:
        content = load(path)
    except errors as error:
        raise ValueError(f"{path} is damaged or holds more than tensors; use another file") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not named tensors; use a state dict")
    return content


def read_flags(text: str, beside: Path) -> dict:
    """Flags from "--image_size 64 ...", from a .json file or, if text is empty, from the .json beside the weights."""
    if re.fullmatch(r"(\s*--\w+[ =]\S+)+\s*", text):
        return dict(re.findall(r"--(\w+)[ =](\S+)", text))
    if not Path(text or beside).is_file():
        raise ValueError(f"flags are {text!r}; weights of openai do not say what network they are of, so write its "
                         f"published flags, as '--image_size 64 ...', or put them as JSON into {beside}")
    return read_json(Path(text or beside))


def read(source: str, flags: str = "") -> Checkpoint:
    """A checkpoint of ours from any of them: diffusers' folder, file or hub id, openai's .pt, or our own."""
    path = located(source)
    if path.is_dir() or path.suffix in (".bin", ".safetensors"):
        weights, config, scheduler = diffusers_files(path)
        parts, size = from_diffusers(weights, config, scheduler), (config or {}).get("sample_size")
        if not size:
            raise ValueError(f"{path} does not say how large its pictures are; add sample_size to its config.json")
    else:
        weights = tensors(path)
        if "format" in weights:
            return checkpoint.load(path)
        said = {**FLAGS, **read_flags(flags, path.with_suffix(".json"))}
        parts, size = from_openai(weights, said), int(said["image_size"])
    unet, schedule, choice = parts
    settings = {"target": choice["target"], "variance": choice["variance"], "clip_x0": choice["clip"]}
    weights, shape = unet.state_dict(), (unet.config.in_channels, *(size if isinstance(size, list) else (size, size)))
    facts = {"name": str(source), "shape": shape, "classes": tuple(map(str, range(unet.config.classes)))}
    return Checkpoint(unet.config, weights, weights, 0, schedule.beta[1:], settings, facts, {}, [],
                      checkpoint.versions())


def give(last: Checkpoint, folder: str) -> None:
    """Writes the checkpoint's averaged weights, schedule and size as a folder for diffusers."""
    with torch.device("meta"):
        unet = UNet(last.network)
    unet.load_state_dict(last.ema, assign=True)
    to_diffusers(unet, ddpm.from_betas(last.beta), folder, target=last.settings["target"],
                 variance=last.variance, clip=last.clip, size=tuple(last.data["shape"][1:]))


@dataclass(frozen=True)
class Config:
    """Turns published weights into a checkpoint of ours, or a checkpoint into a folder for diffusers."""
    source: str = "google/ddpm-cifar10-32"      # diffusers' folder, .bin, .safetensors or hub id; openai's or our .pt
    to: str = "weights/cifar10.pt"              # a .pt, which becomes a checkpoint of ours, or a folder for diffusers
    flags: str = ""                             # of openai's .pt: as published, or a .json; empty is the .json beside


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    last = read(config.source, config.flags)
    if Path(config.to).suffix == ".pt":
        checkpoint.save(config.to, last)
    else:
        give(last, config.to)
    print(f"{config.to}: {sum(w.numel() for w in last.ema.values()):,} parameters for pictures of "
          f"{' x '.join(map(str, last.data['shape']))}, T = {len(last.beta)}, target {last.settings['target']}")


if __name__ == "__main__":
    main()
