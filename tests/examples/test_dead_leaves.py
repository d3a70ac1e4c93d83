"""examples/dead_leaves.py: pictures by their definition, endless, each a function of its index."""

import torch
from torch.testing import assert_close

import data
import train
from examples import dead_leaves


def test_dead_leaves_are_endless_and_train(tmp_path):
    leaves = data.load("dead-leaves", "16x24")
    assert leaves.shape == (3, 16, 24) and len(leaves.images) == data.ENDLESS and leaves.labels is None
    assert leaves.images[[0, data.ENDLESS - 1]].shape == (2, 3, 16, 24)
    first, second = (x for x, _ in data.batches(leaves, 4, 0, range(1, 3)))
    assert_close(torch.cat([first, second]), leaves.images[range(8)])                # no picture twice
    train.main(["--data", "dead-leaves", "--size", "16", "--batch", "4", "--steps", "2", "--warmup", "2", "--T", "4",
                "--out", str(tmp_path)])
    assert (tmp_path / "log.jsonl").exists()


def test_a_dead_leaf_depends_on_its_index_alone():
    images = data.load("dead-leaves").images
    together = images[torch.tensor([5, 2**31, 7, 5, 40])]
    for k, i in enumerate((5, 2**31, 7, 5, 40)):
        assert_close(images[[i]][0], together[k], rtol=0, atol=0)
    assert_close(images[range(100)][40], together[4], rtol=0, atol=0)
    assert len(images[range(50)].flatten(1).unique(dim=0)) == 50


def test_dead_leaves_show_the_discs_that_lie_on_top():
    """Against the definition, pixel by pixel: the colour of the last disc that holds the pixel's centre."""
    H, W, index = 8, 12, torch.tensor([3, 4])
    r2, y, x, *colours = dead_leaves.discs(index, H, W).double()
    expected = torch.empty(2, 3, H, W, dtype=torch.uint8)
    for b in range(2):
        for i in range(H):
            for j in range(W):
                inside = ((y[:, b] - (i + 0.5) / 8)**2 + (x[:, b] - (j + 0.5) / 8)**2 <= r2[:, b]).nonzero()
                top = inside[-1].item() if len(inside) else 0
                expected[b, :, i, j] = torch.tensor([int(c[top, b] * 256) for c in colours])
    assert (dead_leaves.render(index, (3, H, W)) == expected).all(1).float().mean() > 0.99  # but for rounding at edges


def test_grey_leaves_are_the_red_of_coloured_ones():
    grey, colour = (data.load(name).images[range(4)] for name in ("dead-leaves-grey", "dead-leaves"))
    assert_close(grey, colour[:, :1])


def test_a_scene_is_the_same_at_every_size():
    coarse, fine = (data.load("dead-leaves", size).images[range(20)] for size in ("32", "96"))
    assert_close(fine[:, :, 1::3, 1::3], coarse)                                     # pixel centres coincide


def test_radii_follow_the_power_law_and_centres_and_colours_are_uniform():
    r2, y, x, *colours = dead_leaves.discs(torch.arange(400), 32, 64)
    r, small, large = r2.sqrt().flatten(), dead_leaves.SMALL, dead_leaves.LARGE
    assert r.min() >= small * 0.9999 and r.max() <= large * 1.0001 and r.max() > 0.99 * large
    for edge in (0.07, 0.1, 0.2, 0.4):                                               # P(r > edge) of density ~ r^-3
        expected = (edge**-2 - large**-2) / (small**-2 - large**-2)
        assert abs((r > edge).double().mean().item() - expected) < 4 * (expected / len(r))**0.5
    for u, least, most in ((y, -large, 1 + large), (x, -large, 2 + large), *((c, 0, 1) for c in colours)):
        share = u.flatten().histc(20, least, most) / u.numel()
        assert u.min() >= least and u.max() <= most and (share - 0.05).abs().max() < 0.003


def test_nearly_every_pixel_is_covered():
    r2, y, x, *_ = dead_leaves.discs(torch.arange(50), 4, 4)
    held = ((y - 0.375).square() + (x - 0.625).square() <= r2).any(0)                # a pixel's centre
    assert held.float().mean() > 0.9
