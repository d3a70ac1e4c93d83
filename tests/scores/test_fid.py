import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch.testing import assert_close

import data
from scores import fid


def cloud(n, D=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=generator) @ torch.randn(D, D, generator=generator) + seed


def stub(device):
    """Features without weights to download: a random mixture of the mean colours of the four quarters."""
    mix = torch.randn(12, 12, generator=torch.Generator().manual_seed(1))

    def features(pixels):
        assert pixels.dtype == torch.uint8 and pixels.shape[1] == 3
        return torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 2).flatten(1) @ mix
    return features


def pictures(path, n, C=3, size=8, seed=0):
    x = np.random.default_rng(seed).integers(0, 256, (n, size, size, C), dtype=np.uint8)
    np.savez(path, arr_0=x)
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
    a, b = cloud(5, D=40), cloud(4, D=40, seed=1)
    far = fid.frechet(fid.statistics(a), fid.statistics(b))
    assert far > 1 and abs(fid.frechet(fid.statistics(a), fid.statistics(a))) < 1e-5 * far


def test_statistics_add_up_whatever_the_mean():
    x = cloud(60) + 1e4
    full, parts = fid.statistics(x), fid.statistics(x[::2]) + fid.statistics(x[1::2])
    assert parts.n == 60
    assert_close(parts.mean, full.mean)
    assert_close(parts.scatter, full.scatter, rtol=1e-6, atol=1e-4)


def test_fid_tells_near_from_far_and_prints_its_floor(tmp_path, capsys):
    real = pictures(tmp_path / "real.npz", 400)
    for name, n, offset in (("same", 300, 0), ("dark", 200, 60)):
        x = np.random.default_rng(9).integers(0, 256 - offset, (n, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / name, arr_0=x)
        fid.fid(["--pictures", str(tmp_path / f"{name}.npz"), "--data", real, "--cache", str(tmp_path / "c")], stub)
    lines = capsys.readouterr().out.splitlines()
    figures = [float(line.split()[1]) for line in lines if line.startswith("FID")]
    same, floor, dark, again = figures
    assert floor == again and same < 3 * floor and dark > 20 * same
    assert f"N = 300 pictures of {tmp_path}/same.npz, 400 of {real} at 8 x 8" in lines[0]
    assert "real to real: 200 pictures" in lines[1] and "equal N" in lines[2]


def test_statistics_are_cached_by_the_pixels(tmp_path):
    dataset, batches = data.load(pictures(tmp_path / "a.npz", 12)), []

    def counted(pixels):
        batches.append(len(pixels))
        return stub("cpu")(pixels)

    first = fid.halves(dataset, counted, 5, tmp_path)
    again = fid.halves(dataset, counted, 4, tmp_path)
    assert batches == [5, 5, 2] and [p.name[:3] for p in tmp_path.glob("12-*.npz")] == ["12-"]
    for a, b in zip(first, again, strict=True):
        assert_close(a, b, rtol=0, atol=0)
    assert [half.n for half in first] == [6, 6]
    assert_close((first[0] + first[1]).mean, stub("cpu")(dataset.images).double().mean(0))
    changed = dataset.images.clone()
    changed[3, 0, 0, 0] ^= 1
    fid.halves(dataset._replace(images=changed), counted, 12, tmp_path)
    assert batches[3:] == [12]


def spoil_arrays(path, **changes):
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **arrays)


@pytest.mark.parametrize("spoil", [
    lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"no zip"), lambda p: p.write_bytes(p.read_bytes()[:-200]),
    lambda p: spoil_arrays(p, n0=np.array(7)), lambda p: spoil_arrays(p, n1=np.array([6, 6])),
    lambda p: spoil_arrays(p, mean0=np.full(12, np.nan)), lambda p: spoil_arrays(p, mean1=np.zeros(12, np.float32)),
    lambda p: spoil_arrays(p, scatter0=np.zeros((12, 11))), lambda p: spoil_arrays(p, scatter1=np.zeros((1, 1, 1))),
    lambda p: spoil_arrays(p, mean0=np.array([{}], object)), lambda p: np.savez(p, other=np.zeros(3))],
    ids=range(11))
def test_a_damaged_cache_is_said_and_computed_anew(tmp_path, capsys, spoil):
    dataset = data.load(pictures(tmp_path / "a.npz", 12))
    whole = fid.halves(dataset, stub("cpu"), 5, tmp_path / "c")
    [path] = (tmp_path / "c").iterdir()
    spoil(path)
    for said in (f"warning: cannot read {path}: ", ""):
        for a, b in zip(fid.halves(dataset, stub("cpu"), 5, tmp_path / "c"), whole, strict=True):
            assert_close(a, b, rtol=0, atol=0)
        out = capsys.readouterr().out
        assert out.startswith(said) and ("computed anew" in out) == bool(said)


@pytest.mark.largest_file(4096)
def test_a_full_disk_costs_the_cache_alone(tmp_path, capsys):
    x = data.Data("x", torch.zeros(8, 3, 8, 8, dtype=torch.uint8), None, (), (3, 8, 8))
    wide = fid.halves(x, lambda pixels: torch.randn(len(pixels), 40), 5, tmp_path / "c")
    assert wide[0].n == 4 and "warning: cannot write" in capsys.readouterr().out
    assert not [*(tmp_path / "c").iterdir()]


def test_statistics_of_two_networks_are_not_compared(tmp_path):
    real, sampled = (pictures(tmp_path / f"{k}.npz", 8, seed=k) for k in range(2))
    cache = str(tmp_path / "c")
    fid.halves(data.load(real), lambda pixels: torch.randn(len(pixels), 3), 5, tmp_path / "c")
    with pytest.raises(ValueError, match="are of two networks; remove that folder"):
        fid.fid(["--pictures", sampled, "--data", real, "--cache", cache], stub)


def test_grey_is_colour_and_alpha_is_refused(tmp_path):
    grey = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8)
    assert_close(fid.to_rgb(grey), grey.repeat(1, 3, 1, 1))
    with pytest.raises(ValueError, match="alpha"):
        fid.to_rgb(grey.repeat(1, 4, 1, 1))


def test_a_folder_of_pngs_is_taken_and_few_pictures_are_refused(tmp_path):
    for k in range(4):
        Image.effect_noise((8, 8), 50).save(tmp_path / f"{k}.png")
    fid.fid(["--pictures", str(tmp_path), "--data", str(tmp_path), "--cache", str(tmp_path / "c")], stub)
    with pytest.raises(ValueError, match="has 3 pictures"):
        fid.fid(["--pictures", pictures(tmp_path / "few.npz", 3), "--data", str(tmp_path)], stub)


def test_a_missing_pytorch_fid_is_named_with_its_install_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_fid", None)
    with pytest.raises(ValueError, match="pip install pytorch-fid"):
        fid.inception(torch.device("cpu"))


def test_inception_computes_2048_features_of_pixels_from_0_to_1(monkeypatch):
    import sys
    import types

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
