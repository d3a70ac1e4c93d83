"""What flags of sample.py ask of a chain besides its table: how each row is guided, and the state it begins with."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

import ddpm
import samplers
from data import to_unit
from data.image_files import read_image
from noise import normal
from run.checkpoint import Checkpoint
from run.cli import parse_numbers


def choose_guidance(settings: Any, checkpoint: Checkpoint, rows: Tensor) -> list[float]:
    """w of every row of a table (S, 12): the settings' guidance, but 0 outside their interval, if they have one."""
    if not settings.guidance and (settings.guidance_interval or settings.guidance_rescale):
        raise ValueError("guidance is 0, so guidance_interval and guidance_rescale would do nothing; leave them out")
    if not settings.guidance_interval:
        return [settings.guidance] * len(rows)
    ends = parse_numbers("guidance_interval", settings.guidance_interval, float)
    if len(ends) != 2:
        raise ValueError(f"guidance_interval is {settings.guidance_interval}; it must be two sigmas, as 0.2,5")
    schedule, times = ddpm.from_betas(checkpoint.beta), samplers.network_times(rows)
    return ddpm.weights_in_interval(schedule, times, settings.guidance, *ends)


def choose_start(settings: Any, checkpoint: Checkpoint, rows: Tensor) -> Callable[[Tensor], Tensor]:
    """seeds (B,) -> the first x_t (B, C, H, W): noise, or a picture under noise (Meng et al. 2022, SDEdit)."""
    shape, t = checkpoint.data["shape"], samplers.network_times(rows)[:1]
    if not settings.start:
        if settings.strength != type(settings).strength:
            raise ValueError(f"strength is {settings.strength}, but there is no picture to start from; name one with "
                             f"--start, or leave it out")
        return lambda seeds: normal(seeds, t[0], shape)
    schedule = ddpm.from_betas(checkpoint.beta)
    x0 = to_unit(read_image(settings.start, shape, checkpoint.settings.get("fit", "crop")))[None]
    return lambda seeds: ddpm.q_sample(schedule, x0, t, normal(seeds, t[0], shape).cpu()).to(seeds.device)
