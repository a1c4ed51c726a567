"""Marks of operations: written in front of every subquestion, and taken off before scoring."""

import json
from dataclasses import asdict

import pytest

import eval as script
import guide
from data import Problem, Step, load_problems
from infer import Dialogue, Turn

PENS = Problem("pens-train-0", "Ava has 3 boxes of 4 pens. She loses 5 and 1. How many are left?", [
    Step("How many are in the boxes?", "3*4 = <<3*4=12>>12"),
    Step("How many are left?", "12 - 5 -1 = <<12 - 5 -1=6>>6")], "6")

@pytest.mark.parametrize("solution, operators", [
    ("<<-5=-5>>", ""), ("<<2*-5=-10>>", "*"), ("<<50%*20=10>>", "*"), ("<<(2+3)/5=1>>", "+/"),
    ("<<2*3=6>>6 and <<6+1=7>>7", "*+"), ("Nothing.", "")])
def test_an_operator_is_one_that_stands_between_two_values(solution, operators):
    assert guide.mark(Step("How many?", solution)).question == f"[{operators}] How many?"

def test_marks_of_a_file_are_annotations_of_the_same_problems(tmp_path):
    (tmp_path / "pens.jsonl").write_text(PENS.to_json() + "\n")
    guide.write_marked(tmp_path / "pens.jsonl", tmp_path / "guided.jsonl")
    (found,) = load_problems(str(tmp_path / "pens.jsonl"), "train",
                             annotations=tmp_path / "guided.jsonl")
    questions = [step.question for step in found.steps]
    assert questions == ["[*] How many are in the boxes?", "[--] How many are left?"]
    assert [step.solution for step in found.steps] == [step.solution for step in PENS.steps]

def test_predictions_are_scored_without_their_marks(tmp_path, capsys):
    turns = [Turn("decomposer", "Subquestion", guide.mark(step).question) for step in PENS.steps]
    row = asdict(Dialogue(PENS, turns=turns, answer="6")) | {"oracles": {}}
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in ({"settings": {}}, row)))
    assert script.bleu_of([row]) < 100
    guide.print_stripped(path)
    words = " ".join(capsys.readouterr().out.split())
    assert "word for word gold 1 of 1 = 100.0%" in words and "BLEU-4 100.0" in words
