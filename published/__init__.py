"""Import of diffusers, improved-diffusion and guided-diffusion models into unet.UNet; export to diffusers."""

from published.checkpoints import read, write_diffusers
from published.diffusers import from_diffusers, to_diffusers
from published.openai import from_openai

__all__ = ["from_diffusers", "from_openai", "read", "to_diffusers", "write_diffusers"]
