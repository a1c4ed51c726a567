"""What the students read and learn, what counts as an answer, and that no test problem can be trained on."""

import hashlib
import json
import random
import re
import threading
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from toy import PROBLEM, REAL, real

import data
from data import (
    IGNORE,
    Problem,
    Step,
    calculate,
    can_learn,
    encode,
    extract_answer,
    get_tokenizer,
    load_problems,
    make_stories,
    same_answer,
    segments,
    tokenize,
)

# ---------------------------------------------------------------- records


def test_a_record_survives_the_way_to_json_and_back():
    problem = Problem("é-1", 'He said "3 < 4"\u2028then left.', [Step("Q?", "S")], "7", "teacher", ["f=1"])
    assert Problem.from_json(problem.to_json()) == problem


@pytest.mark.parametrize("line, reason", [
    ("{", "Expecting"), ("[1]", "object"), ("7", "object"), ("[" * 100_000, "recursion"),
    ('{"id": "a", "steps": [], "answer": "", "source": ""}', "'problem' is missing"),
    ('{"id": "a", "problem": "p", "steps": [], "answer": "", "source": "", "label": 1}', "'label'"),
    ('{"id": "a", "problem": "p", "steps": [], "answer": 7, "source": ""}', "'answer'"),
    ('{"id": "a", "problem": "  ", "steps": [], "answer": "", "source": ""}', "empty"),
    ('{"id": "a", "problem": "p", "steps": [{"question": "q"}], "answer": "", "source": ""}', "steps': the key 'solution'"),
    ('{"id": "a", "problem": "p", "steps": [{"question": "q", "solution": "s", "evidence": []}], "answer": "", "source": ""}',
     "steps': the key 'evidence' is unknown"),
    ('{"id": "a", "problem": "p", "steps": {}, "answer": "", "source": ""}', "list"),
    ('{"id": "a", "problem": "p", "steps": [], "answer": "", "source": "", "evidence": "f"}', "evidence"),
])
def test_a_broken_line_is_named_with_file_and_number(tmp_path, line, reason):
    path = tmp_path / "records.jsonl"
    path.write_text(PROBLEM.to_json() + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=re.escape(f"{path}:3: ")) as error:
        data.read_records(path)
    assert reason in str(error.value)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "records.jsonl").write_bytes(PROBLEM.to_json().encode() + b"\n\xff\n")
    with pytest.raises(SystemExit, match=r"records\.jsonl:2: .*utf-8"):
        data.read_records(tmp_path / "records.jsonl")


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "records.jsonl").write_text(PROBLEM.to_json() + "\n", encoding="utf-8-sig")
    assert data.read_records(tmp_path / "records.jsonl") == [PROBLEM]


def test_blank_lines_are_skipped_and_unicode_line_separators_do_not_cut_a_record(tmp_path):
    path = tmp_path / "records.jsonl"
    problem = Problem("a", "one\u2028two", [], "1")
    path.write_text("\n" + problem.to_json() + "\n\n", encoding="utf-8")
    assert data.read_records(path) == [problem]


# ---------------------------------------------------------------- demo and world

STORIES = ("demo", "world")


def digits(text):
    """The numbers of a text; number words (and "half", "a third", a dozen, ...) count as numbers too."""
    return set(re.findall(r"\d+", text))


def test_stories_compute_what_they_say():
    for problem in make_stories("demo", "train", 400, seed=5) + make_stories("world", "train", 2000, seed=5):
        assert len(problem.steps) in (range(2, 7) if problem.id.startswith("demo") else range(1, 9))
        for step in problem.steps:
            expression, result = re.search(r"<<(.*)=([\d.]+)>>", step.solution).groups()
            assert calculate(expression) == result
            assert f"{expression} = <<" in step.solution.replace("$", "") and f">>{result}" in step.solution
        assert result == problem.answer and int(problem.answer) > 1
        assert problem.steps[-1].question[1:] in problem.problem, "the last subquestion is the problem's own"
        text = problem.to_json().replace('{"', "").replace('"}', "").replace("[{", "").replace("}]", "")
        assert not re.search(r"[{}|\[\]?]{2}|\bNone\b|\ba [aeio]", text), f"a wording was not filled in: {text}"


def test_every_number_of_a_demo_solution_was_read_or_computed_before():
    for problem in make_stories("demo", "train", 400, seed=6):
        known = digits(problem.problem) | {"2", "3", "4", "5"}  # half, a third, ... are words
        for step in problem.steps:
            expression, result = re.search(r"<<(.*)=(\d+)>>", step.solution).groups()
            assert digits(expression) <= known
            known.add(result)


@pytest.mark.parametrize("dataset", STORIES)
def test_no_subquestion_holds_a_number_that_is_not_told(dataset):
    """A test that guards a past bug: `How many pens is a third of 45?`, where the decomposer cannot know the 45."""
    words = data.story_table("world")["numbers"]["word"]
    for problem in make_stories(dataset, "train", 3000, seed=7):
        told = digits(problem.problem) | {n for n, word in words.items() if word in problem.problem.lower()}
        for step in problem.steps:
            assert digits(step.question) <= told, (step.question, problem.problem)


def test_no_story_comes_down_to_one_pen_so_that_all_words_are_in_the_plural():
    problems = make_stories("demo", "train", 3000, seed=7)
    assert not [p for p in problems if "1" in digits(p.to_json().replace(p.id, ""))]


@pytest.mark.parametrize("dataset, n", [("demo", 3000), ("world", 12000)])
def test_stories_use_every_event(dataset, n):
    rng, table, used = random.Random(0), data.story_table(dataset), set()
    for _ in range(n):
        _, key = data.make_story(rng, dataset, table["steps"][dataset])
        used |= {event.split(" [")[0] for event in key.split("; ")}
    assert used == {event["name"] for event in table["event"]}


def test_the_world_knows_all_events_of_the_demo_by_the_same_names():
    """So the sha256 of their names and numbers gives a story the same split in both."""
    names = [[event["name"] for event in data.story_table(dataset)["event"]] for dataset in STORIES]
    assert set(names[0]) < set(names[1]) and len(set(names[1])) == len(names[1])


def story_keys(dataset, split, n, monkeypatch):
    keys, make_story = [], data.make_story
    monkeypatch.setattr(data, "make_story", lambda *a: keys.append(make_story(*a)) or keys[-1])
    problems = make_stories(dataset, split, n)
    monkeypatch.undo()
    assert len(problems) == n
    return {key for problem, key in keys if problem.id}    # the others were not of this split


@pytest.mark.parametrize("dataset", STORIES)
def test_no_test_story_can_be_generated_for_training(dataset, monkeypatch):
    keys = {split: story_keys(dataset, split, 300, monkeypatch) for split in ("train", "valid", "test")}
    assert all(len(found) == 300 for found in keys.values())
    if dataset == "demo":
        keys["test"] |= story_keys(dataset, "long", 100, monkeypatch)
    homes = {split: {int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10 for key in found}
             for split, found in keys.items()}
    assert homes["test"] == {0} and homes["valid"] == {1} and homes["train"] == set(range(2, 10))


def test_the_test_split_never_changes():
    text = "\n".join(problem.to_json() for problem in load_problems("demo", "test"))
    assert hashlib.sha256(text.encode()).hexdigest() == DEMO_TEST_SHA256


DEMO_TEST_SHA256 = "ba9f62972ee06f326b4efc3a48d3ab4f754c9c8f2ac661fbf771fdb92dfaf66b"


def test_a_shorter_demo_split_is_the_beginning_of_the_longer_one():
    assert load_problems("demo", "train", limit=20) == load_problems("demo", "train", limit=50)[:20]
    assert [len(p.steps) in (7, 8) for p in load_problems("demo", "long", limit=30)] == [True] * 30


# ---------------------------------------------------------------- which part is learned

def learned_text(problem, role, tokenizer):
    ids, targets = encode(segments(problem, role), tokenizer)
    assert len(ids) == len(targets)
    return tokenizer.decode([target for target in targets if target != IGNORE])


@pytest.mark.parametrize("role, learned", [
    ("answer", " 7<|endoftext|>"),
    ("cot", "Solution: There are 3*4 = <<3*4=12>>12 pens.\nSolution: 12-5 = <<12-5=7>>7 are left.\nAnswer: 7<|endoftext|>"),
    ("unified", "Subquestion: How many pens?\nSolution: There are 3*4 = <<3*4=12>>12 pens.\n"
                "Subquestion: How many are left?\nSolution: 12-5 = <<12-5=7>>7 are left.\nAnswer: 7<|endoftext|>"),
    ("decomposer", "Subquestion: How many pens?\nSubquestion: How many are left?<|endoftext|>"),
    ("solver", " There are 3*4 = <<3*4=12>>12 pens.\n 12-5 = <<12-5=7>>7 are left.\n 7<|endoftext|>"),
])
def test_exactly_these_tokens_are_learned(role, learned):
    assert learned_text(PROBLEM, role, get_tokenizer("tiny")) == learned


def test_the_solver_reads_each_subquestion_before_its_solution_and_the_decomposer_no_solution():
    solver = "".join(part.text for part in segments(PROBLEM, "solver"))
    assert solver == ("Problem: Ava has 3 boxes with 4 pens each. She gives away 5. How many are left?\n"
                      "Subquestion: How many pens?\nSolution: There are 3*4 = <<3*4=12>>12 pens.\n"
                      "Subquestion: How many are left?\nSolution: 12-5 = <<12-5=7>>7 are left.\nAnswer: 7")
    assert "Solution" not in "".join(part.text for part in segments(PROBLEM, "decomposer"))
    assert "Answer: 7" not in "".join(part.text for part in segments(PROBLEM, "decomposer"))


def test_targets_are_the_next_tokens():
    tokenizer = get_tokenizer("tiny")
    for role in data.ROLES:
        ids, targets = encode(segments(PROBLEM, role), tokenizer)
        after = ids[1:] + [tokenizer.eot_token]
        assert all(target in (IGNORE, token) for target, token in zip(targets, after))
        assert targets[-1] == tokenizer.eot_token


def test_white_space_in_a_record_cannot_end_a_turn():
    problem = Problem("a", " two\n\nlines\u2028three ", [Step(" q\n1 ", "s\r\n1")], "7")
    for role in data.ROLES:
        for part in segments(problem, role):
            assert "\n" not in part.text[:-1] and "\u2028" not in part.text


def test_records_that_lack_what_a_role_learns_are_left_out():
    plain = Problem("a", "p", [Step("", "s")], "1")
    asked = Problem("b", "p", [Step("q", "")], "1")
    half = Problem("c", "p", [Step("q", "s"), Step("q", "")], "1")
    bare = Problem("d", "p", [], "1")
    can = {role: [can_learn(p, role) for p in (plain, asked, half, bare)] for role in data.ROLES}
    assert can == {"answer": [True] * 4, "cot": [True, False, False, False], "decomposer": [False, True, True, False],
                   "unified": [False] * 4, "solver": [False] * 4}
    assert not can_learn(Problem("e", "p", [Step("q", "s")], ""), "solver")


def test_strategyqa_learns_its_facts_as_a_chain_of_thought_and_svamp_does_not_learn_its_formula():
    facts = Problem("a", "Is it?", [Step("What is it?")], "yes", evidence=["It is a dog.", "Dogs are."])
    assert "".join(p.text for p in segments(facts, "cot") if p.learned) == (
        "Solution: It is a dog.\nSolution: Dogs are.\nAnswer: yes")
    assert not can_learn(Problem("b", "How many?", [], "7", evidence=["3+4=7"]), "cot")


def test_tokens_are_cut_where_the_calculator_takes_over():
    tokenizer = get_tokenizer("tiny")
    text = "so 3-5 = <<3-5=-2>>-2 and a=b"
    whole = tokenize(text, tokenizer)
    parts = [tokenizer.encode_ordinary(t) for t in ("so 3-5 = <<3-5=", "-2>>", "-2 and a=b")]
    assert whole == sum(parts, [])
    assert tokenizer.decode(whole) == text


def test_an_end_token_spelled_out_in_a_problem_is_only_text():
    tokenizer = get_tokenizer("tiny")
    ids, _ = encode(segments(Problem("a", "Stop <|endoftext|> here", [], "1"), "answer"), tokenizer)
    assert tokenizer.eot_token not in ids


def test_the_tiny_tokenizer_gives_back_any_text():
    tokenizer = get_tokenizer("tiny")
    assert tokenizer.n_vocab == 2048
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("aZ é\n\t0123<>=*_'’日🙂  .,$") for _ in range(rng.randint(0, 40)))
        assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text
    assert [tokenizer.decode([i]) for i in tokenizer.encode_ordinary(" had 12*3=<<12*3=36>>36")] == [
        " had", " ", *"12*3=", "<<", *"12*3=", *"36", ">>", *"36"]


# ---------------------------------------------------------------- arithmetic

def test_the_calculator_agrees_with_exact_fractions_on_random_expressions():
    rng = random.Random(0)

    def make(depth):
        if depth == 0 or rng.random() < 0.3:
            number = rng.choice([str(rng.randint(0, 999)), f"{rng.randint(0, 99)}.{rng.randint(0, 99):02d}"])
            return number, Fraction(number)
        (a, x), (b, y), sign = make(depth - 1), make(depth - 1), rng.choice("+-*/")
        if sign == "/" and y == 0:
            return a, x
        return f"({a}{sign}{b})", {"+": x + y, "-": x - y, "*": x * y, "/": y and x / (y or 1)}[sign]

    for _ in range(2000):
        text, value = make(4)
        if len(text) > 200:
            continue
        found = calculate(text)
        assert abs(Fraction(found) - value) <= abs(value) / 20 + Fraction(1, 10**11), (text, found, value)
        rest = value.denominator
        for prime in (2, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and value.denominator < 10**9:
            assert Fraction(found) == value, (text, found)


@pytest.mark.parametrize("text, value", [
    ("1+2*3", "7"), ("(1+2)*3", "9"), ("10-4-3", "3"), ("16/4/2", "2"), ("-3+5", "2"), ("2*-3", "-6"), ("3-5", "-2"),
    ("0.1+0.2", "0.3"), ("24/2", "12"), ("1/2", "0.5"), (".5*4", "2"), ("70*.01*90", "63"), ("100/3", "33.33"),
    ("20%*50", "10"), ("50%", "0.5"), ("1,000+1", "1001"), ("6 × 7", "42"), ("6 ÷ 4", "1.5"), ("5 − 7", "-2"),
    ("$3*2", "6"), ("1/300", "0.0033"), ("2/3", "0.67"), ("1000000*1000000", "1000000000000"),
])
def test_the_calculator_prints_as_the_data_does(text, value):
    assert calculate(text) == value


@pytest.mark.parametrize("text", [
    "", " ", "x+1", "9**9**9", "().__class__", "1/0", "1/(2-2)", "3 4", "1 1/2", "$3 $4", "(" * 10_000, "(" * 99 + "1", "1" * 201, "2+", "*2", "1 2 +",
    "__import__('os')", "1e9", "3=3", "()", "1..2", "1,00", "2(3)", "½", "٣+1", "+", "end", "%",
])
def test_what_is_not_arithmetic_has_no_value(text):
    assert calculate(text) is None


def test_deep_brackets_within_the_limit_are_computed():
    assert calculate("(" * 90 + "1+1" + ")" * 90) == "2"


# ---------------------------------------------------------------- answers

@pytest.mark.parametrize("text, answer", [
    ("#### 18", "18"), ("#### 18.0", "18"), ("#### $18", "18"), ("####18", "18"), ("Answer: 18.", "18"),
    ("Answer: 18 dollars", "18"), ("#### 1,800", "1800"), ("Answer: -5", "-5"), ("Answer: −5", "-5"), ("Answer: -$5", "-5"),
    ("#### 18\n\nQuestion: ...\n#### 99", "18"), ("She has 18 apples...", None), ("It takes 5-10 minutes", None),
    ("Answer: $1,200.\nProblem: 3", "1200"), ("Answer: 50%", "50"), ("Answer: 0.50", "0.5"), ("Answer: 1/2", "0.5"),
    ("Answer:", None), ("Answer:\nProblem: He has 3", None), ("Answer: none", None), ("", None),
    ("Answer: yes", "yes"), ("Answer: No.", "no"), ("Answer: not really", None), ("Answer: no one", None),
    ("Answer: True", "yes"), ("Answer: 3*4 = 12", "12"), ("Answer: 5-10", None), ("Answer: 3:30", None),
    ("Answer: 1.2.3", None), ("Answer: £3", "3"), ("Answer: 18 hats for 3 men", "18"),
    ("Answer: 5 1/2", None), ("Answer: 1 1/2 hours", None), ("Answer: 3 4", None), ("Answer: –5", "-5"), ("Answer: ‒5", "-5"),
    ("Answer: －5", "-5"), ("Answer: So, 12", "12"), ("Answer: Mrs. Lee has 12", "12"), ("Answer: 12 = 3*4", "12"),
    ("Answer: <<3*4=12>>12 pens", "12"), ("Answer: x = 12 pens", "12"), ("Answer: from 3 to 5", None), ("Answer: 3 to 5", None),
    ("Answer: 2^3", None), ("Answer: 5 - 3", None), ("Answer: between 3 and 5 pens", None), ("Answer: about $3.", "3"),
    ("Answer: 12 pens, since 3*4 = 12", "12"), ("Answer: No, 10 feet is less than 14 feet.", "no"), ("Answer: 1,00", None),
])
def test_a_strict_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text, answer", [
    ("She has 18 apples...", "18"), ("It takes 5-10 minutes", "10"), ("It fell by -4 degrees", "-4"), ("no number", None),
    ("So it is $1,234.50.", "1234.5"), ("#### 18 then 99", "18"), ("Thus yes.", "yes"), ("no one knows", None), ("", None),
    ("Beethoven lived 1770 to 1827. So the answer is yes.", "yes"), ("It is no, since 3 of them came", "3"), ("No. It was –4", "-4"),
])
def test_a_lenient_answer(text, answer):
    assert extract_answer(text, lenient=True) == answer


@pytest.mark.parametrize("a, b, same", [
    ("18.0", "18", True), ("18", "19", False), ("yes", "Yes", True), ("yes", "no", False), ("0.5", "1/2", True),
    (None, "18", False), (None, None, False), ("1,800", "1800", True), ("-5", "5", False), ("yes", "1", False),
])
def test_answers_are_compared_as_numbers_or_words(a, b, same):
    assert same_answer(a, b) is same


# ---------------------------------------------------------------- downloads

@pytest.fixture
def file_server():
    """Serves `content` at any path, honouring Range; `cut` sends so many bytes only."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.ranges.append(self.headers.get("Range"))
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            body = server.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", server.kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:server.cut])

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.cut, server.ranges, server.kind = b"x" * 200_000, None, [], "text/plain"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}/file"
    yield server
    server.shutdown()


def test_a_download_that_broke_off_goes_on_and_is_checked(tmp_path, file_server):
    path, good = tmp_path / "a" / "file", hashlib.sha256(file_server.content).hexdigest()
    file_server.cut = 70_000
    with pytest.raises(SystemExit, match="Cannot download"):
        data.download(file_server.url, path, good)
    assert not path.exists()
    file_server.cut = None
    data.download(file_server.url, path, good)
    assert path.read_bytes() == file_server.content and re.fullmatch(r"bytes=[1-9]\d*-", file_server.ranges[-1])
    assert list(path.parent.iterdir()) == [path]


def test_a_web_page_is_not_taken_for_the_file(tmp_path, file_server):
    """As a proxy or a hotel sends it, with status 200; no sha256 need be known."""
    file_server.kind = "text/html; charset=utf-8"
    with pytest.raises(SystemExit, match="a web page came instead of the file"):
        data.download(file_server.url, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("Hash mismatch")])
def test_a_tokenizer_that_cannot_be_fetched_is_told_with_the_cause(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(data.tiktoken, "get_encoding", fail)
    with pytest.raises(SystemExit, match=f"{error}\n.*TIKTOKEN_CACHE_DIR"):
        get_tokenizer("gpt2")


def test_a_file_that_is_not_the_known_one_is_refused(tmp_path, file_server):
    with pytest.raises(SystemExit, match="not the file this code knows"):
        data.download(file_server.url, tmp_path / "file", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_offline_the_error_names_the_file_its_address_and_where_to_put_it(tmp_path):
    with pytest.raises(SystemExit) as error:
        data.download("http://127.0.0.1:9/train.jsonl", tmp_path / "gsm8k" / "train.jsonl")
    assert "http://127.0.0.1:9/train.jsonl" in str(error.value) and str(tmp_path / "gsm8k" / "train.jsonl") in str(error.value)


def test_unknown_data_sets_splits_and_files_are_named(tmp_path):
    for call, words in ((lambda: load_problems("mawps", "train"), "mawps"), (lambda: load_problems("gsm8k", "long"), "long"),
                        (lambda: data.read_records(tmp_path / "none.jsonl"), "none.jsonl does not exist")):
        with pytest.raises(SystemExit, match=words):
            call()


# ---------------------------------------------------------------- the three data sets, in small files of their layout

def put_file(folder, name, text, monkeypatch):
    """A data file of the test's own, whose sha256 is taken for the known one."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    sources = data.read_toml("sources.toml")
    monkeypatch.setitem(sources, name, (sources[name][0], data.sha256_of(path)))
    return path


def test_gsm8k_rows_become_records(tmp_path, monkeypatch):
    row = {"question": "How\u2028many?", "answer": "Q1? ** 3*4 = <<3*4=12>>12\nQ2? ** \n#### 1,200"}
    lines = (json.dumps(row, ensure_ascii=False) + "\n") * 600
    for part in ("train", "test"):
        put_file(tmp_path, f"gsm8k/{part}_socratic.jsonl", lines, monkeypatch)
    problems = load_problems("gsm8k", "test", tmp_path)
    assert len(problems) == 600
    assert problems[7] == Problem("gsm8k-test-7", "How\u2028many?", [Step("Q1?", "3*4 = <<3*4=12>>12"), Step("Q2?", "")], "1200")
    assert [p.id for p in load_problems("gsm8k", "train", tmp_path)] == [f"gsm8k-train-{i}" for i in range(88)]
    assert load_problems("gsm8k", "valid", tmp_path)[0].id == "gsm8k-train-88"


@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\n", "<!doctype html>", '{"question": "1"}\n'])
def test_a_data_file_put_there_by_hand_is_checked(content, tmp_path):
    path = tmp_path / "gsm8k" / "test_socratic.jsonl"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(SystemExit, match="is not the file this code knows: its sha256 is not c96673362") as error:
        load_problems("gsm8k", "test", tmp_path)
    assert str(path) in str(error.value) and "https://raw.githubusercontent.com/openai/" in str(error.value)


def test_annotations_take_the_place_of_the_steps_and_are_counted(tmp_path, capsys):
    problems = load_problems("demo", "train", limit=5)
    path = tmp_path / "annotations.jsonl"
    theirs = [Problem(p.id, p.problem, [Step("Their question?", "Their solution.")], p.answer, "teacher") for p in problems[1:3]]
    path.write_text("".join(p.to_json() + "\n" for p in theirs), encoding="utf-8")
    assert load_problems("demo", "train", limit=5, annotations=path) == theirs
    assert "2 annotations, 2 match the 5 problems" in capsys.readouterr().err


# ---------------------------------------------------------------- one's own file

def test_other_numbers_never_make_a_problem_that_a_file_would_test_on():
    mine = [Problem(f"mine-{a}-{b}", f"Ava had {a} pens and lost {b}. How many has she?",
                    [Step("", f"{a}-{b} = <<{a}-{b}={a - b}>>{a - b}")], str(a - b)) for a in range(20, 40) for b in (3, 7)]
    new = [data.renumber(p, random.Random(f"{epoch}-{p.id}")) for p in mine for epoch in range(10)]
    texts = {p.problem for p in new if p}
    assert len(texts) > 100 and {data.split_of(text) for text in texts} == {"train"}

def test_the_text_of_a_problem_in_ones_own_file_decides_its_split(tmp_path):
    path = tmp_path / "pens.jsonl"
    mine = [Problem(f"mine-{i}", f"Ava has {i} pens. How many?", [], str(i)) for i in range(400)]
    path.write_text("".join(p.to_json() + "\n" for p in mine), encoding="utf-8")
    parts = {split: load_problems(str(path), split) for split in ("train", "valid", "test", "all")}
    assert parts["all"] == mine
    assert sorted(p.id for p in mine) == sorted(p.id for split in ("train", "valid", "test") for p in parts[split])
    assert 20 <= len(parts["test"]) <= 60 and 20 <= len(parts["valid"]) <= 60
    for problem in parts["test"]:
        assert int(hashlib.sha256(problem.problem.encode()).hexdigest(), 16) % 10 == 0
    spaced = [Problem(p.id, p.problem.replace(". ", ".\n  "), [], p.answer) for p in mine]
    path.write_text("".join(p.to_json() + "\n" for p in spaced), encoding="utf-8")    # a student reads the same text
    assert [p.id for p in load_problems(str(path), "test")] == [p.id for p in parts["test"]]
    path.write_text("".join(p.to_json() + "\n" for p in mine[::3]), encoding="utf-8")    # filtered
    assert {p.id for p in load_problems(str(path), "test")} == {p.id for p in parts["test"]} & {p.id for p in mine[::3]}
    assert load_problems(str(path), "all", limit=2) == mine[:6:3]


def test_the_name_of_a_file_is_its_stem_and_no_built_in_one(tmp_path):
    assert data.run_name("a/b.c.jsonl") == "b.c" and data.splits_of("b.jsonl") == ("train", "valid", "test", "all")
    for dataset, words in (("x/gsm8k.jsonl", "name of a built-in data set"), ("mine", "ends in .jsonl"),
                           (str(tmp_path / "none.jsonl"), "none.jsonl does not exist")):
        with pytest.raises(SystemExit, match=words):
            load_problems(dataset, "train")
    path = tmp_path / "mine.jsonl"
    path.write_text(Problem("a", "How many?").to_json() + "\n" + Problem("a", "How few?").to_json() + "\n")
    with pytest.raises(SystemExit, match="the id 'a' occurs 2 times"):
        load_problems(str(path), "all")
    with pytest.raises(SystemExit, match="no split 'long'"):
        load_problems(str(path), "long")


@real
def test_the_real_files_have_the_known_counts():
    def count(*args):
        return len(load_problems(*args, REAL))

    assert [count("gsm8k", split) for split in ("train", "valid", "test")] == [6961, 512, 1319]
    assert count("svamp", "train") + count("svamp", "valid") == 614
    assert [count("svamp", split) for split in ("test", "all")] == [237, 1000]
    assert [count("strategyqa", split) for split in ("train", "valid", "test")] == [1832, 229, 229]


@real
def test_the_calculator_agrees_with_the_annotations_of_gsm8k():
    pairs = [pair for p in load_problems("gsm8k", "train", REAL) + load_problems("gsm8k", "valid", REAL)
             for step in p.steps for pair in re.findall(r"<<([^<>=]*)=([^<>]*)>>", step.solution)]
    assert len(pairs) > 23_000
    values = [(calculate(a), b) for a, b in pairs]
    assert sum(value is None for value, _ in values) < 25
    assert sum(value == b for value, b in values) / len(values) > 0.97, "printed as the data prints it"
    assert sum(same_answer(value, b) for value, b in values) / len(values) > 0.995


@real
def test_the_real_problems_are_read_whole():
    gsm8k = load_problems("gsm8k", "test", REAL)
    assert all(len(p.steps) >= 2 and calculate(p.answer) for p in gsm8k)
    assert sum(not step.solution for p in gsm8k for step in p.steps) == 2
    svamp = load_problems("svamp", "all", REAL)
    assert not any(re.search(r"[a-z0-9] How (many|much) ", p.problem) for p in svamp), "a full stop or comma is missing"
    strategyqa = load_problems("strategyqa", "train", REAL)
    assert {p.answer for p in strategyqa} == {"yes", "no"}
    assert not any("#" in step.question for p in strategyqa[:200] for step in p.steps)


def test_a_mixture_holds_the_training_problems_of_each_part(tmp_path):
    own = tmp_path / "mine.jsonl"
    own.write_text("".join(Problem(f"own-{i}", f"What is {i}+1?", [Step("How much is it?", "It is 2.")], "2").to_json() + "\n"
                           for i in range(30)), encoding="utf-8")
    problems = load_problems(f"demo+{own}", "train", limit=20)
    assert problems == load_problems("demo", "train", limit=20) + load_problems(str(own), "train", limit=20)
    assert len(load_problems(f"demo+{own}", "valid", limit=3)) > 3
    with pytest.raises(SystemExit, match="no split 'test'"):
        load_problems(f"demo+{own}", "test")
    with pytest.raises(SystemExit, match="Unknown data set 'dem'"):
        load_problems(f"dem+{own}", "train")


def test_annotations_of_one_part_of_a_mixture_leave_the_other_part_as_it_is(tmp_path):
    text = next(text for i in range(99) if data.split_of(text := f"What is {i}+1?") == "train")
    own, notes = tmp_path / "mine.jsonl", tmp_path / "notes.jsonl"
    own.write_text(Problem("own", text, [], "3").to_json() + "\n", encoding="utf-8")
    notes.write_text(Problem("own", text, [Step("How much?", "3")], "3").to_json() + "\n", encoding="utf-8")
    *others, mine = load_problems(f"demo+{own}", "train", limit=4, annotations=notes)
    assert others == load_problems("demo", "train", limit=4) and mine.steps == [Step("How much?", "3")]


# ---------------------------------------------------------------- the same story with other numbers

def story(text, *solutions, answer="8", questions=()):
    questions = questions or ["How many?"] * len(solutions)
    return Problem("a", text, [Step(*pair) for pair in zip(questions, solutions)], answer)


PENS = story("Ava has 1,200 pens at $2.50 each. She sells 40 of them for $4 each. What is left?",
             "She sells 1,200-40 = <<1200-40=1160>>1,160 pens less.", "That is 1160*4 = $<<1160*4=4640>>4,640.",
             answer="4640", questions=["How many are left after 40?", "What are the 1,160 worth?"])


def test_the_new_numbers_stand_wherever_the_old_ones_stood():
    new = data.renumber(PENS, random.Random(1))
    assert new == story("Ava has 1,800 pens at $2.50 each. She sells 56 of them for $3 each. What is left?",
                        "She sells 1,800-56 = <<1800-56=1744>>1,744 pens less.", "That is 1744*3 = $<<1744*3=5232>>5,232.",
                        answer="5232", questions=["How many are left after 56?", "What are the 1,744 worth?"])
    assert new == data.renumber(PENS, random.Random(1)) and new != data.renumber(PENS, random.Random(2))


@pytest.mark.parametrize("text, solution, answer, stays", [
    ("Of 40 pens 20% are red. How many?", "40*20/100 = <<40*20/100=8>>8", "8", "20%"),
    ("Of 40 pens 1/5 are red. How many?", "40/5 = <<40/5=8>>8", "8", "1/5"),
    ("He works 8 hours from 3:30, 9 p.m. at the latest, for $10.", "8*10 = <<8*10=80>>80", "80", "3:30, 9 p.m."),
    ("The 8th of 16 children gets 8 pens.", "8*16 = <<8*16=128>>128", "128", "8th"),
    ("In 2012 he had 12 pens more than 30.", "2012-12 = <<2012-12=2000>>2000", "2000", "2012"),
    ("Two of the 2 boxes hold 30 pens.", "2*30 = <<2*30=60>>60", "60", "2 boxes"),
    ("In a week he eats 7 of 90 pens.", "90-7 = <<90-7=83>>83", "83", "7 of"),
    ("The price of $50 falls by 20 percent of it.", "50*0.8 = <<50*0.8=40>>40", "40", "20 percent"),
    ("A discount of 20 on 50 pens.", "50*0.8 = <<50*0.8=40>>40", "40", "20 on"),
])
def test_some_numbers_stay(text, solution, answer, stays):
    new = [data.renumber(story(text, solution, answer=answer), random.Random(seed)) for seed in range(9)]
    assert all(problem is None or stays in problem.problem for problem in new)


@pytest.mark.parametrize("problem", [
    story("He has 5 pens and 5 more.", "5+5 = <<5+5=10>>10", "10-5 = <<10-5=5>>5", "5*8 = <<5*8=40>>40", answer="40"),
    story("He has 5 pens and 3 more.", "Of the 17, 5+3 = <<5+3=8>>8"),
    story("He has 5 pens and 3 more.", "5+3 = <<5+3=8>>8", answer="9"),
    story("He has 5 pens and 3 more.", "5+3 = <<5+3=8>>8", "So it is 8+7 = 15.", answer="8"),
    story("He has 5 pens and 3 more.", "5+3 = <<5+3=9>>9", answer="9"),
    story("He has 10 pens for 3.", "10/3 = <<10/3=3.33>>3.33", answer="3.33"),
    story("He has five pens and three more.", "5+3 = <<5+3=8>>8"),
    story("He has 5 pens.", "All of them."),
    Problem("demo-train-7", PENS.problem, PENS.steps, PENS.answer, "a teacher"),
], ids=["a result is a given number", "unknown number", "unknown answer", "not annotated", "false", "rounded", "words only",
        "no calculation", "demo"])
def test_what_is_doubtful_is_not_renumbered(problem):
    assert all(data.renumber(problem, random.Random(seed)) is None for seed in range(20))


@real
def test_half_of_gsm8k_can_be_told_with_other_numbers_and_all_of_it_is_true():
    problems = load_problems("gsm8k", "train", REAL)
    new = [data.renumber(problem, random.Random(f"0-0-{problem.id}")) for problem in problems]
    assert len(problems) == 6961 and 3300 < sum(problem is not None for problem in new) < 4000
    for old, problem in zip(problems, new):
        if problem is None:
            continue
        assert problem.id == old.id and Problem.from_json(problem.to_json()) == problem and problem != old
        text = " ".join(step.solution for step in problem.steps)
        results = [calculate(result) for _, result in data.CALCULATION.findall(text)]
        assert all(calculate(f"{a}-({b})") == "0" for a, b in data.CALCULATION.findall(text))
        assert problem.answer in results and Fraction(problem.answer) < 1_000_000
        assert re.sub(data.NUMBER, "#", problem.problem) == re.sub(data.NUMBER, "#", old.problem), "only numbers change"


@pytest.mark.parametrize("dataset", STORIES)
def test_there_is_a_word_for_every_event_that_draws_one(dataset):
    """A story never uses a word twice: with fewer words than events, a draw would never end."""
    table = data.story_table(dataset)
    for kind, own in table["columns"].items():
        users = [event for event in table["event"] if set(re.findall(r"{(\w+)}", str(event))) & set(own)]
        assert len(table["words"][kind]) >= min(len(users), 9), "a story has at most 9 events"


def test_of_an_annotated_part_of_a_mixture_only_the_annotated_problems_stay(tmp_path, capsys):
    """A guard against a past fault: a mixture joined a teacher's steps with the data set's own ones."""
    for name in ("a", "b"):
        texts = [f"{name} has {i} pens?" for i in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(Problem(f"{name}-{i}", t, [Step("", "own")], "1").to_json() + "\n" for i, t in enumerate(texts)))
    mixture = f"{tmp_path / 'a.jsonl'}+{tmp_path / 'b.jsonl'}"
    problems = load_problems(mixture, "train")
    chosen = [problem for problem in problems if problem.id.startswith("a-")][:5]
    (tmp_path / "t.jsonl").write_text("".join(Problem(p.id, "x", [Step("Q?", "taught")], "1", "teacher").to_json() + "\n" for p in chosen))
    both = load_problems(mixture, "train", annotations=tmp_path / "t.jsonl")
    assert [p.id for p in both] == [p.id for p in chosen] + [p.id for p in problems if p.id.startswith("b-")]
    assert {p.steps[0].solution for p in both if p.id.startswith("a-")} == {"taught"}
    assert "5 annotations, 5 match the" in capsys.readouterr().err
    assert load_problems(str(tmp_path / "b.jsonl"), "train", annotations=tmp_path / "t.jsonl") == []
