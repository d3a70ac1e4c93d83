"""Damaged files of pictures: each is read as what it is, or refused in a sentence that names it.

Hypothesis looks for such damage in the process itself; tests/attack plays fixed cases against the scripts.
"""

import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import data
from data import image_files
from tests.attack.files import IMAGES, npz, npz_with_header
from tests.data.test_published import cifar, mnist

bounded = settings(max_examples=150, derandomize=True, database=None, deadline=None)


def refused_or_loaded(name: str, size: str, file: str) -> data.Data | None:
    """The data set, or None if it was refused by a ValueError that names the file. Nothing may be warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return data.load(name, size)
        except ValueError as error:
            assert file in str(error) and len(str(error).split()) > 3 and "\n" not in str(error), error


@st.composite
def damage(draw, whole: bytes) -> bytes:
    """The bytes with up to three bits flipped, mostly in what comes first, and sometimes cut."""
    spoilt = bytearray(whole)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.one_of(st.integers(0, min(len(whole), 120) - 1), st.integers(0, len(whole) - 1)))
        spoilt[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(spoilt[:draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))])


def test_every_suffix_is_here():
    assert {suffix for suffix, _ in IMAGES} == {*image_files.SUFFIXES}


@bounded
@given(st.sampled_from([*IMAGES]).flatmap(lambda kind: st.tuples(st.just(kind[0]), damage(IMAGES[kind]))))
def test_damaged_images(tmp_path_factory, image):
    suffix, content = image
    folder = tmp_path_factory.mktemp("images")
    (folder / f"x{suffix}").write_bytes(content)
    loaded = refused_or_loaded(str(folder), "8", f"x{suffix}")
    assert loaded is None or loaded.images.shape == (1, *loaded.shape)


def test_a_large_photograph_is_read(tmp_path):
    Image.new("L", (10000, 10000)).save(tmp_path / "x.jpg")         # 100 megapixels, as telephones take
    assert data.load(str(tmp_path), "8").shape == (1, 8, 8)


@bounded
@given(st.sampled_from([npz(), npz(np.savez_compressed)]).flatmap(damage))
def test_damaged_arrays_are_refused_or_whole(tmp_path_factory, content):
    """Checksums guard the pixels, so what is read is right."""
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    path.write_bytes(content)
    loaded = refused_or_loaded(str(path), "", "x.npz")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    assert loaded is None or np.array_equal(loaded.images.permute(0, 2, 3, 1), pixels)


@bounded
@given(st.lists(st.one_of(st.integers(-2, 9), st.sampled_from([2**31, 2**32, 2**63, 10**30])), max_size=6).map(tuple),
       st.sampled_from(["|u1", "<f8", "|O", "<U9", "|V0", "M8", ""]))
def test_headers_of_arrays_are_not_believed(tmp_path_factory, shape, descr):
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    path.write_bytes(npz_with_header(shape, descr))
    loaded = refused_or_loaded(str(path), "", "x.npz")
    assert loaded is None or loaded.images.numel() == np.prod(shape) <= 64


@pytest.fixture(scope="module", params=["mnist", "mnist packed", "cifar10", "cifar100"])
def original(request, tmp_path_factory):
    """A set's name, its folder, and the bytes of its files by name."""
    name, packed = request.param.split()[0], "packed" in request.param
    folder = tmp_path_factory.mktemp(name)
    {"mnist": partial(mnist, packed=packed), "cifar10": partial(cifar, name="cifar10", n=1),
     "cifar100": partial(cifar, name="cifar100")}[name](folder)
    return name, folder, {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if "t10k" not in path.name}


@settings(bounded, max_examples=40)
@given(st.data())
def test_damaged_files_of_sets(original, choose):
    name, folder, files = original
    file = choose.draw(st.sampled_from([*files]))
    content = choose.draw(damage(files[file]))
    (folder / file).write_bytes(content)
    try:
        loaded = refused_or_loaded(f"{name}:{folder}", "", str(folder))
        assert loaded is not None or content != files[file]
        assert loaded is None or len(loaded.images) == len(loaded.labels) and loaded.labels.max() < len(loaded.classes)
    finally:
        (folder / file).write_bytes(files[file])
