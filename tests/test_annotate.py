"""annotate.py against a real chat server that misbehaves on request; no key, no network beyond 127.0.0.1."""

import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
from fake_teacher import FakeTeacher, dialogue, reply

import annotate
from annotate import Rejected, find_role, judge, make_messages, make_reply, read_dialogue, read_example
from data import HERE, ROLES, Problem, Step, load_problems, read_records, read_toml, segments

PROBLEMS = load_problems("demo", "train", limit=24)
MODES = ("socratic", "socratic-gt", "cot")
EXAMPLES = [(name, read_example(text)) for name, texts in read_toml("exemplars.toml")["examples"].items()
            for text in texts.strip().split("\n\n")]

@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(annotate, "FIRST_WAIT", 0.01)

def run(server, *flags, limit=1, workers=1):
    """(exit status, kept records, rejected, rows of replies) of a command against a server."""
    flags = ["--teacher", "fake", "--base-url", server.url, "--limit", limit, "--workers", workers, *flags]
    status = annotate.main(annotate.parse_args(list(map(str, flags))))
    return status, *files(flags[flags.index("--out") + 1] if "--out" in flags else "annotations/demo-socratic.jsonl")

def files(out):
    out = Path(out)
    return read_records(out), lines(out.with_suffix(".rejected.jsonl")), lines(out.with_suffix(".replies.jsonl"))

def lines(path):
    """The whole lines of a file, as objects."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.endswith(b"}")]

def chat(text, finish="stop", **message):
    return {"choices": [{"message": {"content": text} | message, "finish_reason": finish}]}

# ---------------------------------------------------------------- the form: what a teacher reads and writes

@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dataset, example", EXAMPLES, ids=lambda x: x if isinstance(x, str) else "")
def test_the_examples_are_kept_as_they_are_in_every_mode(dataset, example, mode):
    lacking = example
    if mode == "socratic-gt" and dataset == "strategyqa":
        lacking = Problem(example.id, example.problem, [Step(s.question) for s in example.steps], example.answer,
                          evidence=example.evidence)
    text = make_reply(example, find_role(lacking, mode))
    record = judge(lacking, chat(text), mode, "me")
    questions = [step.question for step in record.steps]
    assert [step.solution for step in record.steps] == [step.solution for step in example.steps]
    assert questions == [step.question * (mode != "cot") for step in example.steps]
    assert record.source == "me" and record.answer == example.answer

def test_the_form_is_what_a_student_learns_and_reading_it_is_the_inverse_of_segments():
    for problem in PROBLEMS:
        for mode, role in (("socratic", "unified"), ("cot", "cot"), ("socratic-gt", "decomposer")):
            text = "".join(part.text for part in segments(problem, role)[1:])
            assert make_reply(problem, role) == text and find_role(problem, mode) == role
            steps = [Step("" if mode == "cot" else step.question, step.solution) for step in problem.steps]
            assert judge(problem, chat(text), mode, "me").steps == steps
        given = [part.text for part in segments(problem, "solver") if not part.learned]
        assert "Solution:" in given and "solver" in ROLES
        assert make_reply(problem, "solver") == make_reply(problem, "cot")

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
    giraffe = Problem("x", "Is it?", [Step("How tall?"), Step("How high?")], "no", evidence=["It is tall."])
    turns = make_messages(giraffe, "socratic-gt", "strategyqa")
    assert turns[-1]["content"] == "Problem: Is it?\nFact: It is tall.\nSubquestion: How tall?\nSubquestion: How high?"
    assert turns[1]["content"].startswith("Solution: An adult giraffe") and turns[1]["content"].endswith("Answer: no")
    mine = Problem("x", "Is it?", answer="yes")
    assert "giraffe" in str(make_messages(mine, "socratic", "mine.jsonl"))
    assert "bakery" in str(make_messages(LEMONS, "socratic", "mine.jsonl"))

def test_no_example_is_taken_from_the_demo():
    stories = " ".join(problem.problem for problem in load_problems("demo", "train", limit=500))
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
])
def test_replies_in_the_form_give_the_same_steps(text):
    def plain(steps):
        return [Step(s.question, re.sub(r"(?<== )\$(?=<<)|\$(?=3\*4 =)", "", s.solution).replace("3 * 4", "3*4")) for s in steps]
    record = judge(PENS, chat(text), "socratic", "me")
    assert plain(record.steps) == IDEAL and (record.answer, record.source) == ("7", "me")

@pytest.mark.parametrize("text, reason", [
    (GOOD.replace("Answer: 7", "Answer: 8"), "wrong answer: 8, not 7"),
    (GOOD.replace("Answer: 7", "Answer: some pens"), "no answer"),
    (GOOD.replace("12>>12", "13>>13"), r"false arithmetic: 3\*4=13"),
    (GOOD.replace("<<3*4=12>>", ""), "a solution without a calculation"),
    (GOOD.replace("<<3*4=12>>", "<<3*4>>"), "not in the form: Solution: There"),
    (GOOD.replace("<<3*4=12>>12", "<<3*4=2*6=12>>12"), "not in the form"), (GOOD + "</s>", "not in the form"),
    (GOOD.replace("There are 3*4", "In the [boxes] 3*4"), "not in the form"),      # the first step must not get lost
    ("1. " + GOOD, "not in the form"), (GOOD.replace("Subquestion: How many pens are in", "Q1: How many pens are in"), "not in"),
    ("Subquestion: How many then?\nSolution: There are 3*4 = 4 pens.\n" + GOOD, "a solution without a calculation"),
    ("Subquestion: How many then?\nSolution: Ava has 3 = <<3=3>>3 boxes.\n" + GOOD, "a solution without a calculation"),
    ("Subquestion: How many then?\nSolution: Nobody knows.\n" + GOOD, "a solution without a calculation"),
    (GOOD.replace("\nAnswer", "\nSubquestion: So?\nSolution: She gives 5 away.\nAnswer"), "a solution without a calculation"),
    (GOOD.replace("many pens are left", "are twelve minus 5 left"), "a subquestion gives a result away"),
    (GOOD.replace("<<3*4=12>>12", "<<3*4=12>>13"), "an annotation that does not fit"),
    (GOOD.replace("<<3*4=12>>12", "<<3*4=12>>12*1"), "an annotation that does not fit"),
    (GOOD.replace("3*4 = <<", "4*3 = <<"), "an annotation that does not fit"),
    (GOOD.replace("3*4 = <<", "2^3*4 = <<"), "an annotation that does not fit"),     # cut out of a larger equation
    (GOOD.replace("3*4 = <<", "0+3*4 = <<"), "an annotation that does not fit"),
    (GOOD.replace("3*4 = <<", "3 boxes * 4 pens = <<"), "an annotation that does not fit"),
    (GOOD.replace("3*4 = <<", "<<"), "an annotation that does not fit"),
    (GOOD.replace("3*4 = <<", "2*6 = 3*4 = <<"), "an annotation that does not fit"),
    ("Answer: 7", "not in the form: the lines are a"),
    ("There are 7 pens left.", "not in the form"), ("", "not in the form"), (" \n", "not in the form"),
    ("I'm sorry, but I can't help with that.", "not in the form"),
    ("Subquestion: How many pens are left?\nSolution: There are 7 pens left.\nAnswer: 7", "a solution without a calc"),
    ("Subquestion: How many pens does she give?\nSolution: She gives away 5 pens.\nAnswer: 7", "a solution without a calc"),
    (GOOD.replace("many pens are left", "come 7 pens to be left"), "a subquestion gives a result away"),
    (GOOD.replace("are in the boxes", "are 3*4 = 12"), "a subquestion gives a result away"),
    (GOOD.replace("many pens are left", "many of the 12 pens are left"), "a subquestion gives a result away"),
    (GOOD.replace("Solution: There are 3*4 = <<3*4=12>>12 pens.\n", ""), "not in the form: the lines are qqsa"),
    (GOOD.replace("Subquestion: How many pens are in the boxes?\n", ""), "not in the form: the lines are sqsa"),
    (GOOD.replace("12 pens.", "12 pens.<|im_end|>"), "not in the form"), (GOOD.replace("12 pens.", "12 pens.[/INST]"), "not in"),
    (GOOD.replace("12 pens.", "12 pens. \\boxed{12}"), "not in the form"),
    (GOOD.replace("12 pens.", "12 pens. Solution: none"), "not in the form"),
    (GOOD.replace("12 pens.", "12 pens.\nThat is a dozen."), "not in the form: the lines are qs-qsa"),          # a second line
    (GOOD.replace("Subquestion:", "Subquestion 1.1:"), "not in the form"),
    (GOOD.replace("Subquestion:", "subquestion:"), "not in the form"), (GOOD.replace("Solution:", "A:"), "not in the form: the lines are q-q-a"),
    (GOOD.replace("Subquestion:", "### Subquestion:"), "not in the form"),
    (GOOD.replace("\n", "  "), "not in the form"),                                    # all in one line
    (f"{GOOD}\nProblem: Tom has 3 dogs.\n{DRAFT.replace('7', '8').replace('3+4', '4+4')}", "wrong answer: 8"),
])
def test_what_is_not_in_the_form_or_not_true_is_rejected_with_its_reason(text, reason):
    with pytest.raises(Rejected, match=f"^{reason}"):
        judge(PENS, chat(text), "socratic", "me")

def test_only_a_reply_that_ended_by_itself_is_judged():
    for finish, reason in (("length", "cut off"), ("MAX_TOKENS", "cut off"), ("content_filter: hate", "filtered"), ("odd", "broken")):
        with pytest.raises(Rejected, match=f"^{reason}$"):
            judge(PENS, chat(GOOD, finish), "socratic", "me")
    for finish in ("stop", None, "STOP"):
        assert judge(PENS, chat(GOOD, finish), "socratic", "me").steps == IDEAL

def test_reasoning_in_another_field_is_not_read():
    assert judge(PENS, chat(GOOD, reasoning_content=DRAFT), "socratic", "me").steps == IDEAL

@pytest.mark.parametrize("solution, results", [
    ("$5*3 = $<<5*3=15>>15 and 15/4 = <<15/4=3.75>>3.75", ["15", "3.75"]),
    ("A third is 10/3 = <<10/3=3.333>>3.333", ["3.333"]), ("A third is 10/3 = <<10/3=3.3>>3.3", ["3.3"]), ("That is 1,200*2 = <<1,200*2=2400>>2400", ["2400"]),
    ("She had 5. 5-3 = <<5-3=2>>2", None), ("(2+3)*4 = <<(2+3)*4=20>>20", ["20"]),
    ("3-8 = <<3-8=-5>>-5 degrees", ["-5"]), ("20%*50 = <<20%*50=10>>10", ["10"]), ("2 x 3 = <<2*3=6>>6", None),
    ("10/3 = <<10/3=3>>3", None), ("1/2 hour = <<1/2=30>>30 minutes", None), ("5 = <<5=5>>5", []), ("no numbers", []),
])
def test_a_calculation_is_true_and_stands_as_in_the_data(solution, results):
    if results is None:
        with pytest.raises(Rejected):
            annotate.check_calculations(solution)
    else:
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
    for _ in range(4000):
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
    assert n_kept > 500
    began = time.perf_counter()
    for text, n in (("1 ", 20_000), ("(", 20_000), ("1+", 20_000), ("$", 20_000), ("Answer:", 5000), ("\n", 50_000),
                    ("<<1+1=2>>", 9000), ("**", 20_000), ("<think>", 9000), ("</a>", 9000), ("1,", 20_000)):
        with contextlib.suppress(Rejected):
            judge(PENS, chat(f"Subquestion: a?\nSolution: {text * n}"), "socratic", "me")
    assert time.perf_counter() - began < 10

def test_a_reply_may_have_any_shape():
    for raw in ({}, {"choices": None}, {"choices": []}, {"choices": [None]}, {"choices": [{"message": None}]},
                {"choices": [{"message": {"content": [1, {"text": None}, {"text": 3}]}}]}, {"usage": 1, "choices": "x"}):
        with pytest.raises(Rejected):
            judge(PENS, raw, "socratic", "me")
    with pytest.raises(Rejected):
        read_dialogue("", "cot")

# ---------------------------------------------------------------- faults: what is asked, how often, what is stored

KEPT, REJECTED, MISSING = "kept", "rejected", "missing"
TABLE = [  # faults of the first requests about the second of two problems; how often it is asked; what comes of it; replies
    (["429"], 2, KEPT, 1), (["429"] * 7, 8, KEPT, 1), (["429"] * 99, 8, MISSING, 0),
    (["429 Retry-After 0"] * 2, 3, KEPT, 1), (["429 past"] * 2, 3, KEPT, 1),
    (["429 quota"], 1, MISSING, 0), (["401"], 1, MISSING, 0), (["403"], 1, MISSING, 0), (["404"], 1, MISSING, 0),
    (["400"], 1, REJECTED, 1), (["422"], 1, REJECTED, 1),     # among good requests: this one problem is too long
    (["408"], 2, KEPT, 1), (["409"], 2, KEPT, 1), (["500"], 2, KEPT, 1), (["500"] * 7, 8, KEPT, 1),
    (["500"] * 99, 8, MISSING, 0), (["500 text"], 2, KEPT, 1), (["500 flat"], 2, KEPT, 1),
    (["503 html"], 2, KEPT, 1), (["200 html"], 2, KEPT, 1), (["200 error"], 2, KEPT, 1), (["200 error 400"], 2, KEPT, 1),
    (["200 flat error"], 2, KEPT, 1), (["error inside"], 2, KEPT, 1), (["odd finish"], 2, KEPT, 1),
    (["odd finish"] * 99, 8, MISSING, 0),
    (["empty choices"], 2, KEPT, 1), (["null content"], 2, KEPT, 2), (["empty content"], 2, KEPT, 2),
    (["empty content"] * 3, 3, REJECTED, 3),
    (["length"], 2, KEPT, 2), (["length"] * 9, 4, REJECTED, 4),
    ([reply("", "content_filter")], 1, REJECTED, 1),          # it would be filtered again
    (["refusal"], 2, KEPT, 2), (["sorry"], 2, KEPT, 2), (["wrong", "false"], 3, KEPT, 3), (["wrong"] * 9, 3, REJECTED, 3),
    (["reasoning"], 1, KEPT, 1), (["think"], 1, KEPT, 1),
    (["asks for what is stated"], 1, KEPT, 1), (["no answer line"], 1, KEPT, 1), (["no usage"], 1, KEPT, 1),
    (["half"], 2, KEPT, 1), (["half json"], 2, KEPT, 1), (["reset"], 2, KEPT, 1), (["late"], 2, KEPT, 1),
]

@pytest.mark.parametrize("faults, n_asked, verdict, n_replies", TABLE, ids=lambda x: str(x)[:30])
def test_each_fault_is_asked_again_as_often_as_it_should(faults, n_asked, verdict, n_replies, monkeypatch):
    monkeypatch.setattr(annotate, "TIMEOUT", 0.25 if faults[0] == "late" else 5)
    with FakeTeacher(PROBLEMS, [None, *faults], late=0.5) as server:
        status, kept, rejected, rows = run(server, limit=2)
    assert len(server.log) == 1 + n_asked
    assert (status, len(kept)) == {KEPT: (0, 2), REJECTED: (0, 1), MISSING: (1, 1)}[verdict]
    assert len(rows) == 1 + n_replies and len(rejected) == 1 + n_replies - len(kept)

def test_the_wait_is_the_one_that_the_server_names():
    with FakeTeacher(PROBLEMS, ["429 Retry-After"]) as server:
        run(server)
    first, second = server.log
    assert 1 <= second["time"] - first["time"] < 1.6

def test_the_first_reply_is_greedy_a_cut_one_gets_more_room_and_body_shapes_every_request():
    with FakeTeacher(PROBLEMS, ["length", "wrong"]) as server:
        run(server)
    assert [(e["body"]["temperature"], e["body"]["max_tokens"], e["body"]["seed"]) for e in server.log] == [
        (0.0, 1024, 0), (0.7, 2048, 1), (0.7, 2048, 2)]
    assert all(entry["body"]["stream"] is False for entry in server.log)
    body = '{"max_tokens": null, "max_completion_tokens": 50, "temperature": null, "reasoning_effort": "low"}'
    with FakeTeacher(PROBLEMS, ["length"]) as server:
        run(server, "--body", body, "--out", "x.jsonl")
    for entry, room in zip(server.log, (50, 100)):
        sent = entry["body"]
        assert not {"max_tokens", "temperature"} & sent.keys() and sent["reasoning_effort"] == "low"
        assert sent["max_completion_tokens"] == room

def test_one_failed_problem_does_not_end_the_run():
    with FakeTeacher(PROBLEMS, [None, "400", *["500"] * 8]) as server:
        status, kept, rejected, _ = run(server, limit=10)
        assert (status, len(kept)) == (1, 8) and rejected[0]["reason"].startswith("refused by the server: 400")
        assert run(server, limit=10)[0] == 0 and len(server.log) == 10 + 8, "only the 500 is asked about again"

def test_nothing_is_asked_and_nobody_waits_after_a_stop():
    with FakeTeacher(PROBLEMS, ["429 Retry-After"]) as server:
        teacher = annotate.Run(annotate.parse_args(["--teacher", "fake", "--base-url", server.url]), [], None, [])
        threading.Timer(0.2, teacher.stopping.set).start()
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(annotate.Stop):
                teacher.request({"messages": [{"role": "user", "content": "Hello"}]})
        assert time.monotonic() - began < 0.8 and len(server.log) == 1

# ---------------------------------------------------------------- nothing is paid for twice, nothing is lost

def test_a_rerun_asks_only_for_what_is_missing():
    with FakeTeacher(PROBLEMS, [None, *["500"] * 8, "wrong"]) as server:
        first = run(server, limit=10)
        assert len(first[1]) == 9 and len(server.log) == 18
        second = run(server, limit=10)
        assert len(second[1]) == 10 and len(server.log) == 19
        third = run(server, limit=10)
        assert third == (0, *second[1:]) and len(server.log) == 19, "nothing is missing: nothing is asked"

@pytest.mark.parametrize("flags", [["--body", '{"temperature": 0.1}'], ["--body", '{"top_p": 0.9}'], ["--mode", "cot"],
                                   ["--teacher", "other"]])
def test_whatever_shapes_a_reply_asks_anew(flags):
    with FakeTeacher(PROBLEMS, mode="cot" if "cot" in flags else "socratic") as server:
        run(server, limit=3)
        n = len(server.log)
        run(server, *flags, "--out", "annotations/demo-socratic.jsonl", limit=3)
        assert len(server.log) == n + 3
        with FakeTeacher(PROBLEMS) as another:
            run(another, limit=3)
            assert len(another.log) == 3

@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_torn_line_costs_one_request(cut):
    with FakeTeacher(PROBLEMS) as server:
        whole = run(server, limit=6)
        path = Path("annotations/demo-socratic.replies.jsonl")
        data = path.read_bytes()
        last = data.rstrip(b"\n").rindex(b"\n") + 1
        path.write_bytes(data[:last + cut] if cut > 0 else data[:cut])
        n = len(server.log)
        assert run(server, limit=6)[1] == whole[1] and len(server.log) == n + 1
        assert run(server, limit=6)[1] == whole[1] and len(server.log) == n + 1

def start(server, *flags, limit=24, workers=4, **more):
    command = [sys.executable, HERE / "annotate.py", "--teacher", "fake", "--base-url", server.url, "--limit", limit,
               "--workers", workers, *flags]
    env = os.environ | {"PYTHONPATH": str(HERE)}
    return subprocess.Popen(list(map(str, command)), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, **more)

def identity(entry):
    return entry["id"], entry["body"]["seed"], entry["body"]["max_tokens"]

def test_runs_killed_at_random_moments_lose_nothing_and_pay_nothing_twice():
    rng, workers = random.Random(0), 4
    path = Path("annotations/demo-socratic.replies.jsonl")
    with FakeTeacher(PROBLEMS, delay=0.08) as server:
        stored = set()
        for kill in [True] * 5 + [False]:
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
            whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
            stored = {json.loads(line)["id"] for line in whole}
        asked = [identity(entry) for entry in server.log]
    kept = read_records("annotations/demo-socratic.jsonl")
    assert [record.id for record in kept] == [problem.id for problem in PROBLEMS]
    keys = [(row["id"], row["sample"]) for row in lines(path)]
    assert len(keys) == len(set(keys)) == 24
    assert len(asked) - len(set(asked)) <= 5 * workers

def test_ctrl_c_keeps_what_is_under_way_and_says_how_to_go_on():
    with FakeTeacher(PROBLEMS, delay=0.3) as server:
        process = start(server)
        while len(server.log) < 6:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        n = len(server.log)
        assert process.returncode == 1 and "interrupted" in out and "same command goes on" in out
        assert 6 <= n <= 10 and len(read_records("annotations/demo-socratic.jsonl")) == n
        assert start(server).wait(30) == 0 and len(server.log) == 24

def test_ctrl_c_during_the_first_request_is_told_too():
    with FakeTeacher(PROBLEMS, delay=3) as server:
        process = start(server)
        while not server.log:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 1 and "0 of 24 problems are kept" in out and "same command goes on" in out
        assert lines(Path("annotations/demo-socratic.rejected.jsonl")) == []

def test_each_name_has_files_of_its_own():
    names = [annotate.beside(Path(f"a/{name}"), "replies").name for name in ("v.1", "v.2", "v.jsonl", "v")]
    assert names == ["v.1.replies.jsonl", "v.2.replies.jsonl", "v.replies.jsonl", "v.replies.jsonl"]

def test_a_full_disk_stops_the_run_and_costs_what_was_under_way():
    def small():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    with FakeTeacher(PROBLEMS, delay=0.02) as server:
        process = start(server, preexec_fn=small)
        out, _ = process.communicate(timeout=20)
        n = len(server.log)
        assert process.returncode == 1 and re.search("File too large|disk is full", out) and n < 24
        stored = {row["id"] for row in map(json.loads, re.findall(".*}}\n", Path(
            "annotations/demo-socratic.replies.jsonl").read_text()))}
        assert n - 4 <= len(stored) < n
        assert start(server).wait(20) == 0
        assert not stored & {entry["id"] for entry in server.log[n:]}
        assert len(server.log) == n + 24 - len(stored)
    assert len(read_records("annotations/demo-socratic.jsonl")) == 24

# ---------------------------------------------------------------- keys, money, errors, replay

def test_the_key_is_sent_and_never_shown(monkeypatch, capsys):
    key = "sk-secret-0123456789"
    with FakeTeacher(PROBLEMS) as server:   # a local server: no key, no header
        run(server, "--out", "x.jsonl")
        assert {entry["key"] for entry in server.log} == {None}
    monkeypatch.setenv("OPENAI_API_KEY", f"{key}\n")
    with FakeTeacher(PROBLEMS, [None, "500", "401"]) as server:
        assert run(server, limit=3)[0] == 1
        assert {entry["key"] for entry in server.log} == {f"Bearer {key}"}
    with FakeTeacher(PROBLEMS, ["401"]) as server, pytest.raises(SystemExit) as error:
        run(server, "--out", "y.jsonl", limit=4)
    shown = "".join(capsys.readouterr()) + str(error.value)
    stored = "".join(path.read_text() for path in Path().rglob("*") if path.is_file())
    assert "Incorrect API key" in shown and "OPENAI_API_KEY" in shown and "***" in shown
    assert key not in shown + stored

@pytest.mark.parametrize("fault, says", [("401", "401 .*Incorrect API key"), ("404", "404 .*The model .*'fake'"),
                                         ("429 quota", "exceeded your current quota"), ("400", "maximum context length")])
def test_a_wrong_key_or_name_shows_at_the_first_request(fault, says):
    with FakeTeacher(PROBLEMS, [fault] * 99) as server, pytest.raises(SystemExit) as error:
        run(server, limit=24, workers=8)
    assert re.search(says, str(error.value), re.DOTALL) and len(server.log) == 1

@pytest.mark.parametrize("fault", [requests.exceptions.ProxyError("407 Proxy Authentication Required"),
                                   requests.exceptions.SSLError("certificate verify failed")])
def test_a_proxy_or_certificate_in_the_way_is_told_at_once_with_its_cause(monkeypatch, fault):
    tried = []

    def post(url, **more):
        tried.append(url)
        raise fault

    monkeypatch.setattr(annotate.requests, "post", post)
    with FakeTeacher(PROBLEMS) as server, pytest.raises(SystemExit, match=f"no reply: .*{fault}"):
        run(server, limit=24, workers=8)
    assert len(tried) == 1

def test_a_server_that_is_down_is_one_clear_message():
    with FakeTeacher(PROBLEMS) as server:
        pass
    with pytest.raises(SystemExit, match="no reply: ConnectionError.*\n  Is it running"):
        run(server)

def test_progress_and_summary(capsys):
    with FakeTeacher(PROBLEMS, [None, "wrong", *["500"] * 8, "wrong", "false"]) as server:
        run(server, "--price", "100,1000", limit=24)
    out = capsys.readouterr().out
    assert re.search(r"\n? +23/23 problems \| \d+ replies \| [\d.]+ spent \| 0:00 left\n", out)
    assert "23 of 24 problems are kept: annotations/demo-socratic.jsonl\n" in out
    assert "       2 replies rejected: wrong answer\n       1 replies rejected: false arithmetic\n" in out
    assert '       1 problems missing: 500 {"error": {"message": "The server had an error"' in out
    assert "26 replies, cost 2.6000\nThe same command goes on" in out
    assert all(len(line) <= 88 for line in out.splitlines() if "500" not in line)

@pytest.mark.parametrize("path, asked", [("", "/v1"), ("/", "/v1"), ("/v1", "/v1"), ("/v1/", "/v1"), ("/inference", "/inference")])
def test_a_base_url_is_used_as_given_and_a_bare_host_gets_v1(path, asked):
    with FakeTeacher(PROBLEMS) as server:
        server.url += path
        run(server)
    assert {entry["path"] for entry in server.log} == {f"{asked}/chat/completions"}

def test_the_budget_is_exceeded_by_the_requests_under_way_at_most_and_a_larger_one_goes_on(capsys):
    prices = ["--price", "1,10"]             # a call costs 0.0010
    with FakeTeacher(PROBLEMS, [None, "hidden reasoning"]) as server:
        status, kept, _, rows = run(server, *prices, "--budget", 0.03, limit=24)
        out = capsys.readouterr().out
        cost = 0.001 * (len(rows) - 1) + 0.000279 + 0.0096    # 1239 - 279 = 960 tokens were written, not 60
        assert status == 1 and "budget" in out and 0.03 <= cost < 0.03 + 0.001 and f"cost {cost:.4f}" in out
        n = len(server.log)
        run(server, *prices, "--budget", 0.001, limit=24)
        assert len(server.log) == n
        assert run(server, *prices, "--budget", 1, limit=24)[0] == 0
    with pytest.raises(SystemExit, match="--price"):
        run(server, "--budget", 1)

def test_a_dry_run_asks_nothing_and_counts_what_is_missing(capsys):
    with FakeTeacher(PROBLEMS, ["wrong"], delay=0.05) as server:
        flags = ["--dry-run", "--price", "10,100", "--teacher", "fake", "--base-url", server.url, "--limit", "24"]
        assert annotate.main(annotate.parse_args(flags)) == 0
        assert "24 problems to ask" in capsys.readouterr().out and not server.log and not Path("annotations").exists()
        run(server, limit=3)
        capsys.readouterr()
        annotate.main(annotate.parse_args(flags))
        out = capsys.readouterr().out
        assert "21 problems to ask" in out and re.search("cost at most 2.[3-5]", out)
        assert len(server.log) == 4

def test_a_replay_gives_the_same_annotations_without_a_server_whatever_the_prompt(monkeypatch, capsys):
    with FakeTeacher(PROBLEMS, ["wrong", "length"]) as server:
        _, kept, rejected, rows = run(server, limit=12)
    replay = ["--replay", "annotations/demo-socratic.replies.jsonl", "--out", "again.jsonl"]
    monkeypatch.setitem(read_toml("exemplars.toml")["task"], "unified", "Solve this.")
    assert annotate.main(annotate.parse_args(replay)) == 0
    assert Path("again.jsonl").read_bytes() == Path("annotations/demo-socratic.jsonl").read_bytes()
    assert lines(Path("again.rejected.jsonl")) == rejected and len(kept) == 12
    assert not Path("again.replies.jsonl").exists()
    rows[5]["problem_sha256"] = "0" * 16
    Path("short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert annotate.main(annotate.parse_args(["--replay", "short.jsonl", "--out", "short-out.jsonl"])) == 1
    assert len(read_records("short-out.jsonl")) == 11, "it was about another problem"
    assert "the recording holds fewer replies" in capsys.readouterr().out

def test_a_reply_has_the_keys_of_the_documented_format():
    with FakeTeacher(PROBLEMS) as server:
        _, _, _, (row,) = run(server)
    messages = make_messages(PROBLEMS[0], "socratic", "demo")
    assert server.log[0]["body"]["messages"] == messages
    assert row["messages_sha256"] == annotate.sha16(json.dumps(messages)) and len(row["messages_sha256"]) == 16
    assert row["problem_sha256"] == annotate.sha16(PROBLEMS[0].problem)
    assert {"id", "sample", "problem_sha256", "messages_sha256", "teacher", "reply"} <= row.keys()

def test_without_flags_the_recorded_teacher_is_replayed():
    assert annotate.main(annotate.parse_args([])) == 0
    rows = lines(annotate.RECORDING)
    assert len({row["id"] for row in rows}) == 40 and read_records("annotations/demo-socratic.jsonl")

@pytest.mark.skipif("SOCRATIC_REPLIES" not in os.environ, reason="no folder of recorded replies: SOCRATIC_REPLIES")
@pytest.mark.parametrize("dataset, mode, least", [("svamp", "socratic", 340), ("strategyqa", "socratic-gt", 20)])
def test_a_real_teachers_recording_replays(dataset, mode, least):
    path = Path(os.environ["SOCRATIC_REPLIES"]) / f"{dataset}-{mode}.replies.jsonl"
    annotate.main(annotate.parse_args(["--dataset", dataset, "--mode", mode, "--replay", str(path)]))
    assert len(read_records(f"annotations/{dataset}-{mode}.jsonl")) >= least

def test_who_is_not_named_is_not_asked():
    for flags, says in ((["--dataset", "svamp"], "--teacher NAME"), (["--base-url", "localhost:1"], "--teacher NAME"),
                        (["--teacher", "x"], "OPENAI_API_KEY"), (["--replay", "none.jsonl"], "does not exist"),
                        (["--dataset", "none"], "Unknown data set"), (["--dataset", "none.jsonl"], "--teacher NAME")):
        with pytest.raises(SystemExit, match=says):
            annotate.main(annotate.parse_args(flags))

def test_ones_own_file_is_asked_about_as_a_whole():
    problems = [Problem(f"mine-{i}", p.problem, [], p.answer) for i, p in enumerate(PROBLEMS[:6])]
    problems.append(Problem("mine-6", "Who knows?"))
    Path("mine.jsonl").write_text("".join(problem.to_json() + "\n" for problem in problems))
    with FakeTeacher(PROBLEMS) as server:
        run(server, "--dataset", "mine.jsonl", "--out", "annotations/mine-socratic.jsonl", limit=99)
    assert [r.id for r in read_records("annotations/mine-socratic.jsonl")] == [f"mine-{i}" for i in range(6)]
    assert [r.steps for r in read_records("annotations/mine-socratic.jsonl")] == [p.steps for p in PROBLEMS[:6]]

def test_no_torch_is_needed_to_ask_a_teacher():
    code = "import sys, annotate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=HERE).returncode == 0
    assert dialogue(PROBLEMS[0]) and reply("x")

@pytest.mark.parametrize("line", ["3", "[]", "{}", '{"id": "x", "sample": 0, "problem_sha256": "a", "teacher": "t", "reply": []}'])
def test_a_damaged_recording_is_one_clear_line(line):
    Path("a.jsonl").write_text("\n" + line + "\n")
    with pytest.raises(SystemExit, match="^a.jsonl:2: a line of a recording must be an object with a reply, also an object$"):
        annotate.main(annotate.parse_args(["--replay", "a.jsonl"]))


@pytest.mark.parametrize("damage, words", [
    ({"id": [1]}, "'id' must be a string"), ({"teacher": None}, "'teacher' must be a string"),
    ({"id": "\ud800"}, "surrogates not allowed"), ({"messages_sha256": ["x"]}, None)])
def test_a_damaged_name_in_a_recording_is_told(tmp_path, monkeypatch, damage, words):
    monkeypatch.chdir(tmp_path)
    row = json.loads(annotate.RECORDING.read_text(encoding="utf-8").split("\n")[0]) | damage
    Path("a.jsonl").write_text(json.dumps(row) + "\n")
    command = annotate.parse_args(["--replay", "a.jsonl"])
    if words:
        with pytest.raises(SystemExit, match=f"a.jsonl:1: .*{words}"):
            annotate.main(command)
    else:
        assert annotate.main(command) == 0


@pytest.mark.parametrize("usage", [[], "free", {"prompt_tokens": "many", "completion_tokens": None}, {"total_tokens": 1.5}])
def test_a_usage_that_counts_nothing_costs_nothing(tmp_path, monkeypatch, usage):
    monkeypatch.chdir(tmp_path)
    row = json.loads(annotate.RECORDING.read_text(encoding="utf-8").split("\n")[0])
    row["reply"]["usage"] = usage
    Path("a.jsonl").write_text(json.dumps(row) + "\n")
    run = annotate.Run(annotate.parse_args(["--price", "1,1"]), [], Path("x"), [row])
    assert run.spent == 0


@pytest.mark.parametrize("body", ["[1]", "3", "{"])
def test_a_body_is_an_object(capsys, body):
    with pytest.raises(SystemExit):
        annotate.parse_args(["--body", body])
    assert "argument --body: invalid json_object value" in capsys.readouterr().err
