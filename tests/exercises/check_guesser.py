"""The check of exercise 9: python -m pytest -q tests/exercises/check_guesser.py"""

from dataclasses import replace

from data import can_learn, segments
from infer import make_cues
from toy import PROBLEM

GIVEN = f"Problem: {PROBLEM.problem}\nSubquestion: How many pens?\nSubquestion: How many are left?\nAnswer:"


def test_it_sees_the_problem_and_all_subquestions_and_learns_the_answer_alone():
    parts = segments(PROBLEM, "guesser")
    assert "".join(part.text for part in parts if not part.learned) == GIVEN
    assert "".join(part.text for part in parts if part.learned) == " 7"


def test_a_record_without_subquestions_teaches_it_nothing():
    assert can_learn(PROBLEM, "guesser")
    assert not can_learn(replace(PROBLEM, steps=[]), "guesser")


def test_it_reads_the_same_when_it_solves_a_problem():
    (cue,) = make_cues(PROBLEM, "guesser", PROBLEM.steps)
    assert "".join(cue) == GIVEN
