"""scores/classes.py: the scores by their definitions, on whole sets at once, and the command on files of other sets."""

import contextlib
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import data
import evaluate
import noise
import sample
import train
from run import checkpoint, folder
from scores import classes, classifier
from scores.pictures import relabel
from tests.helpers import write_idx
from unet import CONFIGS

TRAINED = ["--T", "20", "--batch", "8", "--steps", "2", "--warmup", "2", "--sample_every", "100"]


def points(n, D=5, seed=0):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


# Features

def test_frechet_of_gaussians_has_its_closed_form():
    z = noise.normal(noise.image_seeds(0, torch.arange(4000)), 0, (3,)).double()
    a = z - z.mean(0)
    a = a @ torch.linalg.inv(torch.linalg.cholesky(a.T.cov())).T                  # mean 0 and covariance I, exactly
    shift = torch.tensor([1., 2., 2.])
    assert_close(classes.frechet(a, a), 0., atol=1e-6, rtol=0)
    assert_close(classes.frechet(a + shift, a), 100 * 9 / 3)
    assert_close(classes.frechet(3 * a, a), 100 * 4.)                            # (3 - 1)^2 per dimension, variance 1


def precision_and_recall_by_definition(real, made, k):
    """Kynkaanniemi et al. 2019, equation 1, one pair of points after the other."""
    def covered(x, balls):
        radii = [sorted((a - b).norm() for j, b in enumerate(balls) if j != i)[k - 1] for i, a in enumerate(balls)]
        return sum(any((p - b).norm() <= r for b, r in zip(balls, radii, strict=True)) for p in x) / len(x)
    return covered(made, real), covered(real, made)


def test_precision_and_recall_are_their_definition(monkeypatch):
    real, made = points(40).double(), 0.7 * points(40, seed=1).double() + 0.5
    expected = precision_and_recall_by_definition(real, made, 3)
    assert 0 < expected[1] < expected[0] < 1
    for block in (2**24, 60, 1):
        monkeypatch.setattr(classes, "BLOCK", block)
        assert classes.precision_and_recall(real, made) == expected


def test_as_many_of_either_are_compared():
    real = points(300)
    few, many = (classes.precision_and_recall(real, points(n, seed=1)) for n in (300, 3000))
    assert abs(few[0] - many[0]) < 0.1 and abs(few[1] - many[1]) < 0.1


# Pixels

@pytest.mark.parametrize("block", [2**24, 640, 1])
def test_nearest_are_the_nearest_in_any_blocks(monkeypatch, block):
    images = data.digits().images[:50]
    x = data.to_unit(images[[3, 20, 41]]) + 0.01
    monkeypatch.setattr(classes, "BLOCK", block)
    distances, indices = classes.nearest(x, images, 4)
    distances_to_all = (x[:, None] - data.to_unit(images)).flatten(2).norm(dim=2)
    assert_close(distances, distances_to_all.sort(1).values[:, :4])
    assert_close(distances_to_all.gather(1, indices), distances)
    assert indices[:, 0].tolist() == [3, 20, 41]


def test_a_gaussian_per_class_has_its_mean_and_covariance():
    labels = torch.arange(600) % 2
    images = (100 + 60 * labels[:, None] + 20 * points(600, 4)).clamp(0, 255).to(torch.uint8).view(-1, 1, 2, 2)
    made = classes.gaussians(data.Data("x", images, labels, ("a", "b"), (1, 2, 2)), torch.arange(20000) % 2, 0)
    for k in range(2):
        x, y = made[k::2].flatten(1), data.to_unit(images[labels == k]).flatten(1)
        assert_close(x.mean(0), y.mean(0), rtol=0, atol=0.01)
        assert_close(x.T.cov(), y.T.cov(), rtol=0.1, atol=0.002)
    with pytest.raises(ValueError, match="x has 1 pictures of class b"):
        classes.gaussians(data.Data("x", images[:2], torch.tensor([0, 1]), ("a", "b"), (1, 2, 2)), torch.tensor([1]), 0)


# The digits

@pytest.fixture(scope="module")
def digits():
    return classes.of_digits()


def test_scores_tell_copies_noise_and_new_digits_apart(digits):
    train, test = data.digits(), data.digits(held_out=True)
    x = data.to_unit(train.images)
    copies = classes.score(digits, x, train.labels)
    fresh = classes.score(digits, data.to_unit(test.images), test.labels)
    junk = classes.score(digits, noise.normal(noise.image_seeds(0, torch.arange(300)), 0, (1, 8, 8)).clamp(-1, 1),
                         torch.arange(300) % 10)
    wrong = classes.score(digits, x, (train.labels + 1) % 10)
    gaussian = classes.score(digits, classes.gaussians(train, train.labels, 0), train.labels)
    assert copies["mem"] == 0 and copies["dup"] == 1 and copies["agree"] > 0.99 and copies["FD"] < 1.5
    assert abs(fresh["FD"]) < 1e-3 and fresh["mem"] == 1 and 0.005 < fresh["dup"] < 0.015
    assert junk["FD"] > 30 and junk["pFD"] > 100 and junk["agree"] < 0.3 and junk["mem"] > 2
    assert wrong["agree"] < 0.02
    assert fresh["prec"] == fresh["rec"] == 1 and max(junk["prec"], junk["rec"]) < 0.3
    assert copies["prec"] > gaussian["prec"] > junk["prec"] and copies["rec"] > gaussian["rec"]
    assert copies["FD"] < gaussian["FD"] < junk["FD"] and copies["pFD"] < gaussian["pFD"]


def test_large_pictures_have_no_pixel_scores(monkeypatch, digits):
    monkeypatch.setattr(classes, "LARGEST", 63)
    assert [*classes.score(digits, digits.unseen[:50], torch.zeros(50))] == ["FD", "agree", "mem", "dup", "prec", "rec"]
    rows = table(["classes", "--n", "20", "--steps", "1"], 6)
    assert "a Gaussian per class" not in rows and "weights/digits.safetensors" in rows


def test_few_held_out_pictures_are_refused(digits):
    with pytest.raises(ValueError, match="digits has 3 held-out pictures; there must be more than 3"):
        classes.refer(digits.weights, data.digits(), data.first(data.digits(held_out=True), 3))


# Any labelled set

def table(argv, columns=7):
    """The rows of scores that evaluate.py prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        evaluate.main(argv)
    lines = [line.split() for line in output.getvalue().splitlines() if re.search(r"\d\.\d{3}$", line)]
    return {" ".join(words[:-columns]): [float(value) for value in words[-columns:]] for words in lines}


def flags(base, *extra, checkpoint="run/last.safetensors"):
    return ["classes", "--checkpoint", str(base / checkpoint), "--classifier", str(base / "c.safetensors"), "--n", "12",
            "--steps", "2", *extra]


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    """A folder of files like Fashion-MNIST's, of three classes, a model of them and a classifier."""
    base = tmp_path_factory.mktemp("clothes")
    for part, n, seed in (("train", 120, 0), ("t10k", 30, 1)):
        labels = np.arange(n) % 3
        images = np.random.default_rng(seed).integers(0, 60, (n, 28, 28)) + 60 * labels[:, None, None]
        write_idx(base / "idx" / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(base / "idx" / f"{part}-labels-idx1-ubyte.gz", labels)
    name = f"fashion-mnist:{base / 'idx'}"
    train.main([*TRAINED, "--data", name, "--out", str(base / "run")])
    evaluate.main(["classifier", "--data", name, "--steps", "40", "--out", str(base / "c.safetensors")])
    return base


@pytest.fixture(scope="module")
def rows(clothes):
    return table(flags(clothes))


def test_idx_files_are_scored_against_what_their_authors_held_out(rows):
    assert len(rows) == 5 and rows["held-out set"][:2] == [0, 0] and rows["held-out set"][2:4] == [1, 1]
    assert rows["training set (floor)"][2:5] == [1, 0, 1] and rows["training set (floor)"][0] < 5
    assert rows["training set (floor)"][0] < rows["untrained network"][0]


def test_a_moved_set_is_named(clothes, refused):
    saved = checkpoint.load(clothes / "run" / "last.safetensors")
    settings = {**saved.settings, "data": "fashion-mnist:/nowhere"}
    checkpoint.save(clothes / "moved.safetensors", saved._replace(settings=settings))
    argv = flags(clothes, "--among", "60", checkpoint="moved.safetensors")
    assert "no folder /nowhere" in refused(evaluate.main, argv)
    rows = table([*argv, "--data", f"fashion-mnist:{clothes / 'idx'}", "--sampler", "2m", "--spacing", "logsnr",
                  "--batch", "5"])
    assert len(rows) == 5 and rows["training set (floor)"][3:5] == [0, 1]


def test_named_classes_are_those_that_the_files_number(clothes, rows, capsys, refused):
    named = str(clothes / "named.safetensors")
    source = str(clothes / "run" / "last.safetensors")
    checkpoint.main(["--source", source, "--to", named, "--classes", "coat,bag,boot"])
    assert [*table(flags(clothes, checkpoint="named.safetensors")).values()] == [*rows.values()]
    nll = ["nll", "--checkpoint", named, "--n", "2", "--times", "4", "--out", str(clothes / "nll.png")]
    evaluate.main(nll)
    assert "on 2 pictures of fashion-mnist" in capsys.readouterr().out
    others = ["--data", f"mnist:{clothes / 'idx'}"]                               # numbered alike, but other things
    for argv in (nll, flags(clothes, checkpoint="named.safetensors")):
        assert "mnist has the class '0'; it must be one of coat, bag, boot" in refused(evaluate.main, [*argv, *others])


def test_labels_are_placed_by_the_names_of_their_classes():
    dogs = data.Data("dogs", torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64), ("dog",), (1, 8, 8))
    placed = relabel(dogs, classifier.Facts("pets", (1, 8, 8), ("cat", "dog")))
    assert placed.labels.tolist() == [1, 1, 1] and placed.classes == ("cat", "dog")
    with pytest.raises(ValueError, match="dogs has the class 'dog'; it must be one of cat, bird"):
        relabel(dogs, classifier.Facts("pets", (1, 8, 8), ("cat", "bird")))


@pytest.mark.parametrize("extra, message", [
    (["--n", "3"], "n is 3; it must be at least 4"),
    (["--classifier", "weights/digits_classifier.safetensors"], "is a classifier of digits, 1 x 8 x 8, in 10 classes, "
     "the pictures are fashion-mnist, 1 x 28 x 28, in 3 classes; train one with"),
    (["--classifier", "nowhere"], "no nowhere; train it with"), (["--among", "-1"], "among is -1"),
    (["--among", "1"], "too few"), (["--data", "digits"], "digits has the class '3'")])
def test_what_cannot_be_scored_is_a_sentence(clothes, refused, extra, message):
    assert message in refused(evaluate.main, flags(clothes, *extra))


def test_a_model_without_labels_is_refused(tmp_path, refused):
    train.main([*TRAINED, "--null", "1", "--out", str(tmp_path / "run")])
    assert "run/last.safetensors was trained without labels" in refused(evaluate.main, flags(tmp_path))


# During training

def test_samples_are_scored_during_training(tmp_path, monkeypatch, curves):
    monkeypatch.setattr("run.state.SCORED", 20)
    monkeypatch.setattr("run.state.SCORED_STEPS", 2)
    flags = [*TRAINED[:-4], "--batch", "64", "--steps", "24", "--sample_every", "12"]
    train.main([*flags, "--out", str(tmp_path / "run")])
    scored = [line for line in folder.read_log(tmp_path / "run") if "FD" in line]
    assert [line["step"] for line in scored] == [12, 24] and 0 <= scored[1]["agree"] <= 1
    assert scored[1]["FD"] < scored[0]["FD"]
    assert Image.open(tmp_path / "run" / "loss.png").width > 1500                 # three panels
    train.main([*flags, "--batch", "8", "--out", str(tmp_path / "costly")])       # 20 * 2 / 3 > 2 % of 12 * 8
    assert not [line for line in folder.read_log(tmp_path / "costly") if "FD" in line]


@pytest.mark.parametrize("name, warned", [("cats", False), ("other", True), ("damaged", True)])
def test_samples_without_a_sound_classifier_of_theirs_are_not_scored(tmp_path, monkeypatch, capsys, name, warned):
    digits = data.digits()
    if name == "damaged":
        (tmp_path / "c.safetensors").write_bytes(b"x")
        monkeypatch.setitem(classifier.FILES, "digits", tmp_path / "c.safetensors")
    dataset = {"cats": digits._replace(name="cats"), "other": digits._replace(shape=(1, 8, 9))}.get(name, digits)
    assert classes.scorer(dataset, "digits", "", "crop") is None
    assert ("samples will not be scored: " in capsys.readouterr().out) == warned


def test_scores_during_training_are_those_of_the_command(digits):
    x, labels = digits.unseen[:100] * 0.9, torch.arange(100) % 10
    score, expected = classes.scorer(data.digits(), "digits", "", "crop"), classes.score(digits, x, labels)
    assert score(x, labels) == {name: expected[name] for name in ("FD", "agree")}
    assert score(x, None) == {"FD": expected["FD"]}
    assert score(x / 0, labels) == {}


# The model of Fashion-MNIST

def test_the_weights_of_fashion_mnist_draw_what_is_asked_for():
    path, weights = "weights/fashion.safetensors", classifier.load(classifier.FILES["fashion-mnist"]).weights
    saved = checkpoint.load(path)
    assert saved.network == CONFIGS["fashion"] and saved.data["classes"][9] == "boot"
    assert {**saved.settings, "preset": "", "out": ""} == {**vars(train.PRESETS["fashion"]), "out": ""}
    samples = sample.generate(sample.Config(checkpoint=path, n=50, sampler="2m", steps="10"))
    assert classes.agreement(weights, classes.features(weights, samples.x), samples.labels) > 0.75
