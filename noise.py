"""Counter-based Gaussian noise: a normal number is a function of (seed of the image, step, element).

There is no generator and no state, so the noise of a picture does not depend on its batch or on the
order of sampling, and on the device only by rounding. The integers are those of Philox4x32-10 (Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3"); a Triton kernel that calls `tl.philox` with the same key
and counter computes the same words.
"""

import math
import operator

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
SAMPLE, TRAIN, INPAINT, SHUFFLE, TIMES, LABELS, FLIPS, LEAVES, DROPOUT = range(9)  # streams: independent numbers each


def philox(key, counter):
    """Four 32-bit words from two words of key and four of counter (Philox4x32-10).

    Words are int64 tensors (or ints) in 0..2**32-1 that broadcast; so are the four that return.
    """
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        p0, p2 = 0xD2511F53 * c0, 0xCD9E8D57 * c2       # int64 wraps, yet all 64 bits are the product's
        c0, c1 = (p2 >> 32 & MASK) ^ c1 ^ k0, p2 & MASK
        c2, c3 = (p0 >> 32 & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = k0 + 0x9E3779B9 & MASK, k1 + 0xBB67AE85 & MASK
    return c0, c1, c2, c3


def words(seeds: Tensor, s: float | Tensor, n: int, stream: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The counter blocks that hold n elements of (seed, step, stream): four words, each (..., ceil(n/4)).

    The fraction of a step that is not whole, as float32 has it, is the counter's last word.
    """
    s = torch.as_tensor(s, device=seeds.device) if isinstance(s, Tensor) else torch.full((), s, device=seeds.device)
    if seeds.is_floating_point():
        raise ValueError(f"seeds are {seeds.dtype}; they must be whole numbers")
    seeds, s = torch.broadcast_tensors(seeds.long(), s)
    seeds, s = seeds[..., None], s[..., None]
    s = s.float() if s.is_floating_point() else s
    whole, fraction = s.long(), (s % 1 * 2**32).long()
    block = torch.arange(math.ceil(n / 4), device=seeds.device)
    return philox((seeds & MASK, seeds >> 32 & MASK), (block, whole, stream, fraction))


def unit(word: Tensor) -> Tensor:
    """A float32 in [0, 1) from a 32-bit word, its sign bit folded away (as Triton's `tl.rand`)."""
    return torch.minimum(word, MASK ^ word).float() * 4.6566127342e-10


def box_muller(u1: Tensor, u2: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals from two uniforms (Box & Muller 1958); |z| <= 5.68."""
    r, theta = (-2 * u1.clamp(min=1e-7).log()).sqrt(), 6.2831855 * u2
    return r * theta.cos(), r * theta.sin()


def normal(seeds: Tensor, s: float | Tensor, shape, stream: int = SAMPLE) -> Tensor:
    """The noise that lands on x_s: standard normals, float32, of shape (*seeds.shape, *shape).

    seeds: int64, one per image (`image_seeds`). s: the step landed on, a number or a tensor that broadcasts
    with seeds (so s[:, None] gives many steps together); whole, or real to float32's precision, which a whole
    one below 2^24 survives. shape: one image's, e.g. (C, H, W).
    Element e, in C, H, W order, is word e % 4 of counter block e // 4.
    """
    n = math.prod(shape)
    u0, u1, u2, u3 = map(unit, words(seeds, s, n, stream))
    z = torch.stack([*box_muller(u0, u1), *box_muller(u2, u3)], dim=-1)
    return z.flatten(-2)[..., :n].reshape(*z.shape[:-2], *shape)


def uniform(seed: int, s: int, n: int, stream: int) -> Tensor:
    """n numbers in [0, 1), float32, of (run seed, step, stream): shuffles, times, coins."""
    key = image_seeds(seed, torch.zeros((), dtype=torch.int64))
    u = torch.stack([unit(word) for word in words(key, s, n, stream)], dim=-1)
    return u.flatten()[:n]


def image_seeds(seed: int, index: Tensor) -> Tensor:
    """The noise key of each image: run seed in the upper 32 bits, image index in the lower.

    seed: 0..2**31-1. index: integers, 0..2**32-1. Raises ValueError for a seed out of range.
    """
    seed = operator.index(seed)                         # a NumPy integer of 32 bits would be shifted out
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed is {seed}; it must be between 0 and {2**31 - 1}")
    return seed << 32 | torch.as_tensor(index).long()
