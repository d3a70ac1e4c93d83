"""data/folders.py: which pictures and labels of an ordinary folder are read, and what is said about the others."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import data
import train
from data import folders, sets


def fill(root, *names, size=(4, 4), mode="RGB", value=100):
    """Writes a picture of one value under each of these names, the first with this value, the next with one more."""
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, (value + k,) * len(mode)).save(root / name)


def values(loaded):
    return loaded.images[:, 0, 0, 0].tolist()


# Names and places

@pytest.mark.parametrize("name", ["digits", "mnist", "dead-leaves"])
def test_a_folder_with_the_name_of_a_set_is_not_passed_over(tmp_path, monkeypatch, name):
    fill(tmp_path, f"{name}/1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^data is '{name}', the name of a set, and .*; ./{name} is yours"):
        data.load(name)
    assert values(data.load(f"./{name}")) == values(data.load(f"{name}/")) == [100]


def test_samples_of_a_run_are_no_training_pictures(tmp_path, capsys):
    fill(tmp_path, "cat/1.png", "dog/2.png", "run1/samples/9.png", "dog/run2/3.png")
    (tmp_path / "run1" / "last.safetensors").touch()
    (tmp_path / "dog" / "run2" / "last.safetensors").touch()
    loaded = data.load(str(tmp_path))
    assert values(loaded) == [100, 101] and loaded.classes == ("cat", "dog")
    assert "left out 2 folders of runs" in capsys.readouterr().err
    (tmp_path / "last.safetensors").touch()
    with pytest.raises(ValueError, match="no images under .*, but the folder of a run"):
        data.load(str(tmp_path))


def test_an_output_folder_does_not_lie_in_the_data(tmp_path, monkeypatch):
    fill(tmp_path, "lab/1.png")
    (tmp_path / "link").symlink_to(tmp_path / "lab")
    monkeypatch.chdir(tmp_path)
    for name, out in [("lab", "lab/run"), ("lab", "lab"), (".", "runs/x"), ("lab", "link/run"),
                      ("lab/", str(tmp_path / "lab" / ".." / "lab" / "run"))]:
        with pytest.raises(ValueError, match="inside of .*choose another --out"):
            data.check_outside(name, out)
    for name, out in [("lab", "lab2"), ("digits", "runs/digits"), ("lab", "runs/lab"), ("cifar10", "x")]:
        data.check_outside(name, out)


# What is read

def test_links_are_followed_but_not_in_circles(tmp_path):
    fill(tmp_path, "store/cats/1.png", "data/dog/2.png")
    (tmp_path / "data" / "cat").symlink_to("../store/cats")
    (tmp_path / "store" / "cats" / "up").symlink_to("..")
    (tmp_path / "data" / "dog" / "self").symlink_to(".")
    loaded = data.load(str(tmp_path / "data"))
    assert loaded.classes == ("cat", "dog") and values(loaded) == [100, 101]


def test_what_is_left_out_is_said_once_with_a_count(tmp_path, capsys):
    fill(tmp_path, "a/1.png", "b/2.jfif", "c/3.AVIF")
    for name in ("a/x.heic", "a/y.HEIC", "z.mp4", "no_suffix", "d/only.heic", ".hidden", "b/Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "e").mkdir()
    assert data.load(str(tmp_path)).classes == ("a", "b", "c")
    assert capsys.readouterr().err.splitlines() == [
        f"note: left out 6 files that are no pictures readable here, such as {tmp_path}/a/x.heic",
        "note: 2 subfolders have no pictures, and are no classes: d, e"]


def test_a_folder_of_a_phone_s_heic_pictures_says_what_it_holds(tmp_path, capsys):
    (tmp_path / "IMG_1.HEIC").touch()
    with pytest.raises(ValueError, match="no images under"):
        data.load(str(tmp_path))
    assert capsys.readouterr().err == (f"note: left out 1 files that are no pictures readable here, such as "
                                       f"{tmp_path}/IMG_1.HEIC\n")


def test_a_usual_folder_has_nothing_said_about(tmp_path, capsys):
    fill(tmp_path, "a/1.png", "b/2.png", ".DS_Store/1.png")
    data.load(str(tmp_path))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("n", [2, 30])
def test_all_damaged_files_are_named_at_once(tmp_path, n):
    """Without a header, with half of the pixels, of pixels that cannot be read: whatever it is."""
    names = [f"{k}.png" for k in range(n)]
    fill(tmp_path, *names, "good.png", size=(40, 40))
    for name in names:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    (tmp_path / names[0]).write_bytes(b"")
    with pytest.raises(ValueError, match=f"^{n} of {n + 1} images cannot be read") as error:
        data.load(str(tmp_path))
    assert all(name in str(error.value) for name in names) and "good" not in str(error.value)


@pytest.mark.parametrize("form", ["gif", "png", "tif", "webp"])
def test_only_the_first_picture_of_several_is_read_and_that_is_said(tmp_path, capsys, form):
    frames = [Image.new("L", (4, 4), k) for k in (100, 200)]
    frames[0].save(tmp_path / f"1.{form}", save_all=True, append_images=frames[1:])
    fill(tmp_path, f"2.{form}", mode="L")
    assert abs(values(data.load(str(tmp_path), channels=1))[0] - 100) <= 1
    assert f"1 files hold several pictures, and only the first of each is read, such as {tmp_path}/1.{form}" \
        in capsys.readouterr().err


def test_classes_are_described_with_their_counts(tmp_path):
    fill(tmp_path, *[f"test/{k}.png" for k in range(3)], "train/1.png")
    assert data.describe(data.load(str(tmp_path))) == "4 pictures of 3 x 4 x 4, 2 classes: test (3), train (1)"
    assert data.describe(data.load(str(tmp_path / "test"))) == "3 pictures of 3 x 4 x 4, no classes"
    assert data.describe(data.load("dead-leaves")).startswith("endless pictures")


# Labels from a table

@pytest.mark.parametrize("table, text, classes, labels", [
    ("metadata.csv", "file_name,label\n2.png,dog\n1.png,cat\nsub/3.png,dog\n", ("cat", "dog"), [0, 1, 1]),
    ("metadata.csv", '\ufeffid,label,file_name\r\n7,"cats, big",1.png\r\n8,b,2.png\r\n9,b,sub\\3.png\r\n',
     ("b", "cats, big"), [1, 0, 0]),
    ("metadata.jsonl", '{"file_name": "1.png", "label": 10}\n{"file_name": "2.png", "label": 9}\n\n'
                       '{"file_name": "./sub/3.png", "label": 9}\n', ("9", "10"), [1, 0, 0]),
    ("dataset.json", json.dumps({"labels": [["1.png", 3], ["sub/3.png", 3], ["2.png", 0]]}), ("0", "3"), [1, 0, 1])])
def test_labels_come_from_a_table(tmp_path, table, text, classes, labels):
    fill(tmp_path, "1.png", "2.png", "sub/3.png")
    (tmp_path / table).write_text(text)
    loaded = data.load(str(tmp_path))
    assert (loaded.classes, loaded.labels.tolist(), values(loaded)) == (classes, labels, [100, 101, 102])


def test_a_table_of_each_split_names_files_beside_it(tmp_path, capsys):
    fill(tmp_path, "train/1.png", "test/1.png", value=100)
    for split, label in (("train", "x"), ("test", "y")):
        (tmp_path / split / "metadata.csv").write_text(f"file_name,label\n1.png,{label}\n")
    loaded = data.load(str(tmp_path))
    assert loaded.classes == ("x", "y") and loaded.labels.tolist() == [1, 0] and values(loaded) == [101, 100]
    assert f"labels are those of {tmp_path}/test/metadata.csv, {tmp_path}/train/metadata.csv" in capsys.readouterr().err


@pytest.mark.parametrize("table, text, says", [
    ("metadata.csv", "file_name,label\n1.png,a\n9.png,b\n", "1 labelled pictures are not there, such as .*9.png"),
    ("metadata.csv", "name,label\n1.png,a\n", "metadata.csv: its columns are name, label; one must be file_name"),
    ("metadata.csv", "file_name,label\n1.png,\n2.png,a\n", "the label of 1.png is ''"),
    ("metadata.jsonl", '{"file_name": "1.png", "label": [1, 0]}', r"the label of 1.png is \[1, 0\]"),
    ("dataset.json", "{", "cannot read .*dataset.json")])
def test_a_table_that_does_not_fit_is_refused(tmp_path, table, text, says):
    fill(tmp_path, "1.png", "2.png")
    (tmp_path / table).write_text(text)
    with pytest.raises(ValueError, match=says):
        data.load(str(tmp_path))


def test_a_table_of_some_subfolders_is_refused(tmp_path):
    """As sample.py --png leaves one: it would leave out all the others."""
    fill(tmp_path, "cat/1.png", "out/png/1.png")
    (tmp_path / "out" / "png" / "metadata.csv").write_text("file_name,label\n1.png,a\n")
    with pytest.raises(ValueError, match="out/png/metadata.csv labels pictures of its folder, but .*cat/1.png lies"):
        data.load(str(tmp_path))


@pytest.mark.parametrize("table, text, says", [
    ("metadata.csv", "file_name,text\na/1.png,a red cat\n", "has no column label, but file_name, text; it is left out"),
    ("dataset.json", '{"labels": null}', "")])
def test_subfolders_are_the_classes_where_a_table_has_no_labels(tmp_path, capsys, table, text, says):
    fill(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / table).write_text(text)
    assert data.load(str(tmp_path)).classes == ("a", "b") and says in capsys.readouterr().err


def test_pictures_that_no_table_lists_are_left_out(tmp_path, capsys):
    fill(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n2.png,a\n")
    assert values(data.load(str(tmp_path))) == [101]
    assert f"left out 2 pictures that no table lists, such as {tmp_path}/1.png" in capsys.readouterr().err


def test_classes_without_pictures_are_said(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", arr_0=np.full((2, 4, 4), 200, np.uint8), arr_1=np.array([3, 7]))
    assert len(data.load(str(tmp_path / "a.npz")).classes) == 8
    assert "6 of the 8 classes of" in (said := capsys.readouterr().err) and "0, 1, 2, 4, 5 and 1 more" in said


# Channels and sizes

@pytest.mark.parametrize("channels, pixel", [
    (1, [177]), (3, [177, 177, 177]), (4, [100, 100, 100, 128]), (0, [100, 100, 100, 128])])
def test_channels_are_chosen_and_transparency_lies_on_white(tmp_path, capsys, channels, pixel):
    fill(tmp_path, "1.png", "3.png")
    Image.new("RGBA", (4, 4), (100, 100, 100, 128)).save(tmp_path / "2.png")
    loaded = data.load(str(tmp_path), channels=channels)
    assert loaded.images[1, :, 0, 0].tolist() == pixel and loaded.shape == (len(pixel), 4, 4)
    assert (f"pictures have 4 channels because 1 of 3 do, such as {tmp_path}/2.png; --channels" in
            capsys.readouterr().err) == (channels == 0)


def test_sets_take_channels_too(tmp_path):
    digits = data.load("digits", channels=3)
    assert_close(digits.images, data.digits().images.expand(-1, 3, -1, -1))
    for name, channels, says in [("digits", 2, "channels is 2"), ("dead-leaves", 1, "use dead-leaves or dead")]:
        with pytest.raises(ValueError, match=says):
            data.load(name, channels=channels)


@pytest.mark.parametrize("size, fit, rows, columns", [
    ("8", "pad", slice(2, 6), slice(0, 8)), ("8x4", "pad", slice(3, 5), slice(0, 4)),
    ("16x32", "pad", slice(4, 12), slice(8, 24)), ("8x4", "crop", slice(0, 8), slice(0, 4))])
def test_pad_shrinks_what_is_larger_and_never_enlarges(tmp_path, size, fit, rows, columns):
    fill(tmp_path, "1.png", size=(16, 8))
    image = data.load(str(tmp_path), size, fit).images[0]
    expected = torch.zeros_like(image)
    expected[:, rows, columns] = 100
    assert_close(image, expected)


# Large ones, as they are needed

def test_a_digest_does_not_depend_on_where_a_folder_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "IN_MEMORY", 0)
    fill(tmp_path, "store/a/1.png", "store/b/2.png")
    monkeypatch.chdir(tmp_path)
    digests = {data.digest(data.load(name)) for name in ("store", "store/", "./store", str(tmp_path / "store"))}
    os.rename("store", "moved")
    digests.add(data.digest(data.load("moved")))
    assert len(digests) == 1
    os.rename("moved/a/1.png", "moved/a/3.png")
    assert data.digest(data.load("moved")) not in digests


def test_grids_of_a_run_read_the_pictures_once(tmp_path, monkeypatch):
    """For the means of the channels, where a set is read as needed: not for every grid."""
    monkeypatch.setattr(sets, "IN_MEMORY", 0)
    fill(tmp_path, "data/1.png", "data/2.png", "data/3.png")
    reads = []
    read_image = folders.read_image
    monkeypatch.setattr(folders, "read_image", lambda path, *rest: (reads.append(path), read_image(path, *rest))[1])
    train.main(["--data", str(tmp_path / "data"), "--T", "20", "--batch", "2", "--warmup", "1", "--steps", "4",
                "--sample_every", "1", "--out", str(tmp_path / "run")])
    assert len(reads) == 4 * 2 + 3
