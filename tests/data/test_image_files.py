"""data/image_files.py: what picture files say besides pixels, and which files are opened at all."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from torch.testing import assert_close

import data
from data import image_files
from tests.helpers import png_chunk

LANDSCAPE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
LANDSCAPE[:4, :6] = 0                                   # which corner is up can be seen


# Formats

def test_every_promised_format_is_opened_under_any_promised_name(tmp_path):
    """Also in capitals. Lossy formats lose little of a picture of one colour."""
    for suffix, form in image_files.SUFFIXES.items():
        Image.new("RGB", (4, 4), (60, 120, 180)).save(tmp_path / f"{suffix[1:]}.png", form)
        Image.new("RGB", (4, 4), (60, 120, 180)).save(tmp_path / f"a{suffix.upper()}", form)
    images = data.load(str(tmp_path), channels=3).images
    assert len(images) == 2 * len(image_files.SUFFIXES) and {".jfif", ".jpe", ".avif"} < {*image_files.SUFFIXES}
    assert_close(images, torch.tensor([60, 120, 180])[:, None, None].expand_as(images).byte(), rtol=0, atol=3)


# EXIF

def with_orientation(path: Path, k: int, form: str, **options) -> None:
    exif = Image.Exif()
    exif[0x112] = k
    Image.fromarray(LANDSCAPE).save(path, form, exif=exif, **options)


@pytest.mark.parametrize("k", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_photographs_stand_upright(tmp_path, form, k):
    """Against Pillow's own function; TIFFs are turned by Pillow itself."""
    path = tmp_path / f"x.{form.lower()}"
    with_orientation(path, k, form, **({"lossless": True} if form == "WEBP" else {}))
    with Image.open(path) as image:
        expected = torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1)
    loaded = data.load(str(tmp_path))
    assert loaded.shape == tuple(expected.shape) == ((3, 12, 8) if k >= 5 else (3, 8, 12))
    assert_close(loaded.images[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_with_damaged_exif_is_taken_as_it_lies(tmp_path, form):
    Image.fromarray(LANDSCAPE).save(tmp_path / f"x.{form.lower()}", form, exif=b"Exif\0\0no tiff!")
    assert data.load(str(tmp_path)).shape == (3, 8, 12)


# Colour profiles

P3 = {b"rXYZ": (0.51512, 0.24120, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189), b"bXYZ": (0.15710, 0.06657, 0.78407)}


def display_p3():
    """Pillow's profile of sRGB with the primaries of Display P3, and another name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for k in range(struct.unpack(">I", profile[128:132])[0]):
        name, at, size = struct.unpack(">4sII", profile[132 + 12 * k:144 + 12 * k])
        if name in P3:
            content = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 2**16) for v in P3[name]))
            profile = profile[:at] + content + profile[at + size:]
    return profile.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))


@pytest.mark.parametrize("mode, form, colour, pixel", [
    ("RGB", "png", (60, 200, 60), [0, 203, 11]), ("RGB", "jpg", (60, 200, 60), [0, 203, 11]),
    ("RGB", "tif", (60, 200, 60), [0, 203, 11]), ("RGB", "webp", (60, 200, 60), [0, 203, 11]),
    ("RGBA", "png", (60, 200, 60, 77), [0, 203, 11, 77]), ("L", "png", 60, [60]),
    ("LA", "png", (60, 9), [60, 60, 60, 9])])
def test_colours_are_converted_to_srgb(tmp_path, mode, form, colour, pixel):
    """A profile of other channels than the picture's is left alone."""
    options = {"lossless": True} if form == "webp" else {"quality": 100, "subsampling": 0} if form == "jpg" else {}
    Image.new(mode, (8, 8), colour).save(tmp_path / f"1.{form}", icc_profile=display_p3(), **options)
    pixels = data.load(str(tmp_path)).images[0, :, 3, 3]
    assert_close(pixels, torch.tensor(pixel, dtype=torch.uint8), rtol=0, atol=3 if form == "jpg" else 1)


@pytest.mark.parametrize("profile", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"damaged"])
def test_a_picture_in_srgb_keeps_its_pixels(tmp_path, profile):
    Image.fromarray(LANDSCAPE).save(tmp_path / "1.png", icc_profile=profile)
    assert_close(data.load(str(tmp_path)).images[0].permute(1, 2, 0).numpy(), LANDSCAPE)


# 16 bits, and transparent colours

def tiff(values, bits, order="<", photometric=1):
    """A TIFF of one row of grey: of 12 bits packed, or of whole bytes; photometric 0: the largest value is black."""
    raw = np.array(values, f"{order}u{2 if bits > 8 else 1}").tobytes()
    if bits == 12:
        raw = int("".join(f"{v:012b}" for v in values), 2).to_bytes(len(values) * 12 // 8, "big")
    tags = [(256, len(values)), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 122), (277, 1), (278, 1),
            (279, len(raw))]
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return header + entries + bytes(4) + raw


@pytest.mark.parametrize("name, content, pixels", [
    ("1.tif", tiff([0, 129, 65406, 65535], 16), [0, 1, 254, 255]),
    ("1.tif", tiff([0, 129, 65407, 65535], 16, ">"), [0, 1, 255, 255]),
    ("1.tif", tiff([0, 129, 65406, 65535], 16, photometric=0), [255, 254, 1, 0]),
    ("1.tif", tiff([0, 9, 4086, 4095], 12), [0, 1, 254, 255]),
    ("1.tif", tiff([0, 10, 255], 8, photometric=0), [255, 245, 0]),
    ("1.pgm", b"P5 3 1 65535\n" + bytes([0, 0, 0, 129, 255, 255]), [0, 1, 255]),
    ("1.pgm", b"P5 3 1 4095\n" + bytes([0, 0, 0, 9, 15, 255]), [0, 1, 255]),
    ("1.pgm", b"P5 3 1 15\n" + bytes([0, 1, 15]), [0, 17, 255])])
def test_grey_of_any_depth_is_divided_by_what_the_file_calls_white(tmp_path, capsys, name, content, pixels):
    (tmp_path / name).write_bytes(content)
    assert data.load(str(tmp_path)).images[0, 0, 0].tolist() == pixels
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("most, said", [(4095, True), (1023, True), (16383, True), (16384, False)])
def test_few_of_16_bits_are_said_with_their_range(tmp_path, capsys, most, said):
    for k in range(3):
        Image.fromarray(np.array([[7, most - k]], np.uint16)).save(tmp_path / f"{k}.png")
    data.load(str(tmp_path))
    assert capsys.readouterr().err == f"note: 3 pictures of 16 bits use the values 7 to {most} of 65535, such as " \
        f"{tmp_path}/0.png; they will be nearly black, so scale them first\n" * said


@pytest.mark.parametrize("most, said", [(1, True), (63, True), (64, False)])
def test_a_set_that_is_nearly_black_is_said(tmp_path, capsys, most, said):
    """Masks of 0 and 1, and values of 4 or 6 bits that were never scaled."""
    pixels = np.array([[[0, most]]], np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=pixels)
    (tmp_path / "folder").mkdir()
    Image.fromarray(pixels[0]).save(tmp_path / "folder" / "a.png")
    for path in (tmp_path / "a.npz", tmp_path / "folder"):
        data.load(str(path))
        assert capsys.readouterr().err == f"note: the values of {path} are 0 to {most} of 255; scale them if that is " \
            f"not meant\n" * said


def test_no_colour_lies_under_alpha_0(tmp_path):
    pixels = np.full((4, 4, 4), 200, np.uint8)
    pixels[:2, :, 3] = 0
    for form, options in [("png", {}), ("tif", {}), ("webp", {"lossless": True, "exact": True})]:
        Image.fromarray(pixels).save(tmp_path / f"1.{form}", **options)
    for size in ("", "6", "16"):
        images = data.load(str(tmp_path), size).images
        assert (images[:, :, 0] == 0).all() and ((images[:, :3] > 150) == (images[:, 3:] > 0)).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_are_rounded_to_eight(tmp_path, form):
    values = np.array([[0, 128, 129, 4660, 65406, 65407, 65535]])
    for k, kind in enumerate(["<u2", ">u2"] if form == "TIFF" else ["<u2"]):
        Image.fromarray(values.astype(kind)).save(tmp_path / f"{k}.{form.lower()}", form)
    for picture in data.load(str(tmp_path)).images:
        assert picture[0, 0].tolist() == [0, 0, 1, 18, 254, 255, 255]


def png(rows: list[bytes], width: int, depth: int, colour: int, key: bytes) -> bytes:
    """A PNG of these rows, `depth` bits a channel, colour type `colour`, whose transparent colour is `key`."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"tRNS", key)
            + png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + png_chunk(b"IEND", b""))


@pytest.mark.parametrize("content, pixels", [
    (png([bytes([10, 200])], 2, 8, 0, b"\0\x0a"), [[0, 0, 0, 0], [200, 200, 200, 255]]),
    (png([bytes([1, 2, 3, 1, 2, 4])], 2, 8, 2, b"\0\1\0\2\0\3"), [[0, 0, 0, 0], [1, 2, 4, 255]]),
    (png([b"\x40"], 2, 1, 0, b"\0\1"), [[0, 0, 0, 255], [0, 0, 0, 0]]),
    (png([b"\x9f"], 2, 4, 0, b"\0\x09"), [[0, 0, 0, 0], [255, 255, 255, 255]]),
    (png([b"\x12\xb5\xff\xff"], 2, 16, 0, b"\x12\xb5"), [[0, 0, 0, 0], [255, 255, 255, 255]]),
    (png([b"\1\2\3\4\5\6\7\x08\x09\x0a\x0b\x0c"], 2, 16, 2, b"\1\2\3\4\5\6"), [[0, 0, 0, 0], [7, 9, 11, 255]])],
    ids=["grey", "colour", "1 bit", "4 bits", "16 bits of grey", "16 bits of colour"])
def test_a_transparent_colour_becomes_an_alpha_channel(tmp_path, content, pixels):
    (tmp_path / "x.png").write_bytes(content)
    loaded = data.load(str(tmp_path))
    assert loaded.shape == (4, 1, 2) and loaded.images[0, :, 0].T.tolist() == pixels


# Large photographs

@pytest.mark.parametrize("k", [1, 6])
@pytest.mark.parametrize("size, fit", [("16", "crop"), ("8x16", "crop"), ("16", "pad"), ("300", "crop")])
def test_a_large_jpeg_is_read_at_a_fraction_of_its_size(tmp_path, monkeypatch, k, size, fit):
    """Nearly the pixels of the whole one resized, from an eighth of each side or so: JPEG has them by itself."""
    y, x = np.mgrid[:400, :600]
    smooth = np.stack([x * 255 / 600, y * 255 / 400, (x + y) * 255 / 1000], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x112] = k
    Image.fromarray(smooth).save(tmp_path / "1.jpg", quality=98, exif=exif)
    H, W = data.parse_size(size)
    with Image.open(tmp_path / "1.jpg") as image:
        whole = image_files.to_tensor(image_files.fit_to_size(ImageOps.exif_transpose(image), (H, W), fit))
    sizes = []
    monkeypatch.setattr(image_files, "eight_bits", lambda image: (sizes.append(image.size), image)[1])
    loaded = data.load(str(tmp_path), size, fit).images[0]
    assert max(sizes[0]) <= (600 if size == "300" else 150)
    assert (loaded.float() - whole.float()).abs().mean() < 2


def test_photographs_of_200_megapixels_are_read(tmp_path):
    Image.new("1", (20000, 10000), 1).save(tmp_path / "1.png")
    assert (data.load(str(tmp_path), "4").images == 255).all()


# What is no picture

def test_hidden_files_and_macos_folders_are_no_classes(tmp_path):
    for name in ("cat/1.png", "dog/2.png", "__MACOSX/cat/1.png", ".git/3.png", "cat/.thumbs/4.png", "dog/._2.png"):
        path = tmp_path / ".data" / name                # the folder asked for may be hidden itself
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(LANDSCAPE).save(path)
    loaded = data.load(str(tmp_path / ".data"))
    assert loaded.classes == ("cat", "dog") and len(loaded.images) == 2
