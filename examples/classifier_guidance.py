"""Guidance by a classifier: a model that knows no labels makes the digit that a classifier of noisy digits asks for.

    python -m examples.classifier_guidance

The classifier is trained on x_t, since the chain shows it nothing else (Dhariwal and Nichol 2021, section 4). At scale
1 its gradient makes the conditional model of Bayes' rule, if both are exact; at larger ones the label weighs more. Half
a minute of training, and the samples that are classified as requested go from 0.09 to 0.99.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import data
import ddpm
import noise
from examples.common import HELD_OUT, Model, held_out_digits, minimise, trained
from run import pictures
from run.cli import check_range, limit_threads, parse, script
from scores import classes
from unet import sinusoid

SCALES = (0., 1., 3., 10.)


@dataclass(frozen=True)
class Config:
    """Trains a classifier of noisy digits, and guides a model without labels by it."""
    checkpoint: str = "weights/digits.safetensors"  # what train.py saved
    n: int = 1000                               # samples of each scale, all digits in turn
    updates: int = 3000                         # of the classifier
    steps: int = 50                             # of DDIM
    seed: int = 0                               # of all noise
    out: str = "out/classifier_guidance.png"    # the picture


class Classifier(nn.Module):
    """log p(y | x_t) (B, 10) of pictures (B, 1, 8, 8) and their t (B,)."""

    def __init__(self, pixels: int = 64, D: int = 32, width: int = 256, classes: int = 10):
        super().__init__()
        self.D, self.layers = D, nn.Sequential(nn.Linear(pixels + D, width), nn.SiLU(), nn.Linear(width, width),
                                               nn.SiLU(), nn.Linear(width, classes))

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([xt.flatten(1), sinusoid(t, self.D, 0)], dim=1)).log_softmax(1)


def train_classifier(schedule: ddpm.Schedule, updates: int, seed: int, batch: int = 256) -> Classifier:
    """A classifier of the digits at all t, trained on the pictures that the model was trained on."""
    torch.manual_seed(seed)
    digits, T, device = data.digits(), ddpm.schedule_length(schedule), schedule.beta.device
    classifier = Classifier().to(device)
    limit_threads(classifier)
    x0, labels = data.to_unit(digits.images).to(device), digits.labels.to(device)

    def loss(k: int) -> Tensor:
        t = (noise.uniform(seed, k, batch, noise.TIMES) * T).long().to(device) + 1
        chosen = (noise.uniform(seed, k, batch, noise.SHUFFLE) * len(x0)).long().to(device)
        eps = noise.normal(noise.image_seeds(seed, torch.arange(batch, device=device)), k, x0.shape[1:], noise.TRAIN)
        return cross_entropy(classifier(ddpm.q_sample(schedule, x0[chosen], t, eps), t), labels[chosen])

    minimise(loss, [torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.1)], updates)
    return classifier.requires_grad_(False)


def accuracy(classifier: Classifier, model: Model, t: int) -> float:
    """The share of held-out digits that the classifier knows at this t."""
    x0, labels = held_out_digits(model, HELD_OUT), data.digits(held_out=True).labels.to(model.schedule.beta.device)
    times = torch.full_like(labels, t)
    eps = noise.normal(noise.image_seeds(1, torch.arange(len(x0), device=x0.device)), t, x0.shape[1:])
    return (classifier(ddpm.q_sample(model.schedule, x0, times, eps), times).argmax(1) == labels).double().mean().item()


def samples(model: Model, classifier: Callable, scale: float, labels: Tensor, rows: Tensor, seeds: Tensor) -> Tensor:
    """Samples of these labels (B,), (B, 1, 8, 8), guided by the classifier with this scale."""
    def log_p(xt: Tensor, t: Tensor) -> Tensor:
        return classifier(xt, t).gather(1, labels[:, None])[:, 0]

    denoise = ddpm.classifier_guided(model.schedule, model.denoise, log_p, scale, model.target)
    *_, (_, x0, _) = ddpm.sample(denoise, rows, data.digits().shape, seeds)
    return x0


@script
def main(argv: Sequence[str] | None = None) -> dict[float, dict[str, float]]:
    config = parse(Config, argv)
    check_range(config, "n", 100)
    check_range(config, "updates", 1)
    model = trained(config.checkpoint)
    T, device = ddpm.schedule_length(model.schedule), model.schedule.beta.device
    classifier = train_classifier(model.schedule, config.updates, config.seed)
    print("held-out digits that the classifier knows:", ", ".join(
        f"{accuracy(classifier, model, t):.3f} at t = {t}" for t in (1, T // 4, T // 2, 3 * T // 4)))
    rows = ddpm.sampler_rows(model.schedule, ddpm.timesteps(T, config.steps), target=model.target)
    index = torch.arange(config.n, device=device)
    labels, seeds, reference = index % 10, noise.image_seeds(config.seed, index), classes.of_digits()
    columns, scores = [], {}
    print("scale    FD  agree   mem")
    for scale in SCALES:
        x = samples(model, classifier, scale, labels, rows, seeds).cpu()
        scores[scale] = classes.score(reference, x, labels.cpu())
        columns.append(x[:10])
        print(f"{scale:5g}  {scores[scale]['FD']:.2f}  {scores[scale]['agree']:.3f}  {scores[scale]['mem']:.2f}")
    pictures.save(pictures.side_by_side(columns, [f"scale {scale:g}" for scale in SCALES]), config.out)
    print(f"see {config.out}; its rows are asked to be 0 to 9")
    return scores


if __name__ == "__main__":
    main()
