"""scores/classifier.py: one classifier for pictures of every size, whose file knows what it was trained on."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import data
import evaluate
from scores import classes, classifier
from scores.classifier import Classifier, Facts

DIGITS = Facts("digits", (1, 8, 8), tuple("0123456789"))
FASHION = Path("/usr/share/datasets/fashion-mnist")


def blobs(n, H, W, name="blobs", seed=0):
    """Pictures of three classes: light above, light on the left, and light all over, in noise."""
    labels = torch.arange(n) % 3
    images = torch.randint(0, 100, (n, 1, H, W), generator=torch.Generator().manual_seed(seed))
    images[labels == 0, :, :H // 2] += 100
    images[labels == 1, :, :, :W // 2] += 100
    images[labels == 2] += 100
    return data.Data(name, images.to(torch.uint8), labels, ("above", "left", "all"), (1, H, W))


def accuracy(trained, dataset):
    logits = classifier.classify(trained.weights, classes.units(dataset))
    return (logits.argmax(1) == dataset.labels).float().mean()


def test_the_digits_classifier_recognises_held_out_digits():
    committed = classifier.load(classifier.FILES["digits"])
    assert committed.facts == DIGITS and accuracy(committed, data.digits(held_out=True)) > 0.985


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_that_of_fashion_mnist_recognises_held_out_clothes():
    test = data.first(data.load(f"test:fashion-mnist:{FASHION}"), 4000)
    assert accuracy(classifier.load_fitting(Facts("fashion-mnist", test.shape, test.classes)), test) > 0.91


def test_training_is_repeatable_and_learns_pictures_of_any_size():
    a, b = (classifier.train(blobs(300, 16, 12), 60) for _ in range(2))
    assert_close(a.weights, b.weights, rtol=0, atol=0)
    assert accuracy(a, blobs(90, 16, 12, seed=1)) > 0.95


@pytest.mark.parametrize("shape, convolutions, inner", [
    ((1, 8, 8), 2, 4 * 4), ((1, 28, 28), 3, 3 * 3), ((3, 32, 32), 3, 4 * 4), ((3, 64, 48), 4, 4 * 3),
    ((1, 4, 4), 2, 16), ((1, 1, 1), 2, 1), ((1, 9, 40), 2, 2 * 10)])
def test_every_size_is_halved_until_it_is_small(shape, convolutions, inner):
    shapes = classifier.shapes(Facts("x", shape, ("a", "b")))
    assert sum(name.startswith("conv") for name in shapes) == convolutions and shapes["features"][0] == 64 * inner
    logits = classifier.classify({name: torch.ones(s) for name, s in shapes.items()}, torch.ones(2, *shape))
    assert logits.shape == (2, 2)


def test_the_file_knows_what_it_is_of(tmp_path):
    trained = classifier.train(blobs(30, 9, 9, "mnist:/somewhere"), 2)
    classifier.save(tmp_path / "a.safetensors", trained, torch.float32)
    classifier.save(tmp_path / "b.safetensors", trained, torch.bfloat16)
    whole, half = (classifier.load(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert whole.facts == half.facts == Facts("mnist", (1, 9, 9), ("above", "left", "all"))
    assert_close(whole.weights, trained.weights, rtol=0, atol=0)
    assert_close(half.weights, trained.weights, rtol=2**-8, atol=1e-30)
    assert (tmp_path / "b.safetensors").stat().st_size < 0.6 * (tmp_path / "a.safetensors").stat().st_size
    with pytest.raises(ValueError, match=r"b.safetensors is a classifier of mnist, 1 x 9 x 9, in 3 classes, the "
                                         r"pictures are digits, 1 x 8 x 8, in 10 classes; train one with: python"):
        classifier.load_fitting(DIGITS, str(tmp_path / "b.safetensors"))
    with pytest.raises(ValueError, match="no classifier of blobs in weights/; train one with"):
        classifier.load_fitting(Facts("blobs", (1, 8, 8), ("a",)))


@pytest.mark.parametrize("facts, weights", [
    ({"shape": (1, 28, 28)}, {}), ({}, {"conv1": torch.full((32, 1, 3, 3), torch.nan)})])
def test_a_file_of_other_weights_is_no_classifier(tmp_path, refused, facts, weights):
    digits, path = classifier.load(classifier.FILES["digits"]), tmp_path / "c.safetensors"
    classifier.save(path, Classifier(DIGITS._replace(**facts), {**digits.weights, **weights}), torch.float32)
    message = refused(evaluate.main, ["classes", "--classifier", str(path), "--n", "20", "--steps", "1"])
    assert f"cannot read {path}: its" in message and message.count("\n") == 1


def test_a_checkpoint_is_no_classifier():
    with pytest.raises(ValueError, match="cannot read weights/digits.safetensors: it is no classifier; train it with"):
        classifier.load(Path("weights/digits.safetensors"))


@pytest.mark.parametrize("other, fits", [
    (Facts("mnist", (1, 28, 28), ("0", "1")), True), (Facts("mnist", (1, 28, 28), ("zero", "one")), True),
    (Facts("mnist", (1, 32, 32), ("0", "1")), False), (Facts("mnist", (1, 28, 28), ("0", "1", "2")), False),
    (Facts("fashion-mnist", (1, 28, 28), ("0", "1")), False)])
def test_a_classifier_fits_its_own_set(other, fits):
    facts = Facts("mnist", (1, 28, 28), ("0", "1"))
    assert facts.fit(other) == other.fit(facts) == fits
    assert not Facts("a", (1, 8, 8), ("cat", "dog")).fit(Facts("a", (1, 8, 8), ("dog", "cat")))


def save_npz(path, dataset):
    np.savez(path, arr_0=dataset.images[:, 0].numpy(), arr_1=dataset.labels.numpy())
    return str(path)


def test_the_command_trains_on_any_labelled_set_and_says_how_good_it_is(tmp_path, capsys):
    names = [save_npz(tmp_path / f"{k}.npz", blobs(90, 12, 12, seed=k)) for k in range(2)]
    evaluate.main(["classifier", "--data", names[0], "--held_out", names[1], "--steps", "60", "--dtype", "bf16",
                   "--out", str(tmp_path / "c.safetensors")])
    trained = classifier.load(tmp_path / "c.safetensors")
    assert trained.facts == Facts("0.npz", (1, 12, 12), ("0", "1", "2"))
    right = accuracy(trained, blobs(90, 12, 12, seed=1))
    assert right > 0.9 and f": classifies {right:.2%} of the 90 held-out pictures" in capsys.readouterr().out


@pytest.mark.parametrize("flags, message", [
    (["--out", "c.safetensors"], "no held-out pictures of .*a.npz' are known"),
    (["--held_out", "a.npz"], "weights/digits_classifier.safetensors is the digits' classifier; choose another"),
    (["--held_out", "plain.npz", "--out", "c.safetensors"], "plain.npz has no labels; name a labelled set"),
    (["--held_out", "a.npz", "--out", "c.safetensors", "--dtype", "float16"], "dtype is 'float16'")])
def test_what_cannot_be_trained_on_is_a_sentence(tmp_path, refused, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    save_npz("a.npz", blobs(30, 8, 8))
    np.savez("plain.npz", arr_0=blobs(30, 8, 8).images[:, 0].numpy())
    assert re.search(message, refused(evaluate.main, ["classifier", "--data", "a.npz", "--steps", "1", *flags]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "plain.npz"]
