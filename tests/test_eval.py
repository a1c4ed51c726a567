"""Figures are those worked by hand, every way to break is told from the others, and a killed run ends as an unbroken one."""

import html
import itertools
import json
import math
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch
from toy import PROBLEM, real, tiny_student

import eval as script
from data import Problem, Step, get_tokenizer, load_problems, make_demo, segments, tokenize
from infer import Student

TOKENIZER = get_tokenizer("tiny")


# ---------------------------------------------------------------- statistics

@pytest.mark.parametrize("n_right, n, low, high", [      # Newcombe (Statistics in Medicine 17, 1998), table I, method 3
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_intervals_are_the_published_ones(n_right, n, low, high):
    assert script.wilson(n_right, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n_right, n", [(1, 10), (5, 10), (9, 10), (200, 1319)])
def test_an_interval_ends_where_the_share_is_1_96_standard_errors_away(n_right, n):
    for end in script.wilson(n_right, n):
        assert abs(n_right / n - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n))


def test_intervals_at_none_all_half_and_nothing():
    assert script.wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert script.wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)
    assert script.wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert script.wilson(0, 0) == (0, 1)


@pytest.mark.parametrize("wins, losses, p", [
    (0, 0, 1), (1, 0, 1), (5, 0, 2 / 32), (10, 2, 2 * (1 + 12 + 66) / 4096), (2, 10, 158 / 4096), (3, 4, 1), (1, 7, 18 / 256)])
def test_mcnemar_by_hand(wins, losses, p):
    assert script.mcnemar(wins, losses) == pytest.approx(p)


@pytest.mark.parametrize("n", range(1, 9))
def test_mcnemar_counts_the_coins(n):
    """An oracle: of all 2**n rows of coins, how many are at least as uneven?"""
    for wins in range(n + 1):
        as_uneven = sum(abs(2 * sum(coins) - n) >= abs(2 * wins - n) for coins in itertools.product((0, 1), repeat=n))
        assert script.mcnemar(wins, n - wins) == pytest.approx(as_uneven / 2**n)


def test_mcnemar_of_very_many_pairs():
    assert 0 <= script.mcnemar(1319, 2) < 1e-300
    assert script.mcnemar(660, 659) == 1


def test_modified_precision_is_that_of_the_paper():
    """Papineni et al. 2002, section 2.1: seven times "the" has 2 of 7 with one reference, 1 of 7 with the other."""
    sevens = "the the the the the the the"
    assert script.modified_precision([(sevens, "the cat is on the mat")], 1) == (2, 7)
    assert script.modified_precision([(sevens, "there is a cat on the mat")], 1) == (1, 7)
    assert script.modified_precision([(sevens, "the cat is on the mat")], 2) == (0, 6)


def test_bleu_by_hand():
    gold = "the cat sat on the mat"
    assert script.bleu([(gold, gold)]) == pytest.approx(100)
    assert script.bleu([("the cat sat on the", gold)]) == pytest.approx(100 * math.exp(1 - 6 / 5))     # only too short
    assert script.bleu([(gold + " mat", gold)]) == pytest.approx(100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)
    assert script.bleu([("a dog", gold)]) == script.bleu([("", gold)]) == script.bleu([("on the mat", gold)]) == 0
    # over the corpus: matches and lengths are added up, not averaged; "." and "?" are tokens of their own
    two = [("Is it red?", "Is it red?"), ("Was he very tall then?", "Was he very old then?")]
    assert script.bleu(two) == pytest.approx(100 * (9 / 10 * 6 / 8 * 3 / 6 * 1 / 4) ** 0.25)


def test_votes():
    assert script.vote(["7", "8", "8", None, None, None]) == ("8", False)
    assert script.vote(["9", "8", "8", "9"]) == ("9", True)
    assert script.vote([None, None]) == script.vote([]) == (None, False)


# ---------------------------------------------------------------- actors instead of students

class Actor(torch.nn.Module):
    """Stands in for a model and writes what `lines(text so far)` says. The cache's keys hold the tokens that it read."""

    def __init__(self, lines):
        super().__init__()
        self.config = tiny_student("solver", n_positions=1024).config
        self.wte = torch.nn.Embedding(2048, 1)
        self.lines = lines

    def forward(self, ids, cache, counts):
        row, column, position = cache.begin(counts, *ids.shape)
        cache.keys[0, row, 0, position, 0] = ids[row, column].float()
        cache.lengths = cache.lengths + cache.counts
        logits = torch.zeros(len(counts), 2048)
        for row, n in enumerate(cache.lengths):
            text = TOKENIZER.decode(cache.keys[0, row, 0, :n, 0].long().tolist())
            wanted = self.lines(text)
            logits[row, tokenize(wanted, TOKENIZER)[0] if wanted else TOKENIZER.eot_token] = 1
        return logits


def recite(problems, role):
    """Lines that go on with the gold dialogue, whatever part was read."""
    gold = {p.problem: "".join(part.text for part in segments(p, role)) for p in problems}
    return lambda so_far: next((text[len(so_far):] for text in gold.values() if text.startswith(so_far)), "\n")


def solver(write):
    """Lines of a solver: `write(kind, subquestion, result so far)` is the turn; results of a calculator are copied."""

    def lines(so_far):
        *before, line = so_far.split("\n")
        kind, _, written = line.partition(":")
        numbers = re.findall(r"\d+", "".join(before[1:]))
        turn = " " + write(kind, before[-1], int(numbers[-1]) if numbers else 0)
        for expression, computed in re.findall(r"<<(.*?)=(.*?)>>", written):
            turn = re.sub(rf"<<{re.escape(expression)}=(.*?)>>\1", f"<<{expression}={computed}>>{computed}", turn)
        return turn[len(written):] or "\n" if turn.startswith(written) else "\n"

    return lines


def good(kind, question, x):
    if kind == "Answer":
        return str(x)
    return "There are 3*4 = <<3*4=12>>12 pens." if "pens" in question else f"{x}-5 = <<{x}-5={x - 5}>>{x - 5} are left."


def but(**slips):
    """The good solver, but for its `first` or `second` solution, or its `answer`."""

    def write(kind, question, x):
        slip = slips.get("answer" if kind == "Answer" else "first" if "pens" in question else "second")
        return slip(x) if slip else good(kind, question, x)

    return write


def students(write=good, asked=PROBLEM):
    return {"decomposer": Student("decomposer", Actor(recite([asked], "decomposer")), TOKENIZER),
            "solver": Student("solver", Actor(solver(write)), TOKENIZER)}


def dialogue(*flags, problem=PROBLEM, **kwargs):
    (record,) = script.solve_batch(script.parse_args([*flags]), [problem], students(**kwargs))
    return json.loads(json.dumps(record))


# ---------------------------------------------------------------- where did it break?

ONE_QUESTION = Problem("x", PROBLEM.problem, [Step("How many are left?")])
SEVEN = lambda x: "3+4 = <<3+4=7>>7 pens."                             # noqa: E731
PLUS = lambda x: f"{x}+5 = <<{x}+5={x + 5}>>{x + 5} are left."         # noqa: E731


def test_the_good_students_are_right():
    record = dialogue()
    assert (script.stage(record), record["answer"], record["gold"]) == ("right", "7", "7")
    assert record["oracles"]["gold decomposer"]["answer"] == record["oracles"]["gold solver"]["answer"] == "7"
    assert "one gold solution" not in record["oracles"]


@pytest.mark.parametrize("broken, flags, asked, write", [
    ("decomposer", [], ONE_QUESTION, good),
    ("one solution", [], PROBLEM, but(first=SEVEN)),
    ("one solution", [], PROBLEM, but(second=PLUS)),
    ("several", [], PROBLEM, but(first=SEVEN, second=PLUS)),
    ("several", [], PROBLEM, but(second=PLUS, answer=lambda x: "1")),
    ("answer", [], PROBLEM, but(answer=lambda x: str(x + 1))),
    ("format", [], PROBLEM, but(answer=lambda x: "the number above")),
    ("cut off", [], PROBLEM, but(second=lambda x: "and so on " * 200)),
    ("arithmetic", ["--no-calculator"], PROBLEM, but(first=lambda x: "There are 3*4 = <<3*4=13>>13 pens.")),
    ("several", ["--no-calculator"], PROBLEM, but(first=lambda x: "3*4 = <<3*4=13>>13 pens.", second=PLUS)),
    ("right", [], PROBLEM, but(first=lambda x: "There are 3*4 = <<3*4=13>>13 pens.")),
    ("right", ["--no-calculator"], PROBLEM, but(first=lambda x: "8+4 = <<8+4=12>>12 pens.")),
    ("unknown", ["--no-diagnose"], PROBLEM, but(first=SEVEN)),
])
def test_every_way_to_break_is_told_from_the_others(broken, flags, asked, write):
    assert script.stage(dialogue(*flags, asked=asked, write=write)) == broken


@pytest.mark.parametrize("write, place", [(but(first=SEVEN), 0), (but(second=PLUS), 1), (but(first=SEVEN, second=PLUS), 0)])
def test_the_solution_that_broke_it_is_named(write, place):
    assert script.broken_solution(dialogue(write=write)) == place


def test_without_gold_solutions_the_solver_is_blamed_and_without_gold_steps_nobody():
    plan = Problem("a", "Can Ben fly?", [Step("What is Ben?"), Step("Can answer 1 fly?")], "no")
    says_yes = lambda kind, question, x: "yes" if kind == "Answer" else "Hm."   # noqa: E731
    assert script.stage(dialogue(problem=plan, asked=plan, write=says_yes)) == "solver"
    bare = Problem("a", PROBLEM.problem, [], "7")
    assert script.stage(dialogue(problem=bare, write=but(first=SEVEN))) == "unknown"


def test_a_gold_part_is_given_and_the_rest_is_the_students():
    oracles = dialogue(write=but(first=SEVEN))["oracles"]
    written = {name: [turn["text"] for turn in one["turns"]] for name, one in oracles.items()}
    assert written == {"gold decomposer": ["3+4 = <<3+4=7>>7 pens.", "7-5 = <<7-5=2>>2 are left.", "2"],
                       "gold solver": ["7"], "one gold solution": ["12-5 = <<12-5=7>>7 are left.", "7"]}
    assert "gold solver" not in dialogue(asked=ONE_QUESTION)["oracles"], "another number of subquestions"


def test_first_wrong_solution():
    gold = [{"solution": s} for s in ("3*4 = <<3*4=12>>12", "", "Then 12-5 = <<12-5=7>>7.")]
    assert script.first_wrong(["It is 12.", "whatever", "5+2 = $<<5+2=7>>7.00 left"], gold) is None
    assert script.first_wrong(["It is 12.", "whatever"], gold) == 2
    assert script.first_wrong(["3*4 = <<3*4=12>>13", "", "7"], gold) == 0
    assert script.first_wrong(["12", "", "7", "7"], gold) == 3
    assert script.first_wrong([], []) is None


# ---------------------------------------------------------------- the calculator

def test_the_calculator_says_what_the_student_would_have_written():
    write = but(first=lambda x: "There are 3*4 = <<3*4=13>>13 pens.")
    record = dialogue(write=write)
    assert record["calls"] == [{"solution": 0, "expression": "3*4", "result": "12", "alone": "13"},
                               {"solution": 1, "expression": "12-5", "result": "7", "alone": "7"}]
    assert record["oracles"]["no calculator"]["answer"] == "8"
    assert list(dialogue()["oracles"]) == ["gold decomposer", "gold solver"], "nothing to rescue"
    without = dialogue("--no-calculator", write=write)
    assert [(call["result"], call["alone"]) for call in without["calls"]] == [("12", "13"), ("8", "8")]
    assert without["oracles"]["calculator"]["answer"] == "7"
    scores = script.score([record, dialogue(write=but(first=SEVEN))], vars(script.parse_args([])))["the calculator"]
    assert scores["results that it changed, of all it wrote"] == "1 of 4 = 25.0%"
    assert shares(scores) == {"right answers that it rescued": (1, 1)}


def test_what_the_calculator_cannot_compute_is_no_call():
    assert dialogue(write=but(first=lambda x: "<<3*x=12>>12 pens."))["calls"][0]["expression"] == "12-5"


@pytest.mark.parametrize("method", ["cot", "unified"])
def test_the_calculator_is_watched_in_every_method(method):
    wrong = Problem("toy-1", PROBLEM.problem, [PROBLEM.steps[0], Step("How many?", "12-5 = <<12-5=8>>8.")], "7")
    actor = {method: Student(method, Actor(recite([wrong], method)), TOKENIZER)}
    (record,) = script.solve_batch(script.parse_args(["--method", method]), [wrong], actor)
    assert [(call["solution"], call["alone"]) for call in record["calls"]] == [(0, "12"), (1, "8")]


# ---------------------------------------------------------------- scores

def record(answer="7", gold="7", n_steps=2, ended="finished", turns=(), **more):
    return {"id": "x", "problem": "Why?", "method": "cot", "turns": list(turns), "answer": answer, "ended": ended,
            "gold": gold, "gold_steps": [], "n_steps": n_steps, **more}


def shares(rows):
    return {label: (row["right"], row["n"]) for label, row in rows.items() if not isinstance(row, str)}


def test_scores_by_hand():
    said = [{"speaker": "cot", "kind": "Solution", "text": "That makes 5."}]
    records = [record(), record("7.0", n_steps=3), record("8"), record(None, "5", turns=said), record(None, "6", turns=said)]
    scores = script.score(records, {"dataset": "demo", "samples": 1, "calculator": True})
    assert shares(scores["accuracy"]) == {"right (strict)": (2, 5), "right (lenient)": (3, 5), "an answer was found": (3, 5),
                                          "always 7, the most frequent answer": (3, 5)}
    assert shares(scores["right (strict), by number of steps"]) == {"2 steps": (1, 4), "3 steps": (1, 1)}
    assert shares(scores["where wrong answers broke"]) == {"format: right if read leniently": (1, 3), "not told apart": (2, 3)}
    assert scores["where wrong answers broke"]["not told apart"]["by_steps"] == {"2": 2, "3": 0}


def test_self_consistency_takes_the_majority_and_names_ties():
    samples = [[{"answer": a, "turns": [], "ended": "finished"} for a in answers] for answers in (
        ("8", "7", "7"), (None, "8", "7"), (None, None, None))]
    records = [record() | script.elect(one) for one in samples]
    assert [(r["answer"], r["tie"]) for r in records] == [("7", False), ("8", True), (None, False)]
    scores = script.score(records, {"dataset": "demo", "samples": 3, "calculator": True})
    consistency = scores["self-consistency: the majority of 3 samples"]
    assert consistency["one sample alone"] == "3 of 9 = 33.3%"      # no interval: three of one problem are no three draws
    assert shares(consistency) == {"ties, which the first drawn won": (1, 3)}
    assert scores["accuracy"]["right (strict)"]["right"] == 1


def perfect(problems, method, *flags):
    """The scores of students that know gold by heart."""
    actors = {role: Student(role, Actor(recite(problems, role)), TOKENIZER) for role in script.METHODS[method]}
    args = script.parse_args(["--method", method, *flags])
    return script.score(script.solve_batch(args, problems, actors), vars(args))


def test_who_knows_gold_by_heart_gets_everything_right():
    scores = perfect(make_demo("test", 6), "socratic")
    assert "where wrong answers broke" not in scores
    for section in ("right (strict), with a part of gold", "subquestions against gold"):
        assert all(pair == (6, 6) for pair in shares(scores[section]).values())
    assert scores["subquestions against gold"]["BLEU-4"] == "100.0"
    assert scores["the calculator"]["results that it changed, of all it wrote"].startswith("0 of ")
    assert shares(scores["the calculator"]) == {"right answers that it rescued": (0, 6)}


@real
def test_gold_steps_of_the_real_data_sets():
    gsm8k = load_problems("gsm8k", "test")
    holes = [p for p in gsm8k if not all(step.solution for step in p.steps)]
    assert len(holes) == 2
    assert shares(perfect(gsm8k[:3] + holes[:1], "socratic")["right (strict), with a part of gold"])["gold decomposer"][1] == 4
    scores = perfect(load_problems("strategyqa", "test")[:6], "socratic")
    assert shares(scores["right (strict), with a part of gold"]) == {"gold decomposer": (6, 6)}
    assert shares(scores["subquestions against gold"])["word for word gold"] == (6, 6)


@real
def test_the_237_are_the_two_operators_of_svamp_and_strategyqa_has_its_majority():
    svamp = [record(p.answer, p.answer, len(p.evidence[0])) for p in load_problems("svamp", "all")]
    assert len(svamp) == 1000
    everything = perfect(load_problems("svamp", "all", limit=None)[::20], "answer", "--dataset", "svamp")
    test = {p.id for p in load_problems("svamp", "test")}
    n = sum(p.id in test for p in load_problems("svamp", "all")[::20])
    assert everything["right (strict), by number of operators"]["2 operators"]["n"] == n
    yes_no = [record("no", p.answer) for p in load_problems("strategyqa", "test")]
    scores = script.score(yes_no, {"dataset": "strategyqa", "samples": 1, "calculator": True})
    assert scores["accuracy"]["always no, the most frequent answer"]["right"] == scores["accuracy"]["right (strict)"]["right"] == 122


# ---------------------------------------------------------------- the command

@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A decomposer and a solver with strong random weights, and a chain of thought that draws almost any token."""
    home, paths = tmp_path_factory.mktemp("students"), []
    for seed, role in enumerate(("decomposer", "solver", "cot")):
        model = tiny_student(role, seed=seed, n_positions=512 if role == "cot" else 128)
        with torch.no_grad():
            model.wte.weight *= 1 if role == "cot" else 6
        model.save_pretrained(home / role)
        (home / role / "log.jsonl").write_text('{"step": 10, "loss": 5.0}\n{"step": 20, "valid_loss": 4.0}\n{"step": 3')
        paths.append(str(home / role))
    return paths


@pytest.fixture
def command(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        script.main(script.parse_args([*argv] if argv[0].startswith(("--rescore", "--compare")) else
                                      ["--students", *folders, "--batch-size", "2", *argv]))

    return run


def only(pattern):
    (path,) = Path("predictions").glob(pattern)
    return path


@pytest.mark.parametrize("flags", [["--limit", "5"], ["--limit", "5", "--method", "cot", "--samples", "2", "--temperature", "1"]])
def test_a_run_killed_anywhere_and_resumed_is_the_unbroken_one(flags, command, monkeypatch):
    command(*flags)
    path = only("*.jsonl")
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    solved, solve_batch = [], script.solve_batch
    monkeypatch.setattr(script, "solve_batch", lambda args, problems, students: (
        solved.extend(p.id for p in problems), solve_batch(args, problems, students))[1])
    # after the settings, in a line, after half a batch, after a whole one, at the last byte, at the end
    for at, n_kept in ((ends[0], 0), (ends[1] - 5, 0), (ends[1], 0), (ends[2], 2), (ends[4] + 9, 4), (len(whole) - 1, 4),
                       (len(whole), 5)):
        path.write_bytes(whole[:at])
        solved.clear()
        command(*flags)
        assert path.read_bytes() == whole
        assert solved == [f"demo-test-{i}" for i in range(n_kept, 5)], "nothing that was whole is done twice"


def test_a_run_interrupted_while_it_works_goes_on(command, monkeypatch):
    command("--limit", "5")
    whole = only("*.jsonl").read_bytes()
    for path in Path("predictions").iterdir():
        path.unlink()
    solve, n_calls = script.solve, 0

    def interrupted(*args, **kwargs):
        nonlocal n_calls
        n_calls += 1
        if n_calls % 3 == 0:
            raise KeyboardInterrupt
        return solve(*args, **kwargs)

    monkeypatch.setattr(script, "solve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command("--limit", "5")
    monkeypatch.setattr(script, "solve", solve)
    command("--limit", "5")
    assert only("*.jsonl").read_bytes() == whole


def test_rescoring_equals_scoring_and_needs_no_student(command, capsys, monkeypatch):
    command("--limit", "4")
    printed, scored = capsys.readouterr().out, only("*.json").read_text()
    page = Path("report.html").read_text()
    only("*.json").unlink()
    monkeypatch.setattr(script, "load_students", None)
    monkeypatch.setattr(script, "load_problems", None)
    command("--rescore", str(only("*.jsonl")))
    assert only("*.json").read_text() == scored
    assert Path("report.html").read_text() == page
    again = capsys.readouterr().out
    assert printed.endswith(again)
    assert all(len(line) <= 88 for line in printed.splitlines())


def test_the_result_says_where_it_comes_from(command):
    command("--limit", "2")
    settings, made, scores = json.loads(only("*.json").read_text()).values()
    assert (settings["split"], settings["n"], settings["dtype"], settings["device"]) == ("test", 2, "float32", "cpu") or (
        settings["device"] != "cpu")
    assert {"dataset", "problems_sha256", "students", "batch_size", "seed", "temperature", "calculator"} < set(settings)
    assert set(made) == {"commit", "command", "students"} and made["command"].startswith("python eval.py")
    assert scores["accuracy"]["right (strict)"]["n"] == 2


def test_other_flags_or_problems_other_files(command, monkeypatch):
    for flags in ([], ["--no-calculator"], ["--seed", "1"], ["--limit", "1"], ["--split", "long"], ["--no-diagnose"]):
        command("--limit", "2", *flags)
    assert len(list(Path("predictions").glob("*.jsonl"))) == 6
    monkeypatch.setattr(script, "load_problems", lambda *_: [*make_demo("test", 1), PROBLEM])
    command("--limit", "2")
    assert len(list(Path("predictions").glob("*.jsonl"))) == 7


def test_samples_depend_on_the_seed_and_the_problem_and_not_on_the_batch(command):
    flags = ["--limit", "4", "--method", "cot", "--samples", "2", "--temperature", "1"]
    for more in ([], ["--batch-size", "4"], ["--seed", "1"]):
        command(*flags, *more)
    samples = {}
    for path in Path("predictions").glob("*.jsonl"):
        header, records = script.read_predictions(path)
        samples[header["settings"]["batch_size"], header["settings"]["seed"]] = [r["samples"] for r in records]
    assert samples[2, 0] == samples[4, 0] != samples[2, 1]
    assert all(first["turns"] != second["turns"] for first, second in samples[2, 0])


def test_several_seeds_have_a_mean_and_a_spread(command, capsys):
    for seed, n_right in enumerate((1, 2, 3)):
        write_run(f"seed-{seed}.jsonl", [record()] * n_right + [record("8")] * (4 - n_right), seed=seed)
    command("--rescore", *(f"seed-{seed}.jsonl" for seed in range(3)))
    assert "3 runs: right (strict) 50.0 % on average, standard deviation 25.0, from 25.0 to 75.0" in capsys.readouterr().out
    write_run("seed-2.jsonl", [record()], seed=2, split="long")
    command("--rescore", "seed-0.jsonl", "seed-2.jsonl")
    assert "no mean of these 2 runs, they differ in: n, split" in capsys.readouterr().out


# ---------------------------------------------------------------- pairs

def write_run(path, records, **settings):
    settings = {"dataset": "demo", "split": "test", "n": len(records), "problems_sha256": "f" * 64, "method": "cot",
                "students": {}, "samples": 1, "calculator": True} | settings
    made = {"commit": None, "command": "python eval.py --method cot", "students": {}}
    Path(path).write_text(script.to_lines([{"settings": settings, "made": made}, *records]), encoding="utf-8")


def turn(text):
    return [{"speaker": "cot", "kind": "Solution", "text": text}]


def test_pairs_by_hand(command, capsys):
    long = {"problem": "word " * 100, "n_steps": 3}
    write_run("a.jsonl", [record(), record("8"), record(turns=turn("x")), *[record(id=f"win-{i}") for i in range(4)],
                          record() | long, record("1", id="loss")])
    write_run("b.jsonl", [record(), record("8"), record(turns=turn("y")), *[record("6", turns=turn("bad")) for i in range(4)],
                          record("6", turns=turn("bad")) | long, record(id="loss", turns=turn("fine"))])
    command("--compare", "a.jsonl", "b.jsonl")
    out = capsys.readouterr().out
    assert "wins of A 5, wins of B 1, ties 3 (2 both right, 1 both wrong)" in out
    assert "exact McNemar p = 0.22: no difference shown" in out
    assert re.findall(r"only (A|B) is right: (\S+), gold 7", out) == [("A", f"win-{i}") for i in range(3)] + [("B", "loss")]
    assert "B | Solution: bad" in out and "A | end:" in out
    assert all(len(line) <= 88 for line in out.splitlines())


@pytest.mark.parametrize("settings, words", [
    ({"problems_sha256": "0" * 64}, "problems_sha256"), ({"split": "long"}, "split"), ({"n": 1}, "n:"), ({"dataset": "svamp"}, "dataset")])
def test_runs_on_different_problems_are_not_compared(settings, words, command):
    write_run("a.jsonl", [record(), record()])
    write_run("b.jsonl", [record(), record()], **settings)
    with pytest.raises(SystemExit, match=words):
        command("--compare", "a.jsonl", "b.jsonl")


@pytest.mark.parametrize("content, words", [
    (None, "does not exist"), (b"", "first line should hold the settings"), (b'{"id": 3}\n', "the settings"),
    (b'{"settings": {}}\n{"id"\n{}\n', r"bad\.jsonl:2: ")])
def test_files_that_are_no_predictions_are_told(content, words, command):
    if content is not None:
        Path("bad.jsonl").write_bytes(content)
    for flags in (["--rescore", "bad.jsonl"], ["--compare", "bad.jsonl", "bad.jsonl"]):
        with pytest.raises(SystemExit, match=words):
            command(*flags)


def test_an_unfinished_run_is_scored_aloud_and_not_compared(command, capsys):
    write_run("a.jsonl", [record(), record()], n=3)
    command("--rescore", "a.jsonl")
    assert "unfinished: 2 of 3" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="python eval.py --method cot"):
        command("--compare", "a.jsonl", "a.jsonl")


def test_samples_need_a_temperature(command):
    with pytest.raises(SystemExit, match="--temperature 0.7"):
        command("--samples", "3")


# ---------------------------------------------------------------- the report

CHROMIUM = shutil.which("chromium", path="/usr/bin")
HOSTILE = ['</script><script>window.broken = 1</script>', '<img src=x onerror="window.broken = 1">', "<!--<script>", "\"'`${1}&amp;",
           "🙂👩‍👩‍👧", "\u202eright to left \u05d0\u05d1\u05d2 العربية", "a\u2028b\u2029c\x00\x1b[31m", "\ud800 half a pair",
           "javascript:window.broken=1", "<<3*4=12>>12 <<<<=>>>> <<a=<b>>", "long " * 20_000, "__proto__"]


def hostile_run(n):
    for i in range(n):
        text = HOSTILE[i % len(HOSTILE)]
        text = text if i < 24 else text[:400]
        turns = [{"speaker": "decomposer", "kind": "Subquestion", "text": text}, {"speaker": "solver", "kind": "Solution", "text": text},
                 {"speaker": "solver", "kind": "Answer", "text": text}]
        yield record("7" if i % 2 else text, id=f"{i} {text[:40]}", problem=f"No. {i}: {text}", turns=turns,
                     n_steps=1 + i % 3, gold_steps=[{"question": text[:400], "solution": text[:400]}], samples=[],
                     calls=[{"solution": 0, "expression": "3*4", "result": "12", "alone": text[:400]}],
                     oracles={"gold decomposer": {"answer": text[:40], "turns": [], "ended": text[:40]}})


def test_the_page_holds_no_text_as_markup_and_no_address():
    runs = [(Path("</title>.jsonl"), {"settings": {}, "made": {"students": {}}}, list(hostile_run(12)), {})]
    script.report(runs, path := Path(script.HERE / "report.html").with_name("report-test.html"))
    try:
        page = path.read_text(encoding="utf-8")
    finally:
        path.unlink()
    assert page.count("<script") == page.count("</script>") == 2 and "<img" not in page and "<!--" not in page
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data)[0]["dialogues"][0]["turns"][0]["text"] == HOSTILE[0]


PLAY = """<script>
const played = {}, press = key => document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const set = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("input")); return $("count").textContent; };
const opened = () => rows.indexOf(current);
played.seconds = performance.now() / 1000;
played.scrolled = scrollY;
played.rows = rows.length;
played.markup = document.querySelectorAll("#list img, #dialogue img, #browse script").length;
played.keys = [press("j"), opened(), press("ArrowDown"), opened(), press("k"), opened(), press("k"), press("k"), opened()];
rows.slice(0, 12).forEach(row => { row.click(); played.markup += document.querySelectorAll("#browse img, #browse script").length; });
rows[0].click();
played.text = $("dialogue").textContent.includes(HOSTILE);
played.right = set("verdict", "right");
played.rightShown = rows.every(row => row.hidden == (row.dialogue.stage != "right"));
played.rightOpened = current.dialogue.stage;
played.wrong = set("verdict", "wrong");
set("verdict", "");
played.steps = set("steps", "2");
set("steps", "");
played.stages = [...$("stage").options].map(option => option.text);
played.stage = set("stage", $("stage").options[1].value);
set("stage", "");
press("/");
played.focus = document.activeElement.id;
played.found = set("search", "RIGHT TO LEFT");
played.none = set("search", "no such text anywhere");
played.nothing = $("dialogue").textContent;
played.back = set("search", "");
played.bars = document.querySelectorAll(".track i.point").length;
played.curves = document.querySelectorAll("path.train").length;
set("run", "1");
played.other = rows.length;
played.broken = window.broken === undefined ? "no" : "yes";
played.marks = document.querySelectorAll("#dialogue .calculator").length;
const out = document.createElement("pre");
out.id = "played";
out.textContent = JSON.stringify(played);
document.body.replaceChildren(out);                     // Chromium cannot dump half a surrogate pair
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page was not opened")
def test_the_page_opens_in_a_browser_with_hostile_texts(tmp_path, folders):
    records = list(hostile_run(1319))
    header = {"settings": {"dataset": "demo", "split": "test", "n": 1319, "samples": 1, "calculator": True, "method": "socratic"},
              "made": {"command": HOSTILE[0], "commit": None, "students": {"solver": folders[1]}}}
    scores = script.score(records, header["settings"])
    script.report([(tmp_path / "a.jsonl", header, records, scores), (tmp_path / "b.jsonl", header, records[:2], scores)],
                  tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    play = PLAY.replace("HOSTILE", json.dumps(HOSTILE[0]).replace("<", "\\u003c"))
    (tmp_path / "report.html").write_text(page.replace("</html>", play + "</html>"), encoding="utf-8")
    run = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                          "--disable-background-networking", "--disable-component-update", "--disable-sync",
                          f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", "--dump-dom",
                          f"file://{tmp_path}/report.html"], capture_output=True, text=True, timeout=100, errors="replace")
    assert "CONSOLE" not in run.stderr, run.stderr
    played = json.loads(html.unescape(re.search(r'<pre id="played">(.*?)</pre>', run.stdout)[1]))
    n_right = sum(script.stage(r) == "right" for r in records)
    assert played["keys"] == [False, 1, False, 2, False, 1, False, False, 0]      # False: the key is ours
    assert played["rows"] == 1319 and played["text"] and played["markup"] == 0 and played["broken"] == "no"
    assert played["right"] == f"{n_right} of 1319" and played["wrong"] == f"{1319 - n_right} of 1319"
    assert played["rightShown"] and played["rightOpened"] == "right"
    assert played["steps"] == f"{sum(r['n_steps'] == 2 for r in records)} of 1319"
    stages = Counter(script.STAGES.get(script.stage(r)) for r in records)
    assert played["stages"] == ["broken anywhere", *sorted(key for key in stages if key)]
    assert played["stage"] == f"{stages[played['stages'][1]]} of 1319"
    assert played["focus"] == "search"
    assert played["found"] == f"{sum('right to left' in r['problem'] for r in records)} of 1319"
    assert played["none"] == "0 of 1319" and played["nothing"] == "No dialogue fits." and played["back"] == "1319 of 1319"
    assert played["bars"] > 8 and played["curves"] == 1 and played["other"] == 2
    assert played["scrolled"] == 0 and played["seconds"] < 30       # 0.3 on an idle machine
