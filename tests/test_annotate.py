"""annotate.py against a real chat server that misbehaves on request; no key, no network beyond 127.0.0.1."""

import contextlib
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import requests
from fake_teacher import FakeTeacher, answer, chat, reply

import annotate
from annotate import Refused, Rejected, Replies, find_role, judge, make_messages, make_reply, read_dialogue, read_example
from data import HERE, Problem, Step, load_problems, read_lines, read_toml, segments

DEMO = load_problems("demo", "train", limit=500)
PROBLEMS = DEMO[:40]
MODES = ("socratic", "socratic-gt", "cot")
MINE = Path("annotations/mine-socratic.jsonl")

@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(annotate, "FIRST_WAIT", 0)
    write("mine.jsonl", PROBLEMS)

def write(path, problems):
    Path(path).write_text("".join(problem.to_json() + "\n" for problem in problems), encoding="utf-8")

def main(*flags):
    return annotate.main(annotate.parse_args(list(map(str, flags))))

def flags_of(server, *flags, limit=1, workers=1):
    base = getattr(server, "url", server)
    return ["--dataset", "mine.jsonl", "--teacher", "fake", "--base-url", base, "--limit", limit, "--workers", workers, *flags]

def run(server, *flags, out=MINE, **more):
    """(exit status, kept records, rejected, rows of replies) of a command against a server."""
    return main(*flags_of(server, "--out", out, *flags, **more)), *files(out)

def files(out=MINE):
    return records(out), lines(beside(out, "rejected")), replies_of(out)

def replies_of(out=MINE):
    """The rows of replies that are not torn."""
    path = beside(out, "replies")
    return [row for row in read_lines(path, annotate.read_row) if row] if path.exists() else []

def beside(out, what):
    return Path(out).with_suffix(f".{what}.jsonl")

def records(path=MINE):
    return read_lines(path, Problem.from_json)

def lines(path):
    return read_lines(path) if Path(path).exists() else []

def throw(error):
    raise error

def shown(capsys):
    return "".join(capsys.readouterr())

# ---------------------------------------------------------------- the form: what a teacher reads and writes

@pytest.mark.parametrize("dataset", read_toml("exemplars.toml")["examples"])
def test_the_examples_are_kept_as_they_are_in_every_mode(dataset):
    for example in map(read_example, read_toml("exemplars.toml")["examples"][dataset].strip().split("\n\n")):
        for mode in MODES:
            lacking = example
            if mode == "socratic-gt" and dataset == "strategyqa":
                lacking = Problem(example.id, example.problem, [Step(s.question) for s in example.steps], example.answer,
                                  evidence=example.evidence)
            record = judge(lacking, chat(make_reply(example, find_role(lacking, mode))), mode, "me")
            assert [step.solution for step in record.steps] == [step.solution for step in example.steps]
            assert [step.question for step in record.steps] == [step.question * (mode != "cot") for step in example.steps]
            assert record.source == "me" and record.answer == example.answer

def test_the_form_is_what_a_student_learns_and_reading_it_is_the_inverse_of_segments():
    for problem in PROBLEMS:
        for mode, role in (("socratic", "unified"), ("cot", "cot"), ("socratic-gt", "decomposer")):
            text = "".join(part.text for part in segments(problem, role)[1:])
            assert make_reply(problem, role) == text and find_role(problem, mode) == role
            steps = [Step("" if mode == "cot" else step.question, step.solution) for step in problem.steps]
            assert judge(problem, chat(text), mode, "me").steps == steps
        assert make_reply(problem, "solver") == make_reply(problem, "cot")    # its subquestions are given

LEMONS = Problem("x", "Finn filled 7 jars with 16 lemons each. Finn had 38 more lemons than Dan. How many had Dan?", [
    Step("How many lemons were in the jars?", "Finn had 7*16 = <<7*16=112>>112 lemons at first."),
    Step("How many lemons did Dan have?", "Dan had 112-38 = <<112-38=74>>74 lemons.")], "74")

def test_what_a_teacher_reads():
    assert make_messages(LEMONS, "socratic", "demo")[-1]["content"] == f"Problem: {LEMONS.problem}"
    turns = make_messages(LEMONS, "socratic-gt", "demo")
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 4 + ["user"]
    assert turns[-1]["content"] == f"Problem: {LEMONS.problem}\nSolution: {LEMONS.steps[0].solution}\n" \
                                   f"Solution: {LEMONS.steps[1].solution}"
    assert turns[1]["content"].startswith("Subquestion: How many shells were in the boxes?\nSubquestion:")
    svamp = Problem("x", "He had 2*3 pens?", [Step("", "2*3 = <<2*3=6>>6")], "6", evidence=["2*3=6"])
    assert make_messages(svamp, "socratic-gt", "svamp")[-1]["content"].endswith("\nFact: 2*3=6")
    assert "Fact" not in str(make_messages(svamp, "socratic", "svamp"))
    bare = Problem("x", "How many?", [Step("Two?")], "6")    # without facts of its own: no example shows any
    assert "Fact" not in str(make_messages(bare, "socratic-gt", "gsm8k"))
    giraffe = Problem("x", "Is it?", [Step("How tall?"), Step("How high?")], "no", evidence=["It is tall."])
    turns = make_messages(giraffe, "socratic-gt", "strategyqa")
    assert turns[-1]["content"] == "Problem: Is it?\nFact: It is tall.\nSubquestion: How tall?\nSubquestion: How high?"
    assert turns[1]["content"].startswith("Solution: An adult giraffe") and turns[1]["content"].endswith("Answer: no")
    assert "giraffe" in str(make_messages(Problem("x", "Is it?", answer="yes"), "socratic", "mine.jsonl"))
    assert "bakery" in str(make_messages(LEMONS, "socratic", "mine.jsonl"))

def test_no_example_is_taken_from_the_demo():
    stories = " ".join(problem.problem for problem in DEMO)
    assert not {"Pia", "Gus", "Wim", "Bo", "Dora", "Hal"} & set(stories.split())

# ---------------------------------------------------------------- reading and judging a reply

PENS = Problem("x", "Ava has three boxes with 4 pens each. She gives away 5 pens. How many pens are left?", [], "7")
GOOD = ("Subquestion: How many pens are in the boxes?\nSolution: There are 3*4 = <<3*4=12>>12 pens.\n"
        "Subquestion: How many pens are left?\nSolution: There are 12-5 = <<12-5=7>>7 pens left.\nAnswer: 7")
IDEAL = [Step("How many pens are in the boxes?", "There are 3*4 = <<3*4=12>>12 pens."),
         Step("How many pens are left?", "There are 12-5 = <<12-5=7>>7 pens left.")]
DRAFT = "Subquestion: What?\nSolution: 3+4 = <<3+4=7>>7\nAnswer: 7"

@pytest.mark.parametrize("text", [
    GOOD, GOOD.replace("\n", "\n\n"), f"```\n{GOOD}\n```", f"  {GOOD}  ", GOOD.replace("\n", "\r\n"),
    re.sub(r"(\w+:)", r"**\1**", GOOD), re.sub(r"(Subquestion.*)", r"**\1**", GOOD),
    "Sure! Here it is:\n\n" + GOOD + "\n\nI hope that this helps.",
    "Problem: " + PENS.problem + "\n" + GOOD,
    GOOD.replace("Answer: 7", "Answer: 7 pens"), GOOD.replace("Answer: 7", "**Answer:** $7.00"),
    GOOD.replace("\nAnswer: 7", ""),                                           # it stopped by itself; 7 is gold's
    GOOD.replace("= <<", "= $<<"), GOOD.replace("3*4 =", "3 * 4 ="), GOOD.replace("3*4 =", "$3*4 ="),
    f"<think>\n{DRAFT}\n</think>\n{GOOD}", f"<think>Subquestion: a?</think>{GOOD}", f"Answer: 9 maybe</think>{GOOD}",
    f"[THINK]\n{DRAFT}[/THINK]\n{GOOD}", f"<reasoning>Subquestion: a?\n</reasoning>\n{GOOD}",
    f"Let me try.\n{DRAFT}\nNo, that is not it. Again:\n{GOOD}",               # thinking without a wrapper
    "Subquestion: How many boxes does Ava have?\nSolution: Ava has 3 boxes.\n" + GOOD,     # a stated number is left out
    "Subquestion: How many boxes does Ava have?\nSolution: Ava has three boxes.\n" + GOOD,
    "Subquestion: How many boxes does Ava have?\nSolution: Ava has 3 = <<3=3>>3 boxes.\n" + GOOD,
])
def test_replies_in_the_form_give_the_same_steps(text):
    def plain(steps):
        return [Step(s.question, re.sub(r"(?<== )\$(?=<<)|\$(?=3\*4 =)", "", s.solution).replace("3 * 4", "3*4")) for s in steps]
    record = judge(PENS, chat(text, reasoning_content=DRAFT), "socratic", "me")    # another field is not read
    assert plain(record.steps) == IDEAL and (record.answer, record.source) == ("7", "me")

@pytest.mark.parametrize("text, reason", [
    (GOOD.replace("Answer: 7", "Answer: 8"), "wrong answer: 8, not 7"),
    (GOOD.replace("Answer: 7", "Answer: some pens"), "no answer"),
    (GOOD.replace("Answer: 7", "Answer: 12 and 7"), "no answer"),
    (GOOD.replace("12>>12", "13>>13"), r"false arithmetic: 3\*4=13"),
    (GOOD.replace("<<3*4=12>>", ""), "arithmetic outside of an annotation"),
    (GOOD.replace("<<3*4=12>>", "<<3*4>>"), "not in the form: Solution: There"),
    (GOOD.replace("There are 3*4", "In the [boxes] 3*4"), "not in the form"),      # the first step must not get lost
    ("1. " + GOOD, "not in the form"), (GOOD.replace("Subquestion: How many pens are in", "Q1: How many pens are in"), "not in"),
    ("Subquestion: How many then?\nSolution: There are 3*4 = 4 pens.\n" + GOOD, "arithmetic outside of an annotation"),
    (GOOD.replace("\nAnswer", "\nSubquestion: So?\nSolution: She gives 5 away.\nAnswer"), "a solution without a calculation"),
    (GOOD.replace("<<3*4=12>>12", "<<3*4=12>>12*1"), "an annotation that does not fit"),
    (GOOD.replace("3*4 = <<", "4*3 = <<"), "an annotation that does not fit"),
    (GOOD.replace("3*4 = <<", "2^3*4 = <<"), "an annotation that does not fit"),     # cut out of a larger equation
    (GOOD.replace("3*4 = <<", "3 boxes * 4 pens = <<"), "an annotation that does not fit"),
    (GOOD.replace("3*4 = <<", "<<"), "an annotation that does not fit"),
    (GOOD.replace("3*4 = <<", "2*6 = 3*4 = <<"), "an annotation that does not fit"),
    ("Answer: 7", "not in the form: the lines are a"),
    ("There are 7 pens left.", "not in the form"), ("", "not in the form"), (" \n", "not in the form"),
    ("Subquestion: How many pens are left?\nSolution: There are 7 pens left.\nAnswer: 7", "a solution without a calc"),
    (GOOD.replace("many pens are left", "come 7 pens to be left"), "a subquestion gives a result away"),
    (GOOD.replace("many pens are left", "are twelve minus 5 left"), "a subquestion gives a result away"),
    (GOOD.replace("Solution: There are 3*4 = <<3*4=12>>12 pens.\n", ""), "not in the form: the lines are qqsa"),
    (GOOD.replace("Subquestion: How many pens are in the boxes?\n", ""), "not in the form: the lines are sqsa"),
    (GOOD.replace("12 pens.", "12 pens.<|im_end|>"), "not in the form"), (GOOD.replace("12 pens.", "12 pens.[/INST]"), "not in"),
    (GOOD.replace("12 pens.", "12 pens. \\boxed{12}"), "not in the form"),
    (GOOD.replace("12 pens.", "12 pens. Solution: none"), "not in the form"),
    (GOOD.replace("12 pens.", "12 pens.\nThat is a dozen."), "not in the form: the lines are qs-qsa"),          # a second line
    (GOOD.replace("Subquestion:", "Subquestion 1.1:"), "not in the form"),
    (GOOD.replace("Subquestion:", "subquestion:"), "not in the form"), (GOOD.replace("Solution:", "A:"), "not in the form: the lines are q-q-a"),
    (GOOD.replace("\n", "  "), "not in the form"),                                    # all in one line
    (f"{GOOD}\nProblem: Tom has 3 dogs.\n{DRAFT.replace('7', '8').replace('3+4', '4+4')}", "wrong answer: 8"),
    # A calculation is its whole arithmetic, and leads to the answer. All of these were kept once.
    (GOOD.replace("3*4 = <<3*4=12>>12", "√9 * 4 = <<9*4=36>>36"), "an annotation that does not fit"),
    (GOOD.replace("7 pens left", "7 pens left, because 7+5=13"), "arithmetic outside of an annotation"),
    (GOOD.replace("12 pens", "12 pens, and 7 + 5 are 13 pens"), "arithmetic outside of an annotation"),
    (GOOD.replace("There are 12-5", "As 7 × 2 is 13, there are 12-5"), "arithmetic outside of an annotation"),
    (GOOD.partition("\nSubquestion: How many pens are left")[0] + "\nAnswer: 7", "an answer that no step has found: 7"),
    (GOOD.replace("12-5 = <<12-5=7>>7", "12-4 = <<12-4=8>>8"), "an answer that no step has found: 7"),
])
def test_what_is_not_in_the_form_or_not_true_is_rejected_with_its_reason(text, reason):
    with pytest.raises(Rejected, match=f"^{reason}"):
        judge(PENS, chat(text), "socratic", "me")

@pytest.mark.parametrize("solution, results", [
    ("$5*3 = $<<5*3=15>>15 and 15/4 = <<15/4=3.75>>3.75", ["15", "3.75"]), ("(2+3)*4 = <<(2+3)*4=20>>20", ["20"]),
    ("A third is 10/3 = <<10/3=3.333>>3.333", ["3.333"]), ("That is 1,200*2 = <<1,200*2=2400>>2400", ["2400"]),
    ("3-8 = <<3-8=-5>>-5 degrees", ["-5"]), ("20%*50 = <<20%*50=10>>10", ["10"]), ("5 = <<5=5>>5", []), ("no numbers", []),
    ("In 5-10 minutes, on 1/2 of the days, 12-5 = <<12-5=7>>7", ["7"]),    # a range and a share are no arithmetic
    ("She had 5. 5-3 = <<5-3=2>>2", None), ("2 x 3 = <<2*3=6>>6", None), ("10/3 = <<10/3=3>>3", None),
    ("1/2 hour = <<1/2=30>>30 minutes", None), ("√9*2 = <<9*2=18>>18", None), ("so,9*2 = <<9*2=18>>18", None),
    ("9*2 = <<9*2=18>>18 or 2*9=18", None), ("9*2 = <<9*2=18>>18-3 pens", None), ("9*2 = <<9*2=18>>18 (18 - 9 was 8)", None),
])
def test_a_calculation_is_true_and_stands_as_in_the_data(solution, results):
    with contextlib.nullcontext() if results is not None else pytest.raises(Rejected):
        assert annotate.check_calculations(solution) == results

def test_gold_solutions_stay_and_only_the_subquestions_are_the_teachers():
    text = "Subquestion: How many lemons does Finn have?\nSubquestion: And how many has Dan?"
    record = judge(LEMONS, chat(text), "socratic-gt", "me")
    assert [step.solution for step in record.steps] == [step.solution for step in LEMONS.steps]
    assert record.steps[1].question == "And how many has Dan?"
    with pytest.raises(Rejected, match="not one line for each step"):
        judge(LEMONS, chat(text.split("\n")[0]), "socratic-gt", "me")
    with pytest.raises(Rejected, match="gives a result away"):
        judge(LEMONS, chat(text.replace("many has Dan", "come that Dan has 74")), "socratic-gt", "me")

def test_yes_and_no_need_no_arithmetic():
    problem = Problem("x", "Could a giraffe stand in a bus?", [Step("How tall is it?"), Step("Is a bus higher?")], "no",
                      evidence=["It is tall."])
    text = "Solution: It is 14 feet tall.\nSolution: No, a bus is lower."
    for end in ("Answer: no", "Answer: No.", "Answer: False"):
        record = judge(problem, chat(f"{text}\n{end}"), "socratic-gt", "me")
        assert [s.question for s in record.steps] == ["How tall is it?", "Is a bus higher?"]
        assert record.steps[1].solution == "No, a bus is lower." and record.evidence == ["It is tall."]
    for end, reason in (("\nAnswer: yes", "wrong answer"), ("", "no answer"), ("\nAnswer: it depends", "no answer"),
                        ("\nSolution: So no.\nAnswer: no", "not one line for each step")):
        with pytest.raises(Rejected, match=reason):
            judge(problem, chat(text + end), "socratic-gt", "me")

def test_no_text_breaks_the_reader_and_what_is_kept_is_clean():
    rng = random.Random(0)
    words = ["Subquestion:", "Solution:", "Answer:", "Problem:", "\n", "3", "*", "4", "=", "12", "<<", ">>", "?", "(", ")",
             "$", "\\boxed{", "}", "pens", "**", "-", "x", "%", "1,000", "####", "1.", "\u2028", "\ud800", "½", "/", "</a>",
             "3*4 = <<3*4=12>>12", "12-5 = <<12-5=7>>7", "Answer: 7"]
    n_kept = 0
    for _ in range(2000):
        text = GOOD
        for _ in range(rng.randint(0, 3)):
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(words) + text[at + rng.choice((0, 0, 1, 9)):]
        for mode in MODES:
            with contextlib.suppress(Rejected):
                record = judge(PENS, chat(text), mode, "me")
                n_kept += 1
                record.to_json().encode()
                for step in record.steps:
                    left = re.sub(r"<<([^<>=]+)=([^<>=]+)>>", "", step.question + step.solution)
                    assert not re.search(r"[<>{}\\]|\*\*|Solution:|Answer:", left) and "\n" not in left
    assert n_kept > 250
    began = time.perf_counter()
    for text, n in (("1 ", 20_000), ("(", 20_000), ("1+", 20_000), ("$", 20_000), ("Answer:", 5000), ("\n", 50_000),
                    ("<<1+1=2>>", 9000), ("**", 20_000), ("<think>", 9000), ("</a>", 9000), ("1,", 20_000)):
        with contextlib.suppress(Rejected):
            judge(PENS, chat(f"Subquestion: a?\nSolution: {text * n}"), "socratic", "me")
    assert time.perf_counter() - began < 10
    with pytest.raises(Rejected):
        read_dialogue("", "cot")

@pytest.mark.parametrize("raw", [
    3, [], "x", None, {}, {"choices": None}, {"choices": []}, {"choices": [None]}, {"choices": "x"}, {"choices": {"message": 1}},
    {"choices": [{"message": None}]}, {"choices": [{"message": {"content": [1, {"text": None}]}}]}, chat(3), chat(None)])
def test_what_has_no_text_is_no_reply_whatever_its_shape(raw):
    assert annotate.read_text(raw) == ""

# ---------------------------------------------------------------- what is asked again, what is stored

KEPT, REJECTED, MISSING = "kept", "rejected", "missing"
TABLE = [  # faults of the first requests about one of two problems; how often it is asked; what comes of it; replies
    (["429"], 2, KEPT, 1), (["429"] * 29, 30, KEPT, 1), (["429"] * 99, 30, MISSING, 0), (["429 Retry-After 0"] * 9, 10, KEPT, 1),
    (["429 date"], 2, KEPT, 1), (["429 nines"], 2, KEPT, 1), (["408", "409", "500", "500 text", "503 html"], 6, KEPT, 1),
    (["500"] * 99, 30, MISSING, 0), (["half", "reset"], 3, KEPT, 1), (["late"], 2, KEPT, 1),
    (["length"], 2, KEPT, 2), (["MAX_TOKENS"] * 9, 3, REJECTED, 3), (["wrong", "false"], 3, KEPT, 3), (["sorry"] * 9, 3, REJECTED, 3),
    (["reasoning"], 1, KEPT, 1), (["think"], 1, KEPT, 1), (["asks for what is stated"], 1, KEPT, 1),
    (["no answer line"], 1, KEPT, 1), (["no usage"], 1, KEPT, 1),
]

@pytest.mark.parametrize("faults, n_asked, verdict, n_replies", TABLE, ids=lambda x: str(x)[:30])
def test_each_fault_is_asked_again_as_often_as_it_should(faults, n_asked, verdict, n_replies, monkeypatch):
    monkeypatch.setattr(annotate, "TIMEOUT", 0.25 if faults[0] == "late" else 5)
    with FakeTeacher(PROBLEMS, [None, *faults], late=0.5) as server:
        status, kept, rejected, rows = run(server, limit=2)
    assert len(server.log) == 1 + n_asked
    assert (status, len(kept)) == {KEPT: (0, 2), REJECTED: (0, 1), MISSING: (1, 1)}[verdict]
    assert len(rows) == 1 + n_replies and len(rejected) == 1 + n_replies - len(kept)

# Each of these was once stored as a reply, or ended the run: an expired key (400 with some servers) lost problems for ever.
REFUSALS = ["400", "400 filter", "401", "403", "404", "413", "422", "200 html", "200 error", "200 flat error", "200 error inside",
            "no choices", "null content", "empty content", "half json", "filtered", "refusal"]

@pytest.mark.parametrize("fault", REFUSALS)
def test_a_refusal_is_no_reply_and_the_same_command_asks_again(fault, capsys):
    with FakeTeacher(PROBLEMS, flagged={PROBLEMS[1].id: fault}) as server:
        status, kept, rejected, rows = run(server, limit=3)
        assert (status, len(kept), len(rejected), len(rows), len(server.log)) == (1, 2, 0, 2, 3)
        assert PROBLEMS[1].id not in MINE.with_name("mine-socratic.replies.jsonl").read_text()
        assert re.search(rf"\n +1 problems missing: {fault[:3] if fault[0] in '24' else 200} ", shown(capsys))
        server.flagged.clear()
        status, kept, _, rows = run(server, limit=3)
        assert (status, len(kept), len(rows), len(server.log)) == (0, 3, 3, 4)

def test_what_was_paid_is_counted_whatever_came_of_it(capsys):
    with FakeTeacher(PROBLEMS, ["no choices", "length", "wrong"]) as server:
        assert run(server, limit=2)[0] == 1
    assert "4 replies, 1,207 prompt tokens, 183 reply tokens" in shown(capsys)

@pytest.mark.parametrize("fault, words", [("401", "401 .*Incorrect API key"), ("400", "maximum context length"), ("200 html", "log in")])
@pytest.mark.parametrize("workers", [1, 8])
def test_three_refusals_in_a_row_stop_the_run_with_the_servers_words(fault, words, workers, capsys):
    with FakeTeacher(PROBLEMS, [fault] * 99) as server:
        assert run(server, limit=40, workers=workers)[:2] == (1, [])
    out = shown(capsys)
    assert 3 <= len(server.log) < 3 + workers and re.search(words, out)
    assert sum(map(int, re.findall(r"(\d+) problems missing", out))) == 40

def test_a_reply_between_refusals_lets_the_run_go_on_and_a_spent_quota_ends_it_at_once():
    with FakeTeacher(PROBLEMS, [*["400", "403", None] * 3, "400"]) as server:
        status, kept, _, _ = run(server, limit=20)
        assert (status, len(kept), len(server.log)) == (1, 13, 20)
    with FakeTeacher(PROBLEMS, ["429 quota"]) as server:
        assert run(server, "--body", '{"seed": 7}', out="x.jsonl", limit=20)[:2] == (1, []) and len(server.log) == 1

def test_a_full_disk_and_failures_that_two_workers_count_at_once_stop_the_run_too(monkeypatch):
    for n_failures, path, body in ((annotate.MAX_FAILURES, "x", None), (0, ".", chat("x"))):    # "." cannot be written
        replies = Replies(Path("x"), annotate.parse_args(["--teacher", "x"]))
        replies.n_failures, replies.path = n_failures, Path(path)    # two have added one before either has compared
        monkeypatch.setattr(replies, "ask", lambda _, body=body: body or throw(Refused("500")))
        with pytest.raises((Refused, OSError)):
            replies.get(PROBLEMS[0], [], 0)
        assert replies.stopping.is_set()

@pytest.mark.parametrize("fault", ["403", "400 filter", "200 error"])
@pytest.mark.parametrize("workers", [1, 4])
def test_three_flagged_neighbours_among_twenty_do_not_keep_the_others_from_being_asked(fault, workers):
    for seed in range(3):
        random.seed(seed)
        flagged = PROBLEMS[7 * seed:7 * seed + 3]
        with FakeTeacher(PROBLEMS, flagged={problem.id: fault for problem in flagged}) as server:
            for _ in range(3):
                status, kept, _, rows = run(server, limit=20, workers=workers, out=f"{seed}.jsonl")
            assert [entry["id"] for entry in server.log[:3]] != [problem.id for problem in PROBLEMS[:3]], "the order is drawn"
            assert status == 1 and [record.id for record in kept] == [p.id for p in PROBLEMS[:20] if p not in flagged]
            assert len(rows) == 17 and Counter(entry["id"] for entry in server.log if not entry["fault"]).most_common(1)[0][1] == 1

# A finish reason that is unknown was once taken for an accident: the same paid request was sent eight times.
FINISHES = ["stop", "STOP", "eos", "eos_token", "stop_sequence", "end", "end_turn", "COMPLETE", None, "error", "recitation", 7, ["x"]]

def test_every_finish_reason_but_a_cut_or_a_filter_is_a_normal_end():
    missing = chat("Nothing")    # of a server that sends no finish reason at all
    del missing["choices"][0]["finish_reason"]
    faults = [reply(str, finish) for finish in FINISHES] + [
        lambda h: h.send(200, missing | {"choices": [{"message": {"content": h.right()}}]})]
    with FakeTeacher(PROBLEMS, faults) as server:
        status, kept, rejected, rows = run(server, limit=len(faults))
    assert (status, len(kept), rejected) == (0, len(faults), []) and len(rows) == len(server.log) == len(faults)

@pytest.mark.parametrize("finish", ["length", "max_tokens", "MAX_TOKENS", "content_filter", "content_filter: hate", "SAFETY"])
def test_a_reply_that_was_cut_or_filtered_is_stored_and_rejected_by_its_name(finish):
    with FakeTeacher(PROBLEMS, [reply(str, finish)] * 3) as server:
        status, kept, rejected, rows = run(server)
    assert (status, kept, len(rows)) == (0, [], 3) and {row["reason"] for row in rejected} == {f"cut off: {finish.lower()}"}

def test_the_first_reply_is_greedy_and_body_shapes_every_request():
    with FakeTeacher(PROBLEMS, ["length", "wrong"]) as server:
        run(server)
        body = '{"max_tokens": null, "max_completion_tokens": 50, "temperature": null, "reasoning_effort": "low"}'
        run(server, "--body", body)
    *first, second = [entry["body"] for entry in server.log]
    assert [(b["temperature"], b["max_tokens"], b["seed"], b["stream"]) for b in first] == [
        (0.0, 1024, 0, False), (0.7, 1024, 1, False), (0.7, 1024, 2, False)]
    assert not {"max_tokens", "temperature"} & second.keys() and second["max_completion_tokens"] == 50
    assert second["reasoning_effort"] == "low"

# ---------------------------------------------------------------- waiting, a server that is not there, Ctrl-C

class Clock:
    """An event that waits no second, but notes how long it would have."""

    def __init__(self):
        self.waits = []

    def wait(self, seconds):
        self.waits.append(seconds)

@pytest.mark.parametrize("fault, seconds", [
    ("429", lambda n: 2**n), ("500", lambda n: 2**n), ("429 date", lambda n: 2**n), ("429 Retry-After 0", lambda n: 2**n),
    ("429 nines", lambda n: 2**n), ("429 Retry-After 1", lambda n: 1), ("429 Retry-After 50", lambda n: 50)])
def test_the_waits_are_those_that_the_server_names_or_twice_as_long_each_time(fault, seconds, monkeypatch, capsys):
    monkeypatch.setattr(annotate, "FIRST_WAIT", 1.0)
    with FakeTeacher(PROBLEMS, [fault] * 99) as server:
        replies = Replies(Path("x"), annotate.parse_args(["--teacher", "x", "--base-url", server.url]))
        replies.stopping = Clock()
        with pytest.raises(Refused, match=fault[:3]):
            replies.ask({"messages": [{"content": "?"}]})
    first, *waits = replies.stopping.waits
    assert first == 0 and len(waits) == 29 and len(set(waits)) > 20, "the workers would all come back at once"
    assert all(1 <= wait / min(60, seconds(n)) <= 2 for n, wait in enumerate(waits))
    assert ("the next attempt in" in capsys.readouterr().err) == (fault != "429 Retry-After 1")

@pytest.mark.parametrize("busy, rate, n", [("429", 40, 40), ("429 Retry-After 0", 40, 40), ("429 Retry-After 1", 40, 9)])
def test_a_server_that_takes_few_requests_a_second_gets_them_all_done(busy, rate, n, monkeypatch):
    monkeypatch.setattr(annotate, "FIRST_WAIT", 0.02)
    with FakeTeacher(PROBLEMS, rate=rate, busy=busy) as server:
        status, kept, _, rows = run(server, limit=n, workers=8)
    assert (status, len(kept), len(rows)) == (0, n, n) and len(server.log) > n

@pytest.mark.parametrize("url, cause, proxy", [
    ("http://127.0.0.1:{closed}", "refused", ""), ("localhost:{closed}", "refused", ""), ("http://nowhere.example", "nowhere.example", ""),
    ("htp://localhost", "htp:", ""), ("localhost:99999", "99999", ""), ("http://a..b", "a..b", ""), (f"http://{'a' * 70}.com", "aaa", ""),
    ("https://127.0.0.1:{open}", "SSL", ""), ("https://my.example", "Tunnel", "http://127.0.0.1:{open}")])
def test_a_server_that_is_not_there_is_told_in_the_first_second(url, cause, proxy, monkeypatch, capsys):
    def lookup(host, *more, **names):
        if "nowhere" in host:
            raise socket.gaierror(-2, "Name or service not known")
        return real(host, *more, **names)

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(annotate, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(annotate, "ATTEMPTS", 2)
    with FakeTeacher(PROBLEMS) as closed:
        pass
    with FakeTeacher(PROBLEMS) as server:
        ports = {"closed": closed.server_address[1], "open": server.server_address[1]}
        monkeypatch.setenv("https_proxy", proxy.format(**ports))
        began = time.monotonic()
        assert run(url.format(**ports), limit=20, workers=4)[:2] == (1, [])
    out = shown(capsys)
    assert time.monotonic() - began < 1 and cause in out and "--base-url" in out, "what is wrong, and what to check"
    assert sum(map(int, re.findall(r"(\d+) problems missing", out))) == 20

@pytest.mark.parametrize("path, asked", [("", "/v1"), ("/", "/v1"), ("/v1", "/v1"), ("/v1/", "/v1"), ("/inference", "/inference")])
def test_a_base_url_is_used_as_given_and_a_bare_host_gets_v1(path, asked):
    with FakeTeacher(PROBLEMS) as server:
        for base in (f"{server.url}{path}", f"localhost:{server.server_address[1]}{path}"):
            assert run(base, out=f"{len(server.log)}.jsonl")[0] == 0
    assert [entry["path"] for entry in server.log] == [f"{asked}/chat/completions"] * 2

def start(server, *flags, limit=24, workers=4, **more):
    command = [sys.executable, HERE / "annotate.py", *flags_of(server, *flags, limit=limit, workers=workers)]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)

@pytest.mark.parametrize("fault", ["hang", "429 Retry-After 50"])
def test_ctrl_c_ends_it_within_a_second_while_requests_hang_or_wait_and_keeps_what_is_there(fault):
    with FakeTeacher(PROBLEMS, ["400"] + [None] * 5 + [fault] * 99) as server:
        process = start(server)
        while len(server.log) < 10:
            time.sleep(0.01)
        time.sleep(0.2)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        assert time.monotonic() - began < 1
        assert process.returncode == 1 and "Interrupted" in out and "The same command asks again" in out
        assert len(records()) == 5 and "      18 problems missing: interrupted" in out
        server.faults.clear()
        assert start(server).wait(30) == 0 and len(records()) == 24 and sum(e["done"] for e in server.log) >= 24

# ---------------------------------------------------------------- what a header or the environment says is not believed

CREPES = Problem("c", "Zoë baked 3 plates of 4 crêpes each. How many crêpes were it?", [
    Step("How many crêpes were on the plates?", "There were 3*4 = <<3*4=12>>12 crêpes.")], "12")

@pytest.mark.parametrize("kind", ["text/plain", "text/html; charset=iso-8859-1", "application/json; charset=latin-1", ""])
def test_a_body_is_utf_8_whatever_its_header_says(kind):
    write("mine.jsonl", [CREPES])    # text/plain once gave "crÃªpes", and that was kept
    with FakeTeacher([CREPES], [lambda h: h.send(200, chat(h.right()), {"Content-Type": kind})]) as server:
        assert run(server)[1][0].steps == CREPES.steps

@pytest.mark.parametrize("key", [None, "sk-1"])
def test_a_password_in_netrc_is_never_sent(key, monkeypatch):
    Path("netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", "netrc")
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with FakeTeacher(PROBLEMS) as server:
        run(server)
        requests.post(f"{server.url}/v1", json=server.log[0]["body"])    # what requests does by itself
    assert server.log[0]["key"] == (key and f"Bearer {key}") and server.log[1]["key"].startswith("Basic")

@pytest.mark.parametrize("status", [301, 302, 303, 308])
def test_a_redirection_is_one_clear_line_and_no_post_becomes_a_get(status, capsys):
    with FakeTeacher(PROBLEMS) as server:
        server.faults = [answer(status, "<html>moved", {"Location": f"{server.url}/elsewhere"})]
        assert run(server)[3] == [] and [entry["path"] for entry in server.log] == ["/v1/chat/completions"]
        assert re.search(rf"\n +1 problems missing: {status} .*{server.url}/elsewhere.*--base-url.*\n", shown(capsys))
        assert run(server)[0] == 0

SECRET = "sk-secret-0123456789"

@pytest.mark.parametrize("fault", [
    "401", lambda h: answer(500, f"<p>{h.headers['Authorization']}</p>" + "x" * 400)(h),
    lambda h: answer(302, "", {"Location": f"http://x/?key={h.headers['Authorization']}"})(h),
    lambda h: answer(200, {"error": {"request": dict(h.headers)}})(h)])
def test_the_key_is_sent_and_never_shown(fault, monkeypatch, capsys):
    with FakeTeacher(PROBLEMS) as server:    # a local server: no key, no header
        run(server, out="x.jsonl")
    assert server.log[0]["key"] is None
    monkeypatch.setenv("OPENAI_API_KEY", f"{SECRET}\n")
    with FakeTeacher(PROBLEMS, [fault] * 99) as server:
        assert run(server, limit=4)[0] == 1
    assert {entry["key"] for entry in server.log} == {f"Bearer {SECRET}"}
    words, stored = shown(capsys), "".join(path.read_text() for path in Path().rglob("*") if path.is_file())
    assert "***" in words and SECRET not in words + stored

@pytest.mark.parametrize("key", ["sk-first\nsk-second", "sk-abc…xyz", "sk-my key"])
def test_a_key_that_cannot_stand_in_a_header_is_told_without_showing_it(key, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with FakeTeacher(PROBLEMS) as server, pytest.raises(SystemExit, match="OPENAI_API_KEY") as error:
        run(server)
    assert "sk-" not in shown(capsys) + str(error.value) and not server.log

# ---------------------------------------------------------------- nothing is paid for twice, nothing is lost

def test_a_rerun_asks_only_for_what_is_missing():
    with FakeTeacher(PROBLEMS, [None, *["500"] * 30, "wrong"]) as server:
        first = run(server, limit=10)
        assert len(first[1]) == 9 and len(server.log) == 40
        second = run(server, limit=10)
        assert len(second[1]) == 10 and len(server.log) == 41
        third = run(server, limit=10)
        assert third[:2] == second[:2] and len(server.log) == 41, "nothing is missing: nothing is asked"

def test_whatever_shapes_a_reply_asks_anew():
    with FakeTeacher(PROBLEMS) as server, FakeTeacher(PROBLEMS) as another:
        for flags in ([], ["--body", '{"temperature": 0.1}'], ["--body", '{"top_p": 0.9}'], ["--teacher", "other"], ["--mode", "cot"]):
            n, server.mode = len(server.log), "cot" if "cot" in flags else "socratic"
            for _ in range(2):
                run(server, *flags, limit=3)
            assert len(server.log) == n + 3, flags
        run(another, limit=3)
        assert len(another.log) == 3

@pytest.mark.parametrize("cut", [1, 40, -2])
def test_a_torn_line_costs_one_request(cut):
    with FakeTeacher(PROBLEMS) as server:
        whole = run(server, limit=6)
        path = beside(MINE, "replies")
        data = path.read_bytes()
        last = data.rstrip(b"\n").rindex(b"\n") + 1
        path.write_bytes(data[:last + cut] if cut > 0 else data[:cut])
        for _ in range(2):
            assert run(server, limit=6)[1] == whole[1] and len(server.log) == 7

def test_runs_killed_at_random_moments_lose_nothing_and_pay_nothing_twice():
    rng, workers = random.Random(0), 4    # 200 kills are in stress.py
    with FakeTeacher(PROBLEMS, delay=0.08) as server:
        stored = set()
        for kill in [True] * 3 + [False]:
            n = len(server.log)
            process = start(server, workers=workers)
            if kill:
                while len(server.log) == n and process.poll() is None:
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 0.3))
                process.kill()
            assert process.wait(30) in (0, -9)
            time.sleep(0.1)
            assert not stored & {entry["id"] for entry in server.log[n:]}, "asked again although it was on disk"
            stored = {row["id"] for row in replies_of()}
    assert [record.id for record in records()] == [problem.id for problem in PROBLEMS[:24]]
    assert len(replies_of()) == 24 and len(server.log) <= 24 + 3 * workers

def test_a_full_disk_stops_the_run_and_costs_what_was_under_way():
    def small():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    with FakeTeacher(PROBLEMS, delay=0.02) as server:
        process = start(server, preexec_fn=small)
        out, _ = process.communicate(timeout=20)
        n = len(server.log)
        assert process.returncode == 1 and "File too large" in out and n < 24
        stored = {row["id"] for row in replies_of()}
        assert n - 4 <= len(stored) < n
        assert start(server).wait(20) == 0
        assert {entry["id"] for entry in server.log[n:]} == {problem.id for problem in PROBLEMS[:24]} - stored
    assert len(records()) == 24

# ---------------------------------------------------------------- nothing that the program did not write is overwritten

def test_ones_own_problems_stay_where_out_names_their_file(capsys):
    before = Path("mine.jsonl").read_bytes()
    with FakeTeacher(PROBLEMS) as server:
        for _ in range(2):
            assert main(*flags_of(server, "--out", "mine.jsonl", limit=6)) == 0
            assert Path("mine.jsonl").read_bytes() == before and len(records("mine.2.jsonl")) == 6
    assert "mine.jsonl holds other records. It stays as it is." in shown(capsys) and not Path("mine.3.jsonl").exists()

@pytest.mark.parametrize("what", ["rejected", "replies"])
@pytest.mark.parametrize("named", [Path, Path.resolve])
def test_ones_own_file_stays_also_where_its_name_is_one_that_out_leads_to(what, named):
    path = named(Path(f"pens.{what}.jsonl"))    # such as the records of the problems that were rejected, to be asked about again
    path.write_text("".join(problem.to_json() + "\n" for problem in PROBLEMS[:6]).rstrip("\n"), encoding="utf-8")
    before = path.read_bytes()
    with FakeTeacher(PROBLEMS) as server, contextlib.suppress(SystemExit):
        main(*flags_of(server, "--dataset", path, "--out", "pens.jsonl", limit=6))
    assert path.read_bytes() == before

@pytest.mark.parametrize("later", [["--limit", 5], ["--limit", 5, "--teacher", "other"], ["--replay", "other.jsonl"], ["--body", '{"n": 1}']])
def test_a_run_that_keeps_fewer_or_other_records_writes_a_file_of_its_own(later, capsys):
    with FakeTeacher(PROBLEMS) as server:
        run(server, limit=5)
        _, kept, _, rows = run(server, limit=12)    # more of the same: the file grows
        assert len(kept) == 12 and len(server.log) == 12 and not MINE.with_name("mine-socratic.2.jsonl").exists()
        Path("other.jsonl").write_text("".join(json.dumps(row | {"teacher": "third"}) + "\n" for row in rows[:5]))
        before = MINE.read_bytes()
        server.faults = ["wrong"] * 3    # with another body fewer are kept: one of these costs its problem
        run(server, "--tries", 1, *later, limit=later[1] if "--limit" in later else 12)
    assert MINE.read_bytes() == before and "holds other records" in shown(capsys)
    assert 0 < len(records("annotations/mine-socratic.2.jsonl")) < 12

def test_an_out_that_cannot_hold_records_is_told_before_anything_is_asked():
    Path("folder.jsonl").mkdir()
    with FakeTeacher(PROBLEMS) as server:
        for out in ("folder.jsonl", "pens.jsonl.gz"):    # a plain text under the name of a compressed one cannot be read again
            with pytest.raises(SystemExit, match=out):
                main(*flags_of(server, "--out", out))
    assert not server.log

# ---------------------------------------------------------------- bugs, the summary, replay

@pytest.mark.parametrize("name", ["judge", "read_dialogue", "make_messages", "make_body"])
def test_a_bug_shows_as_a_traceback_and_not_as_missing_problems(name, monkeypatch, capsys):
    monkeypatch.setattr(annotate, name, lambda *_: [][0])    # once such a bug was "32 problems missing"
    with FakeTeacher(PROBLEMS) as server, pytest.raises(IndexError):
        run(server, limit=20, workers=4)
    assert "missing" not in shown(capsys)

def test_progress_and_summary(capsys):
    with FakeTeacher(PROBLEMS, [None, *["500"] * 30, "wrong", "false", None, "wrong"]) as server:
        run(server, limit=24)
    out = shown(capsys)
    assert re.search(r"\n? +20/24 problems \| \d+ replies \| \d+ kept \| 0:00 left\n", out)
    assert f"23 of 24 problems are kept: {MINE}\n" in out
    assert "       2 replies rejected: wrong answer\n       1 replies rejected: false arithmetic\n" in out
    assert '       1 problems missing: 500 {"error": {"message": "The server had an error"' in out
    assert "26 replies, 10,400 prompt tokens, 1,560 reply tokens: 433 and 65 for each problem\nThe same command asks again" in out
    assert all(len(line) <= 88 for line in out.splitlines() if "500" not in line)

def test_a_replay_gives_the_same_annotations_without_a_server_whatever_the_prompt(monkeypatch):
    with FakeTeacher(PROBLEMS, ["wrong", "length"]) as server:
        _, kept, rejected, rows = run(server, limit=12)
    replay = ["--dataset", "mine.jsonl", "--replay", beside(MINE, "replies"), "--limit", 12, "--out"]
    monkeypatch.setitem(read_toml("exemplars.toml")["task"], "unified", "Solve this.")
    assert main(*replay, "again.jsonl") == 0
    assert Path("again.jsonl").read_bytes() == MINE.read_bytes() and len(kept) == 12
    assert sorted(map(str, lines("again.rejected.jsonl"))) == sorted(map(str, rejected)) and not Path("again.replies.jsonl").exists()
    rows[5]["problem_sha256"] = "0" * 16
    Path("short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main("--dataset", "mine.jsonl", "--replay", "short.jsonl", "--out", "short-out.jsonl")
    assert rows[5]["id"] not in [record.id for record in records("short-out.jsonl")], "it was about another problem"

def test_a_reply_has_the_keys_of_the_documented_format():
    with FakeTeacher(PROBLEMS) as server:
        _, _, _, (row,) = run(server)
    messages = make_messages(PROBLEMS[0], "socratic", "mine.jsonl")
    assert server.log[0]["body"]["messages"] == messages
    assert row["messages_sha256"] == annotate.sha16(json.dumps(messages)) and len(row["messages_sha256"]) == 16
    assert row["problem_sha256"] == annotate.sha16(PROBLEMS[0].problem)
    assert {"id", "sample", "problem_sha256", "messages_sha256", "teacher", "reply"} <= row.keys()

def test_without_flags_the_recorded_teacher_is_replayed():
    assert main() == 0
    assert len({row["id"] for row in lines(annotate.RECORDING)}) == 40 and len(records("annotations/demo-socratic.jsonl")) > 20

@pytest.mark.skipif("SOCRATIC_REPLIES" not in os.environ, reason="no folder of recorded replies: SOCRATIC_REPLIES")
@pytest.mark.parametrize("dataset, mode, least", [("svamp", "socratic", 340), ("strategyqa", "socratic-gt", 20)])
def test_a_real_teachers_recording_replays(dataset, mode, least):
    path = Path(os.environ["SOCRATIC_REPLIES"]) / f"{dataset}-{mode}.replies.jsonl"
    main("--dataset", dataset, "--mode", mode, "--replay", path)
    assert len(records(f"annotations/{dataset}-{mode}.jsonl")) >= least

@pytest.mark.parametrize("flags, says", [
    (["--dataset", "svamp"], "--teacher NAME"), (["--base-url", "localhost:1"], "--teacher NAME"), (["--dataset", "mine.jsonl", "--teacher", "x"], "OPENAI_API_KEY"),
    (["--dataset", "mine.jsonl", "--replay", "none.jsonl"], "none.jsonl cannot be read"), (["--dataset", "none", "--teacher", "x"], "Unknown data set"),
    (["--dataset", "none.jsonl"], "--teacher NAME"), (["--body", "[1]"], "2"), (["--body", "{"], "2")])
def test_who_is_not_named_is_not_asked(flags, says):
    with pytest.raises(SystemExit, match=says):
        main(*flags)

def test_ones_own_file_is_asked_about_as_a_whole():
    write("mine.jsonl", [Problem(f"mine-{i}", p.problem, [], p.answer) for i, p in enumerate(PROBLEMS[:6])] + [Problem("m", "Who?")])
    with FakeTeacher(PROBLEMS) as server:
        _, kept, _, _ = run(server, limit=99)    # but not where nobody knows the answer
    assert [record.id for record in kept] == [f"mine-{i}" for i in range(6)] and len(server.log) == 6
    assert [record.steps for record in kept] == [problem.steps for problem in PROBLEMS[:6]]

def test_no_torch_is_needed_to_ask_a_teacher():
    code = "import sys, annotate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=HERE).returncode == 0

ROW = {"id": PROBLEMS[0].id, "sample": 0, "problem_sha256": annotate.sha16(PROBLEMS[0].problem), "teacher": "t",
       "reply": chat(make_reply(PROBLEMS[0], "unified"))}

@pytest.mark.parametrize("line", ["3", "[]", "null", "{}", "[" * 99_999, *(json.dumps(ROW | damage) for damage in (
    {"reply": []}, {"reply": chat(None)}, {"id": [1]}, {"id": None}, {"id": "\ud800"}, {"teacher": None}, {"teacher": ["x"]},
    {"teacher": "\ud800 \n"}))])
def test_a_damaged_recording_is_one_clear_line(line):
    Path("a.jsonl").write_text(f"{json.dumps(ROW)}\n\n{line}\n")
    with pytest.raises(SystemExit, match="^a.jsonl:3: .+$"):
        main("--dataset", "mine.jsonl", "--replay", "a.jsonl")

@pytest.mark.parametrize("damage", [
    {}, {"messages_sha256": ["x"]},
    *({"reply": ROW["reply"] | {"usage": usage}} for usage in ([], "free", 3, {"prompt_tokens": "many"}, {"prompt_tokens": 1.5})),
    {"sample": None}, {"problem_sha256": {}}])    # the last two: about another problem, or sample
def test_whatever_else_a_row_says_breaks_nothing_and_counts_only_where_it_is_a_number(damage, capsys):
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (ROW | damage, ROW | {"id": PROBLEMS[1].id})))
    assert main("--dataset", "mine.jsonl", "--replay", "a.jsonl") == 1, "the second row is about another text"
    n_used = int(not {"id", "sample", "problem_sha256"} & damage.keys())
    assert [record.id for record in records()] == [PROBLEMS[0].id] * n_used
    assert f"{n_used} replies, {0 if 'reply' in damage else 400 * n_used} prompt tokens" in shown(capsys)
