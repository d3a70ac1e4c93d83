"""Results as Markdown: tables, ratios, and what the pages share."""

from collections.abc import Sequence
from statistics import geometric_mean


def table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Markdown; numbers with three digits that count."""
    def cell(value) -> str:
        return f"{value:.3g}" if isinstance(value, float) and value < 1000 else str(
            round(value) if isinstance(value, float) else value)

    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines) + "\n"


def stamps(lines: dict[str, dict]) -> str:
    """What it was measured on; where that changed on the way, all of it."""
    stamp = {}
    for line in lines.values():
        for name, value in line.get("stamp", {}).items():
            stamp.setdefault(name, {})[value] = None
    return "; ".join(f"{name} {', '.join(values) if len(values) < 4 else f'{min(values)} to {max(values)}'}"
                     for name, values in stamp.items()) + "\n"


def sections(lines: dict[str, dict]) -> dict[str, dict[str, dict]]:
    """Results by what comes before the last word of a case, or its colon, and after."""
    by_name = {}
    for case, line in lines.items():
        if case != "machine":
            name, _, last = case.rpartition(": " if ": " in case else " ")
            by_name.setdefault(name, {})[last] = line
    return by_name


def eager_peer(done: dict[str, dict]) -> str:
    """diffusers without torch.compile, in the layout that is faster for it; "" where it was not measured."""
    eager = [name for name in ("diffusers nchw", "diffusers channels_last") if name in done]
    return min(eager, key=lambda name: done[name]["us"], default="")


def fastest_peer(done: dict[str, dict]) -> str:
    """The fastest of all ways that diffusers was run; "" where there is none."""
    return min((name for name in done if name.startswith("diffusers")), key=lambda name: done[name]["us"], default="")


def over(results: dict, one: str, other: str) -> float | str:
    """How many times as fast `one` is as `other`."""
    times = [results.get(name, {}).get("us") for name in (other, one)]
    return times[0] / times[1] if all(times) else ""


def machine(lines: dict[str, dict]) -> tuple[float, float]:
    """What was measured in the same run: GB/s of a copy, TFLOP/s of matrices; 0 if nothing was."""
    rates = lines.get("machine", {}).get("results", {})
    return rates.get("copy", {}).get("GB/s", 0.), rates.get("matrices", {}).get("TFLOP/s", 0.)


def mean(values: Sequence) -> float | str:
    values = [value for value in values if value != ""]
    return geometric_mean(values) if values else ""


def machine_line(lines: dict[str, dict]) -> str:
    copy, matrices = machine(lines)
    return (f"\nIn the same run a copy moved {copy:.0f} GB/s, and bf16 matrices multiplied at {matrices:.0f} TFLOP/s.\n"
            if copy else "")


def failures(lines: dict[str, dict]) -> str:
    """What was not measured, and why."""
    failed = [(case, "", line["failed"]) for case, line in lines.items() if "failed" in line]
    for case, line in lines.items():
        results = line.get("results", {})
        groups = [results.get(state, {}) for state in ("cold", "warm")] if "work" in results else [{"": results}]
        failed += [(case, name, each["failed"]) for group in groups for name, each in group.items() if "failed" in each]
    failed = list(dict.fromkeys(failed))
    return "\n## Not measured\n\n" + table(["case", "candidate", "why"], failed) if failed else ""
