"""scores/classes.py: the scores by their definitions, on whole sets at once, and the command on files of other sets."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import data
import evaluate
import sample
import train
from run import checkpoint, folder
from scores import classes, classifier
from tests.helpers import write_idx
from unet import CONFIGS

TRAINED = ["--T", "20", "--batch", "8", "--steps", "2", "--warmup", "2", "--sample_every", "100"]


def points(n, D=5, seed=0):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


# Precision and recall

def by_definition(real, made, k):
    """Kynkaanniemi et al. 2019, equation 1, one pair of points after the other."""
    def covered(x, balls):
        radii = [sorted((a - b).norm() for j, b in enumerate(balls) if j != i)[k - 1] for i, a in enumerate(balls)]
        return sum(any((p - b).norm() <= r for b, r in zip(balls, radii, strict=True)) for p in x) / len(x)
    return covered(made, real), covered(real, made)


@pytest.mark.parametrize("block", [2**24, 60, 1])
def test_precision_and_recall_are_their_definition(monkeypatch, block):
    monkeypatch.setattr(classes, "BLOCK", block)
    real, made = points(40).double(), 0.7 * points(40, seed=1).double() + 0.5
    precision, recall = classes.precision_and_recall(real, made)
    assert (precision, recall) == by_definition(real, made, 3) and 0 < recall < precision < 1


def test_precision_and_recall_tell_few_kinds_from_bad_ones():
    real, bad = points(400, D=2), 5 + points(400, D=2, seed=1)
    few = 0.1 * points(400, D=2, seed=2)
    precision, recall = classes.precision_and_recall(real, few)
    assert precision > 0.95 and recall < 0.2
    precision, recall = classes.precision_and_recall(real, torch.cat([points(200, D=2, seed=3), bad[:200]]))
    assert 0.4 < precision < 0.6 and recall > 0.8
    assert classes.precision_and_recall(real, real) == (1, 1)


def test_as_many_of_either_are_compared():
    real = points(300)
    few, many = (classes.precision_and_recall(real, points(n, seed=1)) for n in (300, 3000))
    assert abs(few[0] - many[0]) < 0.1 and abs(few[1] - many[1]) < 0.1


# Distances

@pytest.mark.parametrize("block", [2**24, 200, 1])
def test_the_nearest_is_the_nearest_in_any_blocks(monkeypatch, block):
    images = torch.randint(0, 256, (30, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    x = data.to_unit(torch.randint(0, 256, (20, 1, 4, 4), generator=torch.Generator().manual_seed(1)).to(torch.uint8))
    monkeypatch.setattr(classes, "BLOCK", block)
    expected = (x[:, None] - data.to_unit(images)).flatten(2).norm(dim=2).min(1).values
    assert_close(classes.to_nearest(x, images), expected)


def test_a_gaussian_per_class_has_its_mean_and_covariance():
    labels = torch.arange(600) % 2
    images = (100 + 60 * labels[:, None] + 20 * points(600, 4)).clamp(0, 255).to(torch.uint8).view(-1, 1, 2, 2)
    made = classes.gaussians(data.Data("x", images, labels, ("a", "b"), (1, 2, 2)), torch.arange(20000) % 2, 0)
    for k in range(2):
        x, y = made[k::2].flatten(1), data.to_unit(images[labels == k]).flatten(1)
        assert_close(x.mean(0), y.mean(0), rtol=0, atol=0.01)
        assert_close(x.T.cov(), y.T.cov(), rtol=0.1, atol=0.002)
    with pytest.raises(ValueError, match="x has 1 pictures of class b"):
        classes.gaussians(data.Data("x", images[:2], labels[:2] * 0 + torch.tensor([0, 1]), ("a", "b"), (1, 2, 2)),
                          torch.tensor([1]), 0)


def test_large_pictures_have_no_pixel_scores(monkeypatch, capsys):
    digits = classes.of_digits()
    monkeypatch.setattr(classes, "LARGEST", 63)
    assert [*classes.score(digits, digits.unseen[:50], torch.zeros(50))] == [
        "FD", "agree", "mem", "dup", "prec", "rec"]
    evaluate.main(["classes", "--n", "20", "--steps", "1"])
    said = capsys.readouterr().out
    assert "pFD" not in said and "Gaussian" not in said and "weights/digits.safetensors" in said


# Any labelled set

@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    """A folder of files like Fashion-MNIST's, of three classes, a model of them and a classifier."""
    base = tmp_path_factory.mktemp("clothes")
    (base / "idx").mkdir()
    for part, n, seed in (("train", 120, 0), ("t10k", 30, 1)):
        generator = np.random.default_rng(seed)
        labels = np.arange(n) % 3
        images = generator.integers(0, 60, (n, 28, 28)) + 60 * labels[:, None, None]
        write_idx(base / "idx" / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(base / "idx" / f"{part}-labels-idx1-ubyte.gz", labels)
    name = f"fashion-mnist:{base / 'idx'}"
    train.main([*TRAINED, "--data", name, "--out", str(base / "run")])
    evaluate.main(["classifier", "--data", name, "--steps", "40", "--out", str(base / "c.safetensors")])
    return base


def table(capsys):
    return {line[:24].strip(): [float(v) for v in line[24:].split()[-7:]]
            for line in capsys.readouterr().out.splitlines() if re.search(r"\d\.\d{3}$", line)}


def flags(base, *more):
    return ["classes", "--checkpoint", str(base / "run" / "last.safetensors"),
            "--classifier", str(base / "c.safetensors"),
            "--n", "12", "--steps", "2", *more]


def test_idx_files_are_scored_against_what_their_authors_held_out(clothes, capsys):
    capsys.readouterr()
    evaluate.main(flags(clothes, "--sampler", "2m", "--spacing", "logsnr", "--batch", "5"))
    rows = table(capsys)
    assert len(rows) == 5 and rows["held-out set"][:2] == [0, 0] and rows["held-out set"][2:4] == [1, 1]
    assert rows["training set (floor)"][2:5] == [1, 0, 1] and rows["training set (floor)"][0] < 5
    assert rows["training set (floor)"][0] < rows["untrained network"][0]
    evaluate.main(flags(clothes, "--among", "60"))
    assert table(capsys)["training set (floor)"][3:5] == [0, 1]


def test_a_moved_set_is_named(clothes, capsys):
    last = checkpoint.load(clothes / "run" / "last.safetensors")
    moved = clothes / "moved.safetensors"
    checkpoint.save(moved, last._replace(settings={**last.settings, "data": "fashion-mnist:/nowhere"}))
    argv = [str(moved) if word.endswith("last.safetensors") else word for word in flags(clothes)]
    with pytest.raises(SystemExit):
        evaluate.main(argv)
    assert "no folder /nowhere" in capsys.readouterr().err
    evaluate.main([*argv, "--data", f"fashion-mnist:{clothes / 'idx'}"])
    assert len(table(capsys)) == 5


def test_the_weights_of_fashion_mnist_are_small_and_draw_what_is_asked_for():
    path = Path("weights/fashion.safetensors")
    last, weights = checkpoint.load(path), classifier.load(classifier.FILES["fashion-mnist"]).weights
    assert path.stat().st_size < 4e6 and last.network == CONFIGS["fashion"] and last.data["classes"][9] == "boot"
    settings = {name: value for name, value in vars(train.PRESETS["fashion"]).items() if name != "out"}
    assert settings.items() <= last.settings.items()
    samples = sample.generate(sample.Config(checkpoint=path, sampler="2m", steps="10"))
    assert classes.agreement(weights, classes.features(weights, samples.x), samples.labels) > 0.75


def test_named_classes_are_those_that_the_files_number(clothes, capsys, refused):
    named = str(clothes / "named.safetensors")
    source = str(clothes / "run" / "last.safetensors")
    checkpoint.main(["--source", source, "--to", named, "--classes", "coat,bag,boot"])
    evaluate.main(flags(clothes))
    capsys.readouterr()
    argv = [named if word.endswith("last.safetensors") else word for word in flags(clothes)]
    evaluate.main(argv)
    rows = table(capsys)
    evaluate.main(flags(clothes))
    assert [*rows.values()] == [*table(capsys).values()]
    evaluate.main(["nll", "--checkpoint", named, "--n", "2", "--times", "4", "--out", str(clothes / "nll.png")])
    assert "on 2 pictures of fashion-mnist" in capsys.readouterr().out
    (clothes / "others").mkdir()
    for path in (clothes / "idx").iterdir():
        (clothes / "others" / path.name).write_bytes(path.read_bytes())
    others = ["--data", f"mnist:{clothes / 'others'}"]                            # numbered alike, but other things
    assert "the classes of mnist" in refused(evaluate.main, ["nll", "--checkpoint", named, "--times", "4", *others])
    assert "mnist has the class '0'; those of the model are coat, bag, boot" in refused(evaluate.main, [*argv, *others])


def save_folder(base, n, names, seed):
    for k in range(n):
        path = base / names[k % len(names)] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        value = 100 * (names[k % len(names)] == "dog")
        Image.fromarray((value + np.random.default_rng(seed + k).integers(0, 60, (8, 8))).astype(np.uint8)).save(path)
    return str(base)


def test_folders_of_classes_are_scored_against_another_folder(tmp_path, capsys, refused):
    seen = save_folder(tmp_path / "seen", 40, ("cat", "dog"), 0)
    unseen = save_folder(tmp_path / "unseen", 8, ("dog",), 100)                   # its only class is the second there
    train.main([*TRAINED, "--data", seen, "--out", str(tmp_path / "run")])
    evaluate.main(["classifier", "--data", seen, "--held_out", unseen, "--steps", "40", "--out",
                   str(tmp_path / "c.safetensors")])
    assert "classifies 100.00% of the 8 held-out pictures" in capsys.readouterr().out
    evaluate.main(flags(tmp_path, "--held_out", unseen))
    assert table(capsys)["held-out set"][2] == 1                                  # agree
    assert "no held-out pictures of" in refused(evaluate.main, flags(tmp_path))
    other = save_folder(tmp_path / "other", 8, ("bird",), 100)
    assert "has the class 'bird'; those of the model are cat, dog" in refused(
        evaluate.main, flags(tmp_path, "--held_out", other))


@pytest.mark.parametrize("more, message", [
    (["--n", "3"], "n is 3; it must be at least 4"),
    (["--classifier", "weights/digits_classifier.safetensors"],
     "digits_classifier.safetensors is a classifier of digits, 1 x 8 x 8, in "
     "10 classes, the pictures are fashion-mnist, 1 x 28 x 28, in 3 classes; train one with"),
    (["--classifier", "nowhere.safetensors"], "no nowhere.safetensors; train it with"),
    (["--among", "-1"], "among is -1"),
    (["--among", "1"], "too few"), (["--data", "digits"], "digits has the class '3'"),
    (["--held_out", "dead-leaves-grey"], "dead-leaves-grey has no end")])
def test_what_cannot_be_scored_is_a_sentence(clothes, refused, more, message):
    assert message in refused(evaluate.main, flags(clothes, *more))


def test_a_model_without_labels_is_refused(clothes, refused):
    train.main([*TRAINED, "--null", "1", "--out", str(clothes / "plain")])
    assert "plain/last.safetensors was trained without labels" in refused(
        evaluate.main, ["classes", "--checkpoint", str(clothes / "plain" / "last.safetensors")])


def test_few_held_out_pictures_are_refused(tmp_path):
    test = data.digits(held_out=True)
    with pytest.raises(ValueError, match="digits has 3 held-out pictures; there must be more than 3"):
        classes.refer(classifier.load(classifier.FILES["digits"]).weights, data.digits(), data.first(test, 3))


# During training

def test_samples_are_scored_during_training(tmp_path, monkeypatch):
    monkeypatch.setattr("run.state.SCORED", 20)
    monkeypatch.setattr("run.state.SCORED_STEPS", 3)
    flags = [*TRAINED[:-4], "--batch", "64", "--steps", "60", "--sample_every", "30"]
    train.main([*flags, "--out", str(tmp_path / "run")])
    scored = [line for line in folder.read_log(tmp_path / "run") if "FD" in line]
    assert [line["step"] for line in scored] == [30, 60] and 0 <= scored[1]["agree"] <= 1
    assert scored[1]["FD"] < scored[0]["FD"]
    assert Image.open(tmp_path / "run" / "loss.png").width > 1500                 # three panels
    train.main([*flags, "--batch", "8", "--out", str(tmp_path / "costly")])       # 20 * 3 / 3 > 2 % of 30 * 8
    assert not [line for line in folder.read_log(tmp_path / "costly") if "FD" in line]


@pytest.mark.parametrize("name, said", [("digits", False), ("cats", False), ("other", True), ("damaged", True)])
def test_samples_without_a_sound_classifier_of_theirs_are_not_scored(tmp_path, monkeypatch, capsys, name, said):
    digits = data.digits()
    if name == "damaged":
        (tmp_path / "c.safetensors").write_bytes(b"x")
        monkeypatch.setitem(classifier.FILES, "digits", tmp_path / "c.safetensors")
    found = {"cats": digits._replace(name="cats"), "other": digits._replace(shape=(1, 8, 9))}.get(name, digits)
    score = classes.scorer(found, "digits", "", "crop")
    assert (score is not None) == (name == "digits")
    assert ("samples will not be scored: " in capsys.readouterr().out) == said


def test_scores_during_training_are_those_of_the_command():
    digits = classes.of_digits()
    x, labels = digits.unseen[:100] * 0.9, torch.arange(100) % 10
    found, whole = classes.scorer(data.digits(), "digits", "", "crop")(x, labels), classes.score(digits, x, labels)
    assert found == {name: whole[name] for name in ("FD", "agree")}
    assert [*classes.scorer(data.digits(), "digits", "", "crop")(x, None)] == ["FD"]
    assert classes.scorer(data.digits(), "digits", "", "crop")(x / 0, labels) == {}
