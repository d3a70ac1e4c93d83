"""Triton kernels of group_norm_silu, forward and backward, NCHW and channels_last.

A program works on one image n and on a tile of it: pixels p down, channels c across. Element (c, p) of an image lies
at c + p * C in channels_last and at c * HW + p in NCHW; that is all that tells the two layouts apart.

`add` moves the mean of a channel and nothing else, so x + add is never formed:

    mean = mean over c, p of x + add_c,    center_c = mean - add_c,    var = mean over c, p of (x - center_c)^2
    xh = (x - center_c) rstd,    rstd = 1 / sqrt(var + norm_eps)
    gain_c = weight_c (1 + scale_c),    offset_c = bias_c (1 + scale_c) + shift_c
    z = gain_c xh + offset_c,    y = z s,    s = sigmoid(z)

Backwards, from x and dy alone (the mean and rstd of each group are kept):

    g = dy s (1 + z (1 - s));    db_c = sum_p g,    dw_c = sum_p g xh,    sx_c = sum_p xh
    c1 = sum_c gain_c dw_c / n,    c2 = sum_c gain_c db_c / n,    n = HW channels of the group
    dx = rstd (gain_c g - c2 - xh c1),    dadd_c = sum_p dx = rstd (gain_c db_c - HW c2 - c1 sx_c)
    dshift_c = db_c,    dscale_c = weight_c dw_c + bias_c db_c,    dweight, dbias = sum_n (1 + scale_c) (dw_c, db_c)

Few instructions per element, or they would bind before memory does (bench/static.md counts them).
u = -log2(e) z is one multiply-add of x, and s = 1 / (1 + 2^u) = rsqrt(1 + 2^u)^2 two quick instructions, where a
division has guards. A bfloat16 is the upper half of a float32: a shift or a mask unpacks it. All that depends on the
shape is constant, so most addresses are too.

One kernel per direction, in two halves: FIND what a group sums up, APPLY it to every element. There are three ways to
run it, see `plan`. Resident: a program's tile holds whole groups, and x is read once for both halves. Loop: a program
walks over the pixels of its groups twice, the second time backwards, so as to begin with what the caches hold. Split:
many programs share a group, as if each channel were a group of its own; one launch FINDs the sums of each chunk of
pixels, another kernel merges them, and a last launch APPLYs them. No sum depends on the order in which programs run.

A tile's sides are powers of two. A group of 12 channels, say, is 3 parts of 4: a tuple of tiles, without idle lanes.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)


class Rows(NamedTuple):
    """The arguments with an entry per channel: (C,), or (B, C) with their strides from image to image."""
    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None
    add: Tensor | None
    scale_stride: int
    shift_stride: int
    add_stride: int


class Tile(NamedTuple):
    """What is constant in a launch: the shape, and how a program goes through its piece."""
    C: int
    HW: int
    G: int                  # groups of an image
    CHANNELS_LAST: bool
    SILU: bool
    CPG: int                # channels that a program sums together: those of a group, or one if split
    LANES: int              # of these channels, in one part
    GROUPS: int             # groups of a program, or channels if split
    PIXELS: int             # of a tile
    CHUNK: int              # pixels of a program: all of them, or some if split


# Where a program works

@triton.jit
def place(tile):
    """This program's image, chunk and block of groups; the channels of their first parts; its pixels start..stop."""
    BLOCKS: tl.constexpr = tile.C // (tile.CPG * tile.GROUPS)
    CHUNKS: tl.constexpr = (tile.HW + tile.CHUNK - 1) // tile.CHUNK
    n, block = tl.program_id(0) // BLOCKS, tl.program_id(0) % BLOCKS
    lane = tl.arange(0, tile.GROUPS * tile.LANES)
    if tile.LANES == tile.CPG:
        c = block * (tile.GROUPS * tile.LANES) + lane           # so the compiler sees one long run
    else:
        c = (block * tile.GROUPS + lane // tile.LANES) * tile.CPG + lane % tile.LANES
    if CHUNKS == 1:
        START: tl.constexpr = 0
        STOP: tl.constexpr = tile.HW
        return n.to(tl.int64), START, block, c, START, STOP
    else:
        k = n % CHUNKS
        return (n // CHUNKS).to(tl.int64), k, block, c, k * tile.CHUNK, tl.minimum((k + 1) * tile.CHUNK, tile.HW)


@triton.jit
def positions(c, start, stop, tile):
    """Where the tile's elements lie in an image, (PIXELS, channels), and which pixels there are, (PIXELS, 1)."""
    p = start + tl.arange(0, tile.PIXELS)
    every = tl.full((tile.PIXELS, 1), True, tl.int1)            # a constant, with which all masks vanish
    ok = every if tile.HW % tile.PIXELS == 0 else (p < stop)[:, None]
    return (p[:, None] * tile.C + c[None, :] if tile.CHANNELS_LAST else p[:, None] + c[None, :] * tile.HW), ok


@triton.jit
def of_part(at, j, tile):
    """The positions of part j, from those of the first part."""
    return at + j * (tile.LANES if tile.CHANNELS_LAST else tile.LANES * tile.HW)


@triton.jit
def read(ptr, at, ok, j, tile):
    """Part j of a tile in float32, zero where there is nothing."""
    x = tl.load(ptr + of_part(at, j, tile), mask=ok, other=0)
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def write(ptr, at, value, ok, j, tile):
    tl.store(ptr + of_part(at, j, tile), value.to(ptr.dtype.element_ty), mask=ok)


@triton.jit
def fold(v, DOWN, ACROSS):
    """Sums of blocks of DOWN x ACROSS elements: what one load brings lies in one thread, which adds it up alone."""
    v = tl.reshape(v, (v.shape[0] // DOWN, DOWN, v.shape[1] // ACROSS, ACROSS))
    return tl.sum(tl.sum(v, axis=3), axis=1)


@triton.jit
def unfold(v, DOWN, ACROSS):
    """The reverse: each element of a block gets the block's entry."""
    wide = tl.broadcast_to(v[:, None, :, None], (v.shape[0], DOWN, v.shape[1], ACROSS))
    return tl.reshape(wide, (v.shape[0] * DOWN, v.shape[1] * ACROSS))


@triton.jit
def over_tile(v, GROUPS):
    """(rows, columns) -> (GROUPS,): sums over the columns of each group, and over rows."""
    return tl.sum(tl.sum(tl.reshape(v, (v.shape[0], GROUPS, v.shape[1] // GROUPS)), axis=2), axis=0)


# Vectors over the channels, and tuples of them: one per part

@triton.jit
def row(ptr, n, stride, c, ok=True):
    """Image n's row of a (B, C) argument, or zeros without one."""
    if ptr is None:
        return tl.zeros(c.shape, tl.float32)
    else:
        return tl.load(ptr + n * stride + c, mask=ok, other=0).to(tl.float32)


@triton.jit
def adds_of(rows, n, c, tile):
    """Each part's `add`."""
    adds = ()
    for j in tl.static_range(tile.CPG // tile.LANES):
        adds += (row(rows.add, n, rows.add_stride, c + j * tile.LANES),)
    return adds


@triton.jit
def affine(mean, rstd, adds, rows, n, c, tile):
    """Each part's (center, a, b) of u = a (x - center) + b, or, without SiLU, of z; and its gain."""
    coefficients, gains = (), ()
    for j in tl.static_range(tile.CPG // tile.LANES):
        gain, offset = row(rows.weight, 0, 0, c + j * tile.LANES), row(rows.bias, 0, 0, c + j * tile.LANES)
        if rows.scale is not None:
            factor = 1 + row(rows.scale, n, rows.scale_stride, c + j * tile.LANES)
            gain, offset = gain * factor, offset * factor
        if rows.shift is not None:
            offset += row(rows.shift, n, rows.shift_stride, c + j * tile.LANES)
        unit = -LOG2E if tile.SILU else 1.
        coefficients += ((mean - adds[j], rstd * gain * unit, offset * unit),)
        gains += (gain,)
    return coefficients, gains


@triton.jit
def over_lanes(v, LANES):
    """(GROUPS,) -> (GROUPS * LANES,): each lane gets its group's entry."""
    return tl.reshape(tl.broadcast_to(v[:, None], (v.shape[0], LANES)), (v.shape[0] * LANES,))


@triton.jit
def in_group(v, GROUPS):
    """(channels,) -> (GROUPS,): sums."""
    return tl.sum(tl.reshape(v, (GROUPS, v.shape[0] // GROUPS)), axis=1)


@triton.jit
def of_groups(ptr, n, c, tile):
    """Each channel's pair of entries of a (B, 2, G) argument."""
    ptr += n * (2 * tile.G) + c // (tile.C // tile.G)
    return tl.load(ptr), tl.load(ptr + tile.G)


@triton.jit
def chunks_of_group(part_ptr, SUMS, tile):
    """Where the sums (B, chunks, SUMS, C) of the chunks of this program's group lie, (chunks, channels), and which of
    them exist; its image and group; the chunks; the channels and which of them exist."""
    CPG: tl.constexpr = tile.C // tile.G
    CHUNKS: tl.constexpr = (tile.HW + tile.CHUNK - 1) // tile.CHUNK
    n, g = (tl.program_id(0) // tile.G).to(tl.int64), tl.program_id(0) % tile.G
    lane, k = tl.arange(0, triton.next_power_of_2(CPG)), tl.arange(0, triton.next_power_of_2(CHUNKS))
    c, exists = g * CPG + lane, lane < CPG
    part_ptr += (n * CHUNKS + k)[:, None] * (SUMS * tile.C) + c[None, :]
    return part_ptr, (k < CHUNKS)[:, None] & exists[None, :], n, g, k, c, exists


# Forward

@triton.jit
def pixels_of(n, DOWN, PIXELS):
    """How many of a tile's first n pixels each row of blocks has."""
    return tl.minimum(tl.maximum(n - DOWN * tl.arange(0, PIXELS // DOWN), 0), DOWN)[:, None].to(tl.float32)


@triton.jit
def moments(x_ptr, adds, c, start, stop, tile, DOWN, ACROSS):
    """Each group's mean of x + add over the pixels start..stop, and its centred sum of squares.

    A block adds up x and x^2 less its own mean in the first tile. Of T tiles that mean is within sqrt(T - 1)
    deviations of the final one, whatever x is, so cancellation costs at most T roundings.
    """
    SIZE: tl.constexpr = ACROSS * len(adds)
    at, ok = positions(c, start, stop, tile)
    first_mean = tl.zeros((tile.PIXELS // DOWN, c.shape[0] // ACROSS), tl.float32)
    for j in tl.static_range(len(adds)):
        first = read(x_ptr, at, ok, j, tile) + adds[j][None, :]
        first_mean += fold(tl.where(ok, first, 0.), DOWN, ACROSS)
    first_mean /= tl.maximum(SIZE * pixels_of(stop - start, DOWN, tile.PIXELS), 1)
    centers = ()
    for j in tl.static_range(len(adds)):
        centers += (unfold(first_mean, DOWN, ACROSS) - adds[j][None, :],)

    s1, s2 = tl.zeros_like(first_mean), tl.zeros_like(first_mean)
    for p in range(start, stop, tile.PIXELS):
        at, ok = positions(c, p, stop, tile)
        for j in tl.static_range(len(adds)):
            centered = tl.where(ok, read(x_ptr, at, ok, j, tile) - centers[j], 0.)
            s1 += fold(centered, DOWN, ACROSS)
            s2 += fold(centered * centered, DOWN, ACROSS)
    n = stop - start
    size = SIZE * (n // tile.PIXELS * DOWN + pixels_of(n % tile.PIXELS, DOWN, tile.PIXELS))
    mean = s1 / tl.maximum(size, 1)
    return merge(first_mean + mean, s2 - s1 * mean, size, tile.CPG * n, tile.GROUPS)


@triton.jit
def merge(mean, m2, size, total, GROUPS):
    """The moments of groups of total elements, from those of their blocks (Chan et al. 1979)."""
    group_mean = over_tile(mean * size, GROUPS) / total
    centered = mean - over_lanes(group_mean, mean.shape[1] // GROUPS)[None, :]
    return group_mean, over_tile(m2 + size * centered * centered, GROUPS)


@triton.jit
def resident_moments(x, adds, ok, tile, DOWN, ACROSS):
    """The same, x being all of it, one tile per part."""
    s1, added = fold(x[0], DOWN, ACROSS), adds[0]
    for j in tl.static_range(1, len(x)):
        s1 += fold(x[j], DOWN, ACROSS)
        added += adds[j]
    mean = (over_tile(s1, tile.GROUPS) + tile.HW * in_group(added, tile.GROUPS)) / (tile.CPG * tile.HW)
    s2 = tl.zeros_like(s1)
    for j in tl.static_range(len(x)):
        centered = tl.where(ok, x[j] - (over_lanes(mean, tile.LANES) - adds[j])[None, :], 0.)
        s2 += fold(centered * centered, DOWN, ACROSS)
    return mean, over_tile(s2, tile.GROUPS)


@triton.jit
def normalise(x, coefficients, SILU):
    u = (x - coefficients[0][None, :]) * coefficients[1][None, :] + coefficients[2][None, :]
    if SILU:
        r = tl.rsqrt(tl.exp2(u) * LOG2E + LOG2E)                # r^2 = s / log2(e), so y = -u r^2
        return -(u * r) * r
    else:
        return u


@triton.jit
def normalise_tiles(x_ptr, y_ptr, coefficients, c, start, stop, tile):
    """Every tile of the pixels start..stop, the last one first."""
    last_tile = start + (stop - start - 1) // tile.PIXELS * tile.PIXELS
    for p in range(start, stop, tile.PIXELS):
        at, ok = positions(c, last_tile - (p - start), stop, tile)
        for j in tl.static_range(len(coefficients)):
            x = read(x_ptr, at, ok, j, tile)
            write(y_ptr, at, normalise(x, coefficients[j], tile.SILU), ok, j, tile)


@triton.jit
def forward_kernel(
    x_ptr, y_ptr,                           # (B, C, HW) in either layout; y is written if APPLY
    stats_ptr,                              # (B, 2, G): mean, rstd; without APPLY (B, chunks, 2, C): mean, m2
    rows, x_stride, norm_eps,
    tile: tl.constexpr, FIND: tl.constexpr, APPLY: tl.constexpr,
):
    PARTS: tl.constexpr = tile.CPG // tile.LANES
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    DOWN: tl.constexpr = 1 if tile.CHANNELS_LAST else min(VECTOR, tile.PIXELS)
    ACROSS: tl.constexpr = min(VECTOR, tile.LANES) if tile.CHANNELS_LAST else 1
    RESIDENT: tl.constexpr = FIND and APPLY and tile.PIXELS >= tile.HW
    n, k, block, c, start, stop = place(tile)
    if FIND:                                # else below: so ptxas needs the fewest instructions
        x_ptr, y_ptr = x_ptr + n * x_stride, y_ptr + n * (tile.C * tile.HW)
    adds = adds_of(rows, n, c, tile)
    at, ok = positions(c, start, stop, tile)
    x = ()
    if RESIDENT:
        for j in tl.static_range(PARTS):
            x += (read(x_ptr, at, ok, j, tile),)
        mean, m2 = resident_moments(x, adds, ok, tile, DOWN, ACROSS)
    elif FIND:
        mean, m2 = moments(x_ptr, adds, c, start, stop, tile, DOWN, ACROSS)

    if FIND and APPLY:
        rstd = tl.rsqrt(m2 / (tile.CPG * tile.HW) + norm_eps)
        stats_ptr += n * (2 * tile.G) + block * tile.GROUPS + tl.arange(0, tile.GROUPS)
        tl.store(stats_ptr, mean)
        tl.store(stats_ptr + tile.G, rstd)
        mean, rstd = over_lanes(mean, tile.LANES), over_lanes(rstd, tile.LANES)
    elif FIND:
        stats_ptr += (n * ((tile.HW + tile.CHUNK - 1) // tile.CHUNK) + k) * (2 * tile.C) + c
        tl.store(stats_ptr, mean)
        tl.store(stats_ptr + tile.C, m2)
    else:
        mean, rstd = of_groups(stats_ptr, n, c, tile)

    if APPLY:
        coefficients, _ = affine(mean, rstd, adds, rows, n, c, tile)
        if not FIND:
            x_ptr, y_ptr = x_ptr + n * x_stride, y_ptr + n * (tile.C * tile.HW)
        if RESIDENT:
            for j in tl.static_range(PARTS):
                write(y_ptr, at, normalise(x[j], coefficients[j], tile.SILU), ok, j, tile)
        else:
            normalise_tiles(x_ptr, y_ptr, coefficients, c, start, stop, tile)


@triton.jit
def forward_merge_kernel(part_ptr, stats_ptr, rows, norm_eps, tile: tl.constexpr):
    """One group's mean and rstd in (B, 2, G), from the mean of x and the m2 of its chunks in (B, chunks, 2, C)."""
    SIZE: tl.constexpr = tile.C // tile.G * tile.HW
    part_ptr, ok, n, g, k, c, exists = chunks_of_group(part_ptr, 2, tile)
    pixels = tl.where(ok, tl.minimum(tile.HW - k * tile.CHUNK, tile.CHUNK)[:, None], 0).to(tl.float32)
    mean = tl.load(part_ptr, mask=ok, other=0) + row(rows.add, n, rows.add_stride, c, exists)[None, :]
    mean, m2 = merge(mean, tl.load(part_ptr + tile.C, mask=ok, other=0), pixels, SIZE, 1)
    stats_ptr += n * (2 * tile.G) + g + tl.arange(0, 1)
    tl.store(stats_ptr, mean)
    tl.store(stats_ptr + tile.G, tl.rsqrt(m2 / SIZE + norm_eps))


# Backward

@triton.jit
def silu_backward(centered, dy, coefficients, SILU):
    """g = dloss/dz, from x - center."""
    if SILU:
        u = centered * coefficients[1][None, :] + coefficients[2][None, :]
        r = tl.rsqrt(1 + tl.exp2(u))
        s = r * r
        us = u * s
        return dy * (s - (us - us * s) * LN2)
    else:
        return dy


@triton.jit
def dx_of(centered, g, rstd, gain, c1, c2):
    """dx = rstd (gain g - c2 - xh c1), multiplied out: what belongs to the channel alone comes first."""
    return (rstd * gain)[None, :] * g + ((-rstd * rstd * c1)[None, :] * centered + (-rstd * c2)[None, :])


@triton.jit
def channel_sums(x_ptr, dy_ptr, rstd, coefficients, c, start, stop, tile, ADD):
    """Each channel's db, dw and, if ADD, sx over the pixels start..stop: a flat tuple, three per part."""
    DOWN: tl.constexpr = 1 if tile.CHANNELS_LAST else min(128 // x_ptr.dtype.element_ty.primitive_bitwidth, tile.PIXELS)
    sums = ()
    for _ in tl.static_range(3 * len(coefficients)):
        sums += (tl.zeros((tile.PIXELS // DOWN, c.shape[0]), tl.float32),)
    for p in tl.range(start, stop, tile.PIXELS, loop_unroll_factor=2):
        at, ok = positions(c, p, stop, tile)
        new = ()
        for j in tl.static_range(len(coefficients)):
            centered = read(x_ptr, at, ok, j, tile) - coefficients[j][0][None, :]
            g = silu_backward(centered, read(dy_ptr, at, ok, j, tile), coefficients[j], tile.SILU)
            new += (sums[3 * j] + fold(g, DOWN, 1), sums[3 * j + 1] + fold(g * centered, DOWN, 1))
            new += (sums[3 * j + 2] + fold(tl.where(ok, centered, 0.), DOWN, 1) if ADD else sums[3 * j + 2],)
        sums = new
    totals = ()
    for j in tl.static_range(len(coefficients)):
        totals += (tl.sum(sums[3 * j], axis=0), tl.sum(sums[3 * j + 1], axis=0) * rstd,
                   tl.sum(sums[3 * j + 2], axis=0) * rstd)
    return totals


@triton.jit
def resident_sums(x_ptr, dy_ptr, rstd, coefficients, at, ok, tile):
    """The same of a tile that holds every pixel; and each part's x - center and g, which stay in registers."""
    centered, g, sums = (), (), ()
    for j in tl.static_range(len(coefficients)):
        centered += (tl.where(ok, read(x_ptr, at, ok, j, tile) - coefficients[j][0][None, :], 0.),)
        g += (silu_backward(centered[j], read(dy_ptr, at, ok, j, tile), coefficients[j], tile.SILU),)
        dw = tl.sum(g[j] * centered[j], axis=0) * rstd
        sums += (tl.sum(g[j], axis=0), dw, tl.sum(centered[j], axis=0) * rstd)
    return sums, centered, g


@triton.jit
def write_rows(sums_ptr, size, rows, db, dw, sx, c1, c2, gain, rstd, n, c, tile, ok=True):
    """Image n's gradients of the rows that were given."""
    sums_ptr += n * tile.C + c
    factor = 1 + row(rows.scale, n, rows.scale_stride, c, ok)
    tl.store(sums_ptr, dw * factor, mask=ok)
    sums_ptr += size
    tl.store(sums_ptr, db * factor, mask=ok)
    if rows.scale is not None:
        sums_ptr += size
        tl.store(sums_ptr, row(rows.weight, 0, 0, c, ok) * dw + row(rows.bias, 0, 0, c, ok) * db, mask=ok)
    if rows.shift is not None:
        sums_ptr += size
        tl.store(sums_ptr, db, mask=ok)
    if rows.add is not None:
        sums_ptr += size
        tl.store(sums_ptr, rstd * (gain * db - tile.HW * c2 - c1 * sx), mask=ok)


@triton.jit
def dx_tiles(x_ptr, dy_ptr, dx_ptr, rstd, coefficients, gains, c1, c2, c, start, stop, tile):
    """Every tile of the pixels start..stop, the last one first."""
    last_tile = start + (stop - start - 1) // tile.PIXELS * tile.PIXELS
    for p in tl.range(start, stop, tile.PIXELS, loop_unroll_factor=2):
        at, ok = positions(c, last_tile - (p - start), stop, tile)
        for j in tl.static_range(len(coefficients)):
            centered = read(x_ptr, at, ok, j, tile) - coefficients[j][0][None, :]
            g = silu_backward(centered, read(dy_ptr, at, ok, j, tile), coefficients[j], tile.SILU)
            write(dx_ptr, at, dx_of(centered, g, rstd, gains[j], c1, c2), ok, j, tile)


@triton.jit
def backward_kernel(
    x_ptr, dy_ptr, dx_ptr,                  # (B, C, HW) in either layout; dx is written if APPLY
    stats_ptr, group_sums_ptr,              # (B, 2, G): mean, rstd; c1, c2, which are read unless FIND
    sums_ptr,                               # (2 to 5, B, C): dweight, dbias, and dscale, dshift, dadd where given;
                                            # without APPLY (B, chunks, 3, C): db, dw, sx of a chunk
    rows, x_stride, dy_stride, size,        # size: B * C
    tile: tl.constexpr, FIND: tl.constexpr, APPLY: tl.constexpr,
):
    PARTS: tl.constexpr = tile.CPG // tile.LANES
    GROUPS: tl.constexpr = tile.GROUPS
    RESIDENT: tl.constexpr = FIND and APPLY and tile.PIXELS >= tile.HW
    n, k, block, c, start, stop = place(tile)
    mean, rstd = of_groups(stats_ptr, n, c, tile)
    coefficients, gains = affine(mean, rstd, adds_of(rows, n, c, tile), rows, n, c, tile)
    x_ptr, dy_ptr, dx_ptr = x_ptr + n * x_stride, dy_ptr + n * dy_stride, dx_ptr + n * (tile.C * tile.HW)
    at, ok = positions(c, start, stop, tile)
    if RESIDENT:
        sums, centered, g = resident_sums(x_ptr, dy_ptr, rstd, coefficients, at, ok, tile)
    elif FIND:
        sums = channel_sums(x_ptr, dy_ptr, rstd, coefficients, c, start, stop, tile, rows.add is not None)

    if FIND and APPLY:
        c1, c2 = tl.zeros((GROUPS,), tl.float32), tl.zeros((GROUPS,), tl.float32)
        for j in tl.static_range(PARTS):
            c1 += in_group(gains[j] * sums[3 * j + 1], GROUPS) / (tile.CPG * tile.HW)
            c2 += in_group(gains[j] * sums[3 * j], GROUPS) / (tile.CPG * tile.HW)
        c1, c2 = over_lanes(c1, tile.LANES), over_lanes(c2, tile.LANES)
        for j in tl.static_range(PARTS):
            write_rows(sums_ptr, size, rows, sums[3 * j], sums[3 * j + 1], sums[3 * j + 2], c1, c2, gains[j], rstd, n,
                       c + j * tile.LANES, tile)
    elif FIND:
        sums_ptr += (n * ((tile.HW + tile.CHUNK - 1) // tile.CHUNK) + k) * (3 * tile.C) + c
        for j in tl.static_range(3):
            tl.store(sums_ptr + j * tile.C, sums[j])
    else:
        c1, c2 = of_groups(group_sums_ptr, n, c, tile)

    if APPLY:
        if RESIDENT:
            for j in tl.static_range(PARTS):
                write(dx_ptr, at, dx_of(centered[j], g[j], rstd, gains[j], c1, c2), ok, j, tile)
        else:
            dx_tiles(x_ptr, dy_ptr, dx_ptr, rstd, coefficients, gains, c1, c2, c, start, stop, tile)


@triton.jit
def backward_merge_kernel(part_ptr, stats_ptr, group_sums_ptr, sums_ptr, rows, size, tile: tl.constexpr):
    """One group's c1 and c2, and its gradients but dx, from the db, dw and sx of its chunks in (B, chunks, 3, C)."""
    SIZE: tl.constexpr = tile.C // tile.G * tile.HW
    part_ptr, ok, n, g, _, c, exists = chunks_of_group(part_ptr, 3, tile)
    db = tl.sum(tl.load(part_ptr, mask=ok, other=0), axis=0)
    dw = tl.sum(tl.load(part_ptr + tile.C, mask=ok, other=0), axis=0)
    sx = tl.sum(tl.load(part_ptr + 2 * tile.C, mask=ok, other=0), axis=0)
    gain = row(rows.weight, 0, 0, c, exists) * (1 + row(rows.scale, n, rows.scale_stride, c, exists))
    c1, c2 = tl.sum(gain * dw) / SIZE, tl.sum(gain * db) / SIZE
    g += n * (2 * tile.G)
    rstd = tl.load(stats_ptr + g + tile.G)
    write_rows(sums_ptr, size, rows, db, dw, sx, c1, c2, gain, rstd, n, c, tile, exists)
    tl.store(group_sums_ptr + g, c1)
    tl.store(group_sums_ptr + g + tile.G, c2)


# Which way, and with which tile

SECTOR = 64                 # bytes that must lie together for a read to waste nothing


class Sizes(NamedTuple):
    resident: int           # elements of a program whose groups stay in registers
    loop: int               # elements of a tile otherwise
    per_thread: int         # elements of a tile per thread
    share: int              # elements of a program per thread, or sums over threads cost more than the elements
    channels: int           # channels a thread may have of a group in parts, or registers spill
    slab: int = 96 * 1024   # bytes a program may read twice: the second read then comes from a cache
    programs: int = 264     # two per multiprocessor fill a large GPU


FORWARD, BACKWARD = Sizes(8192, 8192, 16, 64, 24), Sizes(4096, 4096, 8, 128, 12)


class Plan(NamedTuple):
    way: str                # resident, loop or split
    tile: Tile
    programs: int
    warps: int


def pow2(n: int) -> int:
    """The largest power of two up to n, and 1 for less."""
    return 1 << max(n, 1).bit_length() - 1


def warps(elements: int, per_thread: int) -> int:
    return min(16, pow2(elements // (32 * per_thread)))


@cache
def plan(shape: tuple[int, ...], G: int, itemsize: int, channels_last: bool, silu: bool, sizes: Sizes) -> Plan:
    """Resident if whole groups fit the registers, a loop if they fit the caches, else split."""
    B, C, H, W = shape
    if sides := whole_groups(shape, G, itemsize, channels_last, sizes):
        lanes, groups, pixels, count = sides
        way = "resident" if pixels >= H * W else "loop"
        tile = Tile(C, H * W, G, channels_last, silu, C // G, lanes, groups, pixels, H * W)
    else:
        channels, pixels, chunk, count = split(shape, G, channels_last, sizes)
        way, tile = "split", Tile(C, H * W, G, channels_last, silu, 1, 1, channels, pixels, chunk)
    return Plan(way, tile, B * triton.cdiv(tile.HW, tile.CHUNK) * (C // (tile.CPG * tile.GROUPS)), count)


def whole_groups(shape: tuple[int, ...], G: int, itemsize: int, channels_last: bool,
                 sizes: Sizes) -> tuple[int, int, int, int] | None:
    """Lanes, groups, pixels and warps of programs that each have whole groups; None where these are too large.

    A program takes so many groups that, in channels_last, its piece of a pixel fills the sectors it touches, and
    that it has a thousand elements; but never so many that too few programs are left, nor more than divide G.
    """
    B, C, H, W = shape
    HW, CPG, groups = H * W, C // G, 1
    lanes, whole = CPG & -CPG, triton.next_power_of_2(HW)
    while (G % (2 * groups) == 0 and B * G // (2 * groups) >= sizes.programs
           and (channels_last and groups * CPG * itemsize < SECTOR or groups * CPG * whole < 1024)):
        groups *= 2
    width, vector = groups * CPG, min(16 // itemsize, lanes) if channels_last else 16 // itemsize
    if lanes < CPG and CPG // lanes * (vector if channels_last else 1) > sizes.channels:
        return None
    if width * whole <= sizes.resident:
        most = warps(triton.next_power_of_2(width) * whole, 32)
        return lanes, groups, whole, min(most, warps(groups * lanes * whole, vector))
    slab = sizes.slab if B * G // groups >= sizes.programs else sizes.slab // 4
    if width * HW * itemsize <= slab and width <= sizes.loop // 4:
        most = min(warps(sizes.loop, sizes.per_thread), warps(width * HW, sizes.share))
        loads = max(1, sizes.per_thread // (vector * (CPG // lanes)))     # of a thread, from each part
        pixels = pow2(min(sizes.loop // width, 32 * most * vector * loads // (groups * lanes)))
        return lanes, groups, pixels, min(most, warps(groups * lanes * pixels, vector))
    return None


def split(shape: tuple[int, ...], G: int, channels_last: bool, sizes: Sizes) -> tuple[int, int, int, int]:
    """Channels and pixels of a tile, pixels of a chunk, and warps: enough programs to fill the GPU several times."""
    B, C, H, W = shape
    most, channels = sizes.loop, C & -C
    pixels = most // min(64, channels) if channels_last else min(triton.next_power_of_2(H * W), most)
    channels = min(most // pixels, channels)
    tiles = triton.cdiv(H * W, pixels)
    chunk = max(1, min(16, tiles * (C // channels) * B // (4 * sizes.programs)))        # in tiles
    chunk = max(chunk, triton.cdiv(tiles * triton.next_power_of_2(C // G), 16384))      # so that a merge is one tile
    return channels, pixels, chunk * pixels, warps(pixels * channels, sizes.per_thread)


# Launchers

def rows_of(weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, add: Tensor | None) -> Rows:
    """The arguments with their channels side by side; the batch stride may be anything."""
    weight, bias, scale, shift, add = (r if r is None or r.stride(-1) == 1 else r.contiguous()
                                       for r in (weight, bias, scale, shift, add))
    return Rows(weight, bias, scale, shift, add, 0 if scale is None else scale.stride(0),
                0 if shift is None else shift.stride(0), 0 if add is None else add.stride(0))


def forward(x: Tensor, y: Tensor, stats: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
            shift: Tensor | None, add: Tensor | None, norm_eps: float, silu: bool, channels_last: bool) -> None:
    """Fills y and stats, (B, 2, G) float32. channels_last: so lie the images of x and y, else contiguous."""
    shape, G = x.shape, stats.shape[2]
    if not shape[0]:
        return
    way, tile, programs, count = plan(shape, G, x.element_size(), channels_last, silu, FORWARD)
    rows, stride, run = rows_of(weight, bias, scale, shift, add), x.stride(0), forward_kernel[(programs,)]
    if way != "split":
        run(x, y, stats, rows, stride, norm_eps, tile, True, True, num_warps=count)
        return
    chunks = triton.cdiv(tile.HW, tile.CHUNK)
    part = x.new_empty(shape[0], chunks, 2, tile.C, dtype=torch.float32)
    run(x, y, part, rows._replace(add=None), stride, norm_eps, tile, True, False, num_warps=count)
    forward_merge_kernel[(shape[0] * G,)](part, stats, rows, norm_eps, tile, num_warps=warps(tile.C // G * chunks, 16))
    run(x, y, stats, rows, stride, norm_eps, tile, False, True, num_warps=count)


def backward(dy: Tensor, x: Tensor, stats: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
             shift: Tensor | None, add: Tensor | None, silu: bool, channels_last: bool, dx: Tensor,
             sums: Tensor) -> None:
    """Fills dx, which lies as dy and x do, and sums: of each image the terms of dweight and dbias, and those of
    dscale, dshift and dadd whose argument is there, (2 to 5, B, C) float32."""
    shape, G = x.shape, stats.shape[2]
    if not shape[0]:
        return
    way, tile, programs, count = plan(shape, G, x.element_size(), channels_last, silu, BACKWARD)
    rows, size, run = rows_of(weight, bias, scale, shift, add), shape[0] * tile.C, backward_kernel[(programs,)]
    tail = (rows, x.stride(0), dy.stride(0), size, tile)
    if way != "split":
        run(x, dy, dx, stats, None, sums, *tail, True, True, num_warps=count)
        return
    chunks, group_sums = triton.cdiv(tile.HW, tile.CHUNK), torch.empty_like(stats)
    part = x.new_empty(shape[0], chunks, 3, tile.C, dtype=torch.float32)
    run(x, dy, dx, stats, None, part, *tail, True, False, num_warps=count)
    backward_merge_kernel[(shape[0] * G,)](part, stats, group_sums, sums, rows, size, tile,
                                           num_warps=warps(tile.C // G * chunks, 16))
    run(x, dy, dx, stats, group_sums, None, *tail, False, True, num_warps=count)
