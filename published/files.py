"""Reads the files of published models as tensors and JSON; never executes code from them."""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from data.files import reading, say, some
from run.tensors import SUFFIX

INDEX, SCHEDULER_FILE, WEIGHTS = "model_index.json", "scheduler_config.json", "diffusion_pytorch_model"


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


def diffusers_files(path: Path) -> tuple[dict[str, Any], dict | None, dict | None]:
    """Weights, config.json and scheduler_config.json of a pipeline or model folder, or of a weights file's folder.

    The scheduler is that of the model's folder or of a pipeline around it: a training run's checkpoint-500/unet_ema has
    it two folders up.
    """
    home = path.parent if path.is_file() else next(filter(Path.is_dir, (path / "unet", path / "unet_ema")), path)
    files = [path] if path.is_file() else sorted(
        p for p in home.glob(f"{WEIGHTS}*") if p.suffix in (".bin", SUFFIX))
    files = [p for p in files if p.stem == WEIGHTS][-1:] or files
    if not files or len(files) > 1 and not all("-of-" in p.name for p in files):
        raise ValueError(f"{path} contains {' and '.join(p.name for p in files)}; name one of these files" if files else
                         f"{path} contains no {WEIGHTS}.safetensors or .bin; use a model's folder")
    around = [home, *home.absolute().parents[:2]]
    pipeline = next((read_json(folder / INDEX) for folder in around if (folder / INDEX).is_file()), {})
    if coders := pipeline.keys() & {"vae", "vqvae"}:
        raise ValueError(f"{path} is part of a pipeline with a {coders.pop()}: it makes latents, not pictures; use "
                         f"another")
    if home == path / "unet" and (path / "unet_ema").is_dir():
        say(f"taking {home}; the averaged weights are in {path / 'unet_ema'}")
    weights = {name: w for file in files for name, w in read_tensors(file).items()}
    schedulers = [folder / part / SCHEDULER_FILE for folder in around for part in ("scheduler", "")]
    jsons = (next(filter(Path.is_file, places), None) for places in ([home / "config.json"], schedulers))
    return weights, *(read_json(file) if file else None for file in jsons)


def strip_prefix(content: dict[str, Any], layer: str) -> dict[str, Any]:
    """The tensors under the prefix that this layer's name has, without it, as wrappers and training programs add them.

    Dicts in the dict are prefixes, too. Of several, the one of an average is taken. Says what it took and left out.
    """
    content = dict(flatten(content))
    prefixes = [name.removesuffix(layer) for name in content if re.search(rf"(^|\.){re.escape(layer)}$", name)]
    if not prefixes or "" in prefixes:
        return content
    prefix = max(prefixes, key=lambda text: "ema" in text)
    tensors = {name.removeprefix(prefix): w for name, w in content.items() if name.startswith(prefix)}
    others = [name for name in content if not name.startswith(prefix)]
    say(f"took the {len(tensors)} weights named {prefix}*"
        + (f", left out {len(others)} other{'s' * (len(others) > 1)}: {some(others, 2)}" if others else ""))
    return tensors


def flatten(content: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of dicts in dicts, their names joined by dots."""
    for name, value in content.items():
        yield from flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]


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
