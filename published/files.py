"""Reads the files of published models as tensors and JSON; never executes code from them."""

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
    """Imports an optional package. Raises ValueError that names the use if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise ValueError(f"{use} needs the package {package}; install it with: pip install {package}") from None


def locate(source: str | Path) -> Path:
    """The path of a local file or folder, else of the downloaded hub model. Raises ValueError if there is neither."""
    path = Path(source)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w-]+/[\w.-]+", str(source)) or path.suffix in (".pt", ".bin", ".safetensors", ".json"):
        raise ValueError(f"no file or folder {source}; use an existing path or a hub id such as google/ddpm-cifar10-32")
    hub = optional("huggingface_hub", f"downloading {source} from the hub, as there is no such folder,")
    try:
        return Path(hub.snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no folder {source} here, and its download from the hub failed ({type(error).__name__}: "
                         f"{reason}); download the model's folder by other means and use its path") from error


def diffusers_files(path: Path) -> tuple[dict[str, Tensor], dict | None, dict | None]:
    """Weights, config.json and scheduler_config.json of a pipeline or model folder, or of a weights file's folder."""
    home = path.parent if path.is_file() else path / "unet" if (path / "unet").is_dir() else path
    root = home.parent if home.name == "unet" else home

    def first(*paths: Path) -> Path | None:
        return next(filter(Path.is_file, paths), None)

    weights = first(path, *(home / f"diffusion_pytorch_model.{kind}" for kind in ("safetensors", "bin")))
    if weights is None:
        raise ValueError(f"{path} contains no diffusion_pytorch_model.safetensors or .bin; use a model's folder")
    jsons = first(home / "config.json"), first(root / "scheduler" / SCHEDULER_FILE, root / SCHEDULER_FILE)
    return read_tensors(weights), *(read_json(file) if file else None for file in jsons)


def read_json(path: Path) -> dict:
    """The object in a JSON file, as a dict. Raises ValueError for other content."""
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a JSON object ({error}); correct it or download it again") from None


def read_tensors(path: Path) -> dict[str, Any]:
    """The dict in a .pt, .bin or .safetensors file. Raises ValueError unless it has only tensors and plain values."""
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
        raise ValueError(f"{path} is damaged or contains more than tensors; use another file") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} contains a {type(content).__name__}; it must be a state dict")
    return content


def read_flags(text: str, default: Path) -> dict:
    """Flags from text such as "--image_size 64 ...", from the .json file it names or, if empty, from `default`."""
    if re.fullmatch(r"(\s*--\w+[ =]\S+)+\s*", text):
        return dict(re.findall(r"--(\w+)[ =](\S+)", text))
    if not Path(text or default).is_file():
        raise ValueError(f"flags is {text!r}; OpenAI weights do not describe their network: pass the published flags, "
                         f"as '--image_size 64 ...', or save them as JSON in {default}")
    return read_json(Path(text or default))
