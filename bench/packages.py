"""Which packages are installed: what is missing is named as a package index names it, and what is left out without it.

Nothing is imported to find out, so this takes no time.
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = {"diffusers": "diffusers' sampling loops, training steps and sampling step",
            "denoising-diffusion-pytorch": "its sampling loops and training step",
            "liger-kernel": "its norm in NCHW"}
NEEDED = "pytest"                                           # the benchmarks are its tests, whoever runs them
TESTS = "pytest-benchmark"                                  # pyproject.toml gives pytest an option of it


def installed(name: str) -> bool:
    """Whether the peer that this name begins with, "diffusers compiled" say, can be imported with all that it needs."""
    peer = name.split()[0]
    return find_spec(peer.replace("-", "_")) is not None and not unmet(peer)


@cache
def unmet(peer: str) -> tuple[str, ...]:
    """The requirements of a peer that are not there."""
    text = (ROOT / "bench/requirements.txt").read_text()
    lines = re.findall(rf"^(\S+==\S+) +# {re.escape(peer)}$", text, re.M)
    return tuple(dict.fromkeys(each for line in lines for each in missing(line)))


def missing(requirement: str) -> Iterator[str]:
    """The requirement, if nothing of that name is installed; else those of its own requirements that are not met."""
    from packaging.requirements import Requirement  # comes with matplotlib
    name = Requirement(requirement).name
    if version(name) is None:
        yield requirement
        return
    for need in map(Requirement, metadata.requires(name) or ()):
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        own = version(need.name)
        if own is None or not need.specifier.contains(own, prereleases=True):
            yield f"{need.name}{need.specifier}"


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check() -> list[str]:
    """What is missing and what is left out without it, as sentences. Raises ValueError if nothing can run at all."""
    needed = re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(), re.M)
    if absent := [name for name in (*needed, NEEDED) if version(name) is None]:
        raise ValueError(f"{', '.join(absent)} missing; nothing can be measured without")
    sentences = []
    if version(TESTS) is None:
        sentences.append(f"{TESTS} missing: the tests are left out")
    wheels = []
    for peer, what in LEFT_OUT.items():
        if unmet(peer):
            sentences.append(f"{', '.join(unmet(peer))} missing: {what} left out")
            wheels += unmet(peer)
    if wheels:
        sentences.append(f"to have them: python -m pip download --no-deps -d wheels {' '.join(dict.fromkeys(wheels))}, "
                         f"then, where they are needed, python -m pip install --no-index --no-deps wheels/*.whl")
    return sentences
