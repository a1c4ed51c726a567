"""The scripts together: who imports whom, what they print, and one run from a teacher's words to a score."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"gpt", "data", "annotate", "train", "infer", "eval"}
GRAPH = {"data": set(), "gpt": set(), "annotate": {"data"}, "train": {"data", "gpt"}, "infer": {"data", "gpt"},
         "eval": {"data", "infer"}}
PACKAGES = {"torch", "numpy", "tiktoken", "requests", "pytest"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("name", sorted(OURS))
def test_the_import_graph_is_the_one_that_the_readme_draws(name):
    assert set(imports(ROOT / f"{name}.py")) & OURS == GRAPH[name]
    line = re.search(rf"^    {name}\.py .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)[0]
    drawn = line.partition("->")[2]
    assert {word.strip() for word in drawn.split(",") if word.strip()} == GRAPH[name]


def test_nothing_but_the_five_packages_is_imported():
    for path in (*ROOT.glob("*.py"), *ROOT.glob("tests/*.py")):
        foreign = set(imports(path)) - PACKAGES - OURS - set(sys.stdlib_module_names) - {"toy", "reference", "fake_teacher"}
        assert not foreign - ({"transformers"} if path.name == "bench.py" else set()), path


@pytest.mark.parametrize("name", sorted(OURS - {"gpt"}))
def test_help_explains_every_flag(name):
    out = subprocess.run([sys.executable, str(ROOT / f"{name}.py"), "--help"], capture_output=True, text=True, check=True,
                         env={"COLUMNS": "88", "PATH": ""}, cwd=ROOT).stdout
    assert all(len(line) <= 88 for line in out.splitlines())
    flags = re.findall(r"^  (--[a-z-]+).*(?:\n {10,}.*)*", out, re.MULTILINE)
    explained = re.findall(r"^  --[a-z-]+.*?(?: {2,}|\n {10,})[a-z0-9(]", out, re.MULTILINE | re.IGNORECASE)
    assert len(flags) == len(explained) > 5
