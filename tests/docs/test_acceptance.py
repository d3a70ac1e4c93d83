"""docs/acceptance.md names every row of what the sources can do, and nothing that is not there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "acceptance.md").read_text()
LAST = {"S0": 33, "S1": 24, "S2": 24, "S3": 16, "S4": 27, "U": 16, "T0": 10, "T1": 7, "T2": 16, "T3": 11, "T4": 23,
        "P": 15, "N": 5}
UNUSED = {"T4-06"}
SENTENCES = re.findall(r"^\| (\w\d-\d\d) \| \(X\)", TEXT, re.M)
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


@pytest.mark.parametrize("source", LAST)
def test_every_row_is_there_once_and_in_order(source):
    expected = [f"{source}-{k:02}" for k in range(1, LAST[source] + 1)]
    assert re.findall(rf"^\| ({source}-\d\d) \|", TEXT, re.M) == [row for row in expected if row not in UNUSED]


@pytest.mark.parametrize("row", re.findall(r"^\| [A-Z].*$", TEXT, re.M), ids=lambda row: row[2:7].strip(" |"))
def test_every_row_is_shown_by_something(row):
    shown = row.rstrip(" |").split("|")[-1]
    assert "::" in shown or "python " in shown or "below" in shown


@pytest.mark.parametrize("path, name", TESTS, ids=lambda part: part.removeprefix("tests/"))
def test_every_named_test_exists(path, name):
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_named_file_exists():
    names = set(re.findall(r"`([\w/]+\.(?:py|md|png))`", TEXT))
    assert len(names) > 20 and not [name for name in names if not (ROOT / name).exists()]


@pytest.mark.parametrize("row", SENTENCES)
def test_rows_without_code_have_a_sentence(row):
    assert row in TEXT[TEXT.index("## Sentences"):]


def test_every_paragraph_is_there():
    names = re.findall(r"^- ([A-Z][\w ]+): ", TEXT[TEXT.index("## Sentences"):], re.M)
    background = (ROOT / "docs" / "background.md").read_text()
    assert len(names) == 5 and all(f"**{name}.**" in background for name in names)
