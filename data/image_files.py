"""Image files as uint8 tensors: of every common format, kind of pixel and size; damaged ones are refused by name."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.ExifTags import Base
from PIL.Image import Transpose
from torch import Tensor

from data.files import reading

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF",
            ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM"}
FORMATS = sorted({*SUFFIXES.values()})                  # no others are tried: for an EPS, Pillow starts Ghostscript
CHANNELS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "RGB": 3, "P": 3, "CMYK": 3, "YCbCr": 3, "RGBA": 4, "LA": 4, "PA": 4}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
TURNS = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
         6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}     # by EXIF's orientation
SIDEWAYS = [TURNS[k] for k in range(5, 9)]
KEY_SCALES = {"L;2": 85, "L;4": 17, "I;16B": 1 / 257, "RGB;16B": 1 / 256}              # of a PNG's transparent colour

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)             # a large photograph is no fault


@contextlib.contextmanager
def open_image(file: str | Path | BinaryIO, name: str = "") -> Iterator[tuple[Image.Image, Transpose | None]]:
    """The image in a file, its pixels unread, and the turn that sets it upright. Raises ValueError, naming the file."""
    with reading(f"the image {name or file}", "mend or remove it"), Image.open(file, formats=FORMATS) as image:
        turn = None
        if image.format != "TIFF":                                                # Pillow turns these itself
            with contextlib.suppress(Exception):                                  # EXIF is damaged in many ways
                turn = TURNS.get(Image.Image.getexif(image).get(Base.Orientation))     # a PNG's own reads its pixels
        yield image, turn


def read_header(path: Path) -> tuple[int, tuple[int, int]]:
    """Channels and (H, W) of an image file as `read_image` turns it, its pixels unread."""
    with open_image(path) as (image, turn):
        mode, (W, H), transparent = image.mode, image.size, "transparency" in image.info
    if mode not in CHANNELS:
        raise ValueError(f"{path} has pixels of kind {mode!r}; convert it to grey, RGB or RGBA")
    return 4 if transparent else CHANNELS[mode], (W, H) if turn in SIDEWAYS else (H, W)


def read_image(file: str | Path | BinaryIO, shape: tuple[int, int, int], fit: str, name: str = "") -> Tensor:
    """The image as uint8 (C, H, W), upright, whatever size it has. file: a path, or open, with a name for errors."""
    with open_image(file, name) as (image, turn):
        image = eight_bits(image).convert(MODES[shape[0]])
    return to_tensor(fit_to_size(image if turn is None else image.transpose(turn), shape[1:], fit))


def eight_bits(image: Image.Image) -> Image.Image:
    """The image, with 16 bits of grey rounded to 8, and with an alpha channel if one colour of it is transparent."""
    key = image.info.get("transparency")
    if isinstance(key, (int, tuple)) and image.format == "PNG":
        scale = KEY_SCALES.get(image.tile[0][3], 1)                               # Pillow scales the pixels alone
        key = tuple(int(v * scale) for v in key) if isinstance(key, tuple) else round(key * scale)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.array(image) / 257).round().astype(np.uint8))
    if key is None:
        return image
    image.info["transparency"] = key
    return image.convert("RGBA")


def to_tensor(image: Image.Image) -> Tensor:
    """A picture as uint8 (C, H, W)."""
    return torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)


def to_image(pixels: Tensor) -> Image.Image:
    """uint8 (C, H, W) as a picture: grey, RGB or RGBA."""
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).contiguous().cpu().numpy())


def fit_to_size(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """The picture at this (H, W): resized and cropped at the centre, or padded with black."""
    H, W = size
    if image.size == (W, H):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (W, H), Image.Resampling.BICUBIC)
    if image.width > W or image.height > H:
        raise ValueError(f"a picture of {image.height}x{image.width} pixels cannot be padded to {H}x{W}; "
                         f"choose a larger --size, or --fit crop")
    left, top = (W - image.width) // 2, (H - image.height) // 2
    return image.crop((-left, -top, W - left, H - top))
