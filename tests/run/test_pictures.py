"""run/pictures.py: where pictures and figures go, and that they are written whole or not at all."""


import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageChops, ImageSequence, ImageStat

from run import pictures


def test_a_figure_s_name_is_tried_before_the_work_and_its_old_picture_kept(tmp_path):
    old = tmp_path / "new" / "a.png"
    assert pictures.figure_path(str(old)) == old and not old.exists()
    old.write_bytes(b"a picture")
    pictures.figure_path(str(old))
    assert old.read_bytes() == b"a picture"
    for bad, error in ((tmp_path / "a.xyz", ValueError), (old / "b.png", OSError)):
        with pytest.raises(error):
            pictures.figure_path(str(bad))
    assert [*old.parent.iterdir()] == [old]


@pytest.mark.largest_file(4096)
@pytest.mark.parametrize("write", [
    lambda path: pictures.save(Image.effect_noise((200, 200), 90), path),
    lambda path: pictures.save_figure(Figure(), path, 150)], ids=["picture", "figure"])
def test_a_full_disk_leaves_the_old_picture(tmp_path, write):
    path = tmp_path / "x.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="cannot write .*x.png: File too large; what was there is unchanged"):
        write(path)
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("labels, expected", [
    ([4, 2, 4, 2, 4], (2, ("4", "2"))), ([3, 10, 3, 10], (2, ("3", "none"))), ([3, 3, 7, 3, 3, 7], (3, ())),
    ([7, 3, 7, 7], (2, ())), ([10] * 4, (2, ())), (None, (2, ()))])
def test_heads_are_of_the_pictures_below(labels, expected):
    y = None if labels is None else torch.tensor(labels)
    x = torch.zeros(len(labels or range(4)), 1, 8, 8)
    assert pictures.columns(pictures.Samples(len(x), x, y, tuple("0123456789"), {}, 0., 0)) == expected


def test_a_strip_shows_each_time_below_its_head():
    states = {t: torch.full((3, 1, 64, 64), grey) for t, grey in ((1000, -1.), (500, 0.2), (0, 1.))}
    sheet = pictures.strip(pictures.Samples(3, states[0], None, (), states, 0., 0), [1000, 500, 0])
    assert [sheet.getpixel((4 + 32 + 68 * k, 24 + 32))[0] for k in range(3)] == [0, 153, 255]


def test_pictures_have_names_of_pictures(tmp_path):
    with pytest.raises(ValueError, match="x.doc is no name of a picture; let it end in .png"):
        pictures.save(Image.new("L", (8, 8)), tmp_path / "x.doc")


# The film of a run

def save_grids(folder, steps, size=(80, 60), value=lambda step: 40):
    folder.mkdir(exist_ok=True)
    for step in steps:
        Image.effect_noise(size, value(step)).convert("RGB").save(folder / f"{step:06d}.png")


def frames(path):
    with Image.open(path) as film:
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(film)]


def test_the_film_of_a_run_has_every_grid_up_to_now(tmp_path):
    save_grids(tmp_path, [20, 10, 100, 1000000])
    pictures.progress(tmp_path, 100, tmp_path / "p.gif")
    found = frames(tmp_path / "p.gif")
    assert len(found) == 3 and found[0].size == (40, 50)
    for frame, step in zip(found, (10, 20, 100), strict=True):
        grid = Image.open(tmp_path / f"{step:06d}.png").reduce(2)
        difference = ImageChops.difference(frame.crop((0, 0, 40, 30)), grid)
        assert max(ImageStat.Stat(difference).mean) < 8                           # 64 colours are near enough
    assert ImageStat.Stat(found[0].crop((0, 30, 40, 50))).mean != [255] * 3       # its step is written below


def test_a_long_run_s_film_is_thinned_and_ends_now(tmp_path):
    save_grids(tmp_path, range(1, 100), value=lambda step: step)
    pictures.progress(tmp_path, 99, tmp_path / "p.gif")
    found = frames(tmp_path / "p.gif")
    assert 20 < len(found) <= pictures.FRAMES
    last = ImageChops.difference(found[-1].crop((0, 0, 40, 30)), Image.open(tmp_path / "000099.png").reduce(2))
    assert max(ImageStat.Stat(last).mean) < 16
