"""One reverse step as one kernel: `samplers.step`, with the noise computed where it is used.

x_t, the network's output and earlier x0_hat are read once, x_s and x0_hat are written once, and nothing else of their
size exists. The plain lines are `samplers.step` itself. The Triton file is loaded the first time the operator runs.
"""

import torch
from torch import Tensor

import samplers
from kernels.group_norm_silu import DTYPES, INTERPRET, transformed


def sampling_step(rows: Tensor, i: Tensor, xt: Tensor, output: Tensor, x0_prev: Tensor | None = None,
                  seeds: Tensor | None = None, *, z: Tensor | None = None, x0_prev2: Tensor | None = None,
                  keep_x0: bool = True) -> tuple[Tensor, Tensor | None]:
    """`samplers.step` on the same arguments, fused on CUDA; on other devices it is samplers.step.

    rows: float64, or float32, which gives the same bits for fewer conversions. xt: float32 (B, C, ...); it, the x0_prev
    and z are copied if not contiguous; xs and x0_hat are. output: float32, bfloat16 or float16, read where it lies if
    its pixels are evenly spaced, as in channels_last, else copied. keep_x0=False returns None for x0_hat, which is then
    never written; 2m, heun and unipc need it. A term whose coefficient is zero is not read: x0_prev where cp = 0,
    x0_prev2 where cp2 = 0, v and the noise where cz = 0. On CUDA backward raises; forward mode and torch.func take
    the plain lines. Raises ValueError for what the kernel does not do.
    """
    check(rows, i, xt, output, x0_prev, x0_prev2, seeds, z)
    if xt.device.type != "cuda" and not INTERPRET or transformed():
        xs, x0_hat = samplers.step(rows, i, xt, output, x0_prev, seeds, z=z, x0_prev2=x0_prev2)
        return xs, x0_hat if keep_x0 else None
    if xt.dtype != torch.float32 or output.dtype not in DTYPES:
        raise ValueError(f"xt is {xt.dtype}, shape {tuple(xt.shape)}, and output is {output.dtype}; the fused step "
                         f"takes a float32 xt and a float32, bfloat16 or float16 output, samplers.step takes any")
    xs, x0_hat = step_op(rows, i, xt, output, x0_prev, x0_prev2, seeds if z is None else None, z, keep_x0)
    return xs, x0_hat if keep_x0 else None


def check(rows: Tensor, i: Tensor, xt: Tensor, output: Tensor, x0_prev: Tensor | None, x0_prev2: Tensor | None,
          seeds: Tensor | None, z: Tensor | None) -> None:
    """Raises ValueError, in a sentence, unless the shapes, integer types and devices fit."""
    if rows.ndim != 2 or rows.shape[1] != len(samplers.COLUMNS) or not rows.is_floating_point():
        raise ValueError(f"rows is {rows.dtype}, shape {tuple(rows.shape)}; it must be a table of sampler_rows, (S, "
                         f"{len(samplers.COLUMNS)})")
    if i.shape != (1,) or i.dtype != torch.int64:
        raise ValueError(f"i is {i.dtype}, shape {tuple(i.shape)}; it must be int64, shape (1,)")
    twice = (xt.shape[0], 2 * xt.shape[1], *xt.shape[2:]) if xt.ndim > 1 else ()
    if xt.ndim < 2 or 0 in xt.shape[1:] or output.shape not in (xt.shape, twice):
        raise ValueError(f"output has shape {tuple(output.shape)} and xt {tuple(xt.shape)}; xt must be (B, C, ...) and "
                         f"the output of its shape, or with twice the channels")
    if xt.shape[1:].numel() >= 2**31:
        raise ValueError(f"xt has shape {tuple(xt.shape)}; one image must have fewer than 2**31 elements")
    if seeds is not None and (seeds.shape != xt.shape[:1] or seeds.dtype != torch.int64):
        raise ValueError(f"seeds is {seeds.dtype}, shape {tuple(seeds.shape)}; it must be int64, one per image: "
                         f"({xt.shape[0]},)")
    for name, value in (("x0_prev", x0_prev), ("x0_prev2", x0_prev2), ("z", z)):
        if value is not None and (value.shape != xt.shape or value.dtype != xt.dtype):
            raise ValueError(f"{name} is {value.dtype}, shape {tuple(value.shape)}; it must be like xt, {xt.dtype}, "
                             f"shape {tuple(xt.shape)}")
    devices = {str(v.device) for v in (rows, i, xt, output, x0_prev, x0_prev2, seeds, z) if v is not None}
    if len(devices) > 1:
        raise ValueError(f"the arguments lie on {' and '.join(sorted(devices))}; they must be on one device")


def outputs(rows: Tensor, i: Tensor, xt: Tensor, output: Tensor, x0_prev: Tensor | None, x0_prev2: Tensor | None,
            seeds: Tensor | None, z: Tensor | None, keep_x0: bool) -> tuple[Tensor, Tensor]:
    """Empty xs and x0_hat, contiguous; an x0_hat that is not kept has no elements."""
    return xt.new_empty(xt.shape), xt.new_empty(xt.shape if keep_x0 else 0)


@torch.library.custom_op("minimal_diffusion::sampling_step", mutates_args=(), device_types=("cuda", "cpu"))
def step_op(rows: Tensor, i: Tensor, xt: Tensor, output: Tensor, x0_prev: Tensor | None, x0_prev2: Tensor | None,
            seeds: Tensor | None, z: Tensor | None, keep_x0: bool) -> tuple[Tensor, Tensor]:
    from kernels import sampling_step_triton as kernels
    xs, x0_hat = outputs(rows, i, xt, output, x0_prev, x0_prev2, seeds, z, keep_x0)
    with torch.cuda.device_of(xt):
        kernels.step(rows, i, xt, output, x0_prev, x0_prev2, seeds, z, xs, x0_hat if keep_x0 else None)
    return xs, x0_hat


step_op.register_fake(outputs)
