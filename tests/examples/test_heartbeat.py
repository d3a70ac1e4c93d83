"""Binomial diffusion against brute force: every sequence, every phase, every step is small enough to enumerate."""

import math

import pytest
import torch

from examples import heartbeat

ONE, ZERO = torch.ones(1, 1), torch.zeros(1, 1)


def times(*t):
    return torch.tensor(t)


def test_one_jump_is_all_the_steps():
    """q(x_t | x0) by multiplying the steps' 2 x 2 transition matrices."""
    for x0 in (ZERO, ONE):
        rate = x0.double()
        for t in range(1, 51):
            rate = rate * heartbeat.q_step_rate(ONE, times(t)) + (1 - rate) * heartbeat.q_step_rate(ZERO, times(t))
            torch.testing.assert_close(rate, heartbeat.q_rate(x0, times(t)))
    torch.testing.assert_close(heartbeat.q_rate(ONE, times(heartbeat.T)), torch.full((1, 1), 0.2, dtype=torch.float64))


@pytest.mark.parametrize("t", [2, 3, 500, 1999, 2000])
def test_posterior_is_bayes_by_brute_force(t):
    """All joint probabilities of (x_{t-1}, x_t) given x0, normalised over x_{t-1}."""
    for x0 in (ZERO, ONE):
        before = heartbeat.q_rate(x0, times(t - 1)).item()
        for xt in (0, 1):
            joint = {}
            for x, chance in ((0, 1 - before), (1, before)):
                on = heartbeat.q_step_rate(torch.tensor([[float(x)]]), times(t)).item()
                joint[x] = chance * (on if xt else 1 - on)
            here = heartbeat.posterior(x0, torch.tensor([[float(xt)]]), times(t)).item()
            assert math.isclose(here, joint[1] / (joint[0] + joint[1]), rel_tol=1e-9)


def test_exact_guess_is_bayes_over_the_five_beats():
    torch.manual_seed(0)
    xt, t = (torch.rand(6, 20) < 0.3).float(), times(1, 2, 300, 1000, 1999, 2000)
    guess = heartbeat.exact_guess(xt, t)
    for row in range(6):
        chance = []
        for beat in heartbeat.BEATS:
            rates = heartbeat.q_rate(beat[None].double(), t[row:row + 1])[0]
            chance.append(math.prod((r if on else 1 - r) for r, on in zip(rates.tolist(), xt[row], strict=True)))
        mean = sum(c * beat for c, beat in zip(chance, heartbeat.BEATS, strict=True)) / sum(chance)
        torch.testing.assert_close(guess[row], mean.double(), atol=1e-6, rtol=1e-6)


def test_optimum_is_the_tabulated_one_and_below_the_truth():
    best = heartbeat.optimum()
    assert math.isclose(best, -2.3683, abs_tol=5e-5)
    assert best < -math.log2(5) - heartbeat.first_step_bits() < -math.log2(5)


def test_bound_of_the_exact_guess_is_the_optimum():
    K = [heartbeat.bound(heartbeat.exact_guess, 4, seed) for seed in range(6)]
    assert abs(sum(K) / 6 - heartbeat.optimum()) < 0.03


@pytest.mark.slow
def test_short_training_raises_K_but_not_past_the_optimum():
    torch.manual_seed(0)
    guess = heartbeat.Guess()
    before = heartbeat.bound(guess, 1, 0)
    heartbeat.train(guess, 400)
    after = heartbeat.bound(guess, 2, 0)
    assert before < -5 and after > -3
    assert after < heartbeat.bound(heartbeat.exact_guess, 2, 0)         # the same draws


def test_chain_of_the_exact_guess_ends_on_heartbeats():
    torch.manual_seed(0)
    chain = heartbeat.sample(heartbeat.exact_guess, 200)
    assert len(chain) == heartbeat.T + 1
    assert heartbeat.valid(chain[0]) > 97
    torch.testing.assert_close(chain[-1].mean().item(), 0.2, atol=0.03, rtol=0)
    assert all(((x == 0) | (x == 1)).all() for x in chain[::100])


def test_main_prints_the_bound_and_writes_the_picture(tmp_path, capsys):
    out = tmp_path / "new" / "beats.png"
    heartbeat.main(["--steps", "2", "--n", "100", "--out", str(out)])
    printed = capsys.readouterr().out
    assert out.read_bytes()[:4] == b"\x89PNG" and out.stat().st_size > 5_000
    for words in ("K ", "-2.414", "-2.3683", "-2.322", "valid"):
        assert words in printed, words
