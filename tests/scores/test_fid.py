"""scores/fid.py beside the published formula, with random features in place of weights that would be downloaded."""

import itertools
import sys
import types

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch.testing import assert_close

import data
import sample
from scores import fid


def cloud(n, D=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=generator) @ torch.randn(D, D, generator=generator) + seed


def stub(device):
    """A random mixture of the mean colours of the four quarters."""
    mix = torch.randn(12, 12, generator=torch.Generator().manual_seed(1))

    def features(pixels):
        assert pixels.dtype == torch.uint8 and pixels.shape[1] == 3
        return torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 2).flatten(1) @ mix
    return features


def pictures(path, n, seed=0, brightest=255):
    np.savez(path, arr_0=np.random.default_rng(seed).integers(0, brightest + 1, (n, 8, 8, 3), dtype=np.uint8))
    return str(path)


def test_frechet_is_the_published_formula():
    a, b = cloud(50), cloud(70, seed=1)
    A, B = (np.cov(x.double().numpy().T) for x in (a, b))
    root = scipy.linalg.sqrtm(A @ B).real
    expected = ((a.mean(0) - b.mean(0)).double().square().sum().item() + np.trace(A + B - 2 * root))
    assert fid.frechet(fid.statistics(a), fid.statistics(b)) == pytest.approx(expected, rel=1e-6)
    assert fid.frechet(fid.statistics(b), fid.statistics(a)) == pytest.approx(expected, rel=1e-6)
    assert abs(fid.frechet(fid.statistics(a), fid.statistics(a))) < 1e-6


def test_fewer_points_than_features_are_no_trouble():
    a, b = (fid.statistics(cloud(n, D=40, seed=seed)) for n, seed in ((5, 0), (4, 1)))
    distance = fid.frechet(a, b)
    assert distance > 1 and abs(fid.frechet(a, a)) < 1e-5 * distance


def test_statistics_add_up_whatever_the_mean():
    x = cloud(60) + 1e4
    full, parts = fid.statistics(x), fid.statistics(x[::2]) + fid.statistics(x[1::2])
    assert parts.n == 60
    assert_close(parts.mean, full.mean)
    assert_close(parts.scatter, full.scatter, rtol=1e-6, atol=1e-4)


def test_fid_tells_near_from_far_and_prints_its_floor(tmp_path, capsys):
    real = pictures(tmp_path / "real.npz", 400)
    for name, n, brightest in (("same", 300, 255), ("dark", 200, 195)):
        sampled = pictures(tmp_path / f"{name}.npz", n, seed=9, brightest=brightest)
        fid.fid(["--pictures", sampled, "--data", real, "--cache", str(tmp_path / "c")], stub)
    lines = capsys.readouterr().out.splitlines()
    same, floor, dark, same_floor = (float(line.split()[1]) for line in lines if line.startswith("FID"))
    assert floor == same_floor and same < 3 * floor and dark > 20 * same
    assert f"N = 300 pictures of {tmp_path}/same.npz, 400 of {real} at 8 x 8" in lines[0]
    assert "real to real: 200 pictures" in lines[1] and "equal N" in lines[2]


@pytest.mark.slow
def test_fid_over_eta_and_steps(tmp_path, capsys):
    """As table 1 of DDIM has it: fewer steps are worse, and so is noise where steps are few."""
    made, distance = str(tmp_path / "pictures.npz"), {}
    for eta, steps in itertools.product((0, 1), (3, 20)):
        flags = f"--n 200 --batch 200 --eta {eta} --steps {steps} --npz --out {tmp_path}"
        sample.main(flags.split())
        capsys.readouterr()
        fid.fid(["--pictures", made, "--data", "digits", "--cache", str(tmp_path / "c")], stub)
        distance[eta, steps] = float(capsys.readouterr().out.split()[1])
    assert distance[0, 20] < distance[0, 3] / 3 and distance[1, 20] < distance[1, 3] / 2, distance
    assert distance[0, 20] < distance[1, 20] / 1.5, distance


def test_statistics_are_cached_by_the_pixels(tmp_path):
    dataset, batches = data.load(pictures(tmp_path / "a.npz", 12)), []

    def counted(pixels):
        batches.append(len(pixels))
        return stub("cpu")(pixels)

    first, second = (fid.halves(dataset, counted, batch, tmp_path / "c") for batch in (5, 4))
    assert batches == [5, 5, 2] and [half.n for half in first] == [6, 6]
    assert_close(first, second, rtol=0, atol=0)
    assert_close((first[0] + first[1]).mean, stub("cpu")(dataset.images).double().mean(0))
    [path] = (tmp_path / "c").iterdir()
    path.write_bytes(path.read_bytes().replace(b"mean1", b"means"))
    with pytest.raises(ValueError, match=f"cannot read {path}: .*; remove it"):
        fid.halves(dataset, counted, 5, tmp_path / "c")
    changed = dataset.images.clone()
    changed[3, 0, 0, 0] ^= 1
    fid.halves(dataset._replace(images=changed), counted, 12, tmp_path / "c")
    assert batches[3:] == [12]


def test_grey_is_colour_and_opaque_is_rgb_and_few_pictures_are_refused(tmp_path, capsys):
    for k in range(4):
        Image.effect_noise((8, 8), 50).save(tmp_path / f"{k}.png")
    flags = ["--data", str(tmp_path / "L"), "--cache", str(tmp_path / "c"), "--pictures"]
    capsys.readouterr()
    for mode in ("L", "RGB", "RGBA"):
        (tmp_path / mode).mkdir()
        for path in tmp_path.glob("*.png"):
            Image.open(path).convert(mode).save(tmp_path / mode / path.name)
        fid.fid([*flags, str(tmp_path / mode)], stub)
    said = [line.split()[1] for line in capsys.readouterr().out.splitlines() if "pictures of" in line]
    assert len(said) == 6 and said[::2] == ["0.000"] * 3
    with pytest.raises(ValueError, match="has 3 pictures"):
        fid.fid([*flags, pictures(tmp_path / "few.npz", 3)], stub)


def test_a_missing_pytorch_fid_is_named_with_its_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_fid", None)
    with pytest.raises(ValueError, match="pip install pytorch-fid"):
        fid.inception(torch.device("cpu"))


def test_inception_computes_2048_features_of_pixels_from_0_to_1(monkeypatch):
    class Inception(torch.nn.Module):
        BLOCK_INDEX_BY_DIM = {64: 0, 2048: 3}

        def __init__(self, blocks):
            super().__init__()
            assert blocks == [3]

        def forward(self, x):
            assert not self.training and x.min() >= 0 and 0.9 < x.max() <= 1
            return [x.mean((2, 3), keepdim=True).repeat(1, 2, 1, 1)]

    module = types.ModuleType("pytorch_fid.inception")
    module.InceptionV3 = Inception
    monkeypatch.setitem(sys.modules, "pytorch_fid", types.ModuleType("pytorch_fid"))
    monkeypatch.setitem(sys.modules, "pytorch_fid.inception", module)
    pixels = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    assert fid.inception(torch.device("cpu"))(pixels).shape == (5, 6)
