import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torch.testing import assert_close

import data
import train
from data import dead_leaves, image_files, published
from run import checkpoint
from tests.helpers import Trap, write_idx

QUICK = ["--batch", "4", "--steps", "2", "--warmup", "2", "--sample_every", "100", "--T", "4"]


def run(out, *flags):
    """Trains for two steps by the real command; what the checkpoint says of the data."""
    train.main([*QUICK, "--out", str(out), *flags])
    last = checkpoint.load(out / "last.safetensors")
    assert last.step == 2 and all(w.isfinite().all() for w in last.weights.values())
    return last.data


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


def cifar(folder, name, n=4):
    """CIFAR's binary version: of each picture its label, or coarse and fine labels, then red, green, blue planes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"data_batch_{k}.bin" for k in range(1, 6)] if name == "cifar10" else ["train.bin"]
    images, labels = pixels(len(files), n, 3072), np.arange(len(files) * n).reshape(len(files), n, 1) % 10
    coarse = np.full_like(labels, 19)
    for k, file in enumerate(files):
        heads = [labels[k]] if name == "cifar10" else [coarse[k], labels[k]]
        (folder / file).write_bytes(np.concatenate([*heads, images[k]], axis=1).astype(np.uint8).tobytes())
    return images.reshape(-1, 3, 32, 32), labels.flatten()


@pytest.mark.parametrize("name, names", [("cifar10", "batches.meta.txt"), ("cifar100", "fine_label_names.txt")])
def test_cifar_binaries_give_their_pictures_and_fine_labels(tmp_path, name, names):
    images, labels = cifar(tmp_path / "bin", name)
    loaded = data.load(f"{name}:{tmp_path}")
    assert loaded.shape == (3, 32, 32) and loaded.classes == tuple(str(k) for k in range(labels.max() + 1))
    assert_close(loaded.images.numpy(), images)
    assert_close(loaded.labels.numpy(), labels)
    (tmp_path / "bin" / names).write_text("\n".join(f"class{k}" for k in range(10)) + "\n\n")
    assert data.load(f"{name}:{tmp_path}").classes == tuple(f"class{k}" for k in range(10))


def test_cifar_trains(tmp_path):
    cifar(tmp_path / "cifar", "cifar10")
    facts = run(tmp_path / "run", "--data", f"cifar10:{tmp_path / 'cifar'}", "--flip")
    assert (facts["name"], tuple(facts["shape"]), len(facts["classes"])) == ("cifar10", (3, 32, 32), 10)


def cut(path, n):
    path.write_bytes(path.read_bytes()[:n])


@pytest.mark.parametrize("name, spoil, says", [
    ("mnist", lambda d: cut(d / "train-images-idx3-ubyte", 5000), "train-images-idx3-ubyte .* cut short"),
    ("mnist", lambda d: cut(d / "train-images-idx3-ubyte", 9), "train-images-idx3-ubyte .* cut short"),
    ("mnist", lambda d: cut(d / "train-images-idx3-ubyte", 0), "train-images-idx3-ubyte .* cut short"),
    ("mnist", lambda d: (d / "train-labels-idx1-ubyte").unlink(), "cannot read .*train-labels-idx1-ubyte"),
    ("mnist", lambda d: write_idx(d / "train-labels-idx1-ubyte", np.zeros(3, np.uint8)), "10 pictures but 3 labels"),
    ("mnist", lambda d: write_idx(d / "train-images-idx3-ubyte", np.zeros((2, 784), np.uint8)), "not an IDX file"),
    ("cifar10", lambda d: cut(d / "data_batch_4.bin", 3000), "data_batch_4.bin has 3000 bytes"),
    ("cifar10", lambda d: cut(d / "data_batch_4.bin", 0), "data_batch_4.bin has 0 bytes"),
    ("cifar10", lambda d: (d / "data_batch_4.bin").unlink(), "cannot read .*data_batch_4.bin"),
    ("cifar100", lambda d: cut(d / "train.bin", 3073), "train.bin has 3073 bytes")])
def test_bad_files_are_named(tmp_path, name, spoil, says):
    mnist(tmp_path)
    cifar(tmp_path, name) if name != "mnist" else None
    spoil(tmp_path)
    with pytest.raises(ValueError, match=says):
        data.load(f"{name}:{tmp_path}")


def test_a_cut_gzip_is_named(tmp_path):
    mnist(tmp_path, packed=True)
    cut(tmp_path / "train-images-idx3-ubyte.gz", 3000)
    with pytest.raises(ValueError, match="cannot read .*train-images-idx3-ubyte.gz"):
        data.load(f"mnist:{tmp_path}")


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


@pytest.mark.parametrize("name, file, head", [("cifar10", "test_batch.bin", [3]), ("cifar100", "test.bin", [9, 3])])
def test_cifar_s_test_file(tmp_path, name, file, head):
    cifar(tmp_path, name)
    images = pixels(2, 3072, seed=5)
    (tmp_path / file).write_bytes(b"".join(bytes(head) + image.tobytes() for image in images))
    held_out = data.load(f"test:{name}:{tmp_path}")
    assert held_out.labels.tolist() == [3, 3]
    assert_close(held_out.images.numpy(), images.reshape(-1, 3, 32, 32))


@pytest.mark.parametrize("name, says", [
    ("stanford-cars", "stanford-cars has no held-out pictures; instead of test:stanford-cars, name a folder"),
    ("dead-leaves", "dead-leaves has no held-out pictures"), ("stream:mnist", "stream:mnist has no held-out pictures"),
    ("photos", "no held-out pictures of 'photos' are known; name the folder or the .npz file that has them"),
    ("mnist:{here}", "has no held-out pictures of mnist; they are t10k-images-idx3-ubyte .*, test.*parquet, or images "
     "in a folder test"), ("imagenet64:{here}", "they are validation.*parquet, or images in a folder validation")])
def test_a_set_without_held_out_pictures_is_a_sentence(tmp_path, name, says):
    images, labels = pixels(4, 28, 28), np.arange(4, dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    with pytest.raises(ValueError, match=says):
        data.load("test:" + name.format(here=tmp_path))


@pytest.mark.parametrize("name, file", [("cifar10", "data_batch_1"), ("cifar100", "train"), ("mini-imagenet", "a.pkl")])
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickles_are_refused_unread(tmp_path, monkeypatch, name, file, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_bytes(pickle.dumps(Trap(), protocol))
    with pytest.raises(ValueError, match=f"{file} is a pickle, which could run code"):
        data.load(f"{name}:{tmp_path}")
    assert not Path("trap-was-here").exists()


def test_a_folder_of_classes_takes_the_name_and_its_size(tmp_path):
    for k in range(4):
        path = tmp_path / "train" / f"class{k % 2}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(70, 80, 3, seed=k)).save(path)
    loaded = data.load(f"imagenet64:{tmp_path}")
    assert (loaded.name, loaded.shape, loaded.classes) == ("imagenet64", (3, 64, 64), ("class0", "class1"))


@pytest.mark.parametrize("name, says", [
    ("mnist:/nowhere", "no folder /nowhere for mnist"), ("mnits:/nowhere", "no data set 'mnits:/nowhere'"),
    ("dead-leaves:/nowhere", "rendered, not read"), ("stream:dead-leaves", "rendered, not read"),
    ("stream:digits", "no data set 'stream:digits'")])
def test_what_is_not_there_is_said(name, says):
    with pytest.raises(ValueError, match=says):
        data.load(name)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="mnist, .*celeba-hq") as error:
        data.load("mnst")
    assert all(name in str(error.value) for name in ("digits", "dead-leaves", *published.SETS))


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
    for split, n in (("train", 4), ("test", 2)):
        parquet(datasets, tmp_path / "p", "mini-imagenet", [(84, 84)] * n, f"{split}-0.parquet")
        for k in range(n):
            path = tmp_path / "f" / split / "ab"[k % 2] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(84, 84, 3, seed=k)).save(path)
    for folder in "pf":
        found = [data.load(f"{prefix}mini-imagenet:{tmp_path / folder}", "64") for prefix in ("", "test:")]
        assert [len(each.images) for each in found] == [4, 2] and found[1].shape == (3, 64, 64)


def test_cars_of_many_sizes_from_parquet_train(datasets, tmp_path):
    cars = tmp_path / "cars"
    parquet(datasets, cars, "stanford-cars", [(20, 30), (40, 50)] * 3)
    parquet(datasets, cars, "stanford-cars", [(30, 20)] * 2, "test-00000-of-00001.parquet")
    facts = run(tmp_path / "run", "--data", f"stanford-cars:{cars}", "--size", "16", "--flip")
    assert (tuple(facts["shape"]), tuple(facts["classes"])) == ((3, 16, 16), ("a", "b", "c"))
    assert len(data.load(f"stanford-cars:{cars}", "16").images) == 8                # train and test
    with pytest.raises(ValueError, match="many sizes; choose one with --size"):
        data.load(f"stanford-cars:{cars}")


def test_imagenet64_from_parquet_trains(datasets, tmp_path):
    imagenet = tmp_path / "imagenet"
    table = parquet(datasets, imagenet, "imagenet64", [(64, 64)] * 6)
    parquet(datasets, imagenet, "imagenet64", [(64, 64)] * 2, "validation-00000-of-00001.parquet")
    facts = run(tmp_path / "run", "--data", f"imagenet64:{imagenet}")
    assert (tuple(facts["shape"]), tuple(facts["classes"])) == ((3, 64, 64), ("a", "b", "c"))
    loaded = data.load(f"imagenet64:{imagenet}")
    assert_close(loaded.images, torch.stack([image_files.to_tensor(row["image"]) for row in table]))
    assert loaded.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_large_tables_are_read_as_needed(datasets, tmp_path, monkeypatch):
    parquet(datasets, tmp_path, "cifar10", [(32, 32)] * 5)
    eager = data.load(f"cifar10:{tmp_path}").images
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
        data.batches(data.load(name), 4, 0, range(4, 7), workers=2)
    with pytest.raises(ValueError, match="in order only"):
        data.load(name).images[[1, 0]]


def test_a_stream_trains(datasets, tmp_path):
    parquet(datasets, tmp_path / "cars", "stanford-cars", [(20, 30)] * 6)
    facts = run(tmp_path / "run", "--data", f"stream:stanford-cars:{tmp_path / 'cars'}", "--size", "16")
    assert len(facts["classes"]) == 3


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


def test_cifar100_has_its_fine_labels_and_cars_are_all_there():
    assert published.SETS["cifar100"].label == "fine_label" and published.SETS["cifar10"].image == "img"
    assert published.SETS["stanford-cars"].split == "train+test"


def test_a_hub_out_of_reach_is_one_sentence(datasets, monkeypatch, tmp_path, capsys):
    def load_dataset(**kwargs):
        raise ConnectionError("Couldn't reach it\nand more")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(SystemExit) as stop:
        train.main(["--data", "cifar10", "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "cannot read cifar10 from uoft-cs/cifar10: Couldn't reach it and more; " in error
    assert "cifar10:FOLDER" in error


def test_without_the_library_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        data.load("celeba-hq")


@pytest.mark.parametrize("spoil, says", [
    (lambda p: cut(p, 400), "cannot read cifar10:.*train-00000.*see that the files are whole"),
    (lambda p: p.write_bytes(b"no table"), "cannot read cifar10:.*see that the files are whole")])
def test_bad_tables_are_named(datasets, tmp_path, spoil, says):
    parquet(datasets, tmp_path, "cifar10", [(32, 32)] * 3)
    spoil(tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=says):
        data.load(f"cifar10:{tmp_path}")


def test_other_columns_are_named(datasets, tmp_path):
    parquet(datasets, tmp_path, "mnist", [(28, 28)] * 3)
    with pytest.raises(ValueError, match="no column 'img' but image, label"):
        data.load(f"cifar10:{tmp_path}")


def test_a_damaged_picture_in_a_table_is_named(datasets, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(pixels(32, 32, 3)).save(buffer, "png")
    cells = [{"bytes": raw, "path": None} for raw in (buffer.getvalue(), buffer.getvalue()[:99])]
    features = datasets.Features({"img": datasets.Image(decode=False), "label": datasets.Value("int64")})
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"img": cells, "label": [0, 1]}, features).to_parquet(tmp_path / "data" / "a.parquet")
    with pytest.raises(ValueError, match="cannot read the image in row 1 of cifar10:"):
        data.load(f"cifar10:{tmp_path}")


def eps() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "EPS")
    return buffer.getvalue()


@pytest.mark.parametrize("image, label, says", [
    ("img", "number", "cannot read the image in row 0 of"), ("other", "number", "no column 'img'"),
    ("img", "picture", "'label' is Image.*, not whole numbers"), ("img", "text", "'label' is Value.*, not whole")])
@pytest.mark.parametrize("stream", ["", "stream:"])
def test_no_column_of_a_table_starts_ghostscript(datasets, tmp_path, monkeypatch, stream, image, label, says):
    """The library itself would open pictures of any format."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: pytest.fail("Ghostscript was started"))
    cell = {"bytes": eps(), "path": None}
    cells = {"number": (0, datasets.ClassLabel(names=["a"])), "picture": (cell, datasets.Image(decode=False)),
             "text": ("a", datasets.Value("string"))}
    features = {image: datasets.Image(decode=False), "label": cells[label][1], "more": datasets.Image(decode=False)}
    rows = {image: [cell], "label": [cells[label][0]], "more": [cell]}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, datasets.Features(features)).cast_column("more", datasets.Image()).to_parquet(
        tmp_path / "data" / "a.parquet")
    with pytest.raises(ValueError, match=says):
        data.load(f"{stream}cifar10:{tmp_path}").images[[0]]


@pytest.mark.parametrize("label", [-1, None, 7])
def test_a_stream_s_labels_are_checked(datasets, tmp_path, label):
    picture = Image.fromarray(pixels(32, 32, 3))
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    if label == 7:                                      # beyond the names: the library itself would refuse to write it
        with pytest.raises(ValueError, match="row 3 of cars has the label 7"):
            published.one_label(7, 2, "row 3 of cars")
        return
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"img": [picture], "label": [label]}, features).to_parquet(
        tmp_path / "data" / "a.parquet")
    with pytest.raises(ValueError, match=f"row 0 of .* has the label {label}"):
        data.load(f"stream:cifar10:{tmp_path}").labels[[0]]


# Dead leaves

def test_dead_leaves_are_endless_and_train(tmp_path):
    leaves = data.load("dead-leaves", "16x24")
    assert leaves.shape == (3, 16, 24) and len(leaves.images) == data.ENDLESS and leaves.labels is None
    assert leaves.images[[0, data.ENDLESS - 1]].shape == (2, 3, 16, 24)
    first, second = (x for x, _ in data.batches(leaves, 4, 0, range(1, 3)))
    assert_close(torch.cat([first, second]), leaves.images[range(8)])                # no picture twice
    facts = run(tmp_path, "--data", "dead-leaves", "--size", "16")
    assert (tuple(facts["shape"]), len(facts["classes"])) == ((3, 16, 16), 0)


def test_a_dead_leaf_depends_on_its_index_alone():
    images = data.load("dead-leaves").images
    together = images[torch.tensor([5, 2**31, 7, 5, 40])]
    for k, i in enumerate((5, 2**31, 7, 5, 40)):
        assert_close(images[[i]][0], together[k], rtol=0, atol=0)
    assert_close(images[range(100)][40], together[4], rtol=0, atol=0)
    assert len(images[range(50)].flatten(1).unique(dim=0)) == 50


def test_dead_leaves_show_the_discs_that_lie_on_top():
    """Against the definition, pixel by pixel: the colour of the last disc that holds the pixel's centre."""
    H, W, index = 8, 12, torch.tensor([3, 4])
    r2, y, x, *colours = dead_leaves.discs(index, H, W).double()
    expected = torch.empty(2, 3, H, W, dtype=torch.uint8)
    for b in range(2):
        for i in range(H):
            for j in range(W):
                inside = ((y[:, b] - (i + 0.5) / 8)**2 + (x[:, b] - (j + 0.5) / 8)**2 <= r2[:, b]).nonzero()
                top = inside[-1].item() if len(inside) else 0
                expected[b, :, i, j] = torch.tensor([int(c[top, b] * 256) for c in colours])
    assert (dead_leaves.render(index, (3, H, W)) == expected).all(1).float().mean() > 0.99  # but for rounding at edges


def test_grey_leaves_are_the_red_of_coloured_ones():
    grey, colour = (data.load(name).images[range(4)] for name in ("dead-leaves-grey", "dead-leaves"))
    assert_close(grey, colour[:, :1])


def test_a_scene_is_the_same_at_every_size():
    coarse, fine = (data.load("dead-leaves", size).images[range(20)] for size in ("32", "96"))
    assert_close(fine[:, :, 1::3, 1::3], coarse)                                     # pixel centres coincide


def test_radii_follow_the_power_law_and_centres_and_colours_are_uniform():
    r2, y, x, *colours = dead_leaves.discs(torch.arange(400), 32, 64)
    r, small, large = r2.sqrt().flatten(), dead_leaves.SMALL, dead_leaves.LARGE
    assert r.min() >= small * 0.9999 and r.max() <= large * 1.0001 and r.max() > 0.99 * large
    for edge in (0.07, 0.1, 0.2, 0.4):                                               # P(r > edge) of density ~ r^-3
        expected = (edge**-2 - large**-2) / (small**-2 - large**-2)
        assert abs((r > edge).double().mean().item() - expected) < 4 * (expected / len(r))**0.5
    for u, least, most in ((y, -large, 1 + large), (x, -large, 2 + large), *((c, 0, 1) for c in colours)):
        share = u.flatten().histc(20, least, most) / u.numel()
        assert u.min() >= least and u.max() <= most and (share - 0.05).abs().max() < 0.003


def test_dead_leaves_are_covered_and_use_every_colour():
    pictures = data.load("dead-leaves").images[range(500)]
    counts = pictures.flatten().long().bincount(minlength=256) / pictures.numel()
    assert pictures.dtype == torch.uint8 and (counts - 1 / 256).abs().max() < 0.002
    r2, y, x, *_ = dead_leaves.discs(torch.arange(50), 4, 4)
    held = ((y - 0.375).square() + (x - 0.625).square() <= r2).any(0)                # a pixel's centre
    assert held.float().mean() > 0.9
