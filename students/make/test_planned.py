"""A teacher with the subquestions of a student: the files that it is given, and its score."""

import json
from dataclasses import asdict
from pathlib import Path

import planned
from annotate import find_role, make_question
from data import Problem, Step, load_problems
from infer import Dialogue, Turn

PENS = Problem("pens", "Ava has 3 boxes of 4 pens. She loses 5. How many are left?", [
    Step("How many are in the boxes?", "3*4 = <<3*4=12>>12"),
    Step("How many are left?", "12-5 = <<12-5=7>>7")], "7")

def reply(name, text, sample=0):
    return {"id": name, "sample": sample, "teacher": "qwen",
            "reply": {"choices": [{"message": {"content": text}}]}}

def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

def test_the_teacher_is_given_subquestions_and_no_solution(tmp_path):
    turns = [Turn("decomposer", "Subquestion", "How many pens?"), Turn("solver", "Answer", "12")]
    row = asdict(Dialogue(PENS, turns=turns, answer="12")) | {"oracles": {}}
    write(tmp_path / "run.jsonl", [{"settings": {}}, row])
    planned.write_files(tmp_path / "run.jsonl", tmp_path / "teacher")
    asked = {}
    for name, mode in ("plain", "socratic"), ("decomposed", "socratic-gt"), ("gold", "socratic-gt"):
        (problem,) = load_problems(str(tmp_path / f"teacher/{name}.jsonl"), "all")
        asked[name] = make_question(problem, find_role(problem, mode), mode).split("\n")[1:]
        assert problem.answer == "7"
    assert asked == {"plain": [], "decomposed": ["Subquestion: How many pens?"], "gold": [
        "Subquestion: How many are in the boxes?", "Subquestion: How many are left?"]}

def test_the_first_reply_counts_and_a_missing_one_is_wrong(tmp_path, capsys):
    problems = [Problem(name, f"{name}?", answer="7") for name in "abcd"]
    (tmp_path / "plain.jsonl").write_text("".join(f"{p.to_json()}\n" for p in problems))
    write(tmp_path / "cot.replies.jsonl", [
        reply("a", "Answer: 7"), reply("a", "Answer: 8", 1),
        reply("b", "**Answer:** $7.00\n\nAnswer: 8"), reply("c", "It is 7.")])
    write(tmp_path / "own.replies.jsonl", [reply(name, "Answer: 7") for name in "bcd"])
    planned.print_scores(tmp_path / "plain.jsonl", sorted(tmp_path.glob("*.replies.jsonl")))
    *told, first, second, third = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2] for line in told] == [
        "3 of 4 problems have a reply, 1 with several answers",
        "3 of 4 problems have a reply, 0 with several answers"]
    assert first.split()[:6] == ["cot", "2", "of", "4", "=", "50.0%"]
    assert second.split()[:6] == ["own", "3", "of", "4", "=", "75.0%"]
    assert third == "cot against own: 1 wins, 2 losses, p = 1"

def test_the_written_scores_are_those_of_the_kept_replies(capsys):
    results = Path(__file__).resolve().parents[1] / "results"
    folder = results / "splitting" / "teacher"
    kept = sorted(folder.glob("*.replies.jsonl.gz"))
    planned.print_scores(folder / "decomposed.jsonl.gz", kept)
    lines = capsys.readouterr().out.splitlines()
    assert len(kept) == 4
    assert all(": 200 of 200 problems have a reply" in line for line in lines[:len(kept)])
    assert "\n".join(lines[len(kept):]) in (results / "README.md").read_text(encoding="utf-8")
