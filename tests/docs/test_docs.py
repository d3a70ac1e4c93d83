"""The scripts that make what docs/ shows."""


import numpy as np
import pytest
import torch
from PIL import Image

import data
import ddpm
import train
from docs import figures, variants
from docs.pages import unet_picture


@pytest.fixture
def few(monkeypatch):
    """Every tenth picture of the digits, to be quicker."""
    digits = data.digits

    def tenth(held_out=False):
        whole = digits(held_out=held_out)
        return whole._replace(images=whole.images[::10].clone(), labels=whole.labels[::10].clone())

    monkeypatch.setattr(data, "digits", tenth)


@pytest.mark.parametrize("name", ["forward", "schedules"])
def test_figures_of_the_equations_are_made(name, tmp_path, few):
    figures.FIGURES[name](tmp_path / f"{name}.png")
    made, kept = (Image.open(folder / f"{name}.png") for folder in (tmp_path, figures.DOCS))
    assert made.size == kept.size


def test_the_forward_strip_goes_from_the_picture_to_noise(monkeypatch, few):
    """Ten panels of the same picture at t = 0 to 1000: its share of each is the root of alpha_bar."""
    made = []
    monkeypatch.setattr(figures.pictures, "save_figure", lambda figure, path, dpi: made.append(figure))
    figures.forward(None)
    panels = made[0].subfigs[0].axes
    x = torch.from_numpy(np.stack([panel.images[0].get_array() for panel in panels])).flatten(1) / 127.5 - 1
    times = [int(panel.get_title().removeprefix("t = ")) for panel in panels]
    assert times[0] == 0 and times[-1] == 1000 and torch.equal(x[0], data.to_unit(data.to_pixels(
        figures.one_digit())).flatten().double())
    share = (x * x[0]).mean(1) / x[0].square().mean()
    expected = ddpm.linear_schedule().alpha_bar[times].sqrt()
    assert (share - expected).abs().max() < 0.35 and share[-1].abs() < 0.35 < share[3] < share[0]
    gone = (x - expected[:, None] * x[0]).square().mean(1).sqrt()                       # the noise, which is clipped
    assert gone[0] < 0.01 and (gone[1:5].diff() > 0).all() and gone[-1] > 0.6


@pytest.mark.slow
def test_real_pictures_and_samples_stand_side_by_side(tmp_path, monkeypatch):
    """Samples of the committed weights, and ten classes in place of Fashion-MNIST's, each of one grey."""
    labels = torch.arange(100) % 10
    images = (20 * labels[:, None, None, None]).expand(100, 1, 28, 28).to(torch.uint8)
    monkeypatch.setattr(data, "load", lambda name: data.Data(name, images, labels, (), (1, 28, 28)))
    figures.real_and_sampled(tmp_path / "both.png")
    image = np.asarray(Image.open(tmp_path / "both.png").convert("L")).astype(int)
    assert image.shape == (24 + 10 * 88, 10 * 88 + 4)
    tiles = image[24:].reshape(10, 88, -1)[:, :84, 4:].reshape(10, 84, 10, 88)[..., :84]
    assert (abs(tiles[:, :, :5] - 20 * np.arange(10)[:, None, None, None]) <= 8).all()      # in 32 greys
    assert (tiles[:, :, 5:].std((1, 3)) > 10).all()


def test_the_reverse_strip_shows_the_listed_times(tmp_path):
    assert sorted(figures.SNAPSHOTS) == [0, 15, 50, 100, 200, 300, 400, 550, 700, 999]
    assert Image.open(figures.DOCS / "reverse.png").size == (10 * 68 + 4, 24 + 10 * 68)


@pytest.mark.parametrize("main, flags, message", [
    (variants.main, ["--only", "fashion", "--data", "nowhere"], "nowhere"),
    (variants.main, ["--only", "cats"], "only is 'cats'"), (figures.main, ["--only", "digits,cats"], "only is 'cats'"),
    (unet_picture.main, ["--size", ""], "size is empty"), (unet_picture.main, ["--change", "groups=0"], "groups is 0"),
    (unet_picture.main, ["--change", "cats=3"], "change is 'cats=3'"),
    (unet_picture.main, ["--change", "widths=64"], "change is"),
    (unet_picture.main, ["--network", "cats"], "network is 'cats'"),
    (unet_picture.main, ["--size", "30"], "30 x 30 pixels")])
def test_flags_that_cannot_work_are_refused_before_the_work(refused, main, flags, message):
    assert message in refused(main, flags)


@pytest.mark.slow
def test_short_runs_of_fashion_are_scored(capsys, monkeypatch):
    """On digits here."""
    chosen = ("chosen", "one block per level, no attention", "target x0, space min-snr")
    monkeypatch.setattr(variants, "FASHION", {name: variants.FASHION[name] for name in chosen})
    monkeypatch.setattr(variants, "MINUTES", 0.02)
    monkeypatch.setattr(variants, "SAMPLED", (20, 2))
    variants.main(["--only", "fashion", "--data", "digits"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()][2:]
    assert tuple(row[0][2:] for row in rows) == chosen
    assert [row[1] for row in rows] == ["1.00 M", "0.69 M", "1.00 M"] and all(float(row[3]) > 0 for row in rows)
    assert "candidate" not in train.CONFIGS


@pytest.mark.slow
def test_variants_are_trained_scored_and_tabled(tmp_path, monkeypatch, few):
    """And the text, and the tables that were not asked for, stay as they were."""
    page, before = tmp_path / "variants.md", variants.PAGE.read_text()
    page.write_text(before)
    monkeypatch.setattr(variants, "PAGE", page)
    monkeypatch.setattr(variants, "VARIANTS", ("--loss hybrid", "--null 1"))
    monkeypatch.setattr(variants, "SHORT", (2, 20))
    variants.main(["--only", "scores"])
    lines = page.read_text().splitlines()
    first = before.splitlines().index("| flags | FD | pFD | agree | mem | bits/dim |") + 2
    assert lines[:first] == before.splitlines()[:first] and lines[first + 2:] == before.splitlines()[first + 9:]
    cells = [line.split("|")[1:-1] for line in lines[first:first + 2]]
    assert [row[0] for row in cells] == [" `python train.py --loss hybrid` ", " `python train.py --null 1` "]
    assert cells[1][3].strip() == "" and all(float(cell) > 0 for cell in cells[0][1:])


@pytest.mark.parametrize("make, shape", [(variants.as_mnist, (1, 28, 28)), (variants.coloured, (3, 8, 8))])
def test_digits_in_other_shapes_are_read_as_such(tmp_path, make, shape):
    digits = data.digits(held_out=True)
    found = data.load(make(digits, tmp_path))
    assert found.shape == shape
    assert torch.equal(found.labels, digits.labels)
    dark = found.images.float().mean((1, 2, 3)), digits.images.float().mean((1, 2, 3))
    assert torch.stack(dark).corrcoef()[0, 1] > 0.5 and len(found.images.unique(dim=0)) > 590
