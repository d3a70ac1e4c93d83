"""Converts diffusers, improved-diffusion and guided-diffusion weights to checkpoints, and checkpoints to diffusers.

    python convert.py --source google/ddpm-cifar10-32 --to weights/cifar10.safetensors
    python convert.py --source 64x64_diffusion.pt --to adm64.safetensors --flags "--image_size 64 --class_cond True ..."
    python convert.py --source weights/cifar10.safetensors --to cifar10       # a folder for diffusers' DDPMPipeline
    python convert.py --source runs/x/last.pt --to runs/x/last.safetensors    # of this project, before safetensors

The conversion is in `published/`. Files are read as tensors and JSON; no code from them is executed.
"""

import run.first  # noqa: F401  (--help without torch)

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from published import from_diffusers, from_openai, read, to_diffusers, write_diffusers
from run import checkpoint
from run.cli import parse, script
from run.tensors import SUFFIX

__all__ = ["from_diffusers", "from_openai", "to_diffusers"]


@dataclass(frozen=True)
class Config:
    """Converts published weights to a checkpoint, or a checkpoint to a diffusers folder."""
    source: str = "google/ddpm-cifar10-32"      # diffusers folder, file or hub id; .pt of OpenAI; a checkpoint of ours
    to: str = "weights/cifar10.safetensors"     # a .safetensors for a checkpoint; anything else is diffusers' folder
    flags: str = ""                             # published flags of an OpenAI .pt, or a .json; empty is the .pt's .json


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    if Path(config.to).suffix == ".pt":
        raise ValueError(f"to is {config.to}; a checkpoint ends in {SUFFIX}")
    model = read(config.source, config.flags)
    if Path(config.to).suffix == SUFFIX:
        checkpoint.save(config.to, model)
    else:
        write_diffusers(model, config.to)
    print(f"{config.to}: {sum(w.numel() for w in model.ema.values()):,} parameters for pictures of "
          f"{' x '.join(map(str, model.data['shape']))}, T = {len(model.beta)}, target {model.settings['target']}"
          f"{'' if Path(config.to).suffix == SUFFIX else '; its README.md says how to sample from it in diffusers'}")


if __name__ == "__main__":
    main()
