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
from scores.classifier import Facts

DIGITS = Facts("digits", (1, 8, 8), tuple("0123456789"))
FASHION = Path("/usr/share/datasets/fashion-mnist")


def blobs(n, H, W, name="blobs", seed=0):
    """Pictures of three classes: light above, light on the left, and light all over, in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 100, (n, 1, H, W), generator=generator)
    images[labels == 0, :, :H // 2] += 100
    images[labels == 1, :, :, :W // 2] += 100
    images[labels == 2] += 100
    return data.Data(name, images.to(torch.uint8), labels, ("above", "left", "all"), (1, H, W))


def accuracy(found, dataset):
    logits = classifier.classify(found.weights, classes.units(dataset))
    return (logits.argmax(1) == dataset.labels).float().mean()


def test_the_digits_classifier_recognises_held_out_digits():
    found = classifier.load(classifier.FILES["digits"])
    assert found.facts == DIGITS and accuracy(found, data.digits(held_out=True)) > 0.985


def test_the_classifier_of_fashion_mnist_is_small_and_says_so():
    path = classifier.FILES["fashion-mnist"]
    assert classifier.load(path).facts == Facts("fashion-mnist", (1, 28, 28), tuple("0123456789"))
    assert path.stat().st_size < 200_000


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_it_recognises_held_out_clothes():
    test = data.first(data.load(f"test:fashion-mnist:{FASHION}"), 4000)
    assert accuracy(classifier.load_fitting(Facts("fashion-mnist", test.shape, test.classes)), test) > 0.91


def test_training_is_repeatable_and_learns():
    a, b = (classifier.train(data.digits(), 60) for _ in range(2))
    assert_close(a.weights, b.weights, rtol=0, atol=0)
    assert a.facts == DIGITS and accuracy(a, data.digits()) > 0.5


@pytest.mark.parametrize("shape, convolutions, inner", [
    ((1, 8, 8), 2, 4 * 4), ((1, 28, 28), 3, 3 * 3), ((3, 32, 32), 3, 4 * 4), ((3, 64, 48), 4, 4 * 3),
    ((1, 4, 4), 2, 16), ((1, 1, 1), 2, 1), ((1, 9, 40), 2, 2 * 10)])
def test_every_size_is_halved_until_it_is_small(shape, convolutions, inner):
    shapes = classifier.shapes(Facts("x", shape, ("a", "b")))
    assert sum(name.startswith("conv") for name in shapes) == convolutions and shapes["features"][0] == 64 * inner
    made = classifier.classify({name: torch.ones(s) for name, s in shapes.items()}, torch.ones(2, *shape))
    assert made.shape == (2, 2)


@pytest.mark.parametrize("H, W", [(16, 16), (28, 20)])
def test_other_sizes_are_learned(H, W):
    found = classifier.train(blobs(300, H, W), 60)
    assert accuracy(found, blobs(90, H, W, seed=1)) > 0.95


def test_the_file_knows_what_it_is_of(tmp_path):
    found = classifier.train(blobs(30, 9, 9, "mnist:/somewhere"), 2)
    classifier.save(tmp_path / "a.safetensors", found, torch.float32)
    classifier.save(tmp_path / "b.safetensors", found, torch.bfloat16)
    whole, half = (classifier.load(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert whole.facts == half.facts == Facts("mnist", (1, 9, 9), ("above", "left", "all"))
    assert_close(whole.weights, found.weights, rtol=0, atol=0)
    assert_close(half.weights, found.weights, rtol=2**-8, atol=1e-30)
    assert (tmp_path / "b.safetensors").stat().st_size < 0.6 * (tmp_path / "a.safetensors").stat().st_size


@pytest.mark.parametrize("other, fits", [
    (Facts("mnist", (1, 28, 28), ("0", "1")), True), (Facts("mnist", (1, 28, 28), ("zero", "one")), True),
    (Facts("mnist", (1, 32, 32), ("0", "1")), False), (Facts("mnist", (1, 28, 28), ("0", "1", "2")), False),
    (Facts("fashion-mnist", (1, 28, 28), ("0", "1")), False)])
def test_a_classifier_fits_its_own_set(other, fits):
    facts = Facts("mnist", (1, 28, 28), ("0", "1"))
    assert facts.fit(other) == other.fit(facts) == fits


def test_other_names_of_classes_are_another_set():
    assert not Facts("a", (1, 8, 8), ("cat", "dog")).fit(Facts("a", (1, 8, 8), ("dog", "cat")))


def test_the_classifier_of_another_set_is_refused(tmp_path):
    classifier.save(tmp_path / "c.safetensors", classifier.train(blobs(30, 8, 8), 1), torch.float32)
    with pytest.raises(ValueError, match=r"c.safetensors is a classifier of blobs, 1 x 8 x 8, in 3 classes, the "
                                         r"pictures are "
                                         r"digits, 1 x 8 x 8, in 10 classes; train one with: python evaluate.py"):
        classifier.load_fitting(DIGITS, str(tmp_path / "c.safetensors"))
    with pytest.raises(ValueError, match="no classifier of blobs in weights/; train one with"):
        classifier.load_fitting(Facts("blobs", (1, 8, 8), ("a",)))


def save_npz(path, dataset):
    np.savez(path, arr_0=dataset.images[:, 0].numpy(), arr_1=dataset.labels.numpy())
    return str(path)


def test_the_command_trains_on_any_labelled_set_and_says_how_good_it_is(tmp_path, capsys):
    names = [save_npz(tmp_path / f"{k}.npz", blobs(90, 12, 12, seed=k)) for k in range(2)]
    out = tmp_path / "c.safetensors"
    evaluate.main(["classifier", "--data", names[0], "--held_out", names[1], "--steps", "60", "--dtype", "bf16",
                   "--out", str(out)])
    found = classifier.load(out)
    assert found.facts == Facts("0.npz", (1, 12, 12), ("0", "1", "2"))
    right = accuracy(found, blobs(90, 12, 12, seed=1))
    said = capsys.readouterr().out
    assert right > 0.9 and f"c.safetensors: classifies {right:.2%} of the 90 held-out pictures" in said


@pytest.mark.parametrize("flags, message", [
    (["--out", "c.safetensors"], "no held-out pictures of .*a.npz' are known"),
    (["--held_out", "a.npz"], "weights/digits_classifier.safetensors is the digits' classifier; choose another file"),
    (["--held_out", "plain.npz", "--out", "c.safetensors"], "plain.npz has no labels"),
    (["--held_out", "digits", "--out", "c.safetensors"], r"digits has the class '3'; those of the model are 0, 1, 2"),
    (["--held_out", "a.npz", "--out", "c.safetensors", "--dtype", "float16"], "dtype is 'float16'")])
def test_what_cannot_be_trained_on_is_a_sentence(tmp_path, refused, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    made = blobs(30, 8, 8)
    save_npz("a.npz", made)
    np.savez("plain.npz", arr_0=made.images[:, 0].numpy())
    said = refused(evaluate.main, ["classifier", "--data", "a.npz", "--steps", "1", *flags])
    assert re.search(message, said), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "plain.npz"]
