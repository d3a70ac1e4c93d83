"""Hostile data sets."""

import io
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

import train
from tests import test_fuzz
from tests.data.test_published import cifar, mnist
from tests.hostile.case import Case
from tests.hostile.values import damaged


def trained_on(name: str, *more: str) -> list[str]:
    return ["--data", name, "--T", "2", "--batch", "2", "--warmup", "1", "--steps", "1", "--out", "run", *more]


def folders_of_pictures(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile images: damaged, of other formats and names, huge, with strange EXIF, and no files at all."""
    def one(name: str, content: bytes) -> list[str]:
        Path("pics").mkdir()
        Path("pics", name).write_bytes(content)
        for k in range(2):
            Image.effect_noise((8, 9), 50).save(f"pics/{k}.png")
        return trained_on("pics", "--size", "8")

    for (suffix, *kind), raw in test_fuzz.IMAGES.items():
        for k in range(3):
            yield Case("images", f"{suffix} {kind} {k}", train.main, partial(one, f"x{suffix}", damaged(rng, raw)))
    for form in ("EPS", "ICO", "PDF", "TGA", "PCX", "SGI", "DDS", "ICNS"):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, form)
        yield Case("images", f"{form} as png", train.main, partial(one, "x.png", file.getvalue()))
    for size in ((50000, 50000), (14000, 14000), (2**31 - 1, 1), (0, 0), (1, 10**6)):
        yield Case("images", f"a png of {size}", train.main, partial(one, "x.png", test_fuzz.png_of(*size)))
    for name in ("-rf.png", "a\nb.png", "\udcff.png", "x" * 240 + ".png", "%s{0}.png", ".png", "x.PNG", "x.png.png"):
        yield Case("images", f"named {name[:20]!r}", train.main, partial(one, name, test_fuzz.IMAGES[".png", "RGB"]))
    for k in range(6):
        file = io.BytesIO()
        Image.new("RGB", (12, 8)).save(file, "JPEG", exif=b"Exif\0\0" + damaged(rng, turned()))
        yield Case("images", f"exif {k}", train.main, partial(one, "x.jpg", file.getvalue()))
    yield from strange_folders(base)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x112], exif[0x10E] = 6, "a picture"
    return exif.tobytes().removeprefix(b"Exif\0\0")


def strange_folders(base: Path) -> Iterator[Case]:
    """Folders that hold pipes, links, folders with the names of pictures, or nothing."""
    def strange(make: Callable[[Path], Any]) -> list[str]:
        pics = Path("pics")
        pics.mkdir()
        Image.effect_noise((8, 8), 50).save(pics / "0.png")
        make(pics)
        return trained_on("pics", "--size", "8")

    makes = {"a pipe": lambda p: os.mkfifo(p / "x.png"), "a folder": lambda p: (p / "x.png").mkdir(),
             "a link to itself": lambda p: (p / "x.png").symlink_to("x.png"),
             "a link to nowhere": lambda p: (p / "x.png").symlink_to("nowhere"),
             "a link to its folder": lambda p: (p / "again").symlink_to(p.resolve()),
             "a device": lambda p: (p / "x.png").symlink_to("/dev/zero"), "nothing": lambda p: (p / "0.png").unlink(),
             "__MACOSX": lambda p: ((p / "__MACOSX").mkdir(), (p / "__MACOSX" / "._x.png").write_bytes(b"x")),
             "hidden": lambda p: ((p / ".x").mkdir(), (p / ".x" / "x.png").write_bytes(b"x")),
             "a class beside pictures": lambda p: ((p / "a").mkdir(), shutil.copy(p / "0.png", p / "a" / "1.png"))}
    for name, make in makes.items():
        yield Case("images", name, train.main, partial(strange, make))


def arrays(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile .npz files."""
    def one(content: bytes) -> list[str]:
        Path("x.npz").write_bytes(content)
        return trained_on("x.npz")

    sound = test_fuzz.npz(), test_fuzz.npz(np.savez_compressed)
    contents = {f"bits {k}": damaged(rng, sound[k % 2]) for k in range(16)}
    for shape in ((10**6, 1000, 1000, 3), (2**32, 2**32), (10**30,), (-1, 8, 8), (0, 8, 8), (2, 4, 8), (), (64,)):
        for descr in rng.sample(["|u1", "<f8", "|O", "<U9", "|V0", "M8", "x"], 2):
            contents[f"{shape} {descr}"] = test_fuzz.with_header(shape, descr, rng.random() < 0.3)
    contents |= {"a bomb": test_fuzz.zip_bomb(), "a pickle": pickle.dumps(test_fuzz.Trap()), "nothing": b"",
                 "objects": test_fuzz.npz(images=np.array([test_fuzz.Trap()] * 3, object)),
                 "locked": test_fuzz.locked(test_fuzz.npz()),
                 "labels": test_fuzz.npz(labels=np.array([0, 1, 10**12])), "floats": test_fuzz.npz(labels=np.ones(3)),
                 "few labels": test_fuzz.npz(labels=np.array([0]))}
    for name, content in contents.items():
        yield Case("npz", name, train.main, partial(one, content))


def authors_files(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile MNIST and CIFAR files, and parquet tables."""
    def one(name: str, make: Callable[[Path], Any], seed: int) -> list[str]:
        chance, folder = random.Random(seed), Path("set")
        folder.mkdir()
        make(folder)
        path = chance.choice([p for p in sorted(folder.rglob("*")) if p.is_file() and "t10k" not in p.name])
        path.write_bytes(damaged(chance, path.read_bytes()))
        return trained_on(f"{name}:set", "--size", "32")

    def table(change: Callable[[dict, datasets.Features], Any]) -> list[str]:
        datasets.config.HF_DATASETS_CACHE = Path("cache").resolve()
        Path("set").mkdir()
        cells = [{"bytes": test_fuzz.IMAGES[".png", "RGB"], "path": None} for _ in range(4)]
        columns, features = {"img": cells, "label": [0, 1, 0, 1]}, datasets.Features(
            {"img": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])})
        change(columns, features)
        datasets.Dataset.from_dict(columns, features).to_parquet("set/a.parquet")
        return trained_on("cifar10:set")

    sets = {"mnist": mnist, "mnist packed": partial(mnist, packed=True), "cifar10": partial(cifar, name="cifar10", n=1),
            "cifar100": partial(cifar, name="cifar100"), "parquet": parquet}
    for name, make in sets.items():
        for _ in range(7):
            seed = rng.randrange(2**31)
            yield Case("sets of pictures", f"{name} {seed}", train.main, partial(
                one, "cifar10" if name == "parquet" else name.split()[0], make, seed))
    text, number = datasets.Value("string"), datasets.Value("float64")
    for name, change in {
            "labels of text": lambda c, f: (c.update(label=["a"] * 4), f.update(label=text)),
            "labels of floats": lambda c, f: (c.update(label=[float("nan")] * 4), f.update(label=number)),
            "no labels": lambda c, f: c.update(label=[-1] * 4),
            "labels of nothing": lambda c, f: c.update(label=[None] * 4),
            "pictures of text": lambda c, f: (c.update(img=["a"] * 4), f.update(img=text)),
            "no pictures": lambda c, f: c.update(img=[None] * 4), "nothing": lambda c, f: c.update(img=[], label=[]),
            "a path": lambda c, f: c.update(img=[{"bytes": None, "path": "/dev/zero"}] * 4),
            "a column is missing": lambda c, f: (c.pop("label"), f.pop("label"))}.items():
        yield Case("sets of pictures", f"parquet: {name}", train.main, partial(table, change))


def parquet(folder: Path) -> None:
    datasets.config.HF_DATASETS_CACHE = Path("cache").resolve()
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    pictures = [Image.effect_noise((32, 32), 50).convert("RGB") for _ in range(4)]
    datasets.Dataset.from_dict({"img": pictures, "label": [0, 1, 0, 1]}, features).to_parquet(folder / "a.parquet")
