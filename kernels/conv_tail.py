"""The end of a residual block as one operation: the second 3x3 convolution, both biases, and the skip.

No network uses it, for it has never run on a GPU. It has been compared with the plain lines in Triton's interpreter,
and compiled for sm_90. It is worth using only where it comes close enough to cuDNN's convolution to gain from the two
passes over memory that it saves; bench/bench_conv_tail.py would tell.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.group_norm_silu import INTERPRET

DTYPES = (torch.bfloat16, torch.float16)


def conv_tail_plain(h: Tensor, x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None = None) -> Tensor:
    """conv3x3(h) + bias + conv1x1(x), or + x itself without a skip: how unet.ResBlock ends.

    h: (B, C, H, W). x: (B, CX, H, W). weight: (N, C, 3, 3). bias: (N,), the sum of both convolutions'. skip: (N, CX,
    1, 1), or None where CX is N. Returns (B, N, H, W).
    """
    return F.conv2d(h, weight, bias.to(h.dtype), padding=1) + (x if skip is None else F.conv2d(x, skip))


def conv_tail(h: Tensor, x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None = None) -> Tensor:
    """`conv_tail_plain` on the same arguments, one kernel on a CUDA device, without gradients.

    h, x and the weights are bfloat16 or float16 and are copied unless they lie in channels_last, as the result does.
    Raises ValueError for what the kernel does not do; `conv_tail_plain` does it.
    """
    check(h, x, weight, bias, skip)
    if not h.is_cuda and not INTERPRET:
        return conv_tail_plain(h, x, weight, bias, skip)
    if not h.is_cuda and h.dtype == torch.bfloat16:
        raise ValueError("h is bfloat16, whose bits Triton's interpreter multiplies as if they were integers; "
                         "use float16 there")
    return tail_op(h, x, weight, bias, skip)


def check(h: Tensor, x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None) -> None:
    """Raises ValueError, in a sentence, unless the kernel can do it."""
    if not h.ndim == x.ndim == weight.ndim == 4:
        raise ValueError(f"h, x and weight have shapes {tuple(h.shape)}, {tuple(x.shape)} and {tuple(weight.shape)}; "
                         f"all must have four dimensions")
    (B, C, H, W), N, CX = h.shape, weight.shape[0], x.shape[1]
    wanted = {"h": (h, (B, C, H, W)), "x": (x, (B, N if skip is None else CX, H, W)), "weight": (weight, (N, C, 3, 3)),
              "bias": (bias, (N,)), "skip": (skip, (N, CX, 1, 1))}
    for name, (value, shape) in wanted.items():
        if value is not None and (value.shape != shape or value.device != h.device):
            raise ValueError(f"{name} has shape {tuple(value.shape)} on {value.device}; for h of shape "
                             f"{tuple(h.shape)} on {h.device} it must have shape {shape} and lie there too")
        if value is not None and name != "bias" and (value.dtype != h.dtype or h.dtype not in DTYPES):
            raise ValueError(f"{name} is {value.dtype}; h, x and the weights must be all bfloat16 or all float16")
        if value is not None and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient, and conv_tail gives none; call it under torch.no_grad()")
    if odd := [width for width in (C, N, CX) if width % 64]:
        raise ValueError(f"h, x and the result have {C}, {CX} and {N} channels; {odd[0]} is no multiple of 64")
    if H & (H - 1) or W & (W - 1) or min(H, W) < 4 or W > 128:
        raise ValueError(f"the images have {H} x {W} pixels; both must be powers of two from 4, W at most 128")
    if h.is_cuda and torch.cuda.get_device_capability(h.device) < (9, 0):
        raise ValueError(f"{torch.cuda.get_device_name(h.device)} is older than sm_90, whose tensor descriptors "
                         f"conv_tail needs")


def outputs(h: Tensor, x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None) -> Tensor:
    return h.new_empty((h.shape[0], *h.shape[2:], weight.shape[0])).permute(0, 3, 1, 2)


@torch.library.custom_op("minimal_diffusion::conv_tail", mutates_args=(), device_types=("cuda", "cpu"))
def tail_op(h: Tensor, x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None) -> Tensor:
    from kernels import conv_tail_triton as kernels
    y = outputs(h, x, weight, bias, skip)
    h, x, weight, skip = (None if value is None else aligned(value) for value in (h, x, weight, skip))
    if len(h):
        with torch.cuda.device_of(h):
            kernels.conv_tail(h, x, weight, bias.contiguous(), skip, y)
    return y


def aligned(value: Tensor) -> Tensor:
    """The tensor in channels_last at a multiple of 16 bytes, as a descriptor wants it."""
    value = value.contiguous(memory_format=torch.channels_last)
    return value.clone() if value.data_ptr() % 16 else value


tail_op.register_fake(outputs)
