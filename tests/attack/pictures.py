"""Damaged and hostile data sets."""

import gzip
import io
import os
import pickle
import random
import struct
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tests.attack.damage import damaged
from tests.attack.files import IMAGES, encrypted, npz, npz_with_header, png_of, zip_bomb
from tests.attack.harness import Case
from tests.data.test_published import cifar, mnist
from tests.helpers import Trap


def train_on(name: str, *flags: str) -> list[str]:
    return ["train.py", "--data", name, "--T", "2", "--batch", "2", "--warmup", "1", "--steps", "1", "--out", "run",
            *flags]


def folders_of_pictures(base: Path, rng: random.Random) -> Iterator[Case]:
    """Images that are damaged, of other formats and names, huge, or with strange EXIF; and what is no file at all."""
    contents = {f"{suffix} {mode} {k}": (f"x{suffix}", damaged(rng, raw))
                for (suffix, mode), raw in IMAGES.items() for k in range(2)}
    for form in ("EPS", "ICO", "PDF", "TGA", "PCX", "SGI", "DDS", "ICNS"):
        Image.new("RGB", (16, 16)).save(file := io.BytesIO(), form)
        contents[f"{form} as png"] = "x.png", file.getvalue()
    for suffix in (".png", ".jpg", ".webp", ".bmp", ".gif", ".tif", ".ppm"):
        contents |= {f"{raw[:9]} as {suffix}": (f"x{suffix}", raw) for raw in (b"", b"a picture", pickle.dumps(Trap()))}
    for name in ("-rf.png", "a\nb.png", "\udcff.png", "x" * 240 + ".png", "%s{0}.png", ".png", "x.PNG", "x.png.png"):
        contents[f"named {name[:20]!r}"] = name, IMAGES[".png", "RGB"]
    exif = Image.Exif()
    exif[0x112], exif[0x10E] = 6, "a picture"
    for k in range(6):
        spoilt = b"Exif\0\0" + damaged(rng, exif.tobytes()[6:])
        Image.new("RGB", (12, 8)).save(file := io.BytesIO(), "JPEG", exif=spoilt)
        contents[f"exif {k}"] = "x.jpg", file.getvalue()
    sound = {f"pics/{k}.png": IMAGES[".png", "RGB"] for k in range(2)}
    for name, (file, raw) in contents.items():
        yield Case("images", name, {**sound, f"pics/{file}": raw}, train_on("pics", "--size", "8"))
    for size in ((50000, 50000), (14000, 14000), (2**31 - 1, 1)):
        yield Case("images", f"a png of {size}", {**sound, "pics/x.png": png_of(*size)}, train_on("pics"),
                   "cannot read the image .*x.png: .*exceeds limit")
    strange = {"a pipe": ("x.png", os.mkfifo, ""), "a folder": ("x.png", Path.mkdir, ""),
               "a link to itself": ("x.png", lambda path: path.symlink_to("x.png"), "x.png"),
               "a link to nowhere": ("x.png", lambda path: path.symlink_to("nowhere"), "x.png"),
               "a link to its folder": ("again", lambda path: path.symlink_to(path.parent.resolve()), ""),
               "a device": ("x.png", lambda path: path.symlink_to("/dev/zero"), "x.png"),
               "__MACOSX": ("__MACOSX/._x.png", b"x", ""), "hidden": (".x/x.png", b"x", ""),
               "a class beside pictures": ("a/1.png", IMAGES[".png", "RGB"], "")}
    for name, (file, content, says) in strange.items():
        yield Case("images", name, {**sound, f"pics/{file}": content}, train_on("pics", "--size", "8"), says)
    yield Case("images", "an empty folder", {"pics": Path.mkdir}, train_on("pics"), "pics")
    yield Case("images", "of different sizes", {**sound, "pics/x.png": png_of(3, 3)}, train_on("pics"), "size")


def arrays(base: Path, rng: random.Random) -> Iterator[Case]:
    """Damaged and hostile .npz files."""
    sound = npz(), npz(np.savez_compressed)
    for k in range(16):
        yield Case("npz", f"bits {k}", {"x.npz": damaged(rng, sound[k % 2])}, train_on("x.npz"))
    for shape in ((10**6, 1000, 1000, 3), (2**32, 2**32), (10**30,), (-1, 8, 8), (0, 8, 8), (2, 4, 8), (), (64,)):
        for descr in rng.sample(["|u1", "<f8", "|O", "<U9", "|V0", "M8", "x"], 2):
            yield Case("npz", f"{shape} {descr}", {"x.npz": npz_with_header(shape, descr)}, train_on("x.npz"))
    objects = np.array([Trap()] * 3, object)
    for name, (content, says) in {
            "a bomb": (zip_bomb(), "reading array data"),
            "a pickle": (pickle.dumps(Trap()), "not a zip"),
            "empty": (b"", "not a zip"), "PK": (b"PK", "not a zip"), "encrypted": (encrypted(npz()), "encrypted"),
            "pictures of objects": (npz(images=objects), "allow_pickle=False"),
            "labels of objects": (npz(labels=objects), "allow_pickle=False"),
            "no pixels": (npz(images=np.zeros((3, 0, 8), np.uint8)), "uint8"),
            "floats": (npz(images=np.zeros((3, 8, 8))), "uint8"),
            "few labels": (npz(labels=np.array([0])), "to 999999"),
            "two of a name": (npz().replace(b"arr_1.npy", b"arr_0.npy"), "uint8"),
            **{f"labels {labels}": (npz(labels=labels), "to 999999") for labels in (
                np.array([0, 1, 10**12]), np.array([0, 1, 2**63], np.uint64), np.ones(3), np.array(3))}}.items():
        yield Case("npz", name, {"x.npz": content}, train_on("x.npz"), f"x.npz.*{says}")


def authors_files(base: Path, rng: random.Random) -> Iterator[Case]:
    """Damaged and hostile MNIST and CIFAR files, and parquet tables."""
    sets = {"mnist": mnist, "mnist packed": partial(mnist, packed=True), "cifar10": partial(cifar, name="cifar10", n=1),
            "cifar100": partial(cifar, name="cifar100"), "cifar10 parquet": lambda folder: table(folder / "a.parquet")}
    for name, write in sets.items():
        command = train_on(f"{name.split()[0]}:set", "--size", "32")
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            files = {f"set/{path.name}": path.read_bytes() for path in sorted(Path(folder).iterdir())
                     if path.is_file() and "t10k" not in path.name}
        for k in range(7):
            spoilt = rng.choice([*files])
            yield Case("sets of pictures", f"{name} {k}", {**files, spoilt: damaged(rng, files[spoilt])}, command)
        if name == "mnist":
            for shape in ((2**31, 2**31, 4), (2**32 - 1,) * 3, (0, 28, 28), (10, 28, 0)):
                images = struct.pack(">BBBB3I", 0, 0, 8, 3, *shape) + bytes(7840)
                yield Case("sets of pictures", f"mnist of {shape}", {**files, "set/train-images-idx3-ubyte": images},
                           command, "train-images-idx3-ubyte")
        if name == "mnist packed":
            bomb = gzip.compress(bytes(2**26)) * 64                                                         # 4 GiB
            yield Case("sets of pictures", "a bomb", {**files, "set/train-images-idx3-ubyte.gz": bomb}, command,
                       "train-images-idx3-ubyte.gz: it is no IDX file")
    yield Case("sets of pictures", "a pipe", {"set/train.bin": os.mkfifo}, train_on("cifar100:set"), "no images")
    for name, changes in {
            "labels of text": {"label": (["a"] * 4, "string")}, "labels of floats": {"label": ([0.5] * 4, "float64")},
            "no labels": {"label": ([-1] * 4, "")}, "labels of nothing": {"label": ([None] * 4, "")},
            "pictures of text": {"img": (["a"] * 4, "string")}, "no pictures": {"img": ([None] * 4, "")},
            "nothing": {"img": ([], ""), "label": ([], "")}, "a column is missing": {"label": None},
            "a path": {"img": ([{"bytes": None, "path": "/dev/zero"}] * 4, "")}}.items():
        yield Case("sets of pictures", f"parquet: {name}", {"set/a.parquet": partial(table, **changes)},
                   train_on("cifar10:set"))


def table(path: Path, **changes) -> None:
    """A hub's parquet table of four pictures and labels; changes: a column's values and, if another, type, or None."""
    import datasets

    datasets.disable_progress_bars()
    columns = {"img": [{"bytes": IMAGES[".png", "RGB"], "path": None}] * 4, "label": [0, 1, 0, 1]}
    features = {"img": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    for name, change in changes.items():
        if change is None:
            del columns[name], features[name]
            continue
        columns[name], kind = change
        features[name] = datasets.Value(kind) if kind else features[name]
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(path)
