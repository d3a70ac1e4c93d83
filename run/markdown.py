"""Tables in Markdown, and pages whose text stays while their numbers are measured again."""

from collections.abc import Sequence
from pathlib import Path

from data.files import writing


def table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Markdown; numbers with three digits that count, nothing for a number that is not there."""
    def cell(value) -> str:
        if not isinstance(value, float):
            return str(value)
        return "" if value != value else f"{value:.3g}" if abs(value) < 1000 else str(round(value))

    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines) + "\n"


def fill(page: Path, values: dict[str, str], out: Path | None = None) -> None:
    """Writes the page again, or to `out`, each value between its mark, <!-- name -->, and the next <!-- -->.

    Raises ValueError for a mark that the page does not have.
    """
    text = page.read_text()
    for name, value in values.items():
        before, mark, rest = text.partition(f"<!-- {name} -->")
        _, end, after = rest.partition("<!-- -->")
        if not mark or not end:
            raise ValueError(f"{page} has no place for {name}: put <!-- {name} --> and <!-- --> there")
        text = f"{before}{mark}{value}{end}{after}"
    with writing(out or page) as file:
        file.write(text.encode())
