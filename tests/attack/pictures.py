"""Damaged and wrong data sets."""

import io
import pickle
import random
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data import image_files
from tests.attack.files import damaged, wrong_files
from tests.attack.harness import Case
from tests.data.test_published import cifar, mnist
from tests.helpers import Trap


def image_bytes(suffix: str, mode: str, **options) -> bytes:
    """A picture of 8 x 9 random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, image_files.CHANNELS[mode]), np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :4])
    file = io.BytesIO()
    (image.convert(mode) if mode != "I;16" else Image.fromarray(pixels[..., 0].astype(np.uint16))).save(
        file, Image.registered_extensions()[suffix], **options)
    return file.getvalue()


FRAMES = {"save_all": True, "append_images": [Image.new("L", (8, 9), k) for k in range(2)]}
OPTIONS = {".gif": FRAMES, ".jpeg": {"progressive": True}, ".tiff": {"compression": "tiff_lzw"}}
MODES = {".png": "RGB P I;16 1 LA", ".jpg": "RGB L", ".jpeg": "CMYK", ".webp": "RGBA RGB", ".bmp": "RGB P", ".gif": "P",
         ".tif": "RGB RGBA L", ".tiff": "RGB", ".ppm": "RGB", ".pgm": "L", ".avif": "RGB", ".jp2": "RGB L",
         ".pcx": "RGB", ".qoi": "RGB RGBA", ".sgi": "RGB", ".tga": "RGB RGBA", ".dib": "RGB"}
IMAGES = {(suffix, mode): image_bytes(suffix, mode, **OPTIONS.get(suffix, {})) for suffix, modes in MODES.items()
          for mode in modes.split()}
SOUND = IMAGES[".png", "RGB"]


def npz(save=np.savez, images=None, labels=None) -> bytes:
    """Three pictures and their labels."""
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8) if images is None else images
    save(file := io.BytesIO(), arr_0=images, arr_1=np.array([0, 2, 1]) if labels is None else labels)
    return file.getvalue()


SETS = {"mnist": mnist, "mnist packed": partial(mnist, packed=True), "cifar10": partial(cifar, name="cifar10", n=1),
        "cifar100": partial(cifar, name="cifar100")}


def set_files(write: partial) -> dict[str, bytes]:
    """The training files of one of these sets, by name."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())
                if path.is_file() and "t10k" not in path.name}


def train_on(name: str, *flags: str) -> list[str]:
    return ["train.py", "--data", name, "--T", "2", "--batch", "2", "--warmup", "1", "--steps", "1", "--out", "run",
            *flags]


def folders_of_pictures(base: Path, rng: random.Random) -> Iterator[Case]:
    """Images that are damaged, of other formats and names; and what is no file at all."""
    contents = {f"{suffix} {mode} {name}": (f"x{suffix}", raw) for (suffix, mode), sound in IMAGES.items()
                for name, raw in wrong_files(rng, sound, 3).items() if mode == "RGB" or "bits" in name}
    for form in ("EPS", "ICO", "PDF", "TGA", "PCX", "SGI", "DDS", "ICNS"):
        Image.new("RGB", (16, 16)).save(file := io.BytesIO(), form)
        contents[f"{form} as png"] = "x.png", file.getvalue()
    for name in ("-rf.png", "a\nb.png", "\udcff.png", "x" * 240 + ".png", "%s{0}.png", ".png", "x.PNG", "x.png.png"):
        contents[f"named {name[:20]!r}"] = name, SOUND
    contents |= {
        "a folder": ("x.png", Path.mkdir), "a link to nowhere": ("x.png", lambda path: path.symlink_to("nowhere")),
        "no right to read": ("x.png", lambda path: path.touch(0)), "__MACOSX": ("__MACOSX/._x.png", b"x"),
        "hidden": (".x/x.png", b"x"), "a class beside pictures": ("a/1.png", SOUND),
        "an empty class": ("a", Path.mkdir)}
    for name, (file, content) in contents.items():
        yield Case("images", name, {"pics/0.png": SOUND, "pics/1.png": SOUND, f"pics/{file}": content},
                   train_on("pics", "--size", "8"))
    yield Case("images", "an empty folder", {"pics": Path.mkdir}, train_on("pics"), "pics")
    yield Case("images", "of different sizes", {"pics/x.png": SOUND, "pics/y.png": Image.new("L", (3, 3)).save},
               train_on("pics"), "size")


def arrays(base: Path, rng: random.Random) -> Iterator[Case]:
    """Damaged and wrong .npz files."""
    for save in (np.savez, np.savez_compressed):
        for name, raw in wrong_files(rng, npz(save), 12).items():
            yield Case("npz", f"{save.__name__} {name}", {"x.npz": raw}, train_on("x.npz"))
    objects = np.array([Trap()] * 3, object)
    for name, (content, says) in {
            "pictures of objects": (npz(images=objects), "allow_pickle=False"),
            "labels of objects": (npz(labels=objects), "allow_pickle=False"),
            "no pixels": (npz(images=np.zeros((3, 0, 8), np.uint8)), "uint8"),
            "floats": (npz(images=np.zeros((3, 8, 8))), "uint8"),
            "few labels": (npz(labels=np.array([0])), "to 999999"),
            "two of a name": (npz().replace(b"arr_1.npy", b"arr_0.npy"), "uint8"),
            **{f"labels {labels}": (npz(labels=labels), "to 999999") for labels in (
                np.array([0, 1, 10**12]), np.array([0, 1, 2**63], np.uint64), np.ones(3), np.array(3))}}.items():
        yield Case("npz", name, {"x.npz": content}, train_on("x.npz"), f"x.npz.*{says}")


def sets_of_pictures(base: Path, rng: random.Random) -> Iterator[Case]:
    """Damaged MNIST and CIFAR files; and one of a set's files is another's or missing."""
    for name, write in SETS.items():
        files = {f"set/{file}": raw for file, raw in set_files(write).items()}
        command = train_on(f"{name.split()[0]}:set", "--size", "32")
        for k in range(6):
            spoilt = rng.choice([*files])
            yield Case("sets of pictures", f"{name} {k}", {**files, spoilt: damaged(rng, files[spoilt])}, command)
        for file in files:
            yield Case("sets of pictures", f"{name} without {file}", {**files, file: Path.mkdir}, command)
            yield Case("sets of pictures", f"{name}: {file} a pickle", {**files, file: pickle.dumps(Trap())}, command)
