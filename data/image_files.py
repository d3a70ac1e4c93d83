"""Image files as uint8 tensors in sRGB, of every common format, kind of pixel and size; damaged ones are refused."""

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from PIL.ExifTags import Base
from PIL.Image import Transpose
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION
from torch import Tensor

from data.files import reading

FORMATS = ["AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF",
           "WEBP"]                                      # no others are tried: for an EPS, Pillow starts Ghostscript
SUFFIXES = {suffix: form for suffix, form in sorted(Image.registered_extensions().items())
            if form in FORMATS and form in Image.OPEN}
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")         # Pillow's names of grey of more than 8 bits
CHANNELS = {"1": 1, "L": 1, "RGB": 3, "RGBX": 3, "P": 3, "CMYK": 3, "YCbCr": 3, "RGBA": 4, "LA": 4, "PA": 4,
            **dict.fromkeys(DEEP, 1)}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
TURNS = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
         6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}     # by EXIF's orientation
SIDEWAYS = [TURNS[k] for k in range(5, 9)]
KEY_SCALES = {"L;2": 85, "L;4": 17, "I;16B": 1 / 257, "RGB;16B": 1 / 256}              # of a PNG's transparent colour
SRGB = ImageCms.createProfile("sRGB")

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)             # a large photograph is no fault
with contextlib.suppress(AttributeError, ValueError):                                  # Windows has Pillow's own limit
    Image.MAX_IMAGE_PIXELS = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 32    # doubled: half of it all


class Header(NamedTuple):
    """What is known of an image file whose pixels are unread."""
    channels: int
    size: tuple[int, int]               # H, W as `read_image` turns it
    deep: bool                          # grey of 16 bits, as far as the file says
    animated: bool                      # more pictures follow the first


@contextlib.contextmanager
def open_image(file: str | Path | BinaryIO, name: str = "") -> Iterator[tuple[Image.Image, Transpose | None]]:
    """The image in a file, its pixels unread, and the turn that sets it upright. Raises ValueError, naming the file."""
    with reading(f"the image {name or file}", "mend or remove it"), Image.open(file, formats=FORMATS) as image:
        turn = None
        if image.format != "TIFF":                                                # Pillow turns these itself
            with contextlib.suppress(Exception):                                  # EXIF is damaged in many ways
                turn = TURNS.get(Image.Image.getexif(image).get(Base.Orientation))     # a PNG's own reads its pixels
        yield image, turn


def read_header(path: Path) -> Header:
    """Channels, size and kind of an image file. Raises ValueError for pixels that are no grey, RGB or RGBA."""
    with open_image(path) as (image, turn):
        mode, (W, H), transparent, animated = image.mode, image.size, "transparency" in image.info, False
        deep, of_32_bits = largest_value(image) == 65535, mode == "I" and image.format not in ("PNG", "PPM")
        with contextlib.suppress(Exception):                                      # of what follows a whole picture
            animated = image.format != "MPO" and getattr(image, "is_animated", False)
    if mode not in CHANNELS or of_32_bits:
        raise ValueError(f"{path} has pixels of kind {mode!r}; convert it to grey, RGB or RGBA")
    return Header(4 if transparent else CHANNELS[mode], (W, H) if turn in SIDEWAYS else (H, W), deep, animated)


def read_image(file: str | Path | BinaryIO, shape: tuple[int, int, int], fit: str, name: str = "") -> Tensor:
    """The image as uint8 (C, H, W), upright, in sRGB, whatever size it has. file: a path, or open, named for errors."""
    C, H, W = shape
    with open_image(file, name) as (image, turn):
        image.draft(image.mode, (2 * H, 2 * W) if turn in SIDEWAYS else (2 * W, 2 * H))    # a JPEG, at half a size
        image = with_channels(in_srgb(eight_bits(image)), C)
    return blacken_hidden(to_tensor(fit_to_size(image if turn is None else image.transpose(turn), (H, W), fit)))


def largest_value(image: Image.Image) -> int | None:
    """What white is in a file of more than 8 bits of grey, as far as it says; None for others."""
    bits = image.tag_v2.get(BITSPERSAMPLE, (16,))[0] if image.format == "TIFF" else 16     # Pillow scales a PPM's
    return 2**bits - 1 if image.mode in DEEP else None


def eight_bits(image: Image.Image) -> Image.Image:
    """The image, with more bits of grey rounded to 8, and with an alpha channel if one colour of it is transparent."""
    key, white = image.info.get("transparency"), largest_value(image)
    if isinstance(key, (int, tuple)) and image.format == "PNG":
        scale = KEY_SCALES.get(image.tile[0][3], 1)                               # Pillow scales the pixels alone
        key = tuple(int(v * scale) for v in key) if isinstance(key, tuple) else round(key * scale)
    profile = image.info.get("icc_profile")
    if white:
        inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
        values = np.array(image) * (255 / white)
        image = Image.fromarray((255 - values if inverted else values).round().astype(np.uint8))
    image.info = {"icc_profile": profile} if profile else {}
    if key is None:
        return image
    image.info["transparency"] = key
    return image.convert("RGBA")


def in_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB, if it has a colour profile that says what it is in."""
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("P", "LA", "PA"):
        image = image.convert("RGB" if image.mode == "P" else "RGBA")
    transform = profile and srgb_transform(profile, image.mode)
    return ImageCms.applyTransform(image, transform) if transform else image


@functools.lru_cache(maxsize=8)
def srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the colours of an ICC profile to sRGB's; None if there is nothing to do, or the profile is not for these."""
    with contextlib.suppress(ImageCms.PyCMSError, OSError):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" not in ImageCms.getProfileDescription(source):
            return ImageCms.buildTransform(source, SRGB, mode, "RGBA" if mode == "RGBA" else "RGB",
                                           ImageCms.Intent.RELATIVE_COLORIMETRIC)
    return None


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image in grey, RGB or RGBA; one with an alpha channel comes to lie on white if it is to have none."""
    if channels < 4 and image.mode in ("RGBA", "LA", "PA"):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(MODES[channels])


def blacken_hidden(pixels: Tensor) -> Tensor:
    """uint8 (..., C, H, W) with black where alpha is 0: in files any colour may lie there, and networks paint any."""
    return pixels * (pixels[..., 3:, :, :] > 0) if pixels.shape[-3] == 4 else pixels


def to_tensor(image: Image.Image) -> Tensor:
    """A picture as uint8 (C, H, W)."""
    return torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)


def to_image(pixels: Tensor) -> Image.Image:
    """uint8 (C, H, W) as a picture: grey, RGB or RGBA."""
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).contiguous().cpu().numpy())


def fit_to_size(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """The picture at this (H, W): resized and cropped at the centre, or shrunk if need be and padded with black."""
    H, W = size
    if image.size == (W, H):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (W, H), Image.Resampling.BICUBIC)
    image.thumbnail((W, H), Image.Resampling.BICUBIC)
    left, top = (W - image.width) // 2, (H - image.height) // 2
    return image.crop((-left, -top, W - left, H - top))
