"""docs/tour.ipynb: every cell runs, one after the other, and shows what its text says."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch

TOUR = Path(__file__).parents[2] / "docs" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour_runs(monkeypatch):
    monkeypatch.chdir(TOUR.parent)                      # where a notebook starts; its first cell leaves it
    threads, names, shown = torch.get_num_threads(), {}, []
    for cell in json.loads(TOUR.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "!pytest" in source:
            continue
        *body, last = ast.parse(source).body
        exec(compile(ast.Module(body, []), str(TOUR), "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), str(TOUR), "eval"), names))
        else:
            exec(compile(ast.Module([last], []), str(TOUR), "exec"), names)
    torch.set_num_threads(threads)
    first, curve, forward, printed, three_samplers, chain = shown
    assert len(curve.axes[0].lines) == 2 and printed is None
    assert forward.size == (6 * 68 + 4, 24 + 4 * 68) and first.size == (10 * 68 + 4, 2 * 68 + 4)
    assert names["losses"][-1] < 0.7 * names["losses"][0]
    ddpm, ddim, two_m = np.asarray(three_samplers.convert("L"), float)[4:].reshape(3, 68, -1)[:, :64]
    assert abs(ddim - two_m).mean() < abs(ddim - ddpm).mean()                    # one ODE, and noise of its own
    assert chain.size == (8 * 68 + 4, 2 * 68 + 4)
