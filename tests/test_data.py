"""What the students read and learn, what counts as an answer, and which problems are in which split."""

import gzip
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import unicodedata
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from toy import PROBLEM, real

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
    read_lines,
    same_answer,
    segments,
    tokenize,
)


def write(path, records):
    """A file of records; a .gz is packed."""
    text = "".join(record.to_json() + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


# ---------------------------------------------------------------- records

def test_a_record_survives_the_way_to_json_and_back():
    problem = Problem("é-1", 'He said "3 < 4"\u2028then left.', [Step("Q?", "S")], "7", "teacher", ["f=1"])
    assert Problem.from_json(problem.to_json()) == problem
    assert Problem.from_json('{"id": "a", "problem": "p", "answer": 7}') == Problem("a", "p", [], "7", "human", [])


@pytest.mark.parametrize("line, reason", [
    ("{", "Expecting"), ("[1]", "object"), ("7", "object"), ("[" * 100_000, "recursion"), (b"\xff", "utf-8"),
    ("{}", "missing keys: ['id', 'problem', 'answer'], unknown keys: []"),
    ('{"id": "a", "problem": "p", "label": 1, "n": 2}', "missing keys: ['answer'], unknown keys: ['label', 'n']"),
    ('{"id": "a", "problem": "p", "answer": "", "label": 1}', "missing keys: [], unknown keys: ['label']"),
    ('{"id": 1, "problem": ["p"], "answer": "", "source": null, "steps": [{"question": 4}]}', "[1, ['p'], None, 4]"),
    ('{"id": "a", "problem": "  ", "answer": ""}', "an empty problem"),
    ('{"id": "a", "problem": "half a pair: \\ud800", "answer": ""}', "surrogates"),
    ('{"id": "a", "problem": "p", "answer": "", "steps": [{"question": "q", "evidence": []}]}', "'evidence'"),
    ('{"id": "a", "problem": "p", "answer": "", "steps": ["q"]}', "mapping"),
    ('{"id": "a", "problem": "p", "answer": "", "steps": null}', ""),
    ('{"id": "a", "problem": "p", "answer": "", "evidence": "f"}', "list"),
])
def test_a_broken_line_is_named_with_file_and_number_and_all_that_is_wrong(tmp_path, line, reason):
    path = tmp_path / "records.jsonl"
    path.write_bytes(PROBLEM.to_json().encode() + b"\n\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(SystemExit, match=re.escape(f"{path}:3: ")) as error:
        load_problems(str(path), "all")
    assert reason in str(error.value)


def test_a_byte_order_mark_blank_lines_and_unicode_line_separators_do_not_cut_a_record(tmp_path):
    problem = Problem("a", "one\u2028two\u0085three", [], "1")
    (tmp_path / "a.jsonl").write_text(f"{PROBLEM.to_json()}\n\r\n \n{problem.to_json()}", encoding="utf-8-sig")
    assert load_problems(str(tmp_path / "a.jsonl"), "all") == [PROBLEM, problem]


def test_a_packed_file_is_read_whole_and_one_that_is_cut_off_is_an_error(tmp_path):
    path = write(tmp_path / "pens.jsonl.gz", [PROBLEM])
    assert data.run_name(path) == "pens" and load_problems(path, "all") == [PROBLEM]
    whole = (tmp_path / "pens.jsonl.gz").read_bytes()
    for broken in [whole[:n] for n in range(1, len(whole), 7)] + [whole[:30] + b"\xff\xff\xff" + whole[33:], b"no gzip"]:
        (tmp_path / "pens.jsonl.gz").write_bytes(broken)
        with pytest.raises(SystemExit, match=r"pens\.jsonl\.gz cannot be read"):
            load_problems(path, "all")


@pytest.mark.parametrize("name", ["pens.jsonl", "pens.jsonl.gz"])
def test_a_pipe_is_read_like_a_file(tmp_path, name):
    """A guard against a past fault: whatever was no ordinary file "did not exist"."""
    os.mkfifo(tmp_path / name)
    threading.Thread(target=write, args=(tmp_path / name, [PROBLEM]), daemon=True).start()
    assert load_problems(str(tmp_path / name), "all") == [PROBLEM]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    data.replace_file(tmp_path / "new" / "file", b"old")
    with pytest.raises(TypeError):
        data.replace_file(tmp_path / "new" / "file", b"half of it", "not bytes")
    assert (tmp_path / "new" / "file").read_bytes() == b"old"
    data.replace_file(tmp_path / "new" / "file", b"ne", b"w")
    assert (tmp_path / "new" / "file").read_bytes() == b"new"


# ---------------------------------------------------------------- the demo's stories

@pytest.fixture(scope="module")
def demo():
    return read_lines(data.HERE / "students" / "demo.jsonl.gz", Problem.from_json)


def test_the_demo_loads_in_about_a_second_and_its_ids_hold_the_splits():
    start = time.process_time()
    train = load_problems("demo", "train")
    assert time.process_time() - start < 3, "it was 6 to 20 seconds when the stories were generated"
    assert [problem.id for problem in train] == [f"demo-train-{n}" for n in range(20_000)]


def test_the_demos_ids_texts_and_numbers_of_steps(demo):
    assert len({problem.id for problem in demo}) == len({problem.problem for problem in demo}) == len(demo) == 22_000
    steps = {split: {len(p.steps) for p in demo if f"-{split}-" in p.id} for split in data.DATASETS["demo"]}
    assert steps == {"train": {2, 3, 4, 5, 6}, "valid": {2, 3, 4, 5, 6}, "test": {2, 3, 4, 5, 6}, "long": {7, 8}}
    assert all(can_learn(problem, role) for problem in demo[::50] for role in data.ROLES)


def test_the_demo_computes_what_it_says_from_what_it_was_told(demo):
    for problem in demo[::7]:
        known = {*re.findall(r"\d+", problem.problem), "2", "3", "4", "5"}    # half, a third, ... are words
        for step in problem.steps:
            (expression, result), = data.CALCULATION.findall(step.solution)
            assert calculate(expression) == result and set(re.findall(r"\d+", expression)) <= known
            assert f"{expression} = <<" in step.solution.replace("$", "") and f">>{result}" in step.solution
            known.add(result)
        assert result == problem.answer and int(result) > 1
        assert problem.steps[-1].question[1:] in problem.problem, "the last subquestion is the problem's own"


def test_the_test_split_never_changes():
    text = "\n".join(problem.to_json() for problem in load_problems("demo", "test"))
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    assert sha256 == "ba9f62972ee06f326b4efc3a48d3ab4f754c9c8f2ac661fbf771fdb92dfaf66b"


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
    "", " ", "x+1", "9**9**9", "().__class__", "1/0", "1/(2-2)", "3 4", "1 1/2", "$3 $4", "(" * 10_000, "(" * 99 + "1", "1" * 201, "1" * 100_000, "1," * 50_000, "2+", "*2", "1 2 +",
    "__import__('os')", "1e9", "3=3", "()", "1..2", "1,00", "2(3)", "½", "٣+1", "+", "end", "%",
])
def test_what_is_not_arithmetic_or_too_long_has_no_value_at_once(text):
    """A guard against a past fault: 100,000 digits took 38 seconds."""
    start = time.process_time()
    assert calculate(text) is None
    assert time.process_time() - start < 1


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
    ("Answer: 1.2.3", None), ("Answer: £3", "3"), ("Answer: 5 1/2", None), ("Answer: 3 4", None), ("Answer: –5", "-5"),
    ("Answer: ‒5", "-5"), ("Answer: －5", "-5"), ("Answer: So, 12", "12"), ("Answer: Mrs. Lee has 12", "12"),
    ("Answer: <<3*4=12>>12 pens", "12"), ("Answer: x = 12 pens", "12"), ("Answer: 12 = 3*4", "12"), ("Answer: about $3.", "3"),
    ("Answer: No, 10 feet is less than 14 feet.", "no"), ("Answer: 1,00", None),
    # of several numbers none is chosen; in an equation the last side that is one number counts
    ("Answer: 19 and 27", None), ("Answer: 1 hour 75 minutes", None), ("Answer: 18 hats for 3 men", None),
    ("Answer: from 3 to 5", None), ("Answer: 2^3", None), ("Answer: 5 - 3", None), ("Answer: 1 1/2 hours", None),
    ("Answer: 3+4 = 7 and 5+6 = 11", "11"), ("Answer: 7 = 8", "8"), ("Answer: 3 4 = 1 2", None), ("Answer: 12 pens, since 3*4 = 12", "12"),
    ("Answer:" + "<<" * 20_000, None),    # took 13 seconds
])
def test_an_answer_is_the_one_number_of_its_block_or_yes_or_no(text, answer):
    start = time.process_time()
    assert extract_answer(text) == answer
    assert time.process_time() - start < 1


@pytest.mark.parametrize("a, b, same", [
    ("18.0", "18", True), ("18", "19", False), ("yes", "Yes", True), ("yes", "no", False), ("0.5", "1/2", True),
    (None, "18", False), (None, None, False), ("", "", False), ("1,800", "1800", True), ("-5", "5", False), ("yes", "1", False),
    ("12 pens", "12", True), ("$12.", "12%", True), ("True", "yes", True), ("19 and 27", "19", False), ("no idea", "none", False),
])
def test_answers_are_compared_as_numbers_or_words(a, b, same):
    assert same_answer(a, b) is same and same_answer(b, a) is same


@pytest.mark.parametrize("answer, gold", [
    ("12 pens", "12"), ("€12", "12"), ("12%", "12"), ("12.", "12"), (12, "12"), (12.0, "12"), (0.5, "0.5"), ("−1,200", "-1200"),
    ("3*4 = 12", "12"), ("#### 12", "12"), ("True", "yes"), (True, "yes"), (False, "no"), ("No.", "no"), ("", ""), (" ", ""),
])
def test_a_records_answer_means_what_a_students_answer_means(tmp_path, answer, gold):
    """A guard against a past fault: with "12 pens" or "True" as gold answer, a perfect student scored 0."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "a", "problem": "p", "answer": answer}))
    problem, = load_problems(str(tmp_path / "a.jsonl"), "all")
    assert problem.answer == gold
    assert same_answer(extract_answer(f"Answer: {answer}"), problem.answer) is bool(gold)


@pytest.mark.parametrize("answer", ["unknown", "?", "19 and 27", "1 hour 75 minutes", "3:30", None, [12], {"n": 12}, float("nan"), "9" * 999])
def test_a_records_answer_that_says_nothing_is_an_error_with_file_and_line(tmp_path, answer):
    path = tmp_path / "a.jsonl"
    path.write_text(PROBLEM.to_json() + "\n" + json.dumps({"id": "a", "problem": "p", "answer": answer}))
    with pytest.raises(SystemExit, match=re.escape(f"{path}:2: the answer {answer!r} is neither")):
        load_problems(str(path), "all")


# ---------------------------------------------------------------- tokenizers and downloads

@pytest.mark.parametrize("error", [OSError("no route"), ValueError("Hash mismatch")])
def test_a_tokenizer_that_cannot_be_fetched_is_told_with_the_cause(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(data.tiktoken, "get_encoding", fail)
    with pytest.raises(SystemExit, match=f"{error}\n.*TIKTOKEN_CACHE_DIR"):
        get_tokenizer("gpt2")


NAME = "gsm8k/test_socratic.jsonl"


@pytest.fixture
def author(tmp_path, monkeypatch):
    """A server from which NAME comes: `content`, of which it sends the first `cut` bytes; `path` is where it goes."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.n_requests += 1
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(server.content)))
            self.end_headers()
            self.wfile.write(server.content[:server.cut])

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.cut, server.status, server.n_requests = b"x" * 200_000, None, 200, 0
    server.url, server.path = f"http://127.0.0.1:{server.server_port}/file", tmp_path / "their" / NAME
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("SOCRATIC_DATA", str(tmp_path / "their"))
    monkeypatch.setitem(data.read_toml("sources.toml"), NAME, (server.url, hashlib.sha256(server.content).hexdigest()))
    yield server
    server.shutdown()


def test_a_file_is_downloaded_once_and_one_that_broke_off_is_no_file(author):
    for author.cut, author.status in ((70_000, 200), (None, 503)):
        with pytest.raises(SystemExit, match="Cannot download") as error:
            data.find_file(NAME)
        assert author.url in str(error.value) and str(author.path) in str(error.value) and not author.path.exists()
    author.cut, author.status = None, 200
    assert data.find_file(NAME) == data.find_file(NAME) == author.path and author.n_requests == 3
    assert author.path.read_bytes() == author.content and list(author.path.parent.iterdir()) == [author.path]


@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\n", "<!doctype html>", '{"question": "1"}\n'])
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_file_that_is_not_the_known_one_is_refused_whoever_put_it_there(content, by_hand, author):
    """A web page comes instead of the file from a proxy or a hotel, with status 200."""
    if by_hand:
        data.replace_file(author.path, content.encode())
    author.content = content.encode()
    with pytest.raises(SystemExit, match="is not the file this code knows: its sha256 is not") as error:
        load_problems("gsm8k", "test")
    assert str(author.path) in str(error.value) and author.url in str(error.value) and author.n_requests == (not by_hand)


def test_unknown_data_sets_splits_and_files_are_named(tmp_path):
    twice = write(tmp_path / "twice.jsonl", [Problem("a", "How many?"), Problem("a", "How few?")])
    for dataset, split, words in (
            ("mawps", "train", "Unknown data set 'mawps'.* demo, gsm8k"), ("mine.json", "train", "FILE.jsonl"),
            ("x/gsm8k.jsonl", "train", "not with the name of one of these"), ("demo.jsonl.gz", "train", "not with the name of one of these"),
            ("gsm8k", "long", "no split 'long'. There are: train, valid, test"), (twice, "dev", "no split 'dev'"),
            (str(tmp_path / "none.jsonl"), "train", r"none\.jsonl cannot be read.*No such file"),
            (twice, "all", "the id 'a' occurs 2 times")):
        with pytest.raises(SystemExit, match=f"(?s){words}"):
            load_problems(dataset, split)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(SystemExit, match=r"folder\.jsonl cannot be read"):
        load_problems(str(tmp_path / "folder.jsonl"), "train")


# ---------------------------------------------------------------- the three data sets

def test_gsm8k_rows_become_records(tmp_path, monkeypatch):
    row = {"question": "How\u2028many?", "answer": "Q1? ** 3*4 = <<3*4=12>>12\nQ2? ** \n#### 1,200"}
    lines = ((json.dumps(row, ensure_ascii=False) + "\n") * 600).encode()
    monkeypatch.setenv("SOCRATIC_DATA", str(tmp_path))
    for name in ("gsm8k/train_socratic.jsonl", NAME):
        data.replace_file(tmp_path / name, lines)
        monkeypatch.setitem(data.read_toml("sources.toml"), name, ("", hashlib.sha256(lines).hexdigest()))
    problems = load_problems("gsm8k", "test")
    assert len(problems) == 600
    assert problems[7] == Problem("gsm8k-test-7", "How\u2028many?", [Step("Q1?", "3*4 = <<3*4=12>>12"), Step("Q2?", "")], "1200")
    assert [p.id for p in load_problems("gsm8k", "train")] == [f"gsm8k-train-{i}" for i in range(88)]
    assert [p.id for p in load_problems("gsm8k", "valid")] == [f"gsm8k-valid-{i}" for i in range(88, 600)]


@real
def test_the_real_files_have_the_known_counts_and_are_read_whole():
    sets = {(name, split): load_problems(name, split) for name in ("gsm8k", "svamp", "strategyqa") for split in data.DATASETS[name]}
    assert [len(sets["gsm8k", split]) for split in data.USUAL] == [6961, 512, 1319]
    assert len(sets["svamp", "train"]) + len(sets["svamp", "valid"]) == 614
    assert [len(sets["svamp", split]) for split in ("test", "all")] == [237, 1000]
    assert [len(sets["strategyqa", split]) for split in data.USUAL] == [1832, 229, 229]
    assert all(data.read_gold(p.answer) == p.answer != "" for problems in sets.values() for p in problems)
    gsm8k = sets["gsm8k", "test"]
    assert all(len(p.steps) >= 2 for p in gsm8k) and sum(not step.solution for p in gsm8k for step in p.steps) == 2
    assert not any(re.search(r"[a-z0-9] How (many|much) ", p.problem) for p in sets["svamp", "all"]), "a full stop or comma is missing"
    assert {p.answer for p in sets["strategyqa", "train"]} == {"yes", "no"}
    assert not any("#" in step.question for p in sets["strategyqa", "train"][:200] for step in p.steps)


@real
def test_the_calculator_agrees_with_the_annotations_of_gsm8k():
    pairs = [pair for p in load_problems("gsm8k", "train") + load_problems("gsm8k", "valid")
             for step in p.steps for pair in re.findall(r"<<([^<>=]*)=([^<>]*)>>", step.solution)]
    assert len(pairs) > 23_000
    values = [(calculate(a), b) for a, b in pairs]
    assert sum(value is None for value, _ in values) < 25
    assert sum(value == b for value, b in values) / len(values) > 0.97, "printed as the data prints it"
    assert sum(same_answer(value, b) for value, b in values) / len(values) > 0.995


# ---------------------------------------------------------------- one's own file

MINE = [Problem(f"mine-{i}", f"Zoë has {i} crêpes. How many?", [], str(i)) for i in range(400)]


def ids(path, split):
    return [problem.id for problem in load_problems(path, split)]


def test_the_text_of_a_problem_in_ones_own_file_decides_its_split(tmp_path):
    path = write(tmp_path / "pens.jsonl", MINE)
    assert load_problems(path, "all") == MINE and load_problems(path, "long") == []
    parts = {split: ids(path, split) for split in data.USUAL}
    assert sorted(sum(parts.values(), [])) == sorted(p.id for p in MINE)
    assert 20 <= len(parts["test"]) <= 60 and 20 <= len(parts["valid"]) <= 60
    bucket = {p.id: int(hashlib.sha256(p.problem.encode()).hexdigest(), 16) % 10 for p in MINE}
    assert {bucket[name] for name in parts["test"]} == {0} and {bucket[name] for name in parts["valid"]} == {1}
    write(tmp_path / "pens.jsonl", MINE[::3])    # filtered
    assert set(ids(path, "test")) == set(parts["test"]) & {p.id for p in MINE[::3]}
    assert load_problems(path, "all", limit=2) == MINE[:6:3]


@pytest.mark.parametrize("change", [
    lambda text: unicodedata.normalize("NFD", text), lambda text: text.replace(". ", ".\n  ") + "\u2028",
    lambda text: text.replace(" ", "\u00a0"),
], ids=["another Unicode form", "other line breaks", "other spaces"])
def test_the_same_text_in_another_form_falls_into_the_same_split_and_is_joined_and_read_alike(tmp_path, change, capsys):
    """A guard against a past fault: of 300 problems in another Unicode form, 105 fell into another split."""
    path, other = write(tmp_path / "a.jsonl", MINE), [data.replace(p, problem=change(p.problem)) for p in MINE]
    assert not {p.problem for p in MINE} & {p.problem for p in other}
    changed = write(tmp_path / "b.jsonl", other)
    assert [ids(changed, split) for split in data.USUAL] == [ids(path, split) for split in data.USUAL]
    assert segments(other[7], "answer") == segments(MINE[7], "answer")
    assert load_problems(path, "all", annotations=changed) == MINE and load_problems(changed, "all", annotations=path) == other


def test_ids_that_hold_a_split_decide_it_if_all_of_them_do(tmp_path):
    named = [data.replace(p, id=f"mine-{split}-{p.id}") for p, split in zip(MINE, ("train", "valid", "test", "long") * 5)]
    path = write(tmp_path / "a.jsonl", named)
    for i, split in enumerate(("train", "valid", "test", "long")):
        assert load_problems(path, split) == named[i::4]
    assert load_problems(path, "all") == named
    write(tmp_path / "a.jsonl", [*named, MINE[20]])    # one id without a split: the texts decide
    assert ids(path, "test") == [p.id for p in [*named, MINE[20]] if data.split_of(p.problem) == "test"]


def test_annotations_take_the_place_of_the_steps_where_id_and_text_match(tmp_path, capsys):
    """A guard against a past fault: joined by id alone, a changed problem was trained on the steps of the old one."""
    mine = write(tmp_path / "mine.jsonl", MINE[:6])
    steps = [Step("Their question?", "Their solution.")]
    theirs = [data.replace(p, steps=steps, answer="", source="teacher", evidence=["f"]) for p in MINE[:4]]
    theirs[0].problem = "Zoë has 5 bags with 6 nuts."    # edited
    theirs[3].id = "mine-5"                              # the id of another problem
    path = write(tmp_path / "annotations.jsonl", [theirs[2], theirs[0], theirs[1], theirs[3]])
    assert load_problems(mine, "all", annotations=path) == [data.replace(p, steps=steps, source="teacher") for p in MINE[1:3]]
    assert "4 annotations, 2 match the 6 problems of mine/all in id and text" in capsys.readouterr().err


# ---------------------------------------------------------------- the command

def test_the_command_counts_problems_and_false_calculations_and_marks_what_is_learned(tmp_path):
    """On a console that lacks a letter, such as a mark, it shows "?"."""
    false = data.replace(PROBLEM, id="toy-train-2", steps=[Step("Q?", "3*4 = <<3*4=13>>13, 1/3 = <<1/3=.33>>.33")])
    path = write(tmp_path / "mine.jsonl", [data.replace(PROBLEM, id="toy-train-1"), false])
    run = [sys.executable, data.HERE / "data.py", "--dataset", path, "--role", "decomposer"]
    for encoding, marked in (("utf-8", "‹Subquestion: How many pens?\nSubquestion: How many are left?›"),
                             ("ascii", "?Subquestion: How many pens?\nSubquestion: How many are left??")):
        done = subprocess.run(run, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}, timeout=60)
        shown = done.stdout.decode(encoding)
        assert done.returncode == 0, done.stderr.decode()
        assert "mine/train      2 problems | by steps: 1:1 2:1\n" in shown and "mine/test       0 problems" in shown
        assert "1 calculations are false or cannot be read, the first one in toy-train-2: 3*4=13\n" in shown and marked in shown
