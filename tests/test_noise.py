"""The noise is Philox4x32-10, standard normal, and a function of (seed, step, stream, element) alone."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

import noise
from noise import FLIPS, LABELS, MASK, SHUFFLE, TIMES, box_muller, image_seeds, normal, philox, uniform, unit

TRITON = """
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def draw(seeds, words, normals, s, stream, n: tl.constexpr):
    seed = tl.load(seeds + tl.program_id(0))
    block = tl.arange(0, n)
    out = tl.program_id(0) * 4 * n + 4 * block
    w0, w1, w2, w3 = tl.philox(seed, block, s, stream, 0)
    tl.store(words + out, w0)
    tl.store(words + out + 1, w1)
    tl.store(words + out + 2, w2)
    tl.store(words + out + 3, w3)
    z0, z1, z2, z3 = tl.randn4x(seed, block)
    tl.store(normals + out, z0)
    tl.store(normals + out + 1, z1)
    tl.store(normals + out + 2, z2)
    tl.store(normals + out + 3, z3)


seeds = torch.load(sys.argv[1])
words = torch.zeros(len(seeds), 64, dtype=torch.int32)
normals = torch.zeros(len(seeds), 64)
draw[(len(seeds),)](seeds, words, normals, 7, 2, 16)
torch.save((words, normals), sys.argv[1])
"""


def words_of(text):
    return [int(word, 16) for word in text.split()]


def same(actual, expected):
    assert_close(actual, expected, rtol=0, atol=0)


def seeds_of(count):
    return image_seeds(3, torch.arange(count))


def z_of_words(w0, w1):
    """The pair of normals of two words, in Python's own float64."""
    u0, u1 = ((w if w < 2**31 else MASK - w) * 4.6566127342e-10 for w in (w0, w1))
    r = math.sqrt(-2 * math.log(max(u0, 1e-7)))
    return r * math.cos(2 * math.pi * u1), r * math.sin(2 * math.pi * u1)


@pytest.mark.parametrize("counter, key, expected", [
    ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
])
@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_philox_known_values(counter, key, expected, kind):
    words = philox([kind(k) for k in words_of(key)], [kind(c) for c in words_of(counter)])
    assert [int(w) for w in words] == words_of(expected)


def test_unit_folds_the_sign_bit():
    u = unit(torch.tensor([0, 1, 2**30, 2**31 - 1, 2**31, MASK - 2**30, MASK]))
    assert_close(u, torch.tensor([0, 2**-31, 0.5, 1, 1, 0.5, 0]), rtol=1e-6, atol=0)
    assert u.max() <= 1


def test_box_muller_is_finite_at_zero_and_bounded():
    z, zero = box_muller(torch.zeros(1), torch.zeros(1))
    assert_close(z, torch.tensor([5.6777]), rtol=1e-4, atol=0)
    same(zero, torch.zeros(1))


def test_moments():
    z = normal(seeds_of(100), 5, (3, 32, 32)).double()
    assert z.dtype == torch.float64 and z.shape == (100, 3, 32, 32)
    for power, moment, spread in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        error = (z**power).mean().item() - moment
        assert abs(error) < 4 * math.sqrt(spread / z.numel()), f"moment {power} is off by {error:g}"


@pytest.mark.parametrize("other", [
    {"seeds": image_seeds(3, torch.arange(100) + 1)}, {"seeds": image_seeds(4, torch.arange(100))},
    {"s": 6}, {"s": 1000}, {"stream": 1}, {"stream": 2}, {"s": 0, "stream": 5},
])
def test_other_seeds_steps_and_streams_are_independent(other):
    z = normal(seeds_of(100), 5, (3, 32, 32)).double()
    choice = {"seeds": seeds_of(100), "s": 5, "shape": (3, 32, 32)} | other
    y = normal(**choice).double()
    assert abs((z * y).mean()) < 4 / math.sqrt(z.numel())
    assert abs(((z**2 - 1) * (y**2 - 1)).mean()) < 4 * 2 / math.sqrt(z.numel())


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 32, 1024])
def test_elements_of_an_image_are_independent(lag):
    z = normal(seeds_of(100), 5, (3 * 32 * 32,)).double()
    z, y = z[:, lag:], z[:, :-lag]
    assert abs((z * y).mean()) < 4 / math.sqrt(z.numel())
    assert abs(((z**2 - 1) * (y**2 - 1)).mean()) < 4 * 2 / math.sqrt(z.numel())


def test_streams_are_distinct():
    streams = [noise.SAMPLE, noise.TRAIN, noise.INPAINT, SHUFFLE, TIMES, LABELS, FLIPS, noise.LEAVES, noise.DROPOUT]
    assert len({normal(seeds_of(1), 1, (1,), stream).item() for stream in streams}) == 9
    assert noise.SAMPLE == 0                                            # the stream of the kernels


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 4, 4), (1, 1, 1), (2,)])
def test_same_bits_whatever_the_batch_and_the_order(shape):
    seeds = seeds_of(7)
    z = normal(seeds, 5, shape)
    assert z.dtype == torch.float32 and z.shape == (7, *shape)
    for i in range(7):
        same(normal(seeds[i:i + 1], 5, shape)[0], z[i])
        same(normal(seeds[i], 5, shape), z[i])
    order = torch.tensor([4, 0, 6, 2])
    same(normal(seeds[order], 5, shape), z[order])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_same_bits_for_many_steps_at_once(dtype):
    seeds, steps = seeds_of(3), torch.tensor([1000, 17, 0, 1], dtype=dtype)
    z = normal(seeds, steps[:, None], (3, 5, 7))
    assert z.shape == (4, 3, 3, 5, 7)
    for k, s in enumerate(steps.tolist()):
        same(normal(seeds, s, (3, 5, 7)), z[k])
    same(normal(seeds, steps[:3], (3, 5, 7)), torch.stack([z[i, i] for i in range(3)]))


def test_a_smaller_shape_sees_the_same_leading_numbers():
    z = normal(seeds_of(2), 5, (2, 3, 7)).flatten(1)
    for n in range(42):
        same(normal(seeds_of(2), 5, (n,)), z[:, :n])


@pytest.mark.parametrize("stream", [0, 2])
def test_element_layout(stream):
    z = normal(image_seeds(9, torch.tensor([11])), 1000, (3, 3, 3), stream).flatten()
    expected = []
    for block in range(7):
        w0, w1, w2, w3 = philox((11, 9), (block, 1000, stream, 0))
        expected += [*z_of_words(w0, w1), *z_of_words(w2, w3)]
    assert_close(z, torch.tensor(expected[:27]), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("seed, key", [
    (-1, (MASK, MASK)), (-2**63, (0, 2**31)), (2**63 - 1, (MASK, 2**31 - 1)), (2**32, (0, 1)), (MASK, (MASK, 0)),
])
def test_negative_and_large_seeds(seed, key):
    w0, w1, w2, w3 = philox(key, (0, 5, 0, 0))
    z = normal(torch.tensor([seed]), 5, (4,))[0]
    assert_close(z, torch.tensor([*z_of_words(w0, w1), *z_of_words(w2, w3)]), rtol=1e-5, atol=2e-6)


def test_uniform_is_uniform():
    u = uniform(3, 5, 400001, TIMES).double()
    assert u.shape == (400001,) and u.min() >= 0 and u.max() < 1
    counts = (u * 100).long().bincount(minlength=100)
    assert ((counts - 4000)**2 / 4000).sum() < 99 + 4 * math.sqrt(2 * 99)       # chi squared, 99 degrees of freedom
    assert abs(((u[1:] - 0.5) * (u[:-1] - 0.5)).mean()) < 4 / 12 / math.sqrt(len(u))


def test_uniform_layout():
    u = uniform(9, 1000, 27, SHUFFLE)
    assert u.dtype == torch.float32
    expected = torch.stack([w for block in range(7) for w in
                            map(torch.tensor, philox((0, 9), (block, 1000, SHUFFLE, 0)))])
    same(u, unit(expected[:27]))
    same(uniform(9, 1000, 5, SHUFFLE), u[:5])


def test_uniform_is_below_one_at_the_largest_word(monkeypatch):
    monkeypatch.setattr(noise, "words", lambda *_: (torch.tensor([2**31 - 1]),) * 4)
    assert uniform(3, 5, 4, FLIPS).max() < 1


@pytest.mark.parametrize("other", [(4, 5, TIMES), (3, 6, TIMES), (3, 5, LABELS)])
def test_other_uniforms_are_independent(other):
    seed, s, stream = other
    u, y = uniform(3, 5, 100000, TIMES).double() - 0.5, uniform(seed, s, 100000, stream).double() - 0.5
    assert abs((u * y).mean()) < 4 / 12 / math.sqrt(len(u))


def test_image_seeds():
    seeds = image_seeds(5, torch.tensor([0, 1, MASK]))
    assert seeds.tolist() == [5 << 32, 5 << 32 | 1, 6 * 2**32 - 1]
    assert image_seeds(2**31 - 1, torch.tensor([MASK])).item() == 2**63 - 1


@pytest.mark.parametrize("seed", [-1, 2**31, 2**40])
def test_image_seeds_refuses_a_seed_out_of_range(seed):
    with pytest.raises(ValueError, match=str(seed)):
        image_seeds(seed, torch.arange(2))


def test_triton_makes_the_same_noise(tmp_path):
    pytest.importorskip("triton")
    seeds = torch.tensor([0, 5 << 32 | 7, -1, 2**63 - 1])
    script, file = tmp_path / "draw.py", tmp_path / "draw.pt"
    script.write_text(TRITON)
    torch.save(seeds, file)
    subprocess.run([sys.executable, script, file], check=True, env=os.environ | {"TRITON_INTERPRET": "1"})
    words, normals = torch.load(file)
    expected = philox((seeds[:, None] & MASK, seeds[:, None] >> 32 & MASK), (torch.arange(16), 7, 2, 0))
    same(words.long() & MASK, torch.stack(expected, dim=-1).flatten(1))
    assert_close(normals, normal(seeds, 0, (64,)), rtol=1e-6, atol=1e-6)
