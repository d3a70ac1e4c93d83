"""run/labels.py: every class can be asked for, and what is asked for by default."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

import data
import sample
import train
from run import arrays, checkpoint
from run.labels import parse_labels

DIGITS = "weights/digits.safetensors"
TINY = ["--T", "20", "--batch", "4", "--warmup", "1", "--steps", "2"]


@pytest.mark.parametrize("classes, text, labels", [
    (("cat", "dog"), "dog,cat,dog", [1, 0, 1]), (("cat", "dog"), "dog, cat", [1, 0]), (("cat", "dog"), "none", [2]),
    (("cat", "dog"), "dog,none", [1, 2]), (("cat", "dog"), ":1,:0,:2,cat", [1, 0, 2, 0]),
    (("big", "cats", "cats, big", "dog"), "cats, big", [2]), (("cats, big", "dog"), "dog,cats, big,dog", [1, 0, 1]),
    (("big", "cats", "cats, big", "dog"), "cats,dog,big", [1, 3, 0]), (("1", "2", "10"), "10,:0,1", [2, 0, 0]),
    (("none", "tumor"), "tumor,:0,:2", [1, 0, 2])])
def test_every_class_can_be_asked_for(classes, text, labels):
    assert parse_labels(text, classes, has_null=True) == labels


@pytest.mark.parametrize("classes, text, has_null, says", [
    (("none", "tumor"), "none", True, "choose the class by its number, :0, or the null class by :2"),
    (("none", "tumor"), "tumor,none", True, "choose the class by its number"),
    (("cats, big", "dog"), "cats", True, "has 'cats'; the classes are 'cats, big', 'dog', or :0 to :1 by number"),
    (("cat", "dog"), "cat,:3", True, "labels has ':3'"), (("cat", "dog"), "cat,none", False, "labels has 'none'"),
    (("cat", "dog"), ":2", False, "labels has ':2'"), (("cat", "dog"), "cat,,dog", True, "labels has ''"),
    ([*map(str, range(30))], "x", True, "'18', '19', ..., or :0 to :29 by number")])
def test_what_is_no_class_or_two_is_refused_with_the_way_to_say_it(classes, text, has_null, says):
    with pytest.raises(ValueError) as error:
        parse_labels(text, classes, has_null)
    assert says in str(error.value)


def test_a_class_called_none_where_there_is_no_null_class():
    assert parse_labels("none", ("none", "tumor"), has_null=False) == [0]


@pytest.fixture(scope="module")
def gaps(tmp_path_factory):
    """A run on an .npz with the labels 3 and 7."""
    base = tmp_path_factory.mktemp("gaps")
    labels = np.array([3, 7, 7, 3, 7])
    np.savez(base / "gaps.npz", arr_0=np.arange(5 * 64).reshape(5, 8, 8).astype(np.uint8), arr_1=labels)
    train.main([*TINY, "--data", str(base / "gaps.npz"), "--out", str(base / "run")])
    return base


def generated(path, **settings):
    return sample.generate(sample.Config(checkpoint=str(path), steps="1", **settings)).labels.tolist()


def test_only_classes_that_had_pictures_are_sampled_by_default(gaps):
    path = gaps / "run" / "last.safetensors"
    assert checkpoint.load(path).data["counts"] == (0, 0, 0, 2, 0, 0, 0, 3)
    assert generated(path, n=5) == [3, 7, 3, 7, 3]
    assert generated(path, n=2, labels="0,:7") == [0, 7]
    with Image.open(gaps / "run" / "samples" / "000002.png") as grid:
        assert grid.size == (2 * 68 + 4, 24 + 5 * 68)                             # two columns, of five pictures


def test_a_checkpoint_without_counts_samples_all_classes(tmp_path):
    path, saved = str(tmp_path / "x.safetensors"), checkpoint.load(DIGITS)
    del saved.data["counts"]
    checkpoint.save(path, saved)
    assert generated(path, n=11) == [*range(10), 0]


def test_pictures_are_counted_where_their_labels_are_known():
    images = torch.zeros(3, 1, 8, 8)
    three = data.Data("x", images, torch.tensor([2, 0, 2]), ("a", "b", "c"), (1, 8, 8))
    assert data.count_pictures(three) == (1, 0, 2)
    assert data.count_pictures(three._replace(labels=None, classes=())) == ()
    assert data.count_pictures(three._replace(labels=range(3))) == ()


def written(folder):
    path = folder / "png" / "metadata.csv"
    if not path.exists():
        return None
    with path.open(newline="") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


def test_labels_of_pictures_are_beside_them(tmp_path):
    """By name, as the library `datasets` has them, in columns file_name and label, and `--data` reads them back."""
    saved = checkpoint.load(DIGITS)
    names = ("none", "cats, big", 'the "other"', *"3456789")
    path = tmp_path / "named.safetensors"
    checkpoint.save(path, saved._replace(data={**saved.data, "classes": names}))
    command = ["--checkpoint", str(path), "--steps", "1", "--batch", "2", "--png", "--out", str(tmp_path)]
    sample.main([*command, "--npz", "--n", "5", "--labels", ":0,cats, big,:2"])
    labels = ["none", "cats, big", 'the "other"', "none", "cats, big"]
    assert written(tmp_path) == [(f"{k:06d}.png", label) for k, label in enumerate(labels)]
    assert (tmp_path / "png" / "metadata.csv").read_text().startswith("file_name,label\n")
    again = data.load(str(tmp_path / "png"))
    assert [again.classes[k] for k in again.labels] == labels and {*again.classes} == {*names[:3]}
    with np.load(tmp_path / "pictures.npz") as arrays:
        assert (again.images[:, 0].numpy() == arrays["arr_0"][..., 0]).all()
    sample.main([*command, "--n", "2", "--labels", "cats, big"])
    assert written(tmp_path) == [("000000.png", "cats, big"), ("000001.png", "cats, big")]
    sample.main(["--checkpoint", DIGITS, *command[2:], "--n", "2", "--labels", "none"])
    assert written(tmp_path) is None                                              # nothing is known of these


def test_a_stop_leaves_the_labels_of_what_was_written(tmp_path, monkeypatch):
    command = ["--checkpoint", DIGITS, "--steps", "1", "--batch", "2", "--n", "6", "--png", "--out", str(tmp_path)]
    sample.main([*command, "--labels", "7"])
    append, calls = arrays.append_labels, []

    def stopped(path, first, batch):
        calls.append(first)
        if len(calls) == 3:
            raise KeyboardInterrupt
        append(path, first, batch)

    monkeypatch.setattr(arrays, "append_labels", stopped)
    with pytest.raises(SystemExit):
        sample.main([*command, "--labels", "3"])
    assert written(tmp_path) == [(f"{k:06d}.png", "3") for k in range(4)]
