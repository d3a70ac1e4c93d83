"""The scripts that make what docs/ shows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import train
from docs import fashion, figures, variants
from docs.pages import unet_picture
from tests.helpers import write_idx


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


def test_real_pictures_and_samples_stand_side_by_side(tmp_path, monkeypatch):
    """Of the committed weights: ten classes of files like Fashion-MNIST's, each of one grey."""
    labels = np.arange(100) % 10
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", np.full((100, 28, 28), 20) * labels[:, None, None])
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels)
    monkeypatch.setitem(train.PRESETS, "fashion", replace(train.PRESETS["fashion"], data=f"fashion-mnist:{tmp_path}"))
    figures.real_and_sampled(tmp_path / "both.png")
    image = np.asarray(Image.open(tmp_path / "both.png").convert("L")).astype(int)
    assert image.shape == (24 + 10 * 88, 10 * 88 + 4)
    tiles = image[24:].reshape(10, 88, -1)[:, :84, 4:].reshape(10, 84, 10, 88)[..., :84]
    assert (abs(tiles[:, :, :5] - 20 * np.arange(10)[:, None, None, None]) <= 8).all()      # in 32 greys
    assert (tiles[:, :, 5:].std((1, 3)) > 10).all()


def test_every_figure_is_there():
    assert {f"{name}.png" for name in figures.FIGURES} <= {path.name for path in figures.DOCS.glob("*.png")}


def test_the_reverse_strip_shows_the_listed_times(tmp_path):
    assert sorted(figures.SNAPSHOTS) == [0, 15, 50, 100, 200, 300, 400, 550, 700, 999]
    assert Image.open(figures.DOCS / "reverse.png").size == (10 * 68 + 4, 24 + 10 * 68)


def test_an_unknown_figure_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        figures.main(["--only", "cats"])
    assert stop.value.code == 2 and "only is 'cats'" in capsys.readouterr().err


@pytest.mark.parametrize("main, flags, message", [
    (fashion.main, ["--minutes", "inf"], "minutes is inf"), (fashion.main, ["--n", "3"], "n is 3"),
    (variants.main, ["--n", "3"], "n is 3"), (variants.main, ["--only", "scores", "--out", "empty.md"], "has 0 tables"),
    (variants.main, ["--out", "/proc/v.md"], "/proc/v.md"), (figures.main, ["--only", "digits,cats"], "only is 'cats'"),
    (unet_picture.main, ["--size", ""], "size is empty"), (unet_picture.main, ["--change", "groups=0"], "groups 0")])
def test_flags_that_cannot_work_are_refused_before_the_work(tmp_path, monkeypatch, refused, main, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("empty.md").touch()
    assert message in refused(main, flags)


def test_short_runs_of_fashion_are_scored(capsys):
    """On digits here."""
    fashion.main(["--data", "digits", "--minutes", "0.02", "--n", "20", "--steps", "2", "--only",
                  "chosen;one block a level, no attention;target x0, space min-snr"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()][2:]
    assert [row[0][2:] for row in rows] == ["chosen", "one block a level, no attention", "target x0, space min-snr"]
    assert [row[1] for row in rows] == ["1.00 M", "0.69 M", "1.00 M"] and all(float(row[3]) > 0 for row in rows)
    assert "candidate" not in train.CONFIGS
    with pytest.raises(SystemExit):
        fashion.main(["--only", "nothing"])
    assert "only is 'nothing'" in capsys.readouterr().err


def test_variants_are_trained_scored_and_tabled(tmp_path, monkeypatch, few):
    """And the tables that were not asked for stay as they were."""
    out, kept = tmp_path / "v.md", ["## Whole runs\n\nfrom three seeds", "## Pictures\n\nof other shapes"]
    out.write_text("\n\n".join(["# Variants", "## Short runs\n\nof old", *kept]) + "\n")
    monkeypatch.setattr(variants, "VARIANTS", ("--loss hybrid", "--null 1"))
    variants.main(["--steps", "2", "--n", "20", "--only", "scores", "--out", str(out)])
    assert out.read_text().endswith("\n\n".join(["", *kept]) + "\n") and "of old" not in out.read_text()
    rows = [line for line in out.read_text().splitlines() if line.startswith("| `python")]
    assert [row.split("`")[1] for row in rows] == ["python train.py --loss hybrid", "python train.py --null 1"]
    cells = [row.split("|")[2:-1] for row in rows]
    assert cells[1][2].strip() == "" and all(float(cell) > 0 for cell in cells[0])


@pytest.mark.parametrize("make, shape", [(variants.as_mnist, (1, 28, 28)), (variants.coloured, (3, 8, 8))])
def test_digits_in_other_shapes_are_read_as_such(tmp_path, make, shape):
    digits = data.digits(held_out=True)
    found = data.load(make(digits, tmp_path))
    assert found.shape == shape
    assert torch.equal(found.labels, digits.labels)
    dark = found.images.float().mean((1, 2, 3)), digits.images.float().mean((1, 2, 3))
    assert torch.stack(dark).corrcoef()[0, 1] > 0.5 and len(found.images.unique(dim=0)) > 590


def test_a_shape_s_line_has_its_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "bits", lambda path, held_out: float(len(held_out.images)))
    config = variants.Config(steps=2)
    line = variants.shape_row("a rectangle", ["--size", "8x12", "--fit", "pad"], variants.coloured, config)
    assert line == "| a rectangle | `--size 8x12 --fit pad` | 3 x 8 x 12 | 200.000 |\n"
