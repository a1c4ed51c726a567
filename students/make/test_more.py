"""Rows made by hand become records, or are dropped, as more.py and programs.py say."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import more
import single
from programs import ask, read_program, solve

from data import Problem, Step

PENS = "Ben has 3 boxes with 4 pens each. He loses 5 pens. How many pens are left?"
PROGRAM = '''
```python
def simple_math_problem() -> float:
    """
    Ben has 3 boxes with 4 pens each. He loses 5 pens. How many pens are left?
    """
    boxes = 3
    pens_ben = boxes * 4.0  # four pens each
    price = 7               # nothing needs it

    pens_left = pens_ben - 5
    result = float(pens_left)

    return result
```
'''

def convert(problem, code, tests=()):
    return more.convert(Problem("tinygsm", problem), code, set(tests))

def row(expression, problem=PENS, comment=""):
    """A row whose program is one line."""
    return problem, f"def solution():\n    {comment}\n    return {expression}"

def test_a_program_becomes_steps_and_the_last_question_is_the_problems_own():
    record = convert(PENS, PROGRAM)
    assert record.steps == [
        Step("What is the number of Ben's pens?", "3*4 = <<3*4=12>>12"),
        Step("How many pens are left?", "12-5 = <<12-5=7>>7")]
    assert record.answer == "7"

def test_fractions_endless_decimals_and_vague_names_have_no_step_of_their_own():
    code = ("def f():\n    part = 1/4\n    x = 10 / 3\n    pens_sold = part * 60\n"
            "    return x * 6 - pens_sold")
    assert [step.solution for step in solve(read_program(code), "")] == [
        "(1/4)*60 = <<(1/4)*60=15>>15", "(10/3)*6-15 = <<(10/3)*6-15=5>>5"]

@pytest.mark.parametrize("code", [
    "def f():\n    pens = 3", "def f():\n    if x:\n        pens = 3\n    return pens",
    "def f():\n    return max(3, 4) + 1", "def f():\n    return 3 ** 2",
    "def f():\n    return pens + 1", "def f():\n    x = y = 3\n    return x * 2"])
def test_a_program_that_is_cut_or_does_more_is_dropped(code):
    with pytest.raises(ValueError, match="the program is cut, or does more"):
        solve(read_program(code), "")

@pytest.mark.parametrize("name, question", [
    ("total_cost", "What is the total cost?"), ("num_boxes", "How many boxes are there?"),
    ("totalPens", "How many total pens are there?"), ("pens_left", "How many pens are left?"),
    ("cost_pens", "What is the cost of pens?"), ("time_hours", "What is the time in hours?"),
    ("pens_per_box", "How many pens per box are there?"), ("x2", ""), ("result", ""),
    ("after_sale", ""), ("total_sales", "What is the total sales?")])
def test_a_name_becomes_a_question_or_nothing(name, question):
    assert ask(name, "") == question

@pytest.mark.parametrize("problem, code, why", [
    (*row("3 * 4 - 15"), "negative"),
    (*row("3 * 4 - 12"), "zero"),
    (*row("(3 * 4 - 5) / 2"), "a part of something"),
    (*row("3 * 4 - 17 + 6.5"), "a part of something"),
    (*row("3 * 4 + 5 * 77"), "from nowhere"),
    (*row("5 / 3"), "endless decimal"),
    (*row("int(5 / 4)"), "rounded"),
    (*row("5 // 4"), "rounded"),
    (*row("3 * 4 - 5", comment="# We assume that 5 is right."), "doubts"),
    (*row("3 * 4 - 5", PENS + " And how many were lost?"), "several"),
    (*row("3 * 4 - 5", PENS[:-1] + "."), "no question"),
    (*row("3 * 4", "Ben has 3 boxes with 4 pens each. Can he give away 5?"), "asks for no number"),
    (*row("3 * 4", "en has 3 boxes of 4 pens. How many pens is that?"), "other text"),
    (*row("5 / 20", "He lost 5 of 20 pens. What percentage is that?"), "percentage")])
def test_what_may_teach_a_falsehood_is_dropped(problem, code, why):
    with pytest.raises(ValueError, match=why):
        convert(problem, code)

def test_what_looks_like_that_but_is_true_stays():
    assert convert(*row("5 / 2", "2 pies weigh 5 pounds. How many pounds is one?")).answer == "2.5"
    assert convert(*row("200 * 0.8", "A $200 bike is 20% off. What is its price?")).answer == "160"
    assert convert(*row("200 // 4", "4 friends share 200 pens. How many are his?")).answer == "50"

def test_a_label_before_the_problem_is_cut_off():
    assert convert("Student: **Q7**: " + PENS, PROGRAM).problem == PENS
    assert convert("``` 7. " + PENS, PROGRAM).problem == PENS
    assert convert("Possible questions and programs are: " + PENS, PROGRAM).problem == PENS

def test_a_problem_like_one_of_a_test_is_dropped_whatever_its_numbers_are():
    for test in (PENS, PENS.replace("3", "1,250"), PENS + " Please tell me, if you know it."):
        with pytest.raises(ValueError, match="like a problem of a test"):
            convert(PENS, PROGRAM, more.runs(test))
    convert(PENS, PROGRAM, more.runs("Ada has 3 boxes with 4 cups each. She loses 5. Why?"))

def test_a_problem_with_a_mixed_step_is_left_out(tmp_path):
    sums = Problem("a", "How many?", [Step("", "3+4+5 = <<3+4+5=12>>12")], "12")
    mixed = Problem("b", "How many?", [*sums.steps, Step("", "12*2-5 = <<12*2-5=19>>19")], "19")
    write = tmp_path / "more.jsonl"
    write.write_text(f"{sums.to_json()}\n{mixed.to_json()}\n")
    single.main(write, tmp_path / "single.jsonl")
    assert (tmp_path / "single.jsonl").read_text() == f"{sums.to_json()}\n"
