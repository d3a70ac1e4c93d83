"""Files of published models, read as tensors and JSON; nothing in them is executed."""

import importlib
import json
import pickle
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

SCHEDULER_FILE = "scheduler_config.json"


def optional(name: str, use: str) -> ModuleType:
    """A package that only some published weights need. Raises ValueError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise ValueError(f"{use} needs the package {package}; install it with: pip install {package}") from None


def locate(source: str | Path) -> Path:
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
    return read_tensors(weights), *(read_json(file) if file else None for file in jsons)


def read_json(path: Path) -> dict:
    """The dict in a JSON file. Raises ValueError for anything else."""
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no JSON of names and values ({error}); mend it or fetch it anew") from None


def read_tensors(path: Path) -> dict[str, Any]:
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
