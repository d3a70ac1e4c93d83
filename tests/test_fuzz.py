"""Damaged files of pictures: each is read whole, or refused in a sentence that names it.

Hypothesis looks for such damage in the process itself; tests/attack plays fixed cases against the scripts.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from data import image_files
from tests.attack.files import IMAGES, npz, npz_with_header
from tests.data.test_published import cifar, mnist

bounded = settings(max_examples=60, derandomize=True, database=None, deadline=None)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


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


def test_every_suffix_is_here():
    assert {suffix for suffix, _ in IMAGES} == {*image_files.SUFFIXES}


@bounded
@given(st.sampled_from([*IMAGES]).flatmap(lambda kind: st.tuples(st.just(kind[0]), damage(IMAGES[kind]))))
def test_damaged_images(tmp_path_factory, image):
    suffix, content = image
    folder = tmp_path_factory.mktemp("images")
    (folder / f"x{suffix}").write_bytes(content)
    loaded = refused_or(lambda: data.load(str(folder), "8"), f"x{suffix}")
    assert loaded is None or loaded.images.shape == (1, *loaded.shape)


def load_npz(folder: Path, content: bytes):
    (folder / "x.npz").write_bytes(content)
    return refused_or(lambda: data.load(str(folder / "x.npz")), "x.npz")


@bounded
@given(st.sampled_from([npz(), npz(np.savez_compressed)]).flatmap(damage))
def test_damaged_arrays_are_refused_or_whole(tmp_path_factory, content):
    """Checksums guard the pixels, so what is read is right."""
    loaded = load_npz(tmp_path_factory.mktemp("npz"), content)
    assert loaded is None or np.array_equal(loaded.images.permute(0, 2, 3, 1), PIXELS)


sizes = st.one_of(st.integers(-2, 9), st.sampled_from([2**31, 2**32, 2**63, 10**30]))


@bounded
@given(st.lists(sizes, max_size=6).map(tuple), st.sampled_from(["|u1", "<f8", "|O", "<U9", "|V0", "M8", ""]))
def test_headers_of_arrays_are_not_believed(tmp_path_factory, shape, descr):
    loaded = load_npz(tmp_path_factory.mktemp("npz"), npz_with_header(shape, descr))
    assert loaded is None or loaded.images.numel() == np.prod(shape) <= 64


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Every file of each set: its folder, and its bytes by name."""
    folders = {}
    for name, make in {"mnist": mnist, "mnist packed": lambda folder: mnist(folder, packed=True),
                       "cifar10": lambda folder: cifar(folder, "cifar10", n=1),
                       "cifar100": lambda folder: cifar(folder, "cifar100")}.items():
        folder = tmp_path_factory.mktemp(name)
        make(folder)
        (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
        folders[name] = folder, {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if "t10k" not in p.name}
    return folders


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
