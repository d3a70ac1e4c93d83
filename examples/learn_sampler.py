"""A learned sampler: a table whose numbers gradient descent has chosen, so that few evaluations land where many do.

    python -m examples.learn_sampler --checkpoint weights/fashion.safetensors --steps 5      # to out/learned.csv
    python sample.py --checkpoint weights/fashion.safetensors --sampler out/learned.csv

A step is linear in x_t and the predictions, so a table of S rows is some 5 S numbers: the times, c0, ct, cp and cp2.
Nothing says that those of a classical method are the best for this network. Here they are where Adam begins: it lowers
the squared distance from where the S rows land to where 2M lands from the same noise in many steps. The network
stays as it is, and a and b follow from the times. Noise that no update saw decides what has been gained.

Solvers have been learned before, by Shaul et al. 2024 (Bespoke Non-Stationary Solvers) and Frankel et al. 2025 (S4S)
among others, with other numbers and errors; docs/samplers.md compares what can be compared.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import ddpm
import sample
import samplers
from examples.common import minimise
from noise import normal
from run import pictures
from run.cli import check_range, limit_threads, make_parent, parse, script

LEARNED = {"t": 1, "c0": 0, "ct": 0, "cp": 1, "cp2": 2}     # and how many first rows cannot have it
TEACHER = 24                                                # steps of 2M, trailing


@dataclass(frozen=True)
class Config:
    """Learns the table of a sampler of few steps for a trained model."""
    checkpoint: str = "weights/digits.safetensors"  # what train.py saved
    from_: str = ""                             # a published model instead: any --source of convert.py
    labels: str = ""                            # classes to learn from, as for sample.py; empty: all
    guidance: float = 0.                        # w of classifier-free guidance: each w has a table of its own
    steps: int = 5                              # rows of the table
    updates: int = 300                          # of Adam
    lr: float = 0.01                            # its rate, which falls to zero
    batch: int = 32                             # pictures of an update
    n: int = 1024                               # pictures of the teacher, a quarter of which is held out
    seed: int = 12345                           # of their noise
    device: str = "auto"                        # cuda, cpu, or auto: cuda if there is one
    out: str = "out/learned.csv"                # the table, and beside it, as .png, pictures of before and after


def classical(rows_of: Callable, schedule: ddpm.Schedule, steps: int) -> dict[str, Tensor]:
    """Tables to begin from, by their flags. rows_of: `samplers.sampler_rows` for the model."""
    spacings = ("trailing", "flow", *(("karras", "logsnr") if schedule.alpha_bar[-1] > 0 else ()))
    return {f"--sampler {sampler} --spacing {spacing}":
            rows_of(times=samplers.spaced_times(schedule, steps, spacing), sampler=sampler)
            for spacing in spacings for sampler in ("ddim", "2m", "unipc")}


def units(schedule: ddpm.Schedule) -> Tensor:
    """Of what the numbers of a row are parts, (5,): times of T, the others of 1, so that one rate suits all."""
    return torch.tensor([ddpm.schedule_length(schedule) if name == "t" else 1 for name in LEARNED])


def numbers_of(rows: Tensor, schedule: ddpm.Schedule) -> Tensor:
    """What is learned of rows, (S, 5), in these units."""
    return torch.stack([samplers.column(rows, name) for name in LEARNED], dim=1) / units(schedule)


def table_of(numbers: Tensor, rows: Tensor, schedule: ddpm.Schedule, target: str) -> Tensor:
    """The table (S, 12) with these numbers (S, 5) in the place of rows'; with gradients."""
    learned = (numbers * units(schedule)).unbind(1)
    columns = {name: torch.cat([samplers.column(rows, name)[:fixed], values[fixed:]])
               for (name, fixed), values in zip(LEARNED.items(), learned, strict=True)}
    t = columns["t"].clamp(1, ddpm.schedule_length(schedule))
    a, b = ddpm.x0_coefficients(ddpm.alpha_bar_at(schedule, t), target)
    columns |= {"t": t, "s": torch.cat([t[1:], t.new_zeros(1)]), "a": a, "b": b}
    return torch.stack([columns.get(name, rows[:, k]) for k, name in enumerate(samplers.COLUMNS)], dim=1)


def learn(error: Callable[[Tensor, int], Tensor], rows: Tensor, schedule: ddpm.Schedule, target: str, *,
          updates: int = 300, lr: float = 0.01) -> Tensor:
    """The table that Adam finds from these rows on, by the gradients of error(table, k), k = 1..updates."""
    table = partial(table_of, rows=rows, schedule=schedule, target=target)
    numbers = numbers_of(rows, schedule).requires_grad_()
    minimise(lambda k: error(table(numbers), k), [torch.optim.Adam([numbers], lr, betas=(0.9, 0.99))], updates)
    return table(numbers.detach())


def end(denoise: Callable, rows: Tensor, x_T: Tensor) -> Tensor:
    """Where the rows lead from x_T (B, C, H, W): the core's loop, but with gradients."""
    *_, (_, x0, _) = inspect.unwrap(samplers.sample)(denoise, rows.to(x_T.device), x_T.shape[1:], None, x_T=x_T)
    return x0


@script
def main(argv: Sequence[str] | None = None) -> tuple[float, float]:
    config = parse(Config, argv)
    check_range(config, "steps updates batch", 1)
    check_range(config, "n", 8)
    base = sample.Config(config.checkpoint, config.from_, config.n, config.n, config.seed, config.labels,
                         guidance=config.guidance, device=config.device)
    checkpoint = sample.read(base)
    schedule, target = ddpm.from_betas(checkpoint.beta), checkpoint.settings["target"]
    plan = sample.make_plan(base, checkpoint)                                     # all n pictures are one batch
    [seeds], [labels], unet = plan.seeds, plan.labels or [None], plan.unet.requires_grad_(False)
    limit_threads(unet)
    x_T = normal(seeds, len(checkpoint.beta), plan.shape)
    unseen, every = (torch.arange(n).split(config.batch) for n in (config.n // 4, config.n))

    def ends(rows: Tensor, index: Tensor) -> Tensor:
        y = None if labels is None else labels[index]
        return end(unet if y is None else ddpm.guided(unet, y, len(plan.classes), config.guidance), rows, x_T[index])

    @torch.no_grad()
    def all_ends(rows: Tensor, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([ends(rows, index) for index in parts])

    def held_out_error(rows: Tensor) -> float:
        x = all_ends(rows, unseen)
        return (x - teacher[:len(x)]).square().mean().item()

    def error(rows: Tensor, k: int) -> Tensor:
        if k % (config.updates // 8 + 1) == 0:
            seen[value := held_out_error(rows)] = rows.detach()
            print(f"{value:.5f}  after {k} updates")
        index = torch.randint(config.n // 4, config.n, (config.batch,), generator=generator)
        return (ends(rows, index) - teacher[index]).square().mean()

    generator = torch.Generator().manual_seed(config.seed)
    rows_of = partial(samplers.sampler_rows, schedule, target=target, clip=checkpoint.clip)
    teacher = all_ends(rows_of(ddpm.timesteps(len(checkpoint.beta), min(TEACHER, len(checkpoint.beta))), sampler="2m"),
                       every)
    tables = classical(rows_of, schedule, config.steps)
    errors = {flags: held_out_error(rows) for flags, rows in tables.items()}
    best = min(errors, key=errors.get)
    print(f"squared error of {config.steps} evaluations on held-out noise:\n{errors[best]:.5f}  {best}")
    seen = {errors[best]: tables[best]}                                           # tables by their held-out error
    learned = learn(error, tables[best], schedule, target, updates=config.updates, lr=config.lr)
    seen[held_out_error(learned)] = learned
    after, learned = min(seen.items(), key=lambda item: item[0])
    samplers.check_rows(schedule, learned, target, "the learned table")
    samplers.write_table(make_parent(Path(config.out)), learned)
    picture = Path(config.out).with_suffix(".png")
    columns = [all_ends(rows, unseen)[:10] for rows in (tables[best], learned)]
    pictures.save(pictures.side_by_side([*columns, teacher[:10]], ["classical", "learned", "teacher"]), picture)
    print(f"{after:.5f}  learned; see {config.out} and {picture}")
    return errors[best], after


if __name__ == "__main__":
    main()
