"""Guidance: denoisers made of denoisers, that go further towards a label than the data do.

All are functions (xt, t) -> output, for any sampler. A label may be the network's own, or a classifier's.

[1] Ho, Salimans 2022, Classifier-Free Diffusion Guidance
[2] Lin et al. 2024, Common Diffusion Noise Schedules and Sample Steps are Flawed
[3] Dhariwal, Nichol 2021, Diffusion Models Beat GANs on Image Synthesis
[4] Kynkaanniemi et al. 2024, Applying Guidance in a Limited Interval Improves Sample and Distribution Quality
"""

from collections.abc import Callable

import torch
from torch import Tensor

from schedules import alpha_bar_at, broadcast_to, log_sigma, x0_coefficients


def guided(model: Callable, labels: Tensor, null: int, w: float | Tensor, rescale: float = 0.) -> Callable:
    """Classifier-free guidance: eps = (1 + w) eps(x, label) - w eps(x, null) ([1] eq. 6).

    model: (xt, t, labels) -> output. labels: int64 (B,). null: the null class. w: a number, or one per picture (B,);
    w = 0 is the conditional model with one network evaluation per step, w = -1 the unconditional one. rescale: phi in
    0..1, how far a picture's output is brought back to the deviation of the conditional one ([2] eq. 15 and 16).
    Variance channels, if any, are the conditional's.
    """
    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        if isinstance(w, (int, float)) and w == 0:
            return model(xt, t, labels)
        both = torch.cat([labels, torch.full_like(labels, null)])
        output, without = model(torch.cat([xt, xt]), torch.cat([t, t]), both).chunk(2)
        C = xt.shape[1]
        each = w if isinstance(w, (int, float)) else broadcast_to(output, torch.as_tensor(w, device=xt.device))[0]
        eps = (1 + each) * output[:, :C] - each * without[:, :C]
        if rescale:
            before, after = (part.flatten(1).std(1) for part in (output[:, :C], eps))
            eps = eps * broadcast_to(eps, 1 - rescale + rescale * before / after)[0]
        return torch.cat([eps, output[:, C:]], dim=1)

    return denoise


def weights_in_interval(schedule, times: Tensor, w: float, least: float, most: float) -> list[float]:
    """w for the times (S,) whose sigma lies between least and most, and for the others 0 ([4] eq. 6).

    Raises ValueError if it would be 0 for all.
    """
    sigma = log_sigma(alpha_bar_at(schedule, times)).exp()
    inside = (least <= sigma) & (sigma <= most)
    if not w or not inside.any():
        raise ValueError(f"guidance {w:g} would do nothing between sigma {least:g} and {most:g}; the steps go from "
                         f"{sigma[0]:.3g} to {sigma[-1]:.3g}")
    return torch.where(inside, w, 0.).tolist()


def classifier_guided(schedule, denoise: Callable, log_p: Callable, scale: float, target: str = "eps") -> Callable:
    """Guidance by a classifier: eps = eps_hat - sqrt(1 - alpha_bar) scale grad log p(y | x_t) ([3] algorithm 2).

    denoise: predicts any target, of which it is the equivalent change. log_p: (xt, t) -> log p(y | x_t) of each picture
    (B,), differentiable. Where alpha_bar is 0, x_t says nothing of y, and nothing is changed.
    """
    def towards(xt: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = xt.detach().requires_grad_()
            [gradient] = torch.autograd.grad(log_p(x, t).sum(), x)
        alpha_bar, output, C = alpha_bar_at(schedule, t), denoise(xt, t), xt.shape[1]
        _, b = x0_coefficients(alpha_bar, target)                                 # x0_hat = a xt + b output
        change = scale * (1 - alpha_bar) / alpha_bar.sqrt() / b
        [change] = broadcast_to(xt, torch.where(alpha_bar > 0, change, 0))
        return torch.cat([output[:, :C] + change * gradient, output[:, C:]], dim=1)

    return towards
