"""The scripts that make what docs/ shows."""

import pytest
from PIL import Image

from docs import figures, variants


@pytest.mark.parametrize("name", ["forward", "schedules"])
def test_figures_of_the_equations_are_drawn(name, tmp_path):
    figures.FIGURES[name](tmp_path / f"{name}.png")
    drawn, kept = (Image.open(folder / f"{name}.png") for folder in (tmp_path, figures.DOCS))
    assert drawn.size == kept.size


def test_every_figure_is_there():
    assert {f"{name}.png" for name in figures.FIGURES} <= {path.name for path in figures.DOCS.glob("*.png")}


def test_the_reverse_strip_shows_the_listed_times(tmp_path):
    assert sorted(figures.SNAPSHOTS) == [0, 15, 50, 100, 200, 300, 400, 550, 700, 999]
    assert Image.open(figures.DOCS / "reverse.png").size == (10 * 68 + 4, 24 + 10 * 68)


def test_an_unknown_figure_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        figures.main(["--only", "cats"])
    assert stop.value.code == 2 and "only is 'cats'" in capsys.readouterr().err


def test_variants_are_trained_scored_and_tabled(tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "VARIANTS", ("--loss hybrid", "--null 1"))
    variants.main(["--steps", "2", "--n", "20", "--out", str(tmp_path / "v.md")])
    rows = [line for line in (tmp_path / "v.md").read_text().splitlines() if line.startswith("| `python")]
    assert [row.split("`")[1] for row in rows] == ["python train.py --loss hybrid", "python train.py --null 1"]
    cells = [row.split("|")[2:-1] for row in rows]
    assert cells[1][2].strip() == "" and all(float(cell) > 0 for cell in cells[0])
