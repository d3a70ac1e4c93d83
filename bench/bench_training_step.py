"""One update: noise, loss, gradient, its norm clipped, Adam or Muon, the average. Ours and peers."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import data
import ddpm
import noise
import train
from bench.bench_sampling_loop import awake, count, diffusers_unet, layout_of, lucidrains_unet
from bench.measure import CUDA, LUCIDRAINS, Whole, device, error_of, measure_whole, skip_missing
from kernels import group_norm_silu, group_norm_silu_plain
from kernels.equivalence import SIDES
from unet import CONFIGS, Norm, UNet

OURS = {"eager": {}, "bf16": {"dtype": "bf16"}, "bf16 compiled": {"dtype": "bf16", "compile": True},
        "bf16 compiled kernels": {"dtype": "bf16", "compile": True},
        "bf16 compiled muon": {"dtype": "bf16", "compile": True, "optimizer": "muon"}}
PEERS = ("diffusers float32", "diffusers nchw", "diffusers channels_last", "diffusers compiled",
         f"{LUCIDRAINS} float32", f"{LUCIDRAINS} nchw", f"{LUCIDRAINS} channels_last")     # compiled: in channels_last
TOLERANCE = 0.03            # of the loss and the gradient; in bf16 on a CPU 1e-3 and 1 to 2 %, a peer at batch 4 2.3 %


def ours(name: str, network: str, B: int) -> Whole:
    """train.update on random pixels, in channels_last unless it is eager.

    Without dropout, as all candidates, so that losses can be compared.
    """
    shape = (CONFIGS[network].in_channels, SIDES[network], SIDES[network])
    pixels = torch.randint(256, (B, *shape), dtype=torch.uint8).to(device())
    labels = torch.empty(0, dtype=torch.int64)
    config = train.Config(network=network, batch=B, lr=1e-4, target="eps", schedule="linear",
                          **{"optimizer": "adam"} | OURS[name])
    run = train.start(config, data.Data("random", pixels, labels, (), shape))
    awake(run.unet).requires_grad_(True).train()
    if name != "eager":
        run.unet.to(memory_format=torch.channels_last)
    for module in run.unet.modules():
        if isinstance(module, Norm):                        # --compile alone would choose the fused one
            module.norm = group_norm_silu if "kernels" in name else group_norm_silu_plain
        if isinstance(module, nn.Dropout):
            module.p = 0.
    run = run._replace(ema={k: w.detach().clone() for k, w in run.weights.items()})
    model = train.trained_model(run)

    def update() -> object:
        return train.update(run, model, 1, pixels, labels)
    return Whole(update, partial(errors, run, model, data.to_unit(pixels)), TOLERANCE, count(run.unet))


def errors(run: train.Run, model: Callable, x0: Tensor) -> float:
    """Of the loss and of its gradient by this model, the larger, beside the plain network's in float64.

    Of eight pictures of the batch, over all t: the others' losses are left out of the sum, so that the model is
    compiled once, for the batch.
    """
    B = len(x0)
    few = slice(None, None, max(1, B // 8))
    t = (torch.arange(B, device=device()) * 1000 // B) + 1
    eps = noise.normal(noise.image_seeds(0, torch.arange(B, device=device())), 1, x0.shape[1:], noise.TRAIN)
    plain = UNet(run.unet.config).to(device()).double().eval()
    plain.load_state_dict(run.unet.state_dict())
    got = ddpm.loss(run.schedule, lambda xt, t: model(xt, t, None), x0, t, eps)[few].mean()
    true = ddpm.loss(run.schedule, plain, x0[few].double(), t[few], eps[few].double()).mean()
    return worse(got, list(run.unet.parameters()), true, list(plain.parameters()))


def worse(got: Tensor, weights: list[Tensor], true: Tensor, true_weights: list[Tensor]) -> float:
    """The error of the loss, |difference| / |loss|, or that of the gradient, whichever is larger."""
    ours, theirs = (torch.cat([g.double().flatten() for g in torch.autograd.grad(loss, list(w))])
                    for loss, w in ((got, weights), (true, true_weights)))
    return error_of([got[None], ours], [true[None].double(), theirs])


def peer(name: str, network: str, B: int) -> Whole:
    """The same by others, under autocast to bf16 unless in float32: fused Adam, clipped, averaged as ours."""
    config = CONFIGS[network]
    x0 = 2 * torch.rand(B, config.in_channels, SIDES[network], SIDES[network], device=device()) - 1
    if name.startswith(LUCIDRAINS):
        from denoising_diffusion_pytorch import GaussianDiffusion
        model = lucidrains_unet(network)
        process = GaussianDiffusion(model, image_size=SIDES[network], beta_schedule="linear", objective="pred_noise",
                                    auto_normalize=False).to(device())
        loss = partial(process, x0)
    else:
        from diffusers import DDPMScheduler
        model = awake(diffusers_unet(network))
        if "compiled" in name:
            model.compile(fullgraph=True)
        loss = partial(diffusers_loss, model, DDPMScheduler(), x0, config.classes)
    model.to(memory_format=layout_of(name)).requires_grad_(True).train()
    return learner(model, loss, half="float32" not in name)


def diffusers_loss(model: nn.Module, scheduler, x0: Tensor, classes: int) -> Tensor:
    t, eps = torch.randint(1000, (len(x0),), device=x0.device), torch.randn_like(x0)
    output = model(scheduler.add_noise(x0, eps, t), t, class_labels=t % classes if classes else None).sample
    return (output - eps).square().mean()


def learner(model: nn.Module, loss: Callable[[], Tensor], half: bool) -> Whole:
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
    ema = [p.detach().clone() for p in parameters]

    def value() -> Tensor:
        with torch.autocast(device().type, torch.bfloat16) if half else nullcontext():
            return loss()

    def update() -> None:
        optimizer.zero_grad()
        value().backward()
        nn.utils.clip_grad_norm_(parameters, 1.)
        optimizer.step()
        torch._foreach_lerp_(ema, [p.detach() for p in parameters], 0.005)

    def error() -> float:
        """Under autocast, against float32 with the same random numbers: these networks mix in constants."""
        losses = []
        for run, stance in ((value, "default"), (loss, "force_eager")):     # only what is timed is compiled
            torch.manual_seed(0)
            with torch.compiler.set_stance(stance):
                losses.append(run())
        return worse(losses[0], parameters, losses[1], parameters)
    return Whole(update, error, TOLERANCE, count(model))


def build(name: str, network: str, B: int) -> Whole:
    return ours(name, network, B) if name in OURS else peer(name, network, B)


# What is compiled would take minutes on a CPU.
@pytest.mark.parametrize("name", [name for name in (*reversed(OURS), *PEERS) if CUDA or "compiled" not in name])
@pytest.mark.parametrize("network, B", [("cifar10", 128)] if CUDA else [("digits", 64), ("cifar10", 8)])
def test_update(benchmark, name, network, B):
    skip_missing(name)
    benchmark.group = f"training {network} batch {B}"
    benchmark.extra_info |= {"B": B, "network": network}
    measure_whole(benchmark, partial(build, name, network, B), warmups=3 if CUDA else 1, rounds=5,
                  iterations=10 if CUDA else 1)             # a GPU does not wait in between
