"""What `python -m kernels` compares of conv_tail: the ends of residual blocks, of shapes that the kernel takes."""

from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.conv_tail import DTYPES, conv_tail, conv_tail_plain
from kernels.equivalence import SIDES, TOLERANCE, errors, name_of, times
from unet import CONFIGS, ResBlock, UNet


class Tail(NamedTuple):
    """The end of one residual block, without its batch."""
    C: int                  # channels that the 3x3 convolution reads
    CX: int                 # of the block's input; equal to N, it has no skip
    N: int                  # of the result
    H: int
    W: int


SMALL = {Tail(64, 128, 64, 8, 64): 1, Tail(64, 64, 64, 8, 16): 1, Tail(64, 192, 64, 8, 8): 3,
         Tail(128, 64, 64, 4, 4): 9, Tail(64, 128, 128, 8, 4): 2}                    # batches: each way to fill a tile


def tails(network: str) -> list[Tail]:
    """The distinct ends of a network's residual blocks, the most frequent first."""
    found, config = Counter(), CONFIGS[network]

    def note(_, given: tuple[Tensor, ...], y: Tensor) -> None:
        found[Tail(y.shape[1], given[0].shape[1], *y.shape[1:])] += 1

    with torch.device("meta"):
        unet = UNet(config, lambda x, *_, **__: x)
        for block in unet.modules():
            if isinstance(block, ResBlock):
                block.register_forward_hook(note)
        unet.trunk(torch.empty(1, config.in_channels, SIDES[network], SIDES[network]),
                   torch.empty(1, sum(unet.time_widths)))
    return [tail for tail, _ in found.most_common()]


def tail_arguments(tail: Tail, B: int, dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
    """Arguments of conv_tail, images and weights in channels_last, of means far from zero."""
    g, (C, CX, N, H, W) = torch.Generator().manual_seed(0), tail

    def normal(*shape: int, mean: float = 0., fan: int = 1) -> Tensor:
        value = (mean + torch.randn(shape, generator=g) / fan**0.5).to(device, dtype)
        return value.to(memory_format=torch.channels_last) if len(shape) == 4 else value

    return {"h": normal(B, C, H, W, mean=1), "x": normal(B, CX, H, W, mean=-2), "weight": normal(N, C, 3, 3, fan=9 * C),
            "bias": normal(N).float()} | ({} if CX == N else {"skip": normal(N, CX, 1, 1, fan=CX)})


def tail_cases(device: torch.device) -> Iterator[dict]:
    """A report a tail and dtype: on a GPU those of the cifar10 U-Net. The interpreter cannot multiply bfloat16."""
    gpu = device.type == "cuda"
    if gpu and torch.cuda.get_device_capability(device) < (9, 0):
        print("conv_tail: not compared, it needs sm_90 or newer")
        return
    found = dict.fromkeys(tails("cifar10"), 128) if gpu else SMALL
    for (tail, B), dtype in product(found.items(), DTYPES if gpu else DTYPES[1:]):
        yield {"kernel": "conv_tail", **tail_case(tail, B, dtype, device)}


@torch.no_grad()
def tail_case(tail: Tail, B: int, dtype: torch.dtype, device: torch.device) -> dict:
    given, (C, CX, N, H, W) = tail_arguments(tail, B, dtype, device), tail
    got, again = conv_tail(**given), conv_tail(**given)
    true = conv_tail_plain(**{k: v.double() for k, v in given.items()})
    report = {"case": f"{B},{C},{H},{W} {CX}->{N}", "dtype": name_of(dtype), "layout": "channels_last",
              "errors": errors({"y": got}, {"y": conv_tail_plain(**given)}, {"y": true}, tail_tolerance(tail, device)),
              "repeats": torch.equal(got, again)}
    return report | (times(lambda: conv_tail(**given), useful_bytes(**given)) if device.type == "cuda" else {})


def tail_tolerance(tail: Tail, device: torch.device) -> float:
    """What the sum may lose, relative to the largest element: tensor cores truncate it each time they add 16 products.
    """
    sums = (9 * tail.C + (tail.CX if tail.CX != tail.N else 0)) / 16
    return max(TOLERANCE, sums * 2**-23) if device.type == "cuda" else TOLERANCE


def useful_bytes(h: Tensor, weight: Tensor, **others: Tensor) -> int:
    """Of conv_tail: images and weights, each read or written once."""
    y = h.nbytes // h.shape[1] * len(weight)
    return y + sum(t.nbytes for t in (h, weight, *others.values()))
