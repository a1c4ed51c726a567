"""The scripts together: who imports whom, what they print, and one run from a teacher's words to a score."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_teacher import FakeTeacher
from toy import real, tiny_student

import annotate
import eval
import infer
import tables
import train
from data import Problem, load_problems, read_lines, same_answer
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
    tools = [*ROOT.glob("tests/*.py"), *ROOT.glob("students/make/*.py")]    # they import each other
    known = PACKAGES | OURS | set(sys.stdlib_module_names)
    for path in (*ROOT.glob("*.py"), *tools):
        own = {tool.stem for tool in tools if tool.parent == path.parent} | {"exercises"}
        foreign = set(imports(path)) - known - own - ({"transformers"} if path.name == "bench.py" else set())
        assert not foreign, path


def test_the_written_results_are_those_of_the_receipts():
    text = (tables.RESULTS / "README.md").read_text(encoding="utf-8")
    for lines in tables.tables():
        assert len(lines) > 2 and "\n".join(lines) in text
    folders = (tables.RESULTS, *(path for path in tables.RESULTS.iterdir() if path.is_dir()))
    receipts, known = [receipt for folder in folders for receipt in tables.receipts(folder)], set()
    for receipt in receipts:
        figure = tables.right(receipt)
        known.add((figure["right"], figure["n"]))
        assert wilson(figure["right"], figure["n"]) == (figure["low"], figure["high"])
        assert figure["n"] == receipt["settings"]["n"] and receipt["commit"] and all(receipt["trained_by"].values())
    rows = re.findall(r"^\| (.*) \| ([\d,]+) of ([\d,]+) = (.*) % \| (.*) to (.*) \|$",
                      (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 2
    for row, *counts, share, low, high in rows:
        n_right, n = (int(count.replace(",", "")) for count in counts)
        assert [f"{100 * x:.1f}" for x in (n_right / n, *wilson(n_right, n))] == [share, low, high], row
        assert (n_right, n) in known, f"no receipt: {row}"


@pytest.mark.parametrize("name", sorted(OURS - {"gpt"}))
def test_help_explains_every_flag(name):
    out = subprocess.run([sys.executable, str(ROOT / f"{name}.py"), "--help"], capture_output=True, text=True, check=True,
                         env={"COLUMNS": "88", "PATH": ""}, cwd=ROOT).stdout
    assert all(len(line) <= 88 for line in out.splitlines())
    flags = re.findall(r"^  (--[a-z-]+).*(?:\n {10,}.*)*", out, re.MULTILINE)
    explained = re.findall(r"^  --[a-z-]+.*?(?: {2,}|\n {10,})[a-z0-9(]", out, re.MULTILINE | re.IGNORECASE)
    assert len(flags) == len(explained) and 2 <= len(flags) <= 16


def test_a_row_is_the_same_from_old_and_new_scores_and_runs_of_other_students_stand_side_by_side(tmp_path, monkeypatch):
    """Receipts were named by their run, whose name no longer tells seeds apart."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="abc1234\n"))
    figure, constant = {"right": 3, "n": 10, "low": 0.1, "high": 0.6}, {"right": 1, "n": 10}
    for seed, name in enumerate(("right (strict)", "right")):
        scores = {"accuracy": {name: figure, "always 7, the most frequent here": constant}}
        text = json.dumps({"settings": {"n": 10, "cot_sha256": str(seed)}, "scores": scores,
                           "command": "python eval.py --method cot --out there"})
        (tmp_path / "demo-test-cot.json").write_text(text, encoding="utf-8")
        tables.add(tmp_path / "demo-test-cot.json", "demo", "beside")
    rows = tables.table(tmp_path / "beside")[2:]
    assert rows == ["| demo | 3 of 10 = 30.0% | 10.0% to 60.0% | 10.0% | `--method cot` |"] * 2


@real
def test_the_dialogues_of_the_contrast_have_as_many_right_as_their_receipts():
    golds = {problem.id: problem.answer for problem in load_problems("gsm8k", "test")}
    paths = sorted((tables.RESULTS / "contrast").glob("*.jsonl.gz"))
    assert len(paths) >= 6
    for path in paths:
        _, *records = read_lines(path)
        receipt = json.loads(path.with_name(path.name.replace(".jsonl.gz", ".json")).read_text(encoding="utf-8"))
        assert [record["id"] for record in records] == list(golds)
        assert sum(same_answer(record["answer"], golds[record["id"]]) for record in records) == tables.right(receipt)["right"]


def test_from_a_teachers_words_to_a_score(tmp_path, monkeypatch, capsys):
    """The real commands one after another, on six stories: a teacher annotates, two students learn, solve, are scored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setitem(SIZES, "tiny", tiny_student("solver", n_embd=64, n_head=4).config)
    problems = load_problems("demo", "train", limit=6)
    with FakeTeacher(problems) as teacher:
        status = annotate.main(annotate.parse_args(["--teacher", "fake", "--base-url", teacher.url, "--limit", "6"]))
    assert not status
    records = read_lines("annotations/demo-socratic.jsonl", Problem.from_json)
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
