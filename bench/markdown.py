"""Tables in Markdown."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Markdown; numbers with three digits that count, nothing for a number that is not there."""
    def cell(value) -> str:
        if not isinstance(value, float):
            return str(value)
        return "" if value != value else f"{value:.3g}" if abs(value) < 1000 else str(round(value))

    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines) + "\n"
