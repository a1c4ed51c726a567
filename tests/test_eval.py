"""Figures are those worked by hand, every way to break is told from the others, and an interrupted run ends as an unbroken one."""

import html
import itertools
import json
import math
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from test_infer import TOKENIZER, Parrot, parrots, recite
from toy import PROBLEM, real, tiny_student

import eval as script
from data import Problem, Step, load_problems
from infer import METHODS, Dialogue, Student, vote

STORIES, LONG = load_problems("demo", "test", 6), load_problems("demo", "long", 2)


# ---------------------------------------------------------------- statistics

@pytest.mark.parametrize("n_right, n, low, high", [      # Newcombe (Statistics in Medicine 17, 1998), table I, method 3
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718),
    (0, 10, 0, 0.27754), (10, 10, 0.72246, 1), (5, 10, 0.23659, 0.76341)])    # none, all, half, by hand
def test_intervals_are_the_published_ones(n_right, n, low, high):
    assert script.wilson(n_right, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n_right, n", [(1, 10), (5, 10), (9, 10), (200, 1319)])
def test_an_interval_ends_where_the_share_is_1_96_standard_errors_away(n_right, n):
    for end in script.wilson(n_right, n):
        assert abs(n_right / n - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n))


@pytest.mark.parametrize("wins, losses, p", [
    (0, 0, 1), (1, 0, 1), (5, 0, 2 / 32), (10, 2, 2 * (1 + 12 + 66) / 4096), (2, 10, 158 / 4096), (3, 4, 1), (1, 7, 18 / 256)])
def test_mcnemar_by_hand(wins, losses, p):
    assert script.mcnemar(wins, losses) == pytest.approx(p)


def test_mcnemar_counts_the_coins():
    """An oracle: of all 2**n rows of coins, how many are at least as uneven?"""
    for n, wins in ((total, wins) for total in range(1, 9) for wins in range(total + 1)):
        as_uneven = sum(abs(2 * sum(coins) - n) >= abs(2 * wins - n) for coins in itertools.product((0, 1), repeat=n))
        assert script.mcnemar(wins, n - wins) == pytest.approx(as_uneven / 2**n)
    assert 0 <= script.mcnemar(1319, 2) < 1e-300 and script.mcnemar(660, 659) == 1    # of very many pairs


def test_no_ngram_counts_more_often_than_in_gold():
    """Papineni et al. 2002, section 2.1: of seven times "the" only as many count as the reference has; here four."""
    text, gold = "the the the the the the the", "the the the the mat"
    assert script.bleu([(text, gold)]) == pytest.approx(100 * (4 / 7 * 3 / 6 * 2 / 5 * 1 / 4)**0.25)
    assert script.bleu([(text, "the cat is on the mat")]) == 0    # no pair of words is matched


def test_bleu_by_hand():
    gold = "the cat sat on the mat"
    assert script.bleu([(gold, gold)]) == pytest.approx(100)
    assert script.bleu([("the cat sat on the", gold)]) == pytest.approx(100 * math.exp(1 - 6 / 5))     # only too short
    assert script.bleu([(gold + " mat", gold)]) == pytest.approx(100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)
    assert script.bleu([("a dog", gold)]) == script.bleu([("", gold)]) == script.bleu([("on the mat", gold)]) == 0
    # over the corpus: matches and lengths are added up, not averaged; "." and "?" are tokens of their own
    two = [("Is it red?", "Is it red?"), ("Was he very tall then?", "Was he very old then?")]
    assert script.bleu(two) == pytest.approx(100 * (9 / 10 * 6 / 8 * 3 / 6 * 1 / 4) ** 0.25)


# ---------------------------------------------------------------- actors instead of students

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
    return {"decomposer": Student("decomposer", Parrot(recite("decomposer", asked)), TOKENIZER),
            "solver": Student("solver", Parrot(solver(write)), TOKENIZER)}


def dialogue(*flags, problem=PROBLEM, **kwargs):
    (record,) = script.solve_batch(script.parse_args([*flags]), [problem], students(**kwargs))
    return json.loads(json.dumps(record))


# ---------------------------------------------------------------- where did it break?

ONE_QUESTION = Problem("x", PROBLEM.problem, [Step("How many are left?")])
SEVEN = lambda x: "3+4 = <<3+4=7>>7 pens."                             # noqa: E731
PLUS = lambda x: f"{x}+5 = <<{x}+5={x + 5}>>{x + 5} are left."         # noqa: E731
THIRTEEN = lambda x: "There are 3*4 = <<3*4=13>>13 pens."              # noqa: E731


@pytest.mark.parametrize("broken, flags, asked, write", [
    ("right", [], PROBLEM, good),
    ("right", [], PROBLEM, but(first=THIRTEEN)),
    ("right", ["--no-calculator"], PROBLEM, but(first=lambda x: "8+4 = <<8+4=12>>12 pens.")),
    ("decomposer: right with gold subquestions", [], ONE_QUESTION, good),
    ("solver: wrong with gold subquestions", [], PROBLEM, but(first=SEVEN)),
    ("solver: wrong with gold subquestions", [], PROBLEM, but(second=PLUS)),
    ("solver: wrong with gold subquestions", [], PROBLEM, but(first=SEVEN, second=PLUS)),
    ("solver: wrong with gold subquestions", ["--no-calculator"], PROBLEM, but(first=THIRTEEN, second=PLUS)),
    ("solver: wrong with gold subquestions", [], ONE_QUESTION, but(first=SEVEN)),    # other questions: no gold solutions
    ("answer: wrong even with gold solutions", [], PROBLEM, but(second=PLUS, answer=lambda x: "1")),
    ("answer: wrong even with gold solutions", [], PROBLEM, but(answer=lambda x: str(x + 1))),
    ("answer: wrong even with gold solutions", [], PROBLEM, but(answer=lambda x: "the number above")),
    ("answer: wrong even with gold solutions", [], PROBLEM, but(answer=lambda x: "12 and 7")),
    ("cut off before its end", [], PROBLEM, but(second=lambda x: "and so on " * 200)),
    ("arithmetic: right with the calculator", ["--no-calculator"], PROBLEM, but(first=THIRTEEN)),
    ("cause unknown", ["--no-diagnose"], PROBLEM, but(first=SEVEN)),
    ("cause unknown", ["--samples", "2"], PROBLEM, but(first=SEVEN)),    # dialogues that vote are not diagnosed
])
def test_every_way_to_break_is_told_from_the_others(broken, flags, asked, write):
    assert script.stage(dialogue(*flags, asked=asked, write=write)) == broken


def test_without_gold_solutions_the_solver_is_blamed_and_without_gold_steps_nobody():
    plan = Problem("a", "Can Ben fly?", [Step("What is Ben?"), Step("Can answer 1 fly?")], "no")
    says_yes = lambda kind, question, x: "yes" if kind == "Answer" else "Hm."   # noqa: E731
    assert script.stage(dialogue(problem=plan, asked=plan, write=says_yes)) == "solver: wrong with gold subquestions"
    bare = Problem("a", PROBLEM.problem, [], "7")
    assert script.stage(dialogue(problem=bare, write=but(first=SEVEN))) == "cause unknown"


@pytest.mark.parametrize("flags, asked, write, answer, oracles", [
    ([], PROBLEM, good, "7", {"calculator off": "7", "gold subquestions": "7", "gold solutions": "7"}),
    ([], PROBLEM, but(first=SEVEN), "2", {"calculator off": "2", "gold subquestions": "2", "gold solutions": "7"}),
    ([], PROBLEM, but(answer=lambda x: "Hm."), None, {"calculator off": None, "gold subquestions": None, "gold solutions": None}),
    ([], ONE_QUESTION, good, "5", {"calculator off": "5", "gold subquestions": "7"}),    # another number of subquestions
    ([], PROBLEM, but(first=THIRTEEN), "7", {"calculator off": "8", "gold subquestions": "7", "gold solutions": "7"}),
    (["--no-calculator"], PROBLEM, but(first=THIRTEEN), "8", {"calculator on": "7", "gold subquestions": "8", "gold solutions": "7"}),
    # wrong with the calculator and right without it: a guard against a past bug, when right dialogues alone were solved again
    ([], PROBLEM, but(first=lambda x: "3+4 = <<3+4=12>>12 pens."), "2",
     {"calculator off": "7", "gold subquestions": "2", "gold solutions": "7"}),
])
def test_with_an_oracle_a_part_is_given_or_switched_and_the_rest_is_the_students(flags, asked, write, answer, oracles):
    record = dialogue(*flags, asked=asked, write=write)
    assert (record["answer"], record["oracles"]) == (answer, oracles)
    assert record["problem"] == asdict(PROBLEM)


# ---------------------------------------------------------------- scores

def record(answer="7", gold="7", name="x", n_steps=2, problem="Why?", answers=None, oracles=None, **more):
    problem = Problem(name, problem, [Step() for _ in range(n_steps)], gold)
    written = Dialogue(problem, answer=answer, answers=answers or [answer], **more)
    return asdict(written) | {"oracles": oracles or {}}


def shares(rows):
    return {label: (row["right"], row["n"]) for label, row in rows.items()}


def test_scores_by_hand():
    said = {"turns": [{"speaker": "cot", "kind": "Solution", "text": "That makes 5."}]}    # no answer, whatever it says before
    off = {"calculator off": "7"}
    records = [record(oracles=off), record("7.0", n_steps=3, oracles=off), record("8", oracles=off),
               record(None, "5", oracles=off) | said, record(None, "6", oracles=off, ended="outgrew") | said]
    scores = script.score(records)
    assert {section: shares(rows) for section, rows in scores.items()} == {
        "accuracy": {"right": (2, 5), "an answer was found": (3, 5), "always 7, the most frequent here": (3, 5)},
        "right, by number of steps": {"2 steps": (1, 4), "3 steps": (1, 1)},
        "right, with one thing changed": {"calculator off": (3, 5)},
        "where wrong answers broke": {"cause unknown": (2, 3), "cut off before its end": (1, 3)}}
    for rows in scores.values():
        for row in rows.values():
            assert (row["low"], row["high"]) == script.wilson(row["right"], row["n"])


def test_self_consistency_takes_the_majority():
    drawn = (("8", "7", "7"), (None, "8", "7"), (None, None, None), ("7", "8", "8"))
    elected = [vote([Dialogue(PROBLEM, answer=answer) for answer in answers]) for answers in drawn]
    assert [dialogue.answer for dialogue in elected] == ["7", "8", None, "8"]
    scores = script.score([asdict(dialogue) | {"oracles": {}} for dialogue in elected])
    assert shares(scores["accuracy"])["right"] == (1, 4)
    assert shares(scores["accuracy"])["the first dialogue alone"] == (1, 4)      # the last one, which the vote got wrong


def test_right_by_number_of_votes_by_hand():
    def voted(n_votes, answer="7"):
        return record(answer, answers=[answer] * n_votes + [None] * (n - n_votes))

    n = 16
    records = [voted(n, answer) for n, answer in ((16, "7"), (13, "8"), (12, "7"), (9, "7"), (8, "7"), (5, "8"), (4, "7"), (1, "8"), (0, None))]
    found = shares(script.score(records)["right, by number of votes"])
    assert list(found.items()) == [("0 to 4 of 16 votes", (1, 3)), ("5 to 8 of 16 votes", (1, 2)), ("9 to 12 of 16 votes", (2, 2)),
                                   ("13 to 16 of 16 votes", (1, 2))]
    assert "right, by number of votes" not in script.score([record()])
    for n in range(2, 21):    # of 2 and 3 dialogues without an answer it once said "1 to 0 of 2 votes"
        for n_votes in range(n + 1):
            (row,) = script.score([voted(n_votes, "7" if n_votes else None)])["right, by number of votes"]
            low, high = map(int, re.fullmatch(rf"(\d+) to (\d+) of {n} votes", row).groups())
            assert low <= n_votes <= high


def perfect(problems, method, *flags):
    """The records of students that know gold by heart."""
    return script.solve_batch(script.parse_args(["--method", method, *flags]), problems, parrots(*problems))


def test_who_knows_gold_by_heart_gets_everything_right():
    records = perfect(STORIES, "socratic")
    scores = script.score(records)
    assert "where wrong answers broke" not in scores
    for section in ("right, with one thing changed", "subquestions against gold"):
        assert set(shares(scores[section]).values()) == {(6, 6)}
    assert script.bleu_of(records) == pytest.approx(100)
    records[0]["turns"] = records[0]["turns"][1:]    # one subquestion less
    scores = script.score(records)
    assert set(shares(scores["subquestions against gold"]).values()) == {(5, 6)} and script.bleu_of(records) < 100
    silent = [records[0] | {"turns": [{"speaker": "decomposer", "kind": "Subquestion", "text": ""}]}]
    assert script.bleu_of(silent) == 0, "an empty subquestion is one"
    script.print_scores(script.score(silent), script.bleu_of(silent))
    assert script.bleu_of([record()]) is None and "subquestions against gold" not in script.score([record()])


@real
def test_gold_steps_of_the_real_data_sets():
    gsm8k = load_problems("gsm8k", "test")
    holes = [p for p in gsm8k if not all(step.solution for step in p.steps)]
    assert len(holes) == 2
    scores = script.score(perfect(gsm8k[:3] + holes[:1], "socratic"))
    assert shares(scores["right, with one thing changed"])["gold subquestions"][1] == 4
    scores = script.score(perfect(load_problems("strategyqa", "test")[:6], "socratic"))
    assert shares(scores["right, with one thing changed"]) == {"gold subquestions": (6, 6), "calculator off": (6, 6)}
    assert shares(scores["subquestions against gold"])["word for word gold"] == (6, 6)


@real
def test_the_237_are_the_two_operators_of_svamp_and_strategyqa_has_its_majority():
    svamp = [asdict(Dialogue(p, answer=p.answer, answers=[p.answer])) | {"oracles": {}} for p in load_problems("svamp", "all")]
    assert shares(script.score(svamp)["right, by number of steps"]) == {
        "0 steps": (1, 1), "1 steps": (762, 762), "2 steps": (237, 237)}    # one formula is a lone number
    yes_no = script.score([record("no", p.answer) for p in load_problems("strategyqa", "test")])["accuracy"]
    assert yes_no["always no, the most frequent here"]["right"] == yes_no["right"]["right"] == 122


# ---------------------------------------------------------------- the command

@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A decomposer and a solver with strong random weights, and a chain of thought that draws almost any token."""
    home = tmp_path_factory.mktemp("students")
    for seed, role in enumerate(("decomposer", "solver", "cot")):
        model = tiny_student(role, seed=seed, n_positions=128)
        with torch.no_grad():
            model.wte.weight *= 1 if role == "cot" else 6
        model.save_pretrained(home / role)
        (home / role / "log.jsonl").write_text('{"step": 10, "loss": 5.0}\n{"step": 20, "valid_loss": 4.0}\n{"step": 30, "loss": 2.5}\n')
    return home


@pytest.fixture
def command(folders, tmp_path, monkeypatch):
    """eval.py as it is called; to save seconds the demo's file is not read anew each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "load_problems", lambda dataset, split, limit: {"test": STORIES, "long": LONG}[split][:limit])

    def run(*argv):
        args = script.parse_args(["--batch-size", "2", *argv])
        args.students = args.students or [str(folders / role) for role in METHODS[args.method]]
        script.main(args)

    return run


@pytest.fixture
def solved(monkeypatch):
    """The ids of all problems that are solved; beside it a switch, the number of batches before a Ctrl-C."""
    ids, solve_batch = [], script.solve_batch

    def watched(args, problems, students):
        if watched.n_batches == 0:
            raise KeyboardInterrupt
        watched.n_batches -= 1
        ids.extend(p.id for p in problems)
        return solve_batch(args, problems, students)

    watched.n_batches, watched.ids = -1, ids
    monkeypatch.setattr(script, "solve_batch", watched)
    return watched


PATH = Path("predictions/demo-test-socratic.jsonl")


def test_problems_without_a_gold_answer_are_not_scored(command, monkeypatch):
    problems = STORIES[:1] + [replace(STORIES[1], answer="")] + STORIES[2:3]
    monkeypatch.setattr(script, "load_problems", lambda *_: problems)
    command()
    header, records = script.read_run(PATH)
    assert [record["problem"]["id"] for record in records] == [problems[0].id, problems[2].id] and header["settings"]["n"] == 2
    problems[:] = problems[1:2]
    with pytest.raises(SystemExit, match="no problem with an answer"):
        command()


@pytest.mark.parametrize("flags", [[], ["--method", "cot", "--samples", "2"]])
def test_a_run_interrupted_anywhere_goes_on_and_ends_as_the_unbroken_one(flags, command, solved, capsys):
    command("--limit", "5", *flags)
    (path,) = Path("predictions").glob("*.jsonl")
    whole, scores, page = path.read_bytes(), path.with_suffix(".json").read_bytes(), Path("predictions/report.html").read_bytes()
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 88
    for n_batches in range(3):
        path.unlink()
        solved.n_batches, solved.ids[:] = n_batches, []
        with pytest.raises(KeyboardInterrupt):
            command("--limit", "5", *flags)
        solved.n_batches = -1
        command("--limit", "5", *flags)
        assert path.read_bytes() == whole
        assert solved.ids == [p.id for p in STORIES[:5]], "nothing that was whole is done twice"
    for name in (path.with_suffix(".json"), Path("predictions/report.html")):
        name.unlink()
    solved.ids.clear()
    capsys.readouterr()
    command("--limit", "5", *flags)    # a finished run is scored again, and nothing is solved
    assert solved.ids == [] and printed.endswith(capsys.readouterr().out)
    assert (path.with_suffix(".json").read_bytes(), Path("predictions/report.html").read_bytes()) == (scores, page)


def test_the_result_says_where_it_comes_from(command):
    command("--limit", "2")
    result = json.loads(PATH.with_suffix(".json").read_text())
    settings = result["settings"]
    assert (settings["dataset"], settings["split"], settings["n"], settings["dtype"], settings["device"]) == ("demo", "test", 2, "fp32", "cpu")
    assert {"problems_sha256", "solver_sha256", "decomposer_sha256", "batch_size", "calculator", "samples", "diagnose"} < set(settings)
    assert set(result["trained_by"]) == {"decomposer", "solver"} and result["command"].startswith("python eval.py")
    assert result["scores"]["accuracy"]["right"].keys() == {"right", "n", "low", "high"} and "bleu_4" in result
    page = Path("predictions/report.html").read_text()
    assert page.count('points="226.7,10.0 560.0,130.0"') == page.count("y=152>30</text>") == 2, "the training's curves"


def test_a_run_with_other_settings_is_never_overwritten_and_they_are_named(command, monkeypatch, folders, tmp_path, solved):
    command("--limit", "2")
    whole = PATH.read_bytes()
    tiny_student("solver", seed=9).save_pretrained(tmp_path / "solver")
    students = ["--students", str(folders / "decomposer"), str(tmp_path / "solver")]
    solved.ids.clear()
    for flags, names in ((["--no-calculator"], "calculator"), (["--batch-size", "3"], "batch_size"), (["--limit", "1"], "n, problems_sha256"),
                         (["--no-diagnose"], "diagnose"), (["--samples", "2"], "samples, diagnose"), (students, "solver_sha256"),
                         (["--dtype", "bf16"], "dtype")):
        with pytest.raises(SystemExit, match=rf"with other settings: {names}\.\n.*--out FOLDER"):
            command("--limit", "2", *flags)
    monkeypatch.setattr(script, "load_problems", lambda *_: [STORIES[0], PROBLEM])
    with pytest.raises(SystemExit, match="with other settings: problems_sha256"):
        command()
    assert PATH.read_bytes() == whole and solved.ids == []
    command("--out", "other")
    command("--split", "long")
    assert {path.name for path in Path("predictions").glob("*.jsonl")} == {PATH.name, "demo-long-socratic.jsonl"}
    assert (tmp_path / "other" / PATH.name).exists() and (tmp_path / "other" / "report.html").exists()


# ---------------------------------------------------------------- pairs

def write_run(path, records, **settings):
    header = {"settings": {"n": len(records)} | settings, "command": "python eval.py --method cot"}
    Path(path).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (header, *records)), encoding="utf-8")


def test_pairs_by_hand_whatever_their_order(command, capsys):
    right_a, right_b = (True, False, True, True, True, True, True, True, False), (True, False, True, False, False, False, False, False, True)
    for path, right, order in (("a.jsonl", right_a, 1), ("b.jsonl", right_b, -1)):
        write_run(path, [record("7" if r else "8", name=str(i)) for i, r in enumerate(right)][::order])
    command("--compare", "a.jsonl", "b.jsonl")
    out = capsys.readouterr().out
    assert "9 problems: A has 7 right, B 3\nwins of A 5, wins of B 1, both right 2\n" in out
    assert "exact McNemar p = 0.22: no difference shown" in out
    write_run("a.jsonl", [record(name=str(i)) for i in range(9)])
    write_run("b.jsonl", [record("8", name=str(i)) for i in range(9)])
    command("--compare", "a.jsonl", "b.jsonl")
    assert "exact McNemar p = 0.0039: unlikely to be luck" in capsys.readouterr().out


@pytest.mark.parametrize("words, others, settings", [
    ("not of the same problems", [record(name="0"), record(name="2")], {}),                                       # another id
    ("not of the same problems", [record(name="0"), record(name="1", problem="Who?")], {}),                      # another text
    ("not of the same problems", [record(name="0")], {}), ("not of the same problems", [record(name=n) for n in "012"], {}),
    (r"b\.jsonl is unfinished. Go on with: python eval.py --method cot", [record(name="0"), record(name="1")], {"n": 3})])
def test_runs_of_other_problems_or_unfinished_ones_are_not_compared(command, words, others, settings):
    write_run("a.jsonl", [record(name="0"), record(name="1")])
    write_run("b.jsonl", others, **settings)
    for pair in (("a.jsonl", "b.jsonl"), ("b.jsonl", "a.jsonl")):
        with pytest.raises(SystemExit, match=words):
            command("--compare", *pair)


GOOD = json.dumps({"settings": {"n": 1}}).encode() + b"\n"


@pytest.mark.parametrize("content, words", [
    (None, "cannot be read"), (b"", "not a file of predictions"), (b'{"id": 3}\n', r":1: not a dialogue of eval\.py"),
    (b"[3]\n4\n", r":1: "), (b"3\n", r":1: "), (b'"settings"\n', r":1: "), (b'{"settings": {}}\n{"id"\n{}\n', r":2: "),
    (b'{"settings": 3}\n', r":1: "), (GOOD + GOOD, "not a file of predictions"),
    (GOOD + b'{"id": "caf\xc3', r":2: "), (GOOD + json.dumps(record()).encode()[:-9], r":2: ")])
def test_files_that_are_no_predictions_are_told_and_stay_as_they_are(content, words, command):
    PATH.parent.mkdir()
    if content is not None:
        PATH.write_bytes(content)
        with pytest.raises(SystemExit, match=words):
            command("--limit", "1")
        assert PATH.read_bytes() == content
    with pytest.raises(SystemExit, match=words):
        command("--compare", str(PATH), str(PATH))


def damage(value, keys=()):
    """Every way to lose a key of a record, or to change one value in it for one of another type."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*keys, key), None
        for odd in (3, [], {}, "odd", True):
            yield (*keys, key), (odd,)
        yield from damage(value[key], (*keys, key))


def test_damaged_predictions_are_one_clear_line_or_what_they_say(command):
    """Whatever is lost or changed in a finished run: a message with the file's name, or scores and a page; never a traceback."""
    command("--limit", "1")
    lines = PATH.read_text().splitlines()
    n_told = 0
    for n, line in enumerate(lines):
        for keys, new in damage(json.loads(line)):
            row = json.loads(line)
            place = row
            for key in keys[:-1]:
                place = place[key]
            if new is None:
                del place[keys[-1]]
            else:
                place[keys[-1]] = new[0]
            PATH.write_text("".join(f"{json.dumps(row) if n == i else lines[i]}\n" for i in range(len(lines))))
            try:
                header, records = script.read_run(PATH)
                scores = script.score(records)
                script.page(header, records, scores)
                script.print_scores(scores, script.bleu_of(records))
            except SystemExit as error:
                n_told += PATH.name in str(error)
            except Exception as error:
                raise AssertionError(f"{keys} changed to {new}: {error!r}") from error
    assert n_told > 100


# ---------------------------------------------------------------- the report

CHROMIUM = shutil.which("chromium")
HOSTILE = ['</script><script>window.broken = 1</script>', '<img src=x onerror="window.broken = 1">', "<!--<script>", "\"'`${1}&amp;",
           "🙂👩‍👩‍👧", "\u202eright to left \u05d0\u05d1\u05d2 العربية", "a\u2028b\u2029c\x00\x1b[31m", "\ud800 half a pair",
           "javascript:window.broken=1", "<<3*4=12>>12 <<<<=>>>> <<a=<b>>", "long " * 20_000, "__proto__"]


def hostile_page(n):
    records = []
    for i in range(n):
        text = HOSTILE[i % len(HOSTILE)]
        text = text if i < 24 else text[:400]
        turns = [{"speaker": speaker, "kind": kind, "text": text} for speaker, kind in
                 (("decomposer", "Subquestion"), ("solver", "Solution"), ("solver", "Answer"), (text[:40], text[:40]))]
        records.append(record("7" if i % 2 else text, gold=text if i % 5 == 4 else "7", name=f"{i} {text[:40]}", problem=f"No. {i}: {text}",
                              n_steps=1 + i % 3, ended="finished" if i % 7 else text[:40],
                              oracles={"gold subquestions": text[:40], text[:40].replace("\ud800", "?"): text[:40]} if i % 4 else {}) | {"turns": turns})
        records[-1]["problem"]["steps"][0] = {"question": text[:400], "solution": text[:400]}
    header = {"settings": {"dataset": "demo", "split": HOSTILE[1], HOSTILE[2]: n, "method": HOSTILE[0]}, "command": HOSTILE[0],
              "curves": {HOSTILE[1]: [[10, 4.0], [20, float("nan")], [40, 2.0]], "solver": [[10, 4.0]]}}
    return records, header, script.page(header, records, script.score(records))


class Tree(HTMLParser):
    """Which elements and attributes a page has, and its texts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts = set(), set(), []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, text):
        self.texts.append(text)

    def handle_comment(self, text):
        self.tags.add("comment")


def test_the_page_holds_no_text_as_markup_no_script_and_no_address():
    _, _, page = hostile_page(24)
    tree = Tree(page)
    assert tree.tags == {"meta", "title", "style", "h1", "h3", "details", "summary", "p", "table", "tr", "th", "td", "div", "small", "i", "b",
                         "svg", "polyline", "path", "text"}
    assert tree.attributes == {"charset", "style", "class", "colspan", "dir", "width", "height", "font-size", "points", "fill",
                               "stroke", "d", "x", "y"}, "no src, no href, no handler"
    assert not re.search(r"://|url\(|@import", page) and page.count("<title>") == page.count("</title>") == 1
    for text in HOSTILE:
        assert html.escape(text) in page
    assert any(HOSTILE[0] in text for text in tree.texts)


def test_the_page_groups_dialogues_by_where_they_broke_and_prints_the_table_of_the_screen(capsys):
    records, _, page = hostile_page(60)
    stages = [script.stage(r) for r in records]
    assert len(set(stages)) > 2
    for name in set(stages):
        assert f"<summary>{name}: {stages.count(name)}</summary>" in page
    assert page.index("<summary>right: ") > max(page.index(f"<summary>{name}: ") for name in set(stages) - {"right"})
    scores = script.score(records)
    script.print_scores(scores, 12.3456)
    screen = capsys.readouterr().out
    assert re.search(r"\n  word for word gold .*\n  BLEU-4 +12\.3\n", screen)
    for rows in scores.values():
        for label, figure in rows.items():
            words = script.describe(figure)
            assert re.search(rf"<td>{re.escape(html.escape(label))}<small>[^<]*</small><td>{re.escape(words)}<td>", page)
            assert label in screen and words in screen
            assert f"{figure['right']} of {figure['n']} = " in words and f"{figure['low']:.1%} to" in words
            assert (f'<i style="left:{figure["low"]:.1%};width:{figure["high"] - figure["low"]:.1%}"></i>'
                    f'<b style="left:{figure["right"] / figure["n"]:.1%}"></b>') in page


def test_the_bars_have_a_legend_and_a_scale_whose_marks_stand_side_by_side_and_rows_are_explained():
    """It guards a past bug: marks that were not closed stood all at the left."""
    scores = script.score(perfect(STORIES[:2], "socratic"))
    page = script.page({"settings": {}, "command": "", "curves": {}}, [record()], scores)
    assert re.search(r"dark line[^<]* share[^<]* 95 % interval", page)
    assert page.count('<div class="scale"><i>0 %</i><i>50 %</i><i>100 %</i></div>') == len(scores) == 4
    for row in ("calculator off", "gold subquestions", "gold solutions", "an answer was found", "as many as gold"):
        assert re.search(rf"<tr><td>{row}<small>\w[^<]{{20,}}</small><td>[^<]*<td><div class=track>(<[^>]*>)*</div>(\s|$|<)", page), row
    scale, track = (re.search(rf"\.{name} {{ width: (\d+)em;[^}}]*?(?:font-size: (\d+)px)?[^}}]*}}", page) for name in ("scale", "track"))
    assert int(scale[1]) * 12 == int(track[1]) * 15 and "font-size: 12px" in scale[0], "the scale is as wide as the bars"


def test_the_loss_curve_has_labelled_axes_and_a_nan_leaves_a_gap():
    picture = script.curve("solver", [[10, 4.0], [20, float("nan")], [30, 1.0], [2000, 2.0]])
    texts = re.findall(r"<text x=(\d+) y=(\d+)>(.*?)</text>", picture)
    assert texts == [("5", "15", "4.00"), ("5", "133", "1.000"), ("5", "75", "loss"), ("60", "152", "0"), ("530", "152", "2,000"),
                     ("200", "166", "step (loss: nats per learned token)")]
    assert 'points="62.5,10.0 67.5,130.0 560.0,70.0"' in picture    # the middle of the height is the middle of log 1 and log 4
    assert script.curve("solver", []) == script.curve("solver", [[10, 4.0]]) == ""
    assert "<polyline" in script.curve("solver", [[10, 4.0], [20, 4.0]])    # a flat curve


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page was not opened")
def test_the_page_opens_in_a_browser_with_hostile_texts(tmp_path):
    records, _, page = hostile_page(1319)
    (tmp_path / "report.html").write_text(page, encoding="utf-8", errors="replace")
    run = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                          "--disable-background-networking", "--disable-component-update", "--disable-sync",
                          f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", "--dump-dom",
                          f"file://{tmp_path}/report.html"], capture_output=True, text=True, timeout=100, errors="replace")
    assert "CONSOLE" not in run.stderr, run.stderr
    assert "<script" not in run.stdout and "<img" not in run.stdout
    n_groups = len({script.stage(r) for r in records})
    assert run.stdout.count("<details>") == 1319 + n_groups, "a dialogue each, and a group each"
    assert "No. 1318: " in run.stdout
