"""The figure of docs/samplers.md; its first two problems are tested by tests/test_order.py."""

from PIL import Image

from bench import work_precision


def test_work_and_precision_are_plotted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work_precision, "GRID", (8, 16))
    monkeypatch.setattr(work_precision, "FINE", 10)
    out = tmp_path / "figure.png"
    frechet = work_precision.main(["--n", "20", "--steps", "2,3", "--out", str(out)])
    assert {name: [evaluations for evaluations, _ in points] for name, points in frechet.items()} == {
        name: {"learned": [3, 4, 5, 6, 8]}.get(name, [3] if "Heun" in name else [2, 3])
        for name in (*work_precision.ODE, *work_precision.SDE, "learned")}
    assert "| learned |" in capsys.readouterr().out and Image.open(out).width > 800
