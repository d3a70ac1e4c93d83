"""Reads the files of published models as tensors and JSON; never executes code from them."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from data.files import reading
from run.tensors import SUFFIX

SCHEDULER_FILE = "scheduler_config.json"


def locate(source: str | Path) -> Path:
    """The path of a local file or folder, else of the downloaded hub model. Raises ValueError if there is neither."""
    path = Path(source)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w-]+/[\w.-]+", str(source)) or path.suffix in (".pt", ".bin", ".safetensors", ".json"):
        raise ValueError(f"no file or folder {source}; use an existing path or a hub id such as google/ddpm-cifar10-32")
    try:
        import huggingface_hub as hub
        return Path(hub.snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except ImportError:
        raise ValueError(f"downloading {source} from the hub, as there is no such folder, needs the package "
                         f"huggingface_hub; install it with: pip install huggingface_hub") from None
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
    with reading(path, "correct it or download it again"):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        return content


def read_tensors(path: Path) -> dict[str, Any]:
    """The dict in a .pt, .bin or .safetensors file. Raises ValueError unless it has only tensors and plain values."""
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == SUFFIX:
            return load_file(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:                      # torch and zipfile raise many kinds, with long explanations
            raise ValueError("it is damaged or contains more than tensors") from error
        if not isinstance(content, dict):
            raise ValueError(f"it contains a {type(content).__name__}; it must be a state dict")
        return content


def read_flags(text: str, default: Path) -> dict:
    """Flags from text such as "--image_size 64 ...", from the .json file it names or, if empty, from `default`."""
    if re.fullmatch(r"(\s*--\w+[ =]\S+)+\s*", text):
        return dict(re.findall(r"--(\w+)[ =](\S+)", text))
    if text.lstrip().startswith("--") or not Path(text or default).is_file():
        raise ValueError(f"flags is {text!r}; OpenAI weights do not describe their network: pass the published flags, "
                         f"as '--image_size 64 ...', or save them as JSON in {default}")
    return read_json(Path(text or default))
