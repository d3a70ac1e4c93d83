import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import data
import train
from data import image_files, published
from run import checkpoint
from tests.helpers import Trap, write_idx

QUICK = ["--batch", "4", "--steps", "2", "--warmup", "2", "--sample_every", "100", "--T", "4"]


def run(out, *flags):
    """Trains for two steps by the real command; what the checkpoint says of the data."""
    train.main([*QUICK, "--out", str(out), *flags])
    trained = checkpoint.load(out / "last.safetensors")
    assert trained.step == 2 and all(w.isfinite().all() for w in trained.weights.values())
    return trained.data


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# MNIST's and CIFAR's own files

def mnist(folder, packed=False, n=10):
    end = ".gz" if packed else ""
    images, labels = pixels(n, 28, 28), np.arange(n, dtype=np.uint8) % 10
    write_idx(folder / f"train-images-idx3-ubyte{end}", images)
    write_idx(folder / f"train-labels-idx1-ubyte{end}", labels)
    write_idx(folder / f"t10k-images-idx3-ubyte{end}", pixels(3, 28, 28, seed=1))
    return images, labels


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_give_their_pictures_and_labels(tmp_path, name, packed):
    images, labels = mnist(tmp_path / "raw", packed)
    loaded = data.load(f"{name}:{tmp_path}")
    assert (loaded.name, loaded.shape, loaded.classes) == (name, (1, 28, 28), tuple("0123456789"))
    assert_close(loaded.images.numpy()[:, 0], images)
    assert_close(loaded.labels.numpy(), labels.astype(np.int64))


def test_mnist_padded_to_32_trains(tmp_path):
    mnist(tmp_path / "mnist", packed=True)
    facts = run(tmp_path / "run", "--data", f"mnist:{tmp_path / 'mnist'}", "--size", "32", "--fit", "pad")
    assert (facts["name"], tuple(facts["shape"]), len(facts["classes"])) == ("mnist", (1, 32, 32), 10)


def cifar(folder, name, n=4, files=()):
    """CIFAR's binary version: of each picture its label, or coarse and fine labels, then red, green, blue planes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = files or ([f"data_batch_{k}.bin" for k in range(1, 6)] if name == "cifar10" else ["train.bin"])
    images, labels = pixels(len(files), n, 3072), np.arange(len(files) * n).reshape(len(files), n, 1) % 10
    coarse = np.full_like(labels, 19)
    for k, file in enumerate(files):
        heads = [labels[k]] if name == "cifar10" else [coarse[k], labels[k]]
        (folder / file).write_bytes(np.concatenate([*heads, images[k]], axis=1).astype(np.uint8).tobytes())
    return images.reshape(-1, 3, 32, 32), labels.flatten()


@pytest.mark.parametrize("name, names, test", [
    ("cifar10", "batches.meta.txt", "test_batch.bin"), ("cifar100", "fine_label_names.txt", "test.bin")])
def test_cifar_binaries_give_their_pictures_and_fine_labels(tmp_path, name, names, test):
    for prefix, files, n in (("", (), 4), ("test:", [test], 2)):
        images, labels = cifar(tmp_path / "bin", name, n, files)
        loaded = data.load(f"{prefix}{name}:{tmp_path}")
        assert loaded.shape == (3, 32, 32) and loaded.classes == tuple(str(k) for k in range(labels.max() + 1))
        assert_close(loaded.images.numpy(), images)
        assert_close(loaded.labels.numpy(), labels)
    (tmp_path / "bin" / names).write_text("\n".join(f"class{k}" for k in range(10)) + "\n\n")
    assert data.load(f"{name}:{tmp_path}").classes == tuple(f"class{k}" for k in range(10))


def cut(path, n):
    path.write_bytes(path.read_bytes()[:n])


@pytest.mark.parametrize("name, spoil, says", [
    ("mnist", lambda d: cut(d / "train-images-idx3-ubyte", 5000), "cannot read .*train-images-idx3-ubyte: .*reshape"),
    ("mnist", lambda d: (d / "train-images-idx3-ubyte").write_bytes(b"\0\0\x0d\1\0\0\0\0"),
     "it is no IDX file of bytes"),
    ("mnist", lambda d: (d / "train-labels-idx1-ubyte").unlink(), "cannot read .*train-labels-idx1-ubyte"),
    ("mnist", lambda d: write_idx(d / "train-labels-idx1-ubyte", np.zeros(3, np.uint8)),
     r"pictures \(10, 28, 28\), and the labels beside it are \(3,\)"),
    ("cifar10", lambda d: cut(d / "data_batch_4.bin", 3000), "data_batch_4.bin: it has 3000 bytes"),
    ("cifar10", lambda d: (d / "data_batch_4.bin").unlink(), "cannot read .*data_batch_4.bin")])
def test_bad_files_are_named(tmp_path, name, spoil, says):
    mnist(tmp_path)
    cifar(tmp_path, name) if name != "mnist" else None
    spoil(tmp_path)
    with pytest.raises(ValueError, match=says):
        data.load(f"{name}:{tmp_path}")


# Held-out pictures

def test_what_the_authors_held_out_is_named_by_test(tmp_path):
    mnist(tmp_path / "idx", packed=True)
    write_idx(tmp_path / "idx" / "t10k-labels-idx1-ubyte.gz", np.array([2, 0, 1], np.uint8))
    held_out = data.load(f"test:fashion-mnist:{tmp_path}")
    assert held_out.name == "fashion-mnist" and held_out.labels.tolist() == [2, 0, 1]
    assert_close(held_out.images.numpy()[:, 0], pixels(3, 28, 28, seed=1))
    assert len(data.load(f"fashion-mnist:{tmp_path}").images) == 10
    assert_close(data.load("test:digits").images, data.digits(held_out=True).images)
    assert data.load("test:digits", "16").shape == (1, 16, 16)


@pytest.mark.parametrize("name, says", [
    ("stanford-cars", "stanford-cars has no held-out pictures; instead of test:stanford-cars, name a folder"),
    ("photos", "no held-out pictures of 'photos' are known; name the folder or the .npz file that has them"),
    ("mnist:{here}", "has no held-out pictures of mnist: neither its authors' own test files, nor test.*parquet, nor"),
    ("imagenet64:{here}", "nor validation.*parquet, nor images in a folder validation")])
def test_a_set_without_held_out_pictures_is_a_sentence(tmp_path, name, says):
    images, labels = pixels(4, 28, 28), np.arange(4, dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    with pytest.raises(ValueError, match=says):
        data.load("test:" + name.format(here=tmp_path))


def test_pickles_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="no images under .* but no pickles"):
        data.load(f"cifar10:{tmp_path}")
    assert not Path("trap-was-here").exists()


def folder_of_classes(folder, n):
    """Pictures of (70, 80), n of them, in two subfolders."""
    for k in range(n):
        path = folder / f"class{k % 2}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(70, 80, 3, seed=k)).save(path)


@pytest.mark.parametrize("name, says", [
    ("mnist:/nowhere", "no folder /nowhere for mnist"),
    ("mnst", "no data set 'mnst'; .* digits, " + ", ".join(published.SETS) + ", dead-leaves"),
    ("mnits:/nowhere", "no data set 'mnits:/nowhere'"), ("stream:digits", "no data set 'stream:digits'")])
def test_what_is_not_there_is_said(name, says):
    with pytest.raises(ValueError, match=says):
        data.load(name)


# Tables through the `datasets` library

@pytest.fixture
def datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def rows(datasets, name, sizes, names=("a", "b", "c"), mode="RGB"):
    """A table with the named set's columns, of random pictures."""
    source = published.SETS[name]
    images = [Image.fromarray(pixels(*size, 3, seed=k)).convert(mode) for k, size in enumerate(sizes)]
    features = {source.image: datasets.Image(), source.label: datasets.ClassLabel(names=list(names))}
    labels = [k % len(names) for k in range(len(sizes))]
    return datasets.Dataset.from_dict({source.image: images, source.label: labels}, datasets.Features(features))


def parquet(datasets, folder, name, sizes, file="train-00000-of-00001.parquet", **kwargs):
    table = rows(datasets, name, sizes, **kwargs)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "data" / file)
    return table


def test_held_out_parquet_and_folders_of_images(tmp_path, datasets):
    classes = ("class0", "class1")
    for split, n in (("train", 4), ("validation", 2)):
        parquet(datasets, tmp_path / "p", "imagenet64", [(64, 64)] * n, f"{split}-0.parquet", names=classes)
        folder_of_classes(tmp_path / "f" / split, n)
    for folder in "pf":
        for prefix, n in (("", 4), ("test:", 2)):
            loaded = data.load(f"{prefix}imagenet64:{tmp_path / folder}")
            assert len(loaded.images) == n and loaded.shape == (3, 64, 64) and loaded.classes == classes
    (tmp_path / "p" / "data" / "validation-0.parquet").unlink()
    with pytest.raises(ValueError, match="p has no held-out pictures of imagenet64"):
        data.load(f"test:imagenet64:{tmp_path / 'p'}")


def test_cars_of_many_sizes_from_parquet_train(datasets, tmp_path):
    cars = tmp_path / "cars"
    parquet(datasets, cars, "stanford-cars", [(20, 30), (40, 50)] * 3)
    parquet(datasets, cars, "stanford-cars", [(30, 20)] * 2, "test-00000-of-00001.parquet")
    facts = run(tmp_path / "run", "--data", f"stanford-cars:{cars}", "--size", "16", "--flip")
    assert (tuple(facts["shape"]), tuple(facts["classes"])) == ((3, 16, 16), ("a", "b", "c"))
    assert len(data.load(f"stanford-cars:{cars}", "16").images) == 8                # train and test
    with pytest.raises(ValueError, match="many sizes; choose one with --size"):
        data.load(f"stanford-cars:{cars}")


def test_large_tables_are_read_as_needed(datasets, tmp_path, monkeypatch):
    table = parquet(datasets, tmp_path, "cifar10", [(32, 32)] * 5)
    eager = data.load(f"cifar10:{tmp_path}").images
    assert_close(eager, torch.stack([image_files.to_tensor(row["img"]) for row in table]))
    monkeypatch.setattr(data.sets, "IN_MEMORY", 0)
    lazy = data.load(f"cifar10:{tmp_path}")
    assert isinstance(lazy.images, published.Rows) and len(lazy.images) == 5
    assert_close(lazy.images[torch.tensor([3, 0])], eager[[3, 0]])
    for x, _ in data.batches(lazy, 2, 0, range(1, 3), workers=2):
        assert x.shape == (2, 3, 32, 32)


def test_a_stream_passes_over_and_over_and_can_be_resumed(datasets, tmp_path):
    parquet(datasets, tmp_path, "cifar10", [(32, 32)] * 6)
    name, whole = f"stream:cifar10:{tmp_path}", data.load(f"cifar10:{tmp_path}")
    steps = list(data.batches(data.load(name), 4, 0, range(1, 7)))
    x, y = torch.cat([x for x, _ in steps]), torch.cat([y for _, y in steps])
    shown = [(x[i] == whole.images).flatten(1).all(1).nonzero().item() for i in range(24)]
    assert [sorted(shown[k:k + 6]) for k in range(0, 24, 6)] == [[*range(6)]] * 4     # every pass shows every row once
    assert len({tuple(shown[k:k + 6]) for k in range(0, 24, 6)}) > 1                  # each in its own order
    assert_close(data.evenly_spaced(data.load(name), 4), whole.images[:4])
    assert_close(y, whole.labels[shown])
    late = list(data.batches(data.load(name), 4, 0, range(4, 7)))
    assert_close(torch.cat([x for x, _ in late]), x[12:])
    with pytest.raises(ValueError, match="read by one process"):
        next(data.batches(data.load(name), 4, 0, range(4, 7), workers=2))
    with pytest.raises(ValueError, match="in order only"):
        data.load(name).images[[1, 0]]
    assert tuple(run(tmp_path / "run", "--data", name)["classes"]) == ("a", "b", "c")


@pytest.mark.parametrize("name", published.SETS)
def test_every_name_asks_the_hub_for_its_columns(datasets, name, monkeypatch):
    source, asked = published.SETS[name], []

    def load_dataset(path, split, streaming):
        asked.append((path, split))
        return rows(datasets, name, [source.size or (9, 9)] * 3, mode="L")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = data.load(name, "" if source.size else "8")
    assert asked == [(source.hub, source.split)]
    assert loaded.shape == (source.channels, *(source.size or (8, 8))) and loaded.images.shape[1:] == loaded.shape
    assert loaded.labels.tolist() == [0, 1, 2] and loaded.classes == ("a", "b", "c")


def test_a_hub_out_of_reach_is_one_sentence(datasets, monkeypatch, tmp_path, refused):
    def load_dataset(**kwargs):
        raise ConnectionError("Couldn't reach it\nand more")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    error = refused(train.main, ["--data", "cifar10", "--out", str(tmp_path)])
    assert error.count("\n") == 1 and "cifar10:FOLDER" in error
    assert "cannot read cifar10 from uoft-cs/cifar10: Couldn't reach it and more; " in error


def test_without_the_library_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        data.load("celeba-hq")


@pytest.mark.parametrize("name, spoil, says", [
    ("cifar10", lambda p: cut(p, 400), "train-00000.*see that the files are whole"),
    ("mnist", lambda p: None, "'img'.* not in the dataset.*'image', 'label'")])
def test_bad_tables_are_named(datasets, tmp_path, name, spoil, says):
    parquet(datasets, tmp_path, name, [(32, 32)] * 3)
    spoil(tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=f"cannot read cifar10:.*{says}"):
        data.load(f"cifar10:{tmp_path}")


@pytest.mark.parametrize("cut_at, label, prefix, says", [
    (99, 0, "", "cannot read the image in row 0 of cifar10:"),
    (None, -1, "", "cifar10:.* has no labels, or some that are not whole numbers from 0"),
    (None, -1, "stream:", "row 0 of .* has the label -1"), (None, None, "stream:", "row 0 of .* has the label None")])
def test_bad_rows_are_named(datasets, tmp_path, cut_at, label, prefix, says):
    Image.fromarray(pixels(32, 32, 3)).save(buffer := io.BytesIO(), "png")
    features = {"img": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    columns = {"img": [{"bytes": buffer.getvalue()[:cut_at], "path": None}], "label": [label]}
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=says):
        next(data.batches(data.load(f"{prefix}cifar10:{tmp_path}"), 1, 0, range(1, 2)))
