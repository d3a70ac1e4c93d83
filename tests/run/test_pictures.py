"""run/pictures.py: where pictures and figures go, and that they are written whole or not at all."""

from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageSequence, ImageStat

import sample
import train
from data import to_pixels
from data.image_files import to_image
from run import arrays, pictures


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


def test_a_hundred_classes_are_no_grid_of_one_row():
    x, names = torch.zeros(100, 1, 8, 8), tuple(map(str, range(102)))
    samples = pictures.Samples(100, x, torch.arange(100), names, {5: x, 0: x}, 0., 0)
    assert pictures.columns(samples) == (10, ())
    assert pictures.strip(samples, [5, 0]).size == (2 * 68 + 4, 24 + 40 * 68)


def test_a_strip_shows_each_time_below_its_head():
    states = {t: torch.full((3, 1, 64, 64), grey) for t, grey in ((1000, -1.), (500, 0.2), (0, 1.))}
    sheet = pictures.strip(pictures.Samples(3, states[0], None, (), states, 0., 0), [1000, 500, 0])
    assert [sheet.getpixel((4 + 32 + 68 * k, 24 + 32))[0] for k in range(3)] == [0, 153, 255]


LONG = ("american_bulldog", "american_pit_bull_terrier", "a", "Łódź " * 9)


def test_heads_stay_within_their_columns_and_apart():
    """However long: nothing is drawn between two columns, and names that begin alike are told apart by their ends."""
    sheet = pictures.grid(torch.ones(4, 1, 64, 64), 4, LONG)
    heads = [sheet.crop((4 + 68 * k, 0, 68 + 68 * k, 24)).convert("L") for k in range(4)]
    assert all(head.getextrema()[0] < 128 for head in heads) and heads[0].tobytes() != heads[1].tobytes()
    for k in range(5):
        assert sheet.crop((68 * k, 0, 68 * k + 4, 24)).convert("L").getextrema()[0] > 200, k      # a fringe at most
    one = pictures.grid(torch.ones(1, 1, 64, 64), 1, ["t = 1000"]).crop((4, 0, 68, 24))     # what fits stays as it was
    large = Image.new("RGB", one.size, "white")
    ImageDraw.Draw(large).text((32, 12), "t = 1000", fill="black", font=ImageFont.load_default(14), anchor="mm")
    assert one.tobytes() == large.tobytes()


def test_a_head_is_a_name_in_its_script_or_a_number():
    """matplotlib's own font has Cyrillic; no font has what stands for no character."""
    classes = ("cat", "кошка", "Łoś", "\U0010fffd")
    assert pictures.class_heads(classes, [3, 1, 4, 2, 0]) == ("class 3", "кошка", "none", "Łoś", "cat")
    drawn = [pictures.grid(torch.ones(1, 1, 64, 64), 1, [head]).tobytes() for head in ("кошка", "мышка", "□□□□□")]
    assert len({*drawn}) == 3


def test_grids_of_a_run_have_such_heads(tmp_path, monkeypatch):
    for name in ("\U0010fffd", "мышка"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "set" / name / "1.png")
    heads, grid = [], pictures.grid
    monkeypatch.setattr(pictures, "grid", lambda x, columns, names: (heads.append(names), grid(x, columns, names))[1])
    train.main(["--data", str(tmp_path / "set"), "--T", "5", "--batch", "2", "--warmup", "1", "--steps", "1",
                "--sample_every", "1", "--out", str(tmp_path / "run")])
    assert heads == [("мышка", "class 1")]


def test_a_font_that_was_removed_is_passed_over(tmp_path):
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    for name in ("gone.ttf", "damaged.ttf"):
        assert not pictures.characters(str(tmp_path / name))


# Transparent pictures

def confetti(n=2):
    """A red square on nothing, where the colours are random, in [-1, 1] as a network paints it."""
    x = torch.rand(n, 4, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[:, 3] = -1.01
    x[:, :, 16:48, 16:48] = torch.tensor([1., -1., -1., 1.])[:, None, None]
    return x


def on_white(image):
    """Whether a tile is the red square on white; a film has 64 colours."""
    corner, side, (red, *others) = (image.convert("RGB").getpixel(place) for place in ((2, 2), (60, 30), (32, 32)))
    return corner == side == (255, 255, 255) and red > 240 and max(others) < 16


def test_nobody_sees_the_colours_where_alpha_is_0(tmp_path):
    x = confetti()
    samples = pictures.Samples(2, x, None, (), {5: x, 0: x}, 0., 0)
    assert on_white(pictures.grid(x, 2).crop((4, 4, 68, 68)))
    assert on_white(pictures.strip(samples, [5, 0]).crop((72, 24, 136, 88)))
    pictures.film(samples, tmp_path / "film.gif")
    for frame in frames(tmp_path / "film.gif"):
        assert on_white(frame.crop((2, 2, 34, 34)).resize((64, 64), Image.Resampling.NEAREST))
    (tmp_path / "samples").mkdir()
    to_image(to_pixels(x)[0]).save(tmp_path / "samples/000001.png")           # a grid as earlier versions wrote it
    pictures.progress(tmp_path / "samples", 1, tmp_path / "p.gif")
    assert on_white(frames(tmp_path / "p.gif")[0].crop((0, 0, 32, 32)).resize((64, 64), Image.Resampling.NEAREST))


def test_half_transparent_is_half_white():
    grey = torch.tensor([-1., -1., -1., 0.])[:, None, None].expand(1, 4, 64, 64)
    assert pictures.grid(grey, 1).getpixel((30, 30)) == (127, 127, 127)


def test_files_of_pictures_keep_alpha_and_are_black_where_it_is_0(tmp_path):
    x = confetti()
    settings = sample.Config(n=2, png=True, out=str(tmp_path))
    arrays.write_batches(lambda done: [pictures.Samples(2, x, None, (), {0: x}, 0., 0)], settings,
                         SimpleNamespace(data={"shape": x.shape[1:]}), lambda: None)
    with Image.open(tmp_path / "png/000001.png") as image:
        assert image.getpixel((0, 0)) == (0, 0, 0, 0) and image.getpixel((32, 32)) == (255, 0, 0, 255)
        assert len(image.getcolors()) == 2


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
