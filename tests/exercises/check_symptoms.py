"""What the embedded students show of the faults of exercises 5 and 7: run by tests/test_exercises.py in a broken copy."""

import pytest
from toy import PROBLEM

from data import HERE
from infer import load_students, parse_args, solve


@pytest.fixture
def students():
    return load_students(parse_args(["--students", *(str(HERE / "students" / role) for role in ("decomposer", "solver"))]))


def test_the_embedded_students_solve_avas_story(students):
    assert solve([PROBLEM], students)[0].answer == "7"


def test_dialogues_that_vote_differ(students):
    assert len(set(solve([PROBLEM], students, n_samples=4, temperature=2.0)[0].answers)) > 1
