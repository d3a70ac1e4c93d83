"""The noise is Philox4x32-10, standard normal, and a function of (seed, step, stream, element) alone.

That Triton's own Philox makes the same numbers is in tests/kernels/test_sampling_step.py.
"""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import noise
from noise import FLIPS, LABELS, MASK, SHUFFLE, TIMES, box_muller, image_seeds, normal, philox, uniform, unit
from tests.helpers import same, seeds_of


def words_of(text):
    return [int(word, 16) for word in text.split()]


def z_of_words(w0, w1):
    """The pair of normals of two words, in Python's own float64."""
    u0, u1 = ((w if w < 2**31 else MASK - w) * 4.6566127342e-10 for w in (w0, w1))
    r = math.sqrt(-2 * math.log(max(u0, 1e-7)))
    return r * math.cos(2 * math.pi * u1), r * math.sin(2 * math.pi * u1)


def assert_uncorrelated(x, y, variance=1.):
    """Two samples of mean 0 and this variance, to four standard deviations of their mean product."""
    assert abs((x * y).mean()) < 4 * variance / math.sqrt(x.numel())


def assert_independent(z, y):
    """Normals: neither they nor their squares are correlated."""
    assert_uncorrelated(z, y)
    assert_uncorrelated(z**2 - 1, y**2 - 1, variance=2)


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
    for power, moment, spread in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        error = (z**power).mean().item() - moment
        assert abs(error) < 4 * math.sqrt(spread / z.numel()), f"moment {power} is off by {error:g}"


@pytest.mark.parametrize("other", [
    {"seeds": seeds_of(100) + 1}, {"seeds": seeds_of(100, seed=1)}, {"s": 6}, {"s": 1000}, {"stream": 1},
    {"stream": 2}, {"s": 0, "stream": 5}])
def test_other_seeds_steps_and_streams_are_independent(other):
    choice = {"seeds": seeds_of(100), "s": 5, "shape": (3, 32, 32)}
    assert_independent(normal(**choice).double(), normal(**choice | other).double())


def test_elements_of_an_image_are_independent():
    z = normal(seeds_of(100), 5, (3 * 32 * 32,)).double()
    for lag in (1, 2, 3, 4, 32, 1024):
        assert_independent(z[:, lag:], z[:, :-lag])


def test_streams_are_distinct():
    streams = [noise.SAMPLE, noise.TRAIN, noise.INPAINT, SHUFFLE, TIMES, LABELS, FLIPS, noise.LEAVES, noise.DROPOUT]
    assert len({normal(seeds_of(1), 1, (1,), stream).item() for stream in streams}) == 9
    assert noise.SAMPLE == 0                                            # the stream of the kernels


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (2,)])
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
    assert noise.words(seeds_of(2), 5, 9, 0)[0].shape == (2, 3)         # and no more blocks than it needs
    z = normal(seeds_of(2), 5, (2, 3, 7)).flatten(1)
    for n in range(42):
        same(normal(seeds_of(2), 5, (n,)), z[:, :n])


@pytest.mark.parametrize("seed, key", [
    (9 << 32 | 11, (11, 9)), (-1, (MASK, MASK)), (-2**63, (0, 2**31)), (2**63 - 1, (MASK, 2**31 - 1)),
    (2**32, (0, 1)), (MASK, (MASK, 0))])
@pytest.mark.parametrize("s, stream, counter", [(1000, 0, (1000, 0, 0)), (7.25, 2, (7, 2, 2**30))])
def test_element_layout(s, stream, counter, seed, key):
    """Words of the blocks of four elements; the seed's halves are the key, a step's fraction the counter's last."""
    z = normal(torch.tensor([seed]), s, (3, 3, 3), stream).flatten()
    expected = []
    for block in range(7):
        w0, w1, w2, w3 = philox(key, (block, *counter))
        expected += [*z_of_words(w0, w1), *z_of_words(w2, w3)]
    assert_close(z, torch.tensor(expected[:27]), rtol=1e-5, atol=2e-6)


def test_noise_between_the_times_is_its_own():
    """A function of the time landed on, real or whole; whole ones keep what an integer has."""
    seeds = seeds_of(3)
    times = [1, 1.25, 1.5, 1.5 + 1e-6, 2, 999, 999.9999, 1000, 999 + 2**-14]
    noises = [normal(seeds, t, (1, 8, 8)) for t in times]
    for i, a in enumerate(noises):
        same(a, normal(seeds, torch.tensor(times[i], dtype=torch.float64), (1, 8, 8)))
        for b in noises[:i]:
            assert (a - b).abs().mean() > 0.5
    for t in (1, 2, 999, 1000):
        same(normal(seeds, float(t), (1, 8, 8)), normal(seeds, torch.tensor(t), (1, 8, 8)))


def test_uniform_is_uniform():
    u = uniform(3, 5, 400001, TIMES).double()
    assert u.shape == (400001,) and u.min() >= 0 and u.max() < 1
    counts = (u * 100).long().bincount(minlength=100)
    assert ((counts - 4000)**2 / 4000).sum() < 99 + 4 * math.sqrt(2 * 99)       # chi squared, 99 degrees of freedom
    assert_uncorrelated(u[1:] - 0.5, u[:-1] - 0.5, variance=1 / 12)


@pytest.mark.parametrize("other", [(4, 5, TIMES), (3, 6, TIMES), (3, 5, LABELS)])
def test_other_uniforms_are_independent(other):
    seed, s, stream = other
    u, y = uniform(3, 5, 100000, TIMES).double(), uniform(seed, s, 100000, stream).double()
    assert_uncorrelated(u - 0.5, y - 0.5, variance=1 / 12)


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


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_indices_of_any_width_make_the_same_seeds(dtype):
    """In 32 bits the run's seed would be shifted out, and every run's noise would be that of seed 0."""
    for index in (torch.arange(5, dtype=dtype), np.arange(5, dtype=np.int32)):
        assert image_seeds(3, index).tolist() == [(3 << 32) + k for k in range(5)]
    seeds = torch.arange(5, dtype=dtype)
    assert torch.equal(normal(seeds, 7, (3,)), normal(seeds.long(), 7, (3,)))


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8, torch.tensor])
def test_a_run_s_seed_of_any_kind(kind):
    assert image_seeds(kind(3), torch.arange(2)).tolist() == [3 << 32, (3 << 32) + 1]


def test_image_seeds():
    seeds = image_seeds(5, torch.tensor([0, 1, MASK]))
    assert seeds.tolist() == [5 << 32, 5 << 32 | 1, 6 * 2**32 - 1]
    assert image_seeds(2**31 - 1, torch.tensor([MASK])).item() == 2**63 - 1
    for seed in (-1, 2**31):
        with pytest.raises(ValueError, match=str(seed)):
            image_seeds(seed, torch.arange(2))
