"""Muon: what one update does, written out, and that runs with it resume."""

import shutil

import pytest
import torch
from torch.testing import assert_close

import train
from run import checkpoint, muon
from tests.helpers import awake, same_run
from unet import CONFIGS


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_orthogonal_has_the_directions_of_the_svd(shape, dtype, tolerance):
    g = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    for each, x in zip(g, muon.orthogonal(g, dtype), strict=True):
        u, s, vt = torch.linalg.svd(each, full_matrices=False)
        x = u.T @ x @ vt.T                                          # diagonal: the singular values that each is given
        assert_close(x, x.diag().diag(), rtol=0, atol=tolerance)
        assert s.max() / s.min() > 2 and x.diag().min() > 0.65 and x.diag().max() < 1.25


def weights():
    return dict(awake(CONFIGS["digits"]).named_parameters())


def test_an_update_is_the_written_out_one():
    """Against torch's own Muon, whose products are of bf16, for a matrix and a convolution, and Adam for the rest."""
    ours, theirs = weights(), weights()
    inner = muon.matrices(ours)
    assert {"first.weight", "last.weight", "classes.weight", "time.weight", "downs.0.norm1.weight"}.isdisjoint(inner)
    assert {"downs.0.conv1.weight", "ups.0.skip.weight"} < {*inner}
    optimizer = muon.Muon(ours)
    flat = {name: theirs[name].detach().flatten(1) for name in inner}             # the same memory
    others = [w for name, w in theirs.items() if name not in inner]
    matrix = torch.optim.Muon(flat.values(), lr=0.02, weight_decay=0, momentum=muon.MOMENTUM)
    adam = torch.optim.Adam(others, lr=0.005, betas=muon.BETAS)
    before = {name: w.detach().clone() for name, w in ours.items()}
    for step in range(3):
        g = torch.Generator().manual_seed(step)
        for name in ours:
            gradient = torch.randn(ours[name].shape, generator=g)
            ours[name].grad, theirs[name].grad = gradient.clone(), gradient.clone()
            if name in flat:
                flat[name].grad = gradient.flatten(1)
        optimizer.param_groups[0]["lr"], optimizer.found_inf = 0.005, torch.tensor(0.)
        for each in (optimizer, matrix, adam):
            each.step()
    for name, w in ours.items():
        moved = (theirs[name] - before[name]).norm()
        assert (w - theirs[name]).norm() < (0.02 if name in inner else 1e-5) * moved, name


def test_an_update_that_failed_changes_nothing():
    ours, still = weights(), weights()
    optimizer = muon.Muon(ours)
    for fails in (0., 1.):
        kept = {name: w.detach().clone() for name, w in ours.items()}
        state = {name: {k: v.clone() for k, v in optimizer.state[w].items()} for name, w in ours.items()}
        for w in ours.values():
            w.grad = torch.full_like(w, float("nan") if fails else 1.)
        optimizer.param_groups[0]["lr"], optimizer.found_inf = 0.005, torch.tensor(fails)
        optimizer.step()
    assert_close(ours, kept, rtol=0, atol=0)
    assert_close({name: optimizer.state[w] for name, w in ours.items()}, state, rtol=0, atol=0)
    assert not torch.equal(kept["middle.0.conv1.weight"], still["middle.0.conv1.weight"])


def test_a_run_resumes_to_the_bit(tmp_path, refused):
    flags = ["--batch", "8", "--warmup", "2", "--T", "20", "--sample_every", "100", "--log_every", "1", "--save_every",
             "3", "--final", "1"]
    train.main([*flags, "--steps", "6", "--out", str(tmp_path / "whole")])
    train.main([*flags, "--steps", "3", "--out", str(tmp_path / "parts")])
    train.main([*flags, "--steps", "6", "--out", str(tmp_path / "parts")])
    same_run(tmp_path / "whole", tmp_path / "parts", log=False)
    last = checkpoint.load(tmp_path / "whole")
    assert last.exp_avg.keys() - last.exp_avg_sq.keys() == {*muon.matrices(last.weights)} and last.updates == 6
    shutil.copytree(tmp_path / "whole", tmp_path / "adam")
    assert "--optimizer muon" in refused(train.main, [*flags, "--steps", "9", "--out", str(tmp_path / "adam"),
                                                  "--optimizer", "adam"])
