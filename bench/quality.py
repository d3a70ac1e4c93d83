"""Quality after equal CPU time: our recipe and published packages' on the same pictures, one thread each.

    pip install -r requirements-test.txt -r bench/requirements.txt # in an environment of its own: it may replace torch
    python -m bench.quality                             # all of it: about twenty hours of CPU; repeat it to resume
    python -m bench.quality --only ours --minutes 5     # five minutes of our curve, from three seeds
    python -m bench.quality --minutes ""                # the page alone, from what has been measured

Each training is a process of one thread, and its CPU time is what counts: data, update and average, not scores. They
advance in turns, all to the first minutes, then all to the next, so a machine that slows down slows all of them. At
each stop the averaged weights draw the same number of samples by the same sampler, ours, and are scored as `evaluate.py
classes` does. A package is there with its own settings, and tuned (bench/contenders.py): with several learning rates
for five minutes, the best of which goes on. Results are lines of a file; trainings in progress are files in
runs/quality, saved every five minutes.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
from cpuinfo import get_cpu_info  # comes with pytest-benchmark
from torch import Tensor
from torch.utils import _pytree as pytree

import data
import ddpm
import noise
import train
from bench import measure
from bench.contenders import CONTENDERS, Contender, Training, training_of
from bench.lines import append, read
from bench.quality_page import write_page
from run import tensors
from run.cli import check_range, parse, parse_numbers, script
from scores import classes, classifier

SEEDS, REPEATED, TRIED = (0, 1, 2), 15, 5   # seeds 1 and 2, if not annealed, and other rates, stop after these minutes
FOLDER, SAVED = Path("runs/quality"), 300               # states are saved after so many seconds, and at a stop


@dataclass(frozen=True)
class Config:
    """Compares the quality of trainings after equal CPU time, and writes bench/quality.md."""
    only: str = ",".join(CONTENDERS)            # which trainings
    data: str = train.PRESETS["fashion"].data   # the pictures, as for train.py
    minutes: str = "5,15,30,60"                 # of CPU at which they are scored
    n: int = 1000                               # samples of each score
    steps: int = 10                             # of DPM-Solver++ for each
    jobs: int = 2                               # trainings at a time
    out: str = "bench/results/quality.jsonl"    # the results


# In a process of its own

def advance(training: Training, config: Config, minutes: float) -> dict:
    """Trains until so many CPU-minutes have been spent, saves, and scores."""
    torch.set_num_threads(1)
    dataset, held_out = data.load(config.data), data.load(data.TEST + config.data)
    entry = CONTENDERS[training.name]
    path = FOLDER / Path(config.out).stem / f"{training}{f', {minutes:g} minutes' * entry.annealed}.safetensors"
    contender = entry.make(dataset, training.seed, training.rate, **{"minutes": minutes} if entry.annealed else {})
    step, spent = restore(path, contender) if path.is_file() else (0, 0.)
    if spent > 60 * minutes + 60:
        raise ValueError(f"{path} is beyond {minutes} minutes, but {config.out} has no line of that; move it away")
    core = yardstick(dataset)
    batches = data.Batches(dataset, contender.batch, training.seed, False)
    while spent < 60 * minutes:
        step, spent = train_until(min(spent + SAVED, 60 * minutes), contender, batches, training.seed, step, spent)
        keep(path, contender, step, spent)
    return {**training._asdict(), "minutes": minutes, "steps": step, "images": step * contender.batch,
            "parameters": contender.parameters, "form": contender.form, "core": core,
            **score(contender, dataset, held_out, config), **how(config),
            "package": None if training.name.startswith("ours") else version(training.name.split()[0]),
            "cpu": get_cpu_info().get("brand_raw", ""),
            **measure.stamp()}


def keep(path: Path, contender: Contender, step: int, seconds: float) -> None:
    """Saves all that changes: tensors by their place among the leaves of the states, the rest as JSON."""
    leaves, tree = pytree.tree_flatten({name: part.state_dict() for name, part in contender.parts.items()})
    named = {str(k): leaf.clone() for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}   # some share memory
    values = [list(named[str(k)].stride()) if str(k) in named else leaf for k, leaf in enumerate(leaves)]
    tensors.save(path, named, {"tree": pytree.treespec_dumps(tree), "values": values, "step": step, "seconds": seconds})


def restore(path: Path, contender: Contender) -> tuple[int, float]:
    """The step and the CPU-seconds at which a state was kept; the contender is as it was then.

    Tensors lie as they lay, for fused Adam pairs a weight's elements with its moments' by their places in memory.
    """
    named, facts = tensors.load(path)
    leaves = [torch.empty_strided(named[str(k)].shape, value).copy_(named[str(k)]) if str(k) in named else value
              for k, value in enumerate(facts["values"])]
    for name, state in pytree.tree_unflatten(leaves, pytree.treespec_loads(facts["tree"])).items():
        contender.parts[name].load_state_dict(state)
    return facts["step"], facts["seconds"]


def train_until(seconds: float, contender: Contender, batches: data.Batches, seed: int, step: int,
                spent: float) -> tuple[int, float]:
    """Goes on from a step and the CPU-seconds spent until `seconds` have been; both as they are then."""
    began = time.process_time() - spent
    while (spent := time.process_time() - began) < seconds:
        contender.pace(spent)
        step += 1
        torch.manual_seed(seed * 10**9 + step)                                    # so that a resumed run goes on alike
        contender.update(step, *batches[step])
    return step, spent


def yardstick(dataset: data.Data, seconds: float = 5.) -> float:
    """How fast this core is: pictures that ours learns from in a CPU-second."""
    contender = CONTENDERS["ours"].make(dataset, 0, CONTENDERS["ours"].rates[0])
    batches = data.Batches(dataset, contender.batch, 0, False)
    contender.update(1, *batches[1])                                              # slower than the others
    last, spent = train_until(seconds, contender, batches, 0, 1, 0.)
    return (last - 1) * contender.batch / spent


def how(config: Config) -> dict:
    """What makes scores comparable."""
    return {"data": config.data, "n": config.n, "sampler_steps": config.steps}


def score(contender: Contender, dataset: data.Data, held_out: data.Data, config: Config) -> dict[str, float]:
    """FD, pFD and agree of samples of all classes in turn (see evaluate.py)."""
    weights = classifier.load_fitting(classifier.facts_of(dataset)).weights
    labels = torch.arange(config.n) % len(dataset.classes)
    T = ddpm.schedule_length(contender.schedule)
    rows = ddpm.sampler_rows(contender.schedule, sampling_times(T, config.steps), sampler="2m", target=contender.target)
    x = torch.cat([draw(contender, rows, dataset.shape, part, labels[part])
                   for part in torch.arange(config.n).split(50)])                 # small, for the caches
    unseen, made = classes.units(held_out), classes.features(weights, x)
    return {"FD": classes.frechet(made, classes.features(weights, unseen)),
            "pFD": classes.frechet(x.flatten(1), unseen.flatten(1)), "agree": classes.agreement(weights, made, labels)}


def sampling_times(T: int, steps: int) -> list[int]:
    """The trailing timesteps, and 0.98 T after the first of them.

    At T a network that predicts eps says next to nothing of x0; behind a long first step that would be seen.
    """
    return sorted({*ddpm.timesteps(T, steps).tolist(), round(0.98 * T)}, reverse=True)


def floor(config: Config) -> float:
    """FD of as many training pictures as there are samples."""
    dataset, held_out = data.load(config.data), data.load(data.TEST + config.data)
    weights = classifier.load_fitting(classifier.facts_of(dataset)).weights
    real, some = (classes.features(weights, classes.units(part)) for part in (held_out, data.spread(dataset, config.n)))
    return classes.frechet(some, real)


@torch.no_grad()
def draw(contender: Contender, rows: torch.Tensor, shape: Sequence[int], index: torch.Tensor,
         labels: torch.Tensor) -> torch.Tensor:
    contender.network.eval()
    *_, (_, x0, _) = ddpm.sample(lambda xt, t: contender.output(xt, t, labels), rows, shape,
                                 noise.image_seeds(0, index))
    contender.network.train()
    return x0


# In turns

def due(minutes: float, names: Sequence[str], done: list[dict]) -> list[Training]:
    """What has yet to reach this stop: every name at its rate, early stops from all seeds, the first at other rates."""
    reached, wanted = {training_of(line) for line in done if line["minutes"] == minutes}, []
    for name in names:
        rate, *others = CONTENDERS[name].rates
        seeds = SEEDS if minutes <= REPEATED or CONTENDERS[name].annealed else SEEDS[:1]
        wanted += [Training(name, rate, seed) for seed in seeds]
        wanted += [Training(name, other) for other in others if minutes <= TRIED]
    return [training for training in wanted if training not in reached]


def measure_all(config: Config, stops: Sequence[float], names: Sequence[str], done: list[dict]) -> None:
    """Brings every training to every stop, a line of the file for each."""
    with ProcessPoolExecutor(config.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        for minutes in stops:
            while trainings := due(minutes, names, done):
                print(f"{len(trainings)} trainings go on to {minutes} CPU-minutes, {config.jobs} at a time", flush=True)
                futures = [pool.submit(advance, training, config, minutes) for training in trainings]
                for future in as_completed(futures):
                    line = future.result()
                    done.append(line)
                    append(Path(config.out), line)
                    print(f"{training_of(line)}: FD {line['FD']:.2f} after {minutes} CPU-minutes, "
                          f"{line['images']} pictures", flush=True)


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    names, stops = config.only.split(","), sorted(parse_numbers("minutes", config.minutes))
    check_range(config, "n jobs steps", 1)
    if stops and stops[0] < 1:
        raise ValueError(f"minutes is {config.minutes!r}; they must be at least 1")
    for name in names:
        ddpm.check_choice("only", name, CONTENDERS)
        if stops and not name.startswith("ours") and not measure.installed(name):
            raise ValueError(f"{name} is not there; pip install -r bench/requirements.txt, or leave it out of --only")
    done = read(Path(config.out))
    for line in done:
        if (settings := {name: line[name] for name in how(config)}) != how(config):
            raise ValueError(f"{config.out} has scores of {settings}; use the same flags, or another --out")
    measure_all(config, stops, names, done)
    if done:
        write_page(config, floor(config), done)


if __name__ == "__main__":
    main()
