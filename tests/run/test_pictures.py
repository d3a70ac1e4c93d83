"""run/pictures.py: where pictures and figures go, and that they are written whole or not at all."""

import pytest
from matplotlib.figure import Figure
from PIL import Image

from run import pictures


def test_a_figure_s_name_is_tried_before_the_work_and_its_old_picture_kept(tmp_path):
    old = tmp_path / "new" / "a.png"
    assert pictures.figure_path(str(old)) == old and not old.exists()
    old.write_bytes(b"a picture")
    pictures.figure_path(str(old))
    assert old.read_bytes() == b"a picture"
    for bad, error in ((tmp_path / "a.xyz", ValueError), (old / "b.png", OSError)):
        with pytest.raises(error):
            pictures.figure_path(str(bad))
    assert [*old.parent.iterdir()] == [old]


@pytest.mark.largest_file(4096)
@pytest.mark.parametrize("write", [
    lambda path: pictures.save(Image.effect_noise((200, 200), 90), path),
    lambda path: pictures.save_figure(Figure(), path, 150)], ids=["picture", "figure"])
def test_a_full_disk_leaves_the_old_picture(tmp_path, write):
    path = tmp_path / "x.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="cannot write .*x.png: File too large; what was there is unchanged"):
        write(path)
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


def test_pictures_have_names_of_pictures(tmp_path):
    with pytest.raises(ValueError, match="x.doc is no name of a picture; let it end in .png"):
        pictures.save(Image.new("L", (8, 8)), tmp_path / "x.doc")
