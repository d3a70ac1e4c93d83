"""Damaged files of pictures: each is read as what it is, or refused in a sentence that names it, without a warning.

tests/attack plays such files against train.py.
"""

import random
import warnings

import numpy as np
import pytest
from PIL import Image

import data
from data import image_files
from tests.attack.files import damaged
from tests.attack.pictures import IMAGES, SETS, npz, set_files

FILES = {f"{suffix} {mode}": ("{}", "8", {f"x{suffix}": raw}) for (suffix, mode), raw in IMAGES.items()}
FILES |= {save.__name__: ("{}/x.npz", "", {"x.npz": npz(save)}) for save in (np.savez, np.savez_compressed)}


def test_every_format_is_here():
    assert {image_files.SUFFIXES[suffix] for suffix, _ in IMAGES} == {*image_files.SUFFIXES.values()}


def test_a_large_photograph_is_read(tmp_path):
    Image.new("L", (10000, 10000)).save(tmp_path / "x.jpg")         # 100 megapixels, as telephones take
    assert data.load(str(tmp_path), "8").shape == (1, 8, 8)


@pytest.mark.parametrize("kind", [*FILES, *SETS])
def test_damaged_files_are_refused_by_name_or_read(kind, tmp_path):
    """Checksums guard the pixels of an .npz, so what is read of one is right."""
    name, size, files = FILES.get(kind) or (f"{kind.split()[0]}:{{}}", "", set_files(SETS[kind]))
    for file, raw in files.items():
        (tmp_path / file).write_bytes(raw)
    whole, rng = data.load(name.format(tmp_path), size), random.Random(kind)
    for _ in range(30):
        file = rng.choice([*files])
        (tmp_path / file).write_bytes(damaged(rng, files[file]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                loaded = data.load(name.format(tmp_path), size)
                assert loaded.images[0].shape == loaded.shape
                assert len(loaded.images) == len(whole.images) or kind not in FILES
                assert loaded.labels is None or len(loaded.labels) == len(loaded.images)
                assert loaded.labels is None or loaded.labels.max() < len(loaded.classes)
                assert "savez" not in kind or loaded.images.equal(whole.images)
            except ValueError as error:
                assert str(tmp_path) in str(error) and len(str(error).split()) > 3 and "\n" not in str(error), error
        (tmp_path / file).write_bytes(files[file])
