"""The scripts together: who imports whom, what they print, and one run from a teacher's words to a score."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_teacher import FakeTeacher
from toy import real, tiny_student

import annotate
import eval
import infer
import tables
import train
from data import load_problems, read_records, same_answer
from eval import wilson
from gpt import SIZES

ROOT = Path(__file__).resolve().parent.parent
OURS = {"gpt", "data", "annotate", "train", "infer", "eval"}
GRAPH = {"data": set(), "gpt": {"data"}, "annotate": {"data"}, "train": {"data", "gpt"}, "infer": {"data", "gpt"},
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
        foreign = set(imports(path)) - PACKAGES - OURS - set(sys.stdlib_module_names) - {"toy", "reference", "fake_teacher", "tables"}
        assert not foreign - ({"transformers"} if path.name == "bench.py" else set()), path


def test_the_readmes_results_are_those_of_the_receipts():
    lines, readme = tables.table(), (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(lines) > 2 and "\n".join(lines) in readme
    assert "\n".join(tables.contrast()) in readme
    assert "\n".join(tables.table(tables.RESULTS / "other")) in readme
    folders = (tables.RESULTS, *(path for path in tables.RESULTS.iterdir() if path.is_dir()))
    for receipt in (receipt for folder in folders for receipt in tables.receipts(folder)):
        figure = receipt["scores"]["accuracy"]["right (strict)"]
        assert wilson(figure["right"], figure["n"]) == (figure["low"], figure["high"])
        assert figure["n"] == receipt["settings"]["n"] and receipt["commit"] and all(receipt["trained_by"].values())


@pytest.mark.parametrize("name", sorted(OURS - {"gpt"}))
def test_help_explains_every_flag(name):
    out = subprocess.run([sys.executable, str(ROOT / f"{name}.py"), "--help"], capture_output=True, text=True, check=True,
                         env={"COLUMNS": "88", "PATH": ""}, cwd=ROOT).stdout
    assert all(len(line) <= 88 for line in out.splitlines())
    flags = re.findall(r"^  (--[a-z-]+).*(?:\n {10,}.*)*", out, re.MULTILINE)
    explained = re.findall(r"^  --[a-z-]+.*?(?: {2,}|\n {10,})[a-z0-9(]", out, re.MULTILINE | re.IGNORECASE)
    assert len(flags) == len(explained) and 3 <= len(flags) <= 16


@real
@pytest.mark.parametrize("path", sorted((tables.RESULTS / "contrast").glob("*.gz")), ids=lambda path: path.name[:-9])
def test_the_dialogues_of_the_contrast_have_the_scores_of_their_receipts(path):
    header, *records = tables.unpack(path)
    scores = json.loads(path.with_name(path.name.replace(".jsonl.gz", ".json")).read_text(encoding="utf-8"))["scores"]
    again = eval.score(records)
    assert all(again[section] == scores[section] for section in scores if section != "where wrong answers broke")
    assert len(records) == header["settings"]["n"] == 1319


def test_from_a_teachers_words_to_a_score(tmp_path, monkeypatch, capsys):
    """The real commands one after another, on six stories: a teacher annotates, two students learn, solve, are scored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setitem(SIZES, "tiny", tiny_student("solver", n_embd=64, n_head=4).config)
    problems = load_problems("demo", "train", limit=6)
    with FakeTeacher(problems) as teacher:
        status = annotate.main(annotate.parse_args(["--teacher", "fake", "--base-url", teacher.url, "--limit", "6"]))
    assert not status
    records = read_records("annotations/demo-socratic.jsonl")
    assert [r.steps for r in records] == [p.steps for p in problems] and {r.source for r in records} == {"fake"}
    for role in ("decomposer", "solver"):
        train.main(train.parse_args(["--role", role, "--annotations", "annotations/demo-socratic.jsonl", "--limit", "6",
                                     "--steps", "300", "--lr", "5e-3"]))
    assert "6 annotations, 6 match the 6 problems" in capsys.readouterr().err
    Path("stories.jsonl").write_text("".join(p.to_json() + "\n" for p in problems), encoding="utf-8")
    infer.main(infer.parse_args(["--file", "stories.jsonl", "--json"]))
    dialogues = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    n_right = sum(same_answer(d["answer"], p.answer) for d, p in zip(dialogues, problems))
    assert n_right >= 5, "six stories should be known by heart"
    monkeypatch.setattr(eval, "load_problems", lambda *_, **__: problems)
    eval.main(eval.parse_args(["--split", "train", "--limit", "6"]))
    (scores,) = Path("predictions").glob("*.json")
    assert f"right so far {n_right / 6:6.1%}" in capsys.readouterr().out and json.loads(scores.read_text())["settings"]["n"] == 6
