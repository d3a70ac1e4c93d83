"""What the README says of the repository is true of it."""

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
LISTED = dict(re.findall(r"^\| `([\w/]+(?:\.py|/))` \| (\d+) \|", README, re.M))       # files, or whole rooms


def count_lines(name):
    files = ROOT.glob(f"{name}**/*.py") if name.endswith("/") else [ROOT / name]
    return sum(len(path.read_text().splitlines()) for path in files)


def test_line_counts():
    assert {path.name for path in ROOT.glob("*.py")} == {name for name in LISTED if "/" not in name}
    assert {name: int(lines) for name, lines in LISTED.items()} == {name: count_lines(name) for name in LISTED}


def test_the_model_is_short():
    """The mathematics, the network, training and sampling: to be read in an evening, functions on a screen each."""
    texts = [(ROOT / f"{name}.py").read_text() for name in ("ddpm", "unet", "train", "sample")]
    functions = [node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert sum(len(text.splitlines()) for text in texts) < 1300
    assert len(functions) > 50 and max(each.end_lineno - each.lineno for each in functions) < 50


def test_links_lead_somewhere():
    links = [(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(([^)#]+)\)", text)]
    files = [(page, link) for page, link in links if "://" not in link]
    assert not [(page, link) for page, link in files if not ((ROOT / page).parent / link).exists()]
    assert {link for page, link in links if page == "README.md"} >= set(PAGES) - {"README.md"}


def test_commands_name_scripts_and_flags_that_exist():
    unknown = []
    for page, text in PAGES.items():
        for script, rest in re.findall(r"^ +(?:torchrun.*-- |python )(\w+\.py|-m [\w.]+)([^#\n]*)", text, re.M):
            path = ROOT / (script if script.endswith(".py") else script[3:].replace(".", "/") + ".py")
            path = path if path.exists() else path.with_suffix("") / "__main__.py"
            if script == "-m pytest":                           # the only program here that is not ours
                continue
            source = path.read_text() + (ROOT / "scores/fid.py").read_text() * (rest.split()[:1] == ["fid"])
            flags = {*re.findall(r"^    (\w+?)_?: ", source, re.M), *["preset"] * ("PRESETS" in source)}
            unknown += [f"{page}: {script} --{flag}" for flag in re.findall(r"--(\w+)", rest) if flag not in flags]
    assert not unknown


def test_the_lines_of_python_run():
    lines = re.search(r"^From Python.*\n\n((?:    .*\n|\n)+)", README, re.M)[1]
    names = {}
    exec(textwrap.dedent(lines), names)
    assert names["samples"].shape == names["x0"].shape and names["samples"].abs().max() <= 1
    assert all(p.grad is not None for p in names["unet"].parameters())
