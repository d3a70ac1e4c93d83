"""Damaged and hostile files: each is read as what it is, or refused in a sentence that names it, in little memory."""

import gzip
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import data
from data import image_files
from tests.data.test_published import cifar, mnist
from tests.helpers import Trap, png_chunk

ROOT = Path(__file__).parents[1]
bounded = settings(max_examples=150, derandomize=True, database=None, deadline=None)


def refused_or(what, name: str):
    """What the function gives, or None if it raised a ValueError that names the file. Nothing may be warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return what()
        except ValueError as error:
            assert name in str(error) and len(str(error).split()) > 3 and "\n" not in str(error), error


@st.composite
def damage(draw, whole: bytes) -> bytes:
    """The bytes with up to three bits flipped, mostly in what comes first, and sometimes cut."""
    spoilt = bytearray(whole)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.one_of(st.integers(0, min(len(whole), 120) - 1), st.integers(0, len(whole) - 1)))
        spoilt[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(spoilt[:draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))])


# Images

def image_bytes(suffix: str, mode: str, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, image_files.CHANNELS[mode]), np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :4])
    file = io.BytesIO()
    (image.convert(mode) if mode != "I;16" else Image.fromarray(pixels[..., 0].astype(np.uint16))).save(
        file, Image.registered_extensions()[suffix], **options)
    return file.getvalue()


frames = {"save_all": True, "append_images": [Image.new("L", (8, 9), k) for k in range(2)]}
IMAGES = {(suffix, mode, *options): image_bytes(suffix, mode, **options) for suffix, mode, options in [
    (".png", "RGB", {}), (".png", "P", {"transparency": 3}), (".png", "I;16", {}), (".png", "1", {}),
    (".png", "LA", {}),
    (".jpg", "RGB", {}), (".jpeg", "CMYK", {"progressive": True}), (".webp", "RGBA", {"lossless": True}),
    (".webp", "RGB", {}), (".bmp", "RGB", {}), (".bmp", "P", {}), (".gif", "P", frames), (".tif", "RGB", {}),
    (".tiff", "L", {"compression": "tiff_lzw"}), (".tif", "RGBA", {"compression": "tiff_adobe_deflate"}),
    (".tiff", "RGB", {"compression": "jpeg"}), (".ppm", "RGB", {}), (".pgm", "L", {})]}


def test_every_suffix_is_here():
    assert {kind[0] for kind in IMAGES} == {*image_files.SUFFIXES}


@bounded
@given(st.sampled_from([*IMAGES]).flatmap(lambda kind: st.tuples(st.just(kind[0]), damage(IMAGES[kind]))))
def test_damaged_images(tmp_path_factory, image):
    suffix, content = image
    folder = tmp_path_factory.mktemp("images")
    (folder / f"x{suffix}").write_bytes(content)
    loaded = refused_or(lambda: data.load(str(folder), "8"), f"x{suffix}")
    assert loaded is None or loaded.images.shape == (1, *loaded.shape)


# Arrays

def npz(save=np.savez, images=None, labels=None) -> bytes:
    file = io.BytesIO()
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8) if images is None else images
    save(file, arr_0=images, arr_1=np.array([0, 2, 1]) if labels is None else labels)
    return file.getvalue()


def with_header(shape, descr="|u1", columns_first=False) -> bytes:
    """An .npz whose arr_0 says that it is of this shape, over 64 bytes of pixels."""
    header = repr({"descr": descr, "fortran_order": columns_first, "shape": shape}).encode() + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(64))
    return file.getvalue()


def load_npz(folder: Path, content: bytes):
    (folder / "x.npz").write_bytes(content)
    return refused_or(lambda: data.load(str(folder / "x.npz")), "x.npz")


@bounded
@given(st.sampled_from([npz(), npz(np.savez_compressed)]).flatmap(damage))
def test_damaged_arrays_are_refused_or_whole(tmp_path_factory, content):
    """Checksums guard the pixels, so what is read is right."""
    loaded = load_npz(tmp_path_factory.mktemp("npz"), content)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    assert loaded is None or np.array_equal(loaded.images.permute(0, 2, 3, 1), pixels)


sizes = st.one_of(st.integers(-2, 9), st.sampled_from([2**20, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30, -2**63]))


@bounded
@given(st.lists(sizes, max_size=6).map(tuple),
       st.sampled_from(["|u1", "<f8", "|O", "<U9", "|V0", "|S0", "<u1", "M8", "x", ""]), st.booleans())
@example((10**6, 1000, 1000, 3), "|u1", False)
@example((2**32, 2**32), "|u1", False)              # the product is 0 in 64 bits
@example((10**30,), "|u1", False)
def test_headers_of_arrays_are_not_believed(tmp_path_factory, shape, descr, columns_first):
    loaded = load_npz(tmp_path_factory.mktemp("npz"), with_header(shape, descr, columns_first))
    assert loaded is None or loaded.images.numel() == np.prod(shape) <= 64


def renamed(content: bytes) -> bytes:
    return content.replace(b"arr_1.npy", b"arr_0.npy")


def locked(content: bytes) -> bytes:
    """As if every entry were encrypted."""
    spoilt = bytearray(content)
    for mark, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        for found in re.finditer(re.escape(mark), content):
            spoilt[found.start() + flags] |= 1
    return bytes(spoilt)


@pytest.mark.parametrize("content, says", [
    (npz(images=np.array([Trap(), Trap()], object)), "allow_pickle=False"),
    (npz(labels=np.array([Trap()] * 3, object)), "allow_pickle=False"),
    (pickle.dumps(Trap()), "not a zip"), (b"", "not a zip"), (b"PK", "not a zip"),
    (locked(npz()), "encrypted"), (renamed(npz()), "uint8"), (npz(labels=np.array([0, 1, 10**12])), "to 999999"),
    (npz(labels=np.array([0, 1, 2**63], np.uint64)), "to 999999"), (npz(labels=np.array([0., 1., 2.])), "to 999999"),
    (npz(labels=np.array(3)), "to 999999"), (npz(images=np.zeros((3, 0, 8), np.uint8)), "uint8")],
    ids=range(12))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_arrays(tmp_path, monkeypatch, content, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"x.npz.*{says}"):
        (tmp_path / "x.npz").write_bytes(content)
        data.load(str(tmp_path / "x.npz"))
    assert not (tmp_path / "trap-was-here").exists()


# The authors' own formats

@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Every file of each set: its folder, and its bytes by name."""
    sets = {"mnist": mnist, "mnist packed": lambda folder: mnist(folder, packed=True),
            "cifar10": lambda folder: cifar(folder, "cifar10", n=1),
            "cifar100": lambda folder: cifar(folder, "cifar100")}
    found = {}
    for name, make in sets.items():
        folder = tmp_path_factory.mktemp(name)
        make(folder)
        (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
        found[name] = folder, {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if "t10k" not in p.name}
    return found


@bounded
@given(st.data())
def test_damaged_files_of_sets(originals, choose):
    name = choose.draw(st.sampled_from([*originals]))
    folder, files = originals[name]
    file = choose.draw(st.sampled_from([*files]))
    content = choose.draw(damage(files[file]))
    (folder / file).write_bytes(content)
    try:
        loaded = refused_or(lambda: data.load(f"{name.split()[0]}:{folder}"), str(folder))
        assert loaded is not None or content != files[file]
        assert loaded is None or len(loaded.images) == len(loaded.labels) and loaded.labels.max() < len(loaded.classes)
    finally:
        (folder / file).write_bytes(files[file])


@pytest.mark.parametrize("shape", [(2**31, 2**31, 4), (2**32 - 1,) * 3, (0, 28, 28), (10, 28, 0)])
def test_sizes_of_idx_files_are_not_believed(tmp_path, shape):
    mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, *shape) + bytes(7840))
    assert refused_or(lambda: data.load(f"mnist:{tmp_path}"), "train-images-idx3-ubyte") is None


# What would take all memory, or all time

def png_of(W: int, H: int) -> bytes:
    """A grey PNG that says it is of this size, and begins with a million zeros."""
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 8, 0, 0, 0, 0))
            + png_chunk(b"IDAT", zlib.compress(bytes(10**6))) + png_chunk(b"IEND", b""))


def zip_bomb() -> bytes:
    """An .npz whose arr_0, and the archive, too, says that it has 2 GB of pixels, in 64 kB."""
    shape = (2000, 1000, 1000)
    header = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode() + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(2**26))
    said = bytearray(file.getvalue())
    for mark, place in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        struct.pack_into("<I", said, said.index(mark) + place, 2 * 10**9 + 10 + len(header))
    return bytes(said)


def bombs(folder: Path) -> dict[str, str]:
    """Hostile files under the folder: the names of data sets, and what is said of each."""
    said = {}
    for name, (W, H) in {"huge": (50000, 50000), "large": (14000, 14000), "flat": (2**31 - 1, 1)}.items():
        (folder / name).mkdir()
        (folder / name / "x.png").write_bytes(png_of(W, H))
        said[f"{folder / name}"] = "cannot read the image .*x.png: .*exceeds limit"
    (folder / "zip.npz").write_bytes(zip_bomb())
    said[f"{folder / 'zip.npz'}"] = "zip.npz: arr_0.npy would unpack to 2000000"
    (folder / "header.npz").write_bytes(with_header((10**6, 1000, 1000, 3)))
    said[f"{folder / 'header.npz'}"] = "cannot read .*header.npz"
    mnist(folder / "mnist", packed=True)
    (folder / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(2**26)) * 64)           # 4 GiB
    said[f"mnist:{folder / 'mnist'}"] = "train-images-idx3-ubyte.gz: it holds more than"
    (folder / "pipe").mkdir()
    os.mkfifo(folder / "pipe" / "x.png")
    said[f"{folder / 'pipe'}"] = "cannot read the image .*x.png: .* is no file"
    (folder / "cifar").mkdir()
    os.mkfifo(folder / "cifar" / "train.bin")
    said[f"cifar100:{folder / 'cifar'}"] = "train.bin is no file"
    os.mkfifo(folder / "x.parquet")
    said[f"cars:{folder}"] = "no data set"
    said[f"stanford-cars:{folder}"] = "x.parquet is no file"
    return said


def test_a_large_photograph_is_read(tmp_path):
    Image.new("L", (10000, 10000)).save(tmp_path / "x.jpg")         # 100 megapixels, as telephones take
    assert data.load(str(tmp_path), "8").shape == (1, 8, 8)


CHILD = """
import resource, sys, data
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        print(data.load(name, "32").shape)
    except ValueError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_bombs_and_pipes_take_no_memory_and_no_time(tmp_path):
    said = bombs(tmp_path)
    command = [sys.executable, "-W", "always", "-c", CHILD, *said]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    *lines, megabytes = told.stdout.splitlines()
    assert told.returncode == 0 and not told.stderr, told
    for line, says in zip(lines, said.values(), strict=True):
        assert re.search(says, line), line
    assert int(megabytes) < 1500, told


# What a folder may hold

def test_links_that_lead_nowhere_or_round_are_named(tmp_path):
    (tmp_path / "good.png").write_bytes(IMAGES[".png", "RGB"])
    (tmp_path / "round").symlink_to(tmp_path)                           # not gone into
    (tmp_path / "folder.png").mkdir()                                   # a folder is no picture
    assert data.load(str(tmp_path)).images.shape == (1, 3, 9, 8)
    (tmp_path / "again.png").symlink_to(tmp_path / "good.png")
    assert len(data.load(str(tmp_path)).images) == 2
    for name in ("itself.png", "nowhere.png"):
        link = tmp_path / name
        link.symlink_to(link if name == "itself.png" else tmp_path / "gone")
        assert refused_or(lambda: data.load(str(tmp_path)), name) is None   # noqa: B023
        link.unlink()


@pytest.mark.parametrize("suffix", sorted(image_files.SUFFIXES))
@pytest.mark.parametrize("content", [b"", b"a picture", b"\0" * 99, b"%!PS-Adobe", pickle.dumps(Trap())], ids=range(5))
def test_what_is_no_picture_is_named(tmp_path, monkeypatch, suffix, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"x{suffix}").write_bytes(content)
    assert refused_or(lambda: data.load(str(tmp_path)), f"x{suffix}") is None
    assert not (tmp_path / "trap-was-here").exists()
