"""What the README says of the repository is true of it."""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
FILES = dict(re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", README, re.M))


def test_every_script_is_listed():
    assert {path.name for path in ROOT.glob("*.py")} == {name for name in FILES if "/" not in name}


@pytest.mark.parametrize("name", FILES)
def test_line_counts(name):
    assert len((ROOT / name).read_text().splitlines()) == int(FILES[name])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", PAGES[page])
    assert all(((ROOT / page).parent / link).exists() for link in links if "://" not in link)


def test_readme_links_every_page():
    assert set(re.findall(r"\]\(([^)#]+\.md)\)", README)) >= set(PAGES) - {"README.md"}


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_scripts_and_flags_that_exist(page):
    commands = re.findall(r"^ +(?:torchrun.*-- |python )(\w+\.py|-m [\w.]+)([^#\n]*)", PAGES[page], re.M)
    for script, rest in commands:
        path = ROOT / (script if script.endswith(".py") else script[3:].replace(".", "/") + ".py")
        path = path if path.exists() else path.with_suffix("") / "__main__.py"
        source = path.read_text() + (ROOT / "scores/fid.py").read_text() * (rest.split()[:1] == ["fid"])
        known = {*re.findall(r"^    (\w+?)_?: ", source, re.M), *["preset"] * ("PRESETS" in source)}
        assert known >= {*re.findall(r"--(\w+)", rest)}, script


def test_the_lines_of_python_run():
    lines = re.search(r"^From Python.*\n\n((?:    .*\n|\n)+)", README, re.M)[1]
    names = {}
    exec(textwrap.dedent(lines), names)
    assert names["samples"].shape == names["x0"].shape and names["samples"].abs().max() <= 1
    assert all(p.grad is not None for p in names["unet"].parameters())
