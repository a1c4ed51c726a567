"""Figures are those worked by hand, every way to break is told from the others, and a killed run ends as an unbroken one."""

import html
import itertools
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from toy import PROBLEM, real, tiny_student

import eval as script
from data import Problem, Step, get_tokenizer, load_problems, make_stories, segments, tokenize
from infer import METHODS, Dialogue, Student, vote

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



# ---------------------------------------------------------------- actors instead of students

class Actor(torch.nn.Module):
    """Stands in for a model and writes what `lines(text so far)` says. The cache's keys hold the tokens that it read."""

    def __init__(self, lines):
        super().__init__()
        self.config = tiny_student("solver", n_positions=1024).config
        self.wte = torch.nn.Embedding(2048, 1)
        self.lines = lines

    def append(self, ids, cache, rows, counts):
        chosen = range(len(cache.lengths))[rows] if isinstance(rows, slice) else rows
        position = cache.extend(rows, counts, ids.shape[1])
        cache.keys[0, torch.tensor(chosen)[:, None], 0, position, 0] = ids.float()
        logits = torch.zeros(len(ids), 2048)
        for i, row in enumerate(chosen):
            text = TOKENIZER.decode(cache.keys[0, row, 0, :cache.lengths[row], 0].long().tolist())
            wanted = self.lines(text)
            logits[i, tokenize(wanted, TOKENIZER)[0] if wanted else TOKENIZER.eot_token] = 1
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
    assert {name: one["answer"] for name, one in record["oracles"].items()} == {
        "calculator off": "7", "gold subquestions": "7", "gold solutions": "7"}


@pytest.mark.parametrize("broken, flags, asked, write", [
    ("decomposer", [], ONE_QUESTION, good),
    ("solver", [], PROBLEM, but(first=SEVEN)),
    ("solver", [], PROBLEM, but(second=PLUS)),
    ("solver", [], PROBLEM, but(first=SEVEN, second=PLUS)),
    ("answer", [], PROBLEM, but(second=PLUS, answer=lambda x: "1")),
    ("answer", [], PROBLEM, but(answer=lambda x: str(x + 1))),
    ("format", [], PROBLEM, but(answer=lambda x: "the number above")),
    ("cut off", [], PROBLEM, but(second=lambda x: "and so on " * 200)),
    ("arithmetic", ["--no-calculator"], PROBLEM, but(first=lambda x: "There are 3*4 = <<3*4=13>>13 pens.")),
    ("solver", ["--no-calculator"], PROBLEM, but(first=lambda x: "3*4 = <<3*4=13>>13 pens.", second=PLUS)),
    ("right", [], PROBLEM, but(first=lambda x: "There are 3*4 = <<3*4=13>>13 pens.")),
    ("right", ["--no-calculator"], PROBLEM, but(first=lambda x: "8+4 = <<8+4=12>>12 pens.")),
    ("unknown", ["--no-diagnose"], PROBLEM, but(first=SEVEN)),
])
def test_every_way_to_break_is_told_from_the_others(broken, flags, asked, write):
    assert script.stage(dialogue(*flags, asked=asked, write=write)) == broken


def test_without_gold_solutions_the_solver_is_blamed_and_without_gold_steps_nobody():
    plan = Problem("a", "Can Ben fly?", [Step("What is Ben?"), Step("Can answer 1 fly?")], "no")
    says_yes = lambda kind, question, x: "yes" if kind == "Answer" else "Hm."   # noqa: E731
    assert script.stage(dialogue(problem=plan, asked=plan, write=says_yes)) == "solver"
    bare = Problem("a", PROBLEM.problem, [], "7")
    assert script.stage(dialogue(problem=bare, write=but(first=SEVEN))) == "unknown"


def test_a_gold_part_is_given_and_the_rest_is_the_students():
    oracles = dialogue(write=but(first=SEVEN))["oracles"]
    written = {name: [turn["text"] for turn in oracles[name]["turns"]] for name in ("gold subquestions", "gold solutions")}
    assert written == {"gold subquestions": ["3+4 = <<3+4=7>>7 pens.", "7-5 = <<7-5=2>>2 are left.", "2"],
                       "gold solutions": ["7"]}
    assert "gold solutions" not in dialogue(asked=ONE_QUESTION)["oracles"], "another number of subquestions"


def test_the_calculator_is_switched_where_that_can_matter():
    write = but(first=lambda x: "There are 3*4 = <<3*4=13>>13 pens.")
    rescued = dialogue(write=write)
    assert rescued["answer"] == "7" and rescued["oracles"]["calculator off"]["answer"] == "8"
    without = dialogue("--no-calculator", write=write)
    assert without["answer"] == "8" and without["oracles"]["calculator on"]["answer"] == "7"
    wrong = dialogue(write=but(first=SEVEN))
    assert wrong["oracles"]["calculator off"] == {"answer": wrong["answer"], "gold": "7"}, "it cannot have helped: not solved again"
    name = "right (strict), with one thing changed"
    on = script.score([rescued, dialogue(), wrong])[name]
    off = script.score([without, dialogue("--no-calculator")])[name]
    assert shares(on)["calculator off"] == (1, 3) and shares(off)["calculator on"] == (2, 2)


# ---------------------------------------------------------------- scores

def record(answer="7", gold="7", n_steps=2, ended="finished", turns=(), **more):
    return {"id": "x", "problem": "Why?", "method": "cot", "turns": list(turns), "answer": answer, "ended": ended,
            "gold": gold, "gold_steps": [], "n_steps": n_steps, "subquestions": [], "gold_subquestions": [], **more}


def shares(rows):
    return {label: (row["right"], row["n"]) for label, row in rows.items() if not isinstance(row, str)}


def test_scores_by_hand():
    said = [{"speaker": "cot", "kind": "Solution", "text": "That makes 5."}]
    records = [record(), record("7.0", n_steps=3), record("8"), record(None, "5", turns=said), record(None, "6", turns=said)]
    scores = script.score(records)
    assert shares(scores["accuracy"]) == {"right (strict)": (2, 5), "right (lenient)": (3, 5), "an answer was found": (3, 5),
                                          "always 7, the most frequent": (3, 5)}
    assert shares(scores["right (strict), by number of steps"]) == {"2 steps": (1, 4), "3 steps": (1, 1)}
    assert shares(scores["where wrong answers broke"]) == {"format: right if read leniently": (1, 3), "cause unknown": (2, 3)}


def test_self_consistency_takes_the_majority():
    drawn = (("8", "7", "7"), (None, "8", "7"), (None, None, None), ("7", "8", "8"))
    elected = [vote([Dialogue(PROBLEM, "cot", answer=answer) for answer in answers]) for answers in drawn]
    assert [dialogue.answer for dialogue in elected] == ["7", "8", None, "8"]
    scores = script.score([record() | dialogue.to_json() for dialogue in elected])
    assert shares(scores["accuracy"])["right (strict)"] == (1, 4)
    assert shares(scores["accuracy"])["the first sample alone"] == (1, 4)      # the last one, which the vote got wrong


def perfect(problems, method, *flags):
    """The scores of students that know gold by heart."""
    actors = {role: Student(role, Actor(recite(problems, role)), TOKENIZER) for role in METHODS[method]}
    args = script.parse_args(["--method", method, *flags])
    return script.score(script.solve_batch(args, problems, actors))


def test_who_knows_gold_by_heart_gets_everything_right():
    scores = perfect(make_stories("demo", "test", 6), "socratic")
    assert "where wrong answers broke" not in scores
    for section in ("right (strict), with one thing changed", "subquestions against gold"):
        assert all(pair == (6, 6) for pair in shares(scores[section]).values())
    assert scores["subquestions against gold"]["BLEU-4"] == "100.0"


@real
def test_gold_steps_of_the_real_data_sets():
    gsm8k = load_problems("gsm8k", "test")
    holes = [p for p in gsm8k if not all(step.solution for step in p.steps)]
    assert len(holes) == 2
    assert shares(perfect(gsm8k[:3] + holes[:1], "socratic")["right (strict), with one thing changed"])["gold subquestions"][1] == 4
    scores = perfect(load_problems("strategyqa", "test")[:6], "socratic")
    assert shares(scores["right (strict), with one thing changed"]) == {"gold subquestions": (6, 6), "calculator off": (6, 6)}
    assert shares(scores["subquestions against gold"])["word for word gold"] == (6, 6)


@real
def test_the_237_are_the_two_operators_of_svamp_and_strategyqa_has_its_majority():
    svamp = [record(p.answer, p.answer, len(p.evidence[0])) for p in load_problems("svamp", "all")]
    assert len(svamp) == 1000
    everything = perfect(load_problems("svamp", "all", limit=None)[::20], "answer", "--dataset", "svamp")
    test = {p.id for p in load_problems("svamp", "test")}
    n = sum(p.id in test for p in load_problems("svamp", "all")[::20])
    assert everything["right (strict), by number of steps"]["2 steps"]["n"] == n
    yes_no = [record("no", p.answer) for p in load_problems("strategyqa", "test")]
    scores = script.score(yes_no)
    assert scores["accuracy"]["always no, the most frequent"]["right"] == scores["accuracy"]["right (strict)"]["right"] == 122


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


def test_problems_without_a_gold_answer_are_not_scored(command, monkeypatch):
    problems = make_stories("demo", "test", 3)
    problems[1].answer = " "
    monkeypatch.setattr(script, "load_problems", lambda *_, **__: problems)
    command("--limit", "3")
    header, records, _ = script.read_run(only("*.jsonl"))
    assert [record["id"] for record in records] == [problems[0].id, problems[2].id] and header["settings"]["n"] == 2
    problems[:] = problems[1:2]
    with pytest.raises(SystemExit, match="no problem with an answer"):
        command("--limit", "3")


@pytest.mark.parametrize("flags", [["--limit", "5"], ["--limit", "5", "--method", "cot", "--samples", "2"]])
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


def test_a_kill_in_the_middle_of_a_letter_loses_that_line_only(command):
    write_run("a.jsonl", [record(), record(problem="café")])
    whole = Path("a.jsonl").read_bytes()
    Path("a.jsonl").write_bytes(whole[:whole.rindex("é".encode()) + 1])
    assert len(script.read_run(Path("a.jsonl"))[1]) == 1


def test_rescoring_equals_scoring_and_needs_no_student(command, capsys, monkeypatch):
    command("--limit", "4")
    printed, scored = capsys.readouterr().out, only("*.json").read_text()
    page = Path("predictions/report.html").read_text()
    only("*.json").unlink()
    monkeypatch.setattr(script, "load_students", None)
    monkeypatch.setattr(script, "load_problems", None)
    command("--rescore", str(only("*.jsonl")))
    assert only("*.json").read_text() == scored
    assert Path("predictions/report.html").read_text() == page
    again = capsys.readouterr().out
    assert printed.endswith(again)
    assert all(len(line) <= 88 for line in printed.splitlines())


def test_the_result_says_where_it_comes_from(command):
    command("--limit", "2")
    settings, command_line, students, trained, scores = json.loads(only("*.json").read_text()).values()
    assert (settings["split"], settings["n"], settings["dtype"], settings["device"]) == ("test", 2, "float32", "cpu")
    assert {"dataset", "problems_sha256", "solver_sha256", "infer.py_sha256", "batch_size", "calculator"} < set(settings)
    assert set(students) == set(trained) == {"decomposer", "solver"} and command_line.startswith("python eval.py")
    assert scores["accuracy"]["right (strict)"]["n"] == 2


def test_other_flags_or_problems_other_files(command, monkeypatch):
    for flags in ([], ["--no-calculator"], ["--batch-size", "3"], ["--limit", "1"], ["--split", "long"], ["--no-diagnose"]):
        command("--limit", "2", *flags)
    assert len(list(Path("predictions").glob("*.jsonl"))) == 6
    monkeypatch.setattr(script, "load_problems", lambda *_, **__: [*make_stories("demo", "test", 1), PROBLEM])
    command("--limit", "2")
    assert len(list(Path("predictions").glob("*.jsonl"))) == 7


def test_samples_depend_on_the_problem_and_not_on_the_batch(command, monkeypatch):
    """In float64: in float32 a batch rounds otherwise, and one draw in some thousands falls between two tokens."""
    def load_in_float64(*args, load=script.load_students):
        students = load(*args)
        for student in students.values():
            student.model.double()
        return students

    monkeypatch.setattr(script, "load_students", load_in_float64)
    flags = ["--limit", "4", "--method", "cot", "--samples", "2"]
    for more in ([], ["--batch-size", "4"]):
        command(*flags, *more)
    samples = {}
    for path in Path("predictions").glob("*.jsonl"):
        header, records, _ = script.read_run(path)
        samples[header["settings"]["batch_size"]] = [(r["turns"], r["answers"]) for r in records]
    assert samples[2] == samples[4] and all(len(answers) == 2 for _, answers in samples[2])


def test_several_seeds_have_a_mean_and_a_range(command, capsys):
    for seed, n_right in enumerate((1, 2, 3)):
        write_run(f"seed-{seed}.jsonl", [record()] * n_right + [record("8")] * (4 - n_right), students={"cot": str(seed)})
    command("--rescore", *(f"seed-{seed}.jsonl" for seed in range(3)))
    assert "3 runs: right (strict) 50.0% on average, from 25.0% to 75.0%" in capsys.readouterr().out


# ---------------------------------------------------------------- pairs

def write_run(path, records, **settings):
    settings = {"dataset": "demo", "split": "test", "n": len(records), "problems_sha256": "f" * 64, "method": "cot",
                "students": {}, "samples": 1, "calculator": True} | settings
    header = {"settings": settings, "command": "python eval.py --method cot", "students": {}}
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in (header, *records)]
    Path(path).write_text("".join(lines), encoding="utf-8")


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
    assert "wins of A 5, wins of B 1, both right 2" in out
    assert "exact McNemar p = 0.22: no difference shown" in out
    assert all(len(line) <= 88 for line in out.splitlines())


def test_runs_on_different_problems_are_not_compared(command):
    write_run("a.jsonl", [record(), record()])
    write_run("b.jsonl", [record(), record()], problems_sha256="0" * 64)
    with pytest.raises(SystemExit, match="not of the same problems"):
        command("--compare", "a.jsonl", "b.jsonl")


@pytest.mark.parametrize("content, words", [
    (None, "does not exist"), (b"", "is not a whole file of predictions"), (b'{"id": 3}\n', "KeyError\\('settings'\\)"),
    (b"[3]\n4\n", "not a whole file of predictions"), (b"3\n", "not a whole file of predictions"), (b'{"settings": {}}\n{"id"\n{}\n', r"bad\.jsonl:2: ")])
def test_files_that_are_no_predictions_are_told(content, words, command):
    if content is not None:
        Path("bad.jsonl").write_bytes(content)
    for flags in (["--rescore", "bad.jsonl"], ["--compare", "bad.jsonl", "bad.jsonl"]):
        with pytest.raises(SystemExit, match=words):
            command(*flags)


def test_an_unfinished_run_is_scored_aloud_and_not_compared(command, capsys):
    write_run("a.jsonl", [record(), record()], n=3)
    command("--rescore", "a.jsonl")
    assert "demo/test: 2 of 3 problems" in capsys.readouterr().out
    write_run("b.jsonl", [record(), record(), record()], n=3)
    with pytest.raises(SystemExit, match="unfinished(.|\n)*python eval.py --method cot"):
        command("--compare", "a.jsonl", "b.jsonl")
    write_run("empty.jsonl", [], n=3)
    with pytest.raises(SystemExit, match="holds no dialogue yet"):
        command("--rescore", "empty.jsonl")


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
                     n_steps=1 + i % 3, gold_steps=[{"question": text[:400], "solution": text[:400]}],
                     oracles={"gold subquestions": {"answer": text[:40], "gold": "7", "turns": [], "ended": text[:40]}})


def hostile_page(n, folder="nowhere"):
    settings = {"dataset": "demo", "split": HOSTILE[1], "n": n, "samples": 1, "calculator": True, "method": HOSTILE[0]}
    header = {"settings": settings, "command": HOSTILE[0], "students": {"solver": str(folder)}}
    records = list(hostile_run(n))
    return records, script.page([(Path("</title>.jsonl"), header, records, script.score(records))])


def test_the_page_holds_no_text_as_markup_no_script_and_no_address():
    _, page = hostile_page(24)
    assert "<script" not in page and "<img" not in page and "<!--" not in page and "://" not in page
    assert page.count("<title>") == page.count("</title>") == 1
    for text in HOSTILE:
        assert html.escape(text) in page
    assert set(re.findall(r"<(\w+)", page)) == {
        "meta", "title", "style", "h1", "details", "summary", "p", "table", "tr", "th", "td", "div", "i"}


def test_the_page_groups_dialogues_by_where_they_broke_and_prints_the_table_of_the_screen(capsys):
    records, page = hostile_page(60)
    for name, title in (script.STAGES | {"right": "right"}).items():
        n = sum(script.stage(r) == name for r in records)
        assert (f"<summary>{title}: {n}</summary>" in page) == (n > 0)
    scores = script.score(records)
    script.print_scores(scores)
    screen = capsys.readouterr().out
    for rows in scores.values():
        for label, figure in rows.items():
            words = script.in_words(figure)
            assert f"<td>{html.escape(label)}<td>{words}<td>" in page
            assert label in screen and words in screen
            if "low" in figure:
                assert f"{figure['right']} of {figure['n']} = " in words and f"{figure['low']:.1%} to" in words
                assert f'left:{figure["low"]:.1%};width:{figure["high"] - figure["low"]:.1%}' in page


def test_a_nan_in_a_log_leaves_a_gap_and_a_torn_line_is_skipped(tmp_path):
    lines = ['{"step": 10, "loss": 4.0}', '{"step": 20, "loss": NaN}', '{"step": 30, "valid_loss": 1.0}', '{"step": 40, "loss": 2.0}', '{"step": 5']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    picture = script.curve("solver", tmp_path)
    assert "loss 4.00 to 2.000 nats a token in 40 steps" in picture and 'viewBox="0 -1.386 40 0.693"' in picture and 'd="M10 -1.386 40 -0.693"' in picture
    assert script.curve("solver", tmp_path / "nowhere") == ""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page was not opened")
def test_the_page_opens_in_a_browser_with_hostile_texts(tmp_path, folders):
    records, page = hostile_page(1319, folders[1])
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


@pytest.mark.parametrize("key", ["gold", "answer", "turns", "n_steps", "kind", "solution", "problem", "problems_sha256", "students"])
def test_damaged_predictions_are_one_clear_line(command, key):
    command("--limit", "2")
    path = only("*.jsonl")
    path.write_text(path.read_text().replace(f'"{key}"', '"lost"'))
    with pytest.raises(SystemExit, match="is not a whole file of predictions: KeyError"):
        command("--rescore", str(path))
