"""Writes the site: python -m docs.pages, then open docs/site/index.html. It needs no server and no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.files import writing
from docs.pages.site import build
from run.cli import check_range, parse, script


@dataclass(frozen=True)
class Config:
    """Writes the pages of the documentation: notes beside the sources, and pages to try things on."""
    out: str = "docs/site"                      # folder of the site
    steps: int = 500                            # of training the swiss roll whose reverse chain is shown


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    check_range(config, "steps", 1)
    files = build(config.steps)
    for name, content in files.items():
        with writing(Path(config.out, name)) as file:
            file.write(content)
    print(f"{len(files)} files, {sum(map(len, files.values())) / 1e6:.1f} MB; open {config.out}/index.html")


if __name__ == "__main__":
    main()
