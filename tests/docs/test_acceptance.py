"""docs/acceptance.md names every row of what the sources can do, and nothing that is not there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "acceptance.md").read_text()
COUNTS = {"S0": 34, "S1": 24, "S2": 25, "S3": 17, "S4": 28, "U": 16, "T0": 10, "T1": 7, "T2": 16, "T3": 11, "T4": 23,
          "P": 15, "N": 5, "F": 11}                      # rows of each source
UNUSED = {"T4-06"}
SENTENCES = TEXT[TEXT.index("## Sentences"):]


def test_every_row_is_there_once_and_in_order():
    expected = [f"{source}-{k:02}" for source, count in COUNTS.items() for k in range(1, count + 1)]
    assert re.findall(r"^\| ([A-Z]\d?-\d\d) \|", TEXT, re.M) == [row for row in expected if row not in UNUSED]


def test_every_row_is_shown_by_something():
    shown = {row[2:7]: row.rstrip(" |").split("|")[-1] for row in re.findall(r"^\| [A-Z].*$", TEXT, re.M)}
    assert not [row for row, by in shown.items() if not re.search("::|python |below", by)]


def test_every_named_test_exists():
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT))
    there = {(file, node.name) for file in {file for file, _ in named} if (ROOT / file).exists()
             for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert len(named) > 100 and not sorted(named - there)


def test_every_named_file_exists():
    names = set(re.findall(r"`([\w/]+\.(?:py|md|png|ipynb|safetensors))`", TEXT))
    assert len(names) > 20 and not [name for name in names if not (ROOT / name).exists()]


def test_rows_without_code_have_a_sentence_in_a_paragraph_that_is_there():
    rows = re.findall(r"^\| ([A-Z]\d-\d\d) \| \(X\)", TEXT, re.M)
    paragraphs = re.findall(r"^- ([A-Z][\w ]+): ", SENTENCES, re.M)
    background = (ROOT / "docs" / "background.md").read_text()
    assert len(rows) > 5 and not [row for row in rows if row not in SENTENCES]
    assert len(paragraphs) == 5 and not [name for name in paragraphs if f"**{name}.**" not in background]
