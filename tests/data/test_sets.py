import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import data
from data import image_files
from run import pictures


def picture(path, mode="RGB", size=(12, 8), seed=0):
    """Writes a random picture; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = image_files.CHANNELS[mode]
    pixels = np.random.default_rng(seed).integers(1, 256, (size[1], size[0], channels), np.uint8)
    Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels).save(path)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def test_pixels_go_to_unit_range_and_back_exactly():
    pixels = torch.arange(256, dtype=torch.uint8)
    x = data.to_unit(pixels)
    assert x.min() == -1 and x.max() == 1
    assert_close(data.to_pixels(x), pixels)
    assert_close(data.to_pixels(torch.tensor([-3., 3.])), torch.tensor([0, 255], dtype=torch.uint8))


def test_digits_are_split_once_and_for_all():
    train, held_out = data.digits(), data.digits(held_out=True)
    assert (len(train.images), len(held_out.images)) == (1200, 597)
    assert train.shape == (1, 8, 8) and train.images.max() == 255 and len(train.labels.unique()) == 10
    assert data.digest(train).startswith("783052dc14b0ca8f")            # as when weights/ were trained
    assert data.digest(held_out).startswith("bcf4e22eb2265faf")


def cut(path):
    """Takes the second half from a file."""
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def test_labels_are_the_names_of_subfolders(tmp_path):
    cat = picture(tmp_path / "cat" / "1.png", seed=1)
    picture(tmp_path / "dog" / "deep" / "2.png", seed=2)
    loaded = data.load(str(tmp_path))
    assert loaded.classes == ("cat", "dog") and loaded.labels.tolist() == [0, 1] and loaded.shape == (3, 8, 12)
    assert_close(loaded.images[0], cat)
    loaded = data.load(str(tmp_path / "cat"))
    assert loaded.labels is None and loaded.classes == ()


@pytest.mark.parametrize("modes, channels", [
    (["L"], 1), (["RGB"], 3), (["RGBA"], 4), (["L", "RGB"], 3), (["RGB", "RGBA"], 4)])
def test_channels_are_those_of_the_richest_picture(tmp_path, modes, channels):
    originals = [picture(tmp_path / f"{k}.png", mode, seed=k) for k, mode in enumerate(modes)]
    loaded = data.load(str(tmp_path))
    assert loaded.shape == (channels, 8, 12)
    assert_close(loaded.images[-1], originals[-1])
    if modes == ["RGB", "RGBA"]:
        assert (loaded.images[0, 3] == 255).all()
        assert_close(loaded.images[0, :3], originals[0])


def test_palette_with_transparency_keeps_it(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "1.png", transparency=0)
    assert data.load(str(tmp_path)).images[0, :, 0, 0].tolist() == [0, 0, 0, 0]


def test_crop_takes_the_centre_and_pad_adds_black(tmp_path):
    original = picture(tmp_path / "1.png", size=(12, 8))
    assert_close(data.load(str(tmp_path), "8").images[0], original[:, :, 2:10])
    padded = data.load(str(tmp_path), "10x16", "pad").images[0]
    assert padded.shape == (3, 10, 16)
    assert_close(padded[:, 1:9, 2:14], original)
    assert padded.sum() == original.sum()
    assert_close(data.load("digits", "12", "pad").images[:, :, 2:10, 2:10], data.digits().images)


def test_large_folders_are_read_as_needed(tmp_path, monkeypatch):
    for k in range(3):
        picture(tmp_path / f"{k}.png", seed=k)
    eager = data.load(str(tmp_path)).images
    monkeypatch.setattr(data.sets, "IN_MEMORY", 0)
    lazy = data.load(str(tmp_path)).images
    assert isinstance(lazy, data.folders.Folder) and len(lazy) == 3
    assert_close(lazy[torch.tensor([2, 0])], eager[[2, 0]])


@pytest.mark.parametrize("shape", [(5, 6, 4), (5, 6, 4, 1), (5, 6, 4, 3), (5, 6, 4, 4)])
def test_npz(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=pixels, arr_1=np.array([0, 2, 1, 1, 0]))
    loaded = data.load(str(tmp_path / "a.npz"))
    assert loaded.classes == ("0", "1", "2") and loaded.labels.tolist() == [0, 2, 1, 1, 0]
    assert_close(loaded.images[3].permute(1, 2, 0).numpy(), pixels[3].reshape(6, 4, -1))


@pytest.mark.parametrize("spoil, says", [
    (lambda d: (picture(d / "x.png"), cut(d / "x.png")), "cannot read the image .*x.png"),
    (lambda d: picture(d / "x.png", size=(5, 5)), "2 sizes, 5x5 to 8x12; choose one with --size"),
    (lambda d: picture(d / "sub" / "x.png"), "beside subfolders such as 'sub'"),
    (lambda d: Image.new("F", (12, 8)).save(d / "x.tiff"), "pixels of kind 'F'")])
def test_bad_folders_are_refused_by_name(tmp_path, spoil, says):
    picture(tmp_path / "good.png")
    spoil(tmp_path)
    with pytest.raises(ValueError, match=says):
        data.load(str(tmp_path))


@pytest.mark.parametrize("arrays, says", [
    ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "float32"),
    ({"other": np.zeros(3)}, "arr_0"),
    ({"arr_0": np.zeros((2, 4, 4), np.uint8), "arr_1": np.array([0., 1.])}, "arr_1"),
    ({"arr_0": np.zeros((2, 4, 4), np.uint8), "arr_1": np.array([0, -1])}, "not whole numbers from 0 to 999999")])
def test_bad_npz_is_refused(tmp_path, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=says):
        data.load(str(tmp_path / "a.npz"))
    cut(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="cannot read .*a.npz"):
        data.load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("name, size, fit, says", [
    ("digits", "8y", "crop", "size is '8y'"), ("digits", "0", "crop", "size is '0'"),
    ("digits", "", "stretch", "fit is 'stretch'")])
def test_bad_requests_are_refused(name, size, fit, says):
    with pytest.raises(ValueError, match=says):
        data.load(name, size, fit)


def test_few_are_spread_over_the_set():
    digits = data.digits()
    assert_close(data.evenly_spaced(digits, 3), digits.images[[0, 400, 800]])
    assert_close(data.evenly_spaced(digits, 5000), digits.images)


@pytest.mark.parametrize("n, batch", [(10, 3), (10, 10), (3, 8), (1, 4)])
def test_every_epoch_shows_every_picture_once(n, batch):
    steps = n * 4                                   # whole epochs, whatever the batch
    seen = torch.cat([data.batch_indices(n, batch, 7, step) for step in range(1, steps + 1)])
    epochs = seen.view(-1, n)
    assert_close(epochs.sort(dim=1).values, torch.arange(n).expand(len(epochs), n))
    if n == 10:
        assert len(epochs.unique(dim=0)) == len(epochs)
        assert not torch.equal(data.batch_indices(n, batch, 8, 1), seen[:batch])             # of another seed


def test_a_set_without_end_is_never_shown_twice():
    seen = torch.cat([data.batch_indices(data.ENDLESS, 5, 7, step) for step in range(1, 4)])
    assert_close(seen, torch.arange(15))
    assert data.batch_indices(data.ENDLESS, 2, 0, data.ENDLESS // 2 + 1).tolist() == [0, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_steps_asked_for(workers):
    digits = data.digits()
    late = list(data.batches(digits, 16, 3, range(4, 7), flip=True, workers=workers))
    whole = list(data.batches(digits, 16, 3, range(1, 7), flip=True))
    for (x, y), (x_whole, y_whole) in zip(late, whole[3:], strict=True):
        assert_close(x, x_whole)
        assert_close(y, y_whole)


def test_a_digest_tells_whether_a_set_changed(tmp_path, monkeypatch):
    digits = data.digits()
    images, labels = digits.images.clone(), digits.labels.clone()
    images[7, 0, 3, 3] ^= 1
    labels[7] = (labels[7] + 1) % 10
    leaves = [data.load("dead-leaves", size) for size in ("8", "8", "16")]
    sets = [digits, digits._replace(images=images), digits._replace(labels=labels), digits._replace(labels=None),
            digits._replace(classes=tuple("abcdefghij")), data.digits(held_out=True), leaves[0], leaves[2]]
    assert len({data.digest(each) for each in sets}) == len(sets)
    assert data.digest(digits) == data.digest(data.digits()) and data.digest(leaves[0]) == data.digest(leaves[1])


def test_workers_leave_the_handler_of_dead_children_alone_and_signals_to_the_parent():
    """A worker's death raises nothing in the middle of an update, and Ctrl-C reaches the run, but no worker."""
    before = signal.getsignal(signal.SIGCHLD)
    steps = data.batches(data.digits(), 16, 3, range(1, 100), workers=2)
    for _ in range(2):                                  # one of each worker
        next(steps)
    assert signal.getsignal(signal.SIGCHLD) == before
    workers = multiprocessing.active_children()
    assert len(workers) == 2 and os.getpgrp() not in [os.getpgid(worker.pid) for worker in workers]
    for worker in workers:
        worker.kill()
    with pytest.raises(ValueError, match="the 2 processes that load images failed: .*--workers 0"):
        list(steps)


def test_flip_mirrors_about_half():
    digits = data.digits()
    plain, flipped = (next(iter(data.batches(digits, 400, 3, range(1, 2), flip=f)))[0] for f in (False, True))
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    kept = (flipped == plain).flatten(1).all(1)
    assert (mirrored | kept).all() and 150 < kept.sum() < 250


def test_grid_places_every_picture():
    x = torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 3, 64, 64)
    sheet = image_files.to_tensor(pictures.grid(x, 3, ("a", "b", "c")))
    tiles = [sheet[0, 24 + 32 + r * 68, 4 + 32 + c * 68].item() for r in range(2) for c in range(3)]
    assert tiles == [0, 51, 102, 153, 204, 255]
    assert (sheet[:, :24] < 128).any()              # the heads are written
