"""
What do we want a student to write? Problems, dialogues, answers, tokens, and the data sets.

    python data.py                    the demo data set: counts, and one dialogue for each role
    python data.py --dataset gsm8k    the same for gsm8k, svamp or strategyqa (downloaded once),
                                      or for problem records of your own: --dataset mine.jsonl

A solved problem is a dialogue. This text is all that the models ever see:

    Problem: Ava has 3 boxes with 4 pens each. She gives away 5 pens. How many pens are left?
    Subquestion: How many pens are in the boxes?
    Solution: There are 3*4 = <<3*4=12>>12 pens in the boxes.
    Subquestion: How many pens are left?
    Solution: There are 12-5 = <<12-5=7>>7 pens left.
    Answer: 7

A role says who reads and who learns to write which part of it; see `segments`.

Reads   students/*.toml           the story table of the demo, the sources of the data sets
        data/<dataset>/...        the authors' files (another folder: SOCRATIC_DATA)
        <your file>.jsonl         problem records of your own
"""

import argparse
import ast
import base64
import copy
import hashlib
import io
import json
import math
import operator
import os
import random
import re
import sys
import time
import tomllib
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import requests
import tiktoken

USUAL = ("train", "valid", "test")
DATASETS = {"demo": (*USUAL, "long"), "world": USUAL, "gsm8k": USUAL, "svamp": (*USUAL, "all"),
            "strategyqa": USUAL}
DATASET_HELP = f"which problems: {', '.join(DATASETS)}, or your own FILE.jsonl"
ROLES = ("answer", "cot", "unified", "decomposer", "solver")
IGNORE = -100    # the target of a token that is only context: cross_entropy skips it by default
HERE = Path(__file__).resolve().parent

for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")    # a console that lacks a letter shows "?"

# ------------------------------------------------------------ records, one JSON object a line

@dataclass
class Step:
    question: str = ""
    solution: str = ""

@dataclass
class Problem:
    id: str
    problem: str
    steps: list[Step] = field(default_factory=list)
    answer: str = ""
    source: str = "human"
    evidence: list[str] = field(default_factory=list)    # a formula or facts, for a teacher

    def to_json(self) -> str:
        record = asdict(self)
        if not self.evidence:
            del record["evidence"]
        return json.dumps(record, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Problem":
        """The record of one line. A ValueError says what is wrong with it."""
        record = json.loads(line)
        check_shape(record, EXAMPLE, "a record")
        if not record["problem"].strip():
            raise ValueError("'problem' is empty")
        return cls(**record | {"steps": [Step(**step) for step in record["steps"]]})

EXAMPLE = {"id": "", "problem": "", "steps": [{"question": "", "solution": ""}], "answer": "",
           "source": "", "evidence": [""]}

def check_shape(value, example, name: str) -> None:
    """Raise a ValueError unless the value is built like the example (evidence may be missing)."""
    if type(value) is not type(example):
        kinds = {dict: "an object", list: "a list", str: "a string"}
        raise ValueError(f"{name} must be {kinds[type(example)]}")
    if isinstance(value, str):
        value.encode()    # fails for half of a surrogate pair
    if isinstance(value, list):
        for item in value:
            check_shape(item, example[0], f"an item of {name}")
    if isinstance(value, dict):
        for key in sorted(example.keys() - value.keys() - {"evidence"}):
            raise ValueError(f"{name}: the key {key!r} is missing")
        for key in sorted(value.keys() - example.keys()):
            raise ValueError(f"{name}: unknown key {key!r}")
        for key in value:
            check_shape(value[key], example[key], repr(key))

def read_lines(path, parse=json.loads, may_be_torn=False):
    """
    `parse(line)` of every line of a JSONL file, as a list. Blank lines are skipped. A broken line
    ends the program with `file:line: reason`; a last line that a kill may have torn is left out.
    """
    values, n = [], 0
    try:
        with open_text(path, errors="ignore" if may_be_torn else "strict") as file:
            for n, line in enumerate(file, 1):    # noqa: B007 (the error below names n)
                if line.strip() and not (may_be_torn and not line.endswith("\n")):
                    values.append(parse(line))
    except (ValueError, RecursionError) as error:
        raise SystemExit(f"{path}:{n}: {error}") from None
    return values

def read_records(path) -> list[Problem]:
    return read_lines(path, Problem.from_json)

def open_text(path, errors="strict"):
    if path == "-":
        return sys.stdin
    if not Path(path).is_file():
        raise SystemExit(f"{path} does not exist.")
    return open(path, encoding="utf-8-sig", errors=errors)    # -sig: skips a byte order mark

def replace_file(path, *chunks: bytes) -> None:
    """Write a file so that a reader, or a crash, finds the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)

# ------------------------------------------------------------ the dialogue, and who learns what

@dataclass(frozen=True)
class Segment:
    text: str
    learned: bool    # True: the student learns to write it. False: it is given as context.

def segments(problem: Problem, role: str) -> list[Segment]:
    """
    A solved problem as the segments that a student of this role reads and learns to write.

    | role       | sees                                 | learns to write                        |
    | answer     | problem                              | answer                                 |
    | cot        | problem                              | solution 1..n, answer                  |
    | unified    | problem                              | subquestion 1, solution 1, ..., answer |
    | decomposer | problem                              | subquestion 1..n                       |
    | solver     | problem, each subquestion before its | solution 1..n, answer                  |
    |            | solution                             |                                        |

    A label such as `Solution:` is learned where the role has a choice, and given where it has
    none. The text after a label begins with a space, because GPT-2's tokens do. A turn ends with
    a newline; the last turn ends with the end token instead, which `encode` adds.
    """
    turns = []    # (label, text)
    if role == "cot":
        turns = [("Solution:", text) for text in chain_of_thought(problem)]
    elif role != "answer":
        for step in problem.steps:
            turns.append(("Subquestion:", step.question))
            if role != "decomposer":    # it never sees a solution
                turns.append(("Solution:", step.solution))
    if role != "decomposer":
        turns.append(("Answer:", problem.answer))

    parts = [Segment(f"Problem: {clean(problem.problem)}\n", False)]
    has_a_choice = role in ("cot", "unified", "decomposer")
    for i, (label, text) in enumerate(turns):
        is_last = i == len(turns) - 1
        learned = has_a_choice or label != "Subquestion:"
        parts.append(Segment(label, has_a_choice))
        parts.append(Segment(f" {clean(text)}" + ("" if is_last else "\n"), learned))
    return parts

def clean(text: str) -> str:
    """The text on one line, with single spaces: a newline would end a turn."""
    return " ".join(text.split())

def chain_of_thought(problem: Problem) -> list[str]:
    """The solutions. StrategyQA has none; there the facts stand for them."""
    texts = [step.solution for step in problem.steps]
    is_open = not any(texts) and problem.answer in ("yes", "no")
    return problem.evidence if is_open else texts

def can_learn(problem: Problem, role: str) -> bool:
    """Whether the record holds everything that the role reads and learns to write."""
    parts = segments(problem, role)    # the problem, then a label and a text for each turn
    n_turns = 1 if role in ("answer", "decomposer") else 2    # at least
    return len(parts) >= 1 + 2 * n_turns and all(part.text.strip() for part in parts)

def encode(parts: list[Segment], tokenizer):
    """
    (ids, targets), two lists of length T. targets[t] is the token that follows ids[t] if the
    student learns to write it, else IGNORE. The last target is the end token.
    """
    ids, learned = [], []
    for part in parts:
        tokens = tokenize(part.text, tokenizer)
        ids += tokens
        learned += [part.learned] * len(tokens)
    ids.append(tokenizer.eot_token)
    learned.append(parts[-1].learned)
    targets = [token if yes else IGNORE for token, yes in zip(ids[1:], learned[1:])]
    return ids[:-1], targets

def tokenize(text: str, tokenizer) -> list[int]:
    """
    The token ids of one segment.

    subtle: the text is cut after the `=` and the `>>` of a calculator annotation. While a student
    writes, the calculator begins and ends at these places, so both see the same tokens.
    """
    pieces = re.split(r"(?<=>>)|(?<==)(?=[^<>=]*>>)", text)
    return [token for piece in pieces for token in tokenizer.encode_ordinary(piece)]

def show(parts: list[Segment], color=False) -> str:
    """The dialogue with its learned parts marked: green on a terminal, ‹like this› elsewhere."""
    start, stop = ("\033[32m", "\033[0m") if color else ("‹", "›")
    text = "".join(f"{start}{part.text}{stop}" if part.learned else part.text for part in parts)
    return text.replace(f"{stop}{start}", "").replace(f"\n{stop}", f"{stop}\n")

# ------------------------------------------------------------ arithmetic

NUMBER = r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+"

def calculate(expression: str) -> str | None:
    """
    The value of an arithmetic expression as the data writes it, or None if it is not arithmetic.

    Knows + - * / ( ), decimals, percent and thousands commas, up to 200 characters. Python's
    parser reads it, but nothing is ever evaluated by Python: `value_of` computes with exact
    fractions.

    >>> calculate("2*(3+4)"), calculate("5/2"), calculate("1,000*20%"), calculate("1/3")
    ('14', '2.5', '200', '0.33')
    >>> calculate("1/0"), calculate("3 4"), calculate("x+1")
    (None, None, None)
    """
    text = expression.translate(str.maketrans("×÷−–", "*/--", "$")).strip()
    # Python reads neither 1,000 nor 007.
    text = re.sub(r"(?<![0-9.])[0-9]{1,3}(,[0-9]{3})+(?![0-9])",
                  lambda match: match[0].replace(",", ""), text)
    text = re.sub(r"(?<![0-9.])0+(?=[0-9])", "", text)
    text = re.sub(r"([0-9.]+) *%", r"(\1/100)", text)
    if len(expression) > 200 or not re.fullmatch(r"([0-9+*/() -]|\.(?=[0-9]))*", text):
        return None
    try:
        return format_number(value_of(ast.parse(text, mode="eval").body))
    except (SyntaxError, ZeroDivisionError):
        return None

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
             ast.Div: operator.truediv}

def value_of(node) -> Fraction:
    """The value of a node of Python's syntax tree, if it is one of ours."""
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -value_of(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](value_of(node.left), value_of(node.right))
    raise SyntaxError

def format_number(value: Fraction) -> str:
    """
    A number as GSM8K writes it. One without an end gets 2 decimals, or 2 digits below 0.1.

    >>> format_number(Fraction(24)), format_number(Fraction(1, 2)), format_number(Fraction(200, 3))
    ('24', '0.5', '66.67')
    """
    n_decimals = 0
    while n_decimals < 12 and (value * 10**n_decimals).denominator > 1:
        n_decimals += 1
    if (value * 10**n_decimals).denominator > 1:
        n_decimals = min(12, max(2, 1 - math.floor(math.log10(abs(value)))))
    scaled = round(abs(value) * 10**n_decimals)
    whole, rest = divmod(scaled, 10**n_decimals)
    text = f"{whole}.{rest:0{n_decimals}d}".rstrip("0").rstrip(".")
    return "-" + text if value < 0 and text != "0" else text

# ------------------------------------------------------------ answers

DASHES = str.maketrans("‐‑‒–−－", "------")    # all that may mean minus
# A minus sign counts only if it does not stand between two numbers, as in "5-10 minutes".
VALUE = rf"(?:(?<![\w.,)])-)?[ $€£]{{0,3}}(?:{NUMBER})(?:/(?:{NUMBER}))?"

def extract_answer(text: str, lenient=False) -> str | None:
    r"""
    The answer of the first answer block (`Answer: ...` or `#### ...`), normalised, or None.

    What follows that block is ignored. In an equation the last side that says one number counts.
    lenient: if there is no block, the last number of the text, or its last yes or no.

    >>> extract_answer("so she has\nAnswer: $1,200.\nProblem: ..."), extract_answer("Answer: 5 1/2")
    ('1200', None)
    >>> extract_answer("She has 18 apples"), extract_answer("She has 18 apples", lenient=True)
    (None, '18')
    """
    text = text.translate(DASHES)
    block = re.search(r"(?:\bAnswer:|####)([^\n]*)", text)
    if block:
        sides = re.sub("<<.*?>>", "", block[1]).split("=")
        values = [value for side in sides if (value := read_value(side)) is not None]
        return values[-1] if values else None
    if not lenient:
        return None
    numbers = list(re.finditer(VALUE, text))
    words = list(re.finditer(r"\b(?:yes|no)\b(?=[.,;!]|\W*$)", text, re.IGNORECASE))
    last = max(numbers[-1:] + words[-1:], key=lambda match: match.start(), default=None)
    return read_value(last[0]) if last else None

def read_value(text: str) -> str | None:
    """
    The one number, or the yes or no, that a text says. Of several numbers the first counts, if
    the text begins with it and goes on in words: "18 hats for 3 men", but not "5-10" or "3:30".
    """
    word = re.match(r"\W*(yes|no|true|false)\b(?! one\b)", text, re.IGNORECASE)
    if word:
        return {"true": "yes", "false": "no"}.get(word[1].lower(), word[1].lower())
    found = list(re.finditer(VALUE, text))
    if len(found) > 1:
        goes_on = re.compile(r"\s*(?:[-+*/^×÷:]|to\b|or\b|[.,]?\d)").match(text, found[0].end())
        if text[:found[0].start()].strip() or goes_on:
            return None
    return calculate(re.sub(r"[ €£]", "", found[0][0])) if found else None

def same_answer(a: str | None, b: str | None) -> bool:
    """
    Whether two answers are the same number or the same word. None, "not found", equals nothing.

    >>> same_answer("18.0", "18"), same_answer("yes", "Yes"), same_answer(None, None)
    (True, True, False)
    """
    if a is None or b is None:
        return False
    x, y = calculate(a), calculate(b)
    if x is None or y is None:
        return a.strip().lower() == b.strip().lower()
    return x == y

# ------------------------------------------------------------ tokenizers

END = "<|endoftext|>"
# Digits stand alone, so that numbers can be copied digit by digit; so do <<, = and >>.
TINY_PATTERN = (r"<<|>>|[=\n\d<>]|'(?:s|t|re|ve|m|ll|d)\b| ?[^\W\d_]+| ?(?:[^\w\s=<>]|_)+"
                r"| (?=\d)|\s+(?!\S)|\s+")

def get_tokenizer(name: str) -> tiktoken.Encoding:
    """`gpt2`: OpenAI's 50,257 tokens (downloaded once). `tiny`: our own 2,048, in students/."""
    if name == "tiny":
        with open_text(HERE / "students" / "tiny.tiktoken") as file:
            rows = [line.split() for line in file]
        ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
        return tiktoken.Encoding("tiny", pat_str=TINY_PATTERN, mergeable_ranks=ranks,
                                 special_tokens={END: len(ranks)})
    if name != "gpt2":
        raise SystemExit(f"Unknown tokenizer {name!r}. There are: gpt2, tiny")
    try:
        return tiktoken.get_encoding("gpt2")
    except (requests.RequestException, OSError) as error:
        raise SystemExit(
            f"Cannot load GPT-2's tokenizer ({type(error).__name__}). It needs the network once. On"
            "\na machine that has it, set TIKTOKEN_CACHE_DIR to a folder, run the next line, and\n"
            "copy that folder here: python -c 'import tiktoken as t; t.get_encoding(\"gpt2\")'"
        ) from None

# ------------------------------------------------------------ files: found, downloaded, checked

@cache
def read_toml(name):
    """A file of students/, where all lies that is data and not code. Each explains itself."""
    with open(HERE / "students" / name, "rb") as file:
        return tomllib.load(file)

def find_file(name: str, data_dir=None) -> Path:
    """The path of a data file: downloaded if it is not there, and always checked."""
    path = Path(data_dir or os.environ.get("SOCRATIC_DATA") or "data") / name
    address, sha256 = read_toml("sources.toml")[name]
    url = f"https://raw.githubusercontent.com/{address}"
    if not path.is_file():
        download(url, path, sha256)
    elif sha256_of(path) != sha256:
        raise SystemExit(f"{path} is not the file this code knows: its sha256 is not {sha256}.\n"
                         f"  Delete it to have it downloaded again from {url}")
    return path

def sha256_of(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

def download(url: str, path: Path, sha256: str | None = None) -> None:
    """
    Fetch `url` into `path`: under a temporary name, continuing an interrupted try, then checked.
    Without a sha256, the one that Hugging Face names in its redirection (X-Linked-ETag) is used.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            headers = {"Accept-Encoding": "identity", "Range": f"bytes={file.tell()}-"}
            with requests.get(url, headers=headers, stream=True, timeout=60) as reply:
                if reply.status_code != 416:    # 416: the part was whole already
                    reply.raise_for_status()
                    if reply.status_code != 206:    # the server sends the whole file again
                        file.seek(0)
                        file.truncate()
                    save_body(reply, file, f"{path.parent.name}/{path.name}")
                for redirection in reply.history:
                    sha256 = sha256 or redirection.headers.get("X-Linked-ETag", "").strip('"')
    except (requests.RequestException, OSError) as error:
        raise SystemExit(f"\nCannot download {url}\n  {type(error).__name__}: {error}\n"
                         "  The same command continues where it stopped. Offline? Fetch that\n"
                         f"  address on another machine and put the file at {path}") from None
    if sha256 and sha256_of(part) != sha256:
        part.unlink()
        raise SystemExit(f"{url}\n  is not the file this code knows: its sha256 is not {sha256}.\n"
                         f"  Try again; if that does not help, put the right file at {path}")
    part.replace(path)

def save_body(reply, file, name: str) -> None:
    """Append what arrives, and show how far it is."""
    start, n_first = time.time(), file.tell()
    total = n_first + int(reply.headers.get("Content-Length", 0))
    for chunk in reply.iter_content(1 << 16):
        file.write(chunk)
        left = (total - file.tell()) * (time.time() - start) / (file.tell() - n_first)
        print(f"\r{name}: {file.tell() / 1e6:,.1f} of {total / 1e6:,.1f} MB, {left:.0f} s left ",
              end="", file=sys.stderr)
    print(file=sys.stderr)
    if file.tell() < total:
        raise OSError(f"the connection closed after {file.tell():,} of {total:,} bytes")

# ------------------------------------------------------------ the data sets

def load_problems(dataset, split, data_dir=None, limit=None, annotations=None) -> list[Problem]:
    """
    The problems of one split, in a fixed order.

    dataset      a built-in one, the path of a .jsonl file of problem records, or several of them
                 to train on: world+gsm8k
    split        train, valid or test; demo also has long (7 and 8 steps), svamp and files all
    limit        only the first so many (of each part of a mixture); demo and world can generate
                 any number of training problems
    annotations  a file of records whose steps replace the data set's own, joined by id
    """
    name, splits, problems = run_name(dataset), splits_of(dataset), []
    if split not in splits:
        raise SystemExit(f"{name} has no split {split!r}. There are: {', '.join(splits)}")
    for part in dataset.split("+"):
        problems += load_split(part, split, data_dir, limit)
    if annotations:
        by_id = {record.id: record for record in read_records(annotations)}
        n_asked = len(problems)
        problems = [replace(p, steps=by_id[p.id].steps, source=by_id[p.id].source)
                    if p.id in by_id else p for p in problems if p.id in by_id or "+" in dataset]
        print(f"{annotations}: {len(by_id)} annotations, {len(problems)} match the "
              f"{n_asked} problems of {name}/{split}", file=sys.stderr)
    return problems

def load_split(dataset, split, data_dir, limit):
    """The same for one data set alone."""
    if dataset in ("demo", "world"):
        n = {"train": 20_000, "valid": 500, "test": 1_000, "long": 500}[split]
        n = limit if limit and (split == "train" or limit < n) else n
        return make_stories(dataset, split, n)
    load = {"gsm8k": load_gsm8k, "svamp": load_svamp, "strategyqa": load_strategyqa}.get(dataset)
    problems = load(split, data_dir) if load else load_file(dataset, split)
    return problems[:limit]

def run_name(dataset: str) -> str:
    """
    What a data set is called in the names of runs and files. SystemExit if it is unknown.

    >>> run_name("gsm8k"), run_name("my/pens.jsonl"), run_name("world+my/pens.jsonl")
    ('gsm8k', 'pens', 'world+pens')
    """
    names = []
    for part in dataset.split("+"):
        is_file = part.endswith(".jsonl")
        name = Path(part).stem if is_file else part
        if is_file and name in DATASETS:
            raise SystemExit(f"{part}: {name} is the name of a built-in data set. Rename the file.")
        if not is_file and name not in DATASETS:
            raise SystemExit(f"Unknown data set {name!r}. There are: {', '.join(DATASETS)}, the "
                             "path of a file that ends in .jsonl, and several joined by +")
        names.append(name)
    return "+".join(names)

def splits_of(dataset) -> tuple:
    """The splits that a data set has. A mixture is there to be trained on."""
    return ("train", "valid") if "+" in dataset else DATASETS.get(dataset, (*USUAL, "all"))

def split_of(text: str) -> str:
    """The split of a text by its sha256: 1 of 10 is test, 1 of 10 valid, the rest train."""
    bucket = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "valid"}.get(bucket, "train")

def load_file(path, split) -> list[Problem]:
    """
    One's own records. The text of a problem decides its split, whatever else the file holds, so
    that nobody scores by mistake the problems that a student has learned.
    """
    problems = read_records(path)
    ids = Counter(problem.id for problem in problems)
    if ids and max(ids.values()) > 1:
        raise SystemExit(f"{path}: the id {ids.most_common(1)[0][0]!r} stands there more than once")
    return [p for p in problems if split in ("all", split_of(p.problem))]

def load_gsm8k(split, data_dir) -> list[Problem]:
    """Its answers are lines `subquestion ** solution`, then `#### number`."""
    part = "test" if split == "test" else "train"
    problems = []
    with open_text(find_file(f"gsm8k/{part}_socratic.jsonl", data_dir)) as file:
        for n, line in enumerate(file):    # two rows hold U+2028, at which splitlines would cut
            row = json.loads(line)
            text, answer = row["answer"].split("#### ")
            steps = [Step(*line.split(" ** ")) for line in text.strip("\n").split("\n")]
            problems.append(Problem(f"gsm8k-{part}-{n}", row["question"], steps,
                                    answer.replace(",", "")))
    return {"train": problems[:-512], "valid": problems[-512:], "test": problems}[split]

def load_svamp(split, data_dir) -> list[Problem]:
    """Test: SVAMP's 237 problems with two operators. Training: ASDiv's with two or more."""
    if split in ("train", "valid"):
        problems = load_asdiv(data_dir)
        return [p for i, p in enumerate(problems) if (i % 10 == 9) == (split == "valid")]
    problems = []
    for row in json.loads(find_file("svamp/SVAMP.json", data_dir).read_text(encoding="utf-8")):
        n_operators = len(re.findall(r" [-+*/] ", row["Equation"]))
        if split == "all" or n_operators == 2:
            problems.append(Problem(f"svamp-{row['ID']}",
                                    join_question(row["Body"], row["Question"]),
                                    answer=calculate(str(row["Answer"])),
                                    evidence=[row["Equation"]]))
    return problems

def load_asdiv(data_dir) -> list[Problem]:
    """ASDiv's problems whose formula has two or more operators and whose answer is one number."""
    problems = []
    root = ElementTree.parse(find_file("asdiv/ASDiv.xml", data_dir)).getroot()
    for row in root.iter("Problem"):
        formula = row.findtext("Formula").strip()
        answer = re.fullmatch(r"\s*(-?\d+(\.\d+)?)\s*(\([^()]*\))?\s*", row.findtext("Answer"))
        if len(re.findall(r"[-+*/]", formula)) < 2 or not answer:
            continue
        left, _, right = (side.strip() for side in formula.partition("="))
        value, steps = calculate(left), []
        if value is not None and value == calculate(right):    # not so for "x=3*4; y=x-5"
            steps = [Step("", f"{left} = <<{left}={value}>>{value}")]
        text = join_question(row.findtext("Body"), row.findtext("Question"))
        problems.append(Problem(f"svamp-asdiv-{row.get('ID')}", text, steps, calculate(answer[1]),
                                evidence=[formula]))
    return problems

def join_question(body: str, question: str) -> str:
    """
    >>> join_question("He had 4 pens. If he lost 1", "How many are left?")
    'He had 4 pens. If he lost 1, how many are left?'
    >>> join_question("He lost 1 pen", "How many are left?")
    'He lost 1 pen. How many are left?'
    """
    body, question = body.strip(), question.strip()
    if body.endswith((".", "?", "!", ",", '"')):
        return f"{body} {question}"
    if re.search(r"(^|[.?!] )If [^.?!]*$", body):
        return f"{body}, {question[:1].lower()}{question[1:]}"
    return f"{body}. {question}"

def load_strategyqa(split, data_dir) -> list[Problem]:
    """Yes or no. The steps are the decomposition, without solutions; the facts are evidence."""
    path = find_file(f"strategyqa/{'dev' if split == 'test' else 'train'}.json", data_dir)
    problems = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        steps = [Step(re.sub(r"#(\d+)", r"answer \1", text)) for text in row["decomposition"]]
        problems.append(Problem(f"strategyqa-{row['qid']}", row["question"], steps,
                                "yes" if row["answer"] else "no", evidence=row["facts"]))
    return {"train": problems[:1832], "valid": problems[-229:], "test": problems}[split]

# ------------------------------------------------------------ the same story with other numbers

# A number that may not change: part of a fraction, a time, a percentage or an ordinal
FIXED = rf"[/:]\s?(?:{NUMBER})|(?:{NUMBER})(?=\s?[/:%]| ?percent| ?[ap]\.?m\b|st\b|nd\b|rd\b|th\b)"
CALCULATION = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")

def renumber(problem: Problem, rng) -> Problem | None:
    """
    The same story with other numbers, or None where that cannot be done safely (or where it is a
    story of demo or world, whose numbers decide its split).

    The numbers of the problem that its calculator annotations use are drawn anew, the annotations
    are computed again in their order, and the new numbers are written wherever the old ones stood.

    >>> story = Problem("", "Ava had 8 pens and lost 3.", [Step("", "8-3 = <<8-3=5>>5.")], "5")
    >>> other = renumber(story, random.Random(1)); other.problem, other.steps[0].solution
    ('Ava had 5 pens and lost 2.', '5-2 = <<5-2=3>>3.')
    """
    if problem.source == "generated":
        return None
    solutions = " ".join(step.solution for step in problem.steps)
    others = [problem.problem, *(step.question for step in problem.steps)]
    calculations = CALCULATION.findall(solutions)
    given, known, constants = set(find_values(problem.problem)), set(), set()
    for expression, result in calculations:
        operands, value = set(find_values(expression)), calculate(result)
        # A value that is both given and computed might stand for either.
        if given & known & (operands | {value}) or not is_exact(expression, result):
            return None
        constants |= operands - given - known
        known.add(value)
    plain = CALCULATION.sub("~", solutions)    # a number after = and without ~ was not computed
    unknown = set(find_values(" ".join([*others, plain]))) - given - known - constants
    if unknown or problem.answer not in known or re.search(rf"=\s*\$?(?:{NUMBER})", plain):
        return None
    used = {value for expression, _ in calculations for value in find_values(expression)}
    free = sorted((given & used) - fixed_values(others, plain, used), key=Fraction)
    fixed = {value: value for value in (given | constants) - set(free)}
    for _ in range(20):
        drawn = [draw_value(value, rng) for value in free]
        new = recompute(calculations, fixed | dict(zip(free, drawn)))
        # Different numbers stay different, and the smaller one stays the smaller.
        if drawn != free and drawn == sorted(drawn, key=Fraction) \
                and new and len(set(new.values())) == len(new):
            return rewrite(problem, new)
    return None

def find_values(text: str) -> list[str]:
    """The values of all numbers in a text, as `calculate` prints them: 1,200.50 is 1200.5."""
    return [calculate(number) for number in re.findall(NUMBER, text)]

def is_exact(expression: str, result: str) -> bool:
    return calculate(f"({expression})-({result})") == "0"

def fixed_values(texts: list[str], solutions: str, used: set[str]) -> set[str]:
    """The values that keep their place: they are more than a number, or stand there as a word."""
    fixed = {"0", "1", *map(str, range(1900, 2100))}
    found = [match for text in texts for match in re.findall(FIXED, text)]
    found += re.findall(rf"(?:{NUMBER})\s?%", solutions)
    words = read_toml("numbers.toml")["words"]
    for word in re.findall("[a-z]+", " ".join([*texts, solutions]).lower()):
        fixed |= set(map(str, words.get(word, [])))
    for value in find_values(texts[0]):    # 20 stays where 0.2, 1.2, 0.8 or 80 is used
        forms = {calculate(f"{form}{value}%") for form in ("", "1+", "1-")}
        if used & (forms | {calculate(f"100-{value}")}):
            found.append(value)
    return fixed | set(find_values(" ".join(found)))

def draw_value(value: str, rng) -> str:
    """A number between half and one and a half of this one, as round and with as many decimals."""
    n_decimals = len(value.partition(".")[2])
    old = int(value.replace(".", ""))
    step = 10 ** max(0, len(str(old)) - 2)
    while old % step or (n_decimals and step > 1):
        step //= 10
    low = max(1 if n_decimals else 2, old // 2)
    drawn = rng.randint(-(-low // step), max(low, old * 3 // 2) // step) * step
    return calculate(f"{drawn}/{10**n_decimals}")

def recompute(calculations, new: dict[str, str]) -> dict[str, str] | None:
    """{old: new value}, with the results too. None: one is not like the old, or has two values."""
    new = dict(new)
    for expression, result in calculations:
        text = replace_numbers(expression, new)
        value, old = calculate(text), calculate(result)
        if value is None or not is_exact(text, value) or Fraction(value) >= 1_000_000:
            return None
        if ("." in value) > ("." in old) or (value == "0") != (old == "0"):
            return None
        if Fraction(value) < 0 or Fraction(old) < 0:
            return None
        if new.setdefault(old, value) != value:
            return None
    return new

def rewrite(problem: Problem, new: dict[str, str]) -> Problem:
    steps = [Step(*(replace_numbers(text, new) for text in (step.question, step.solution)))
             for step in problem.steps]
    return replace(problem, problem=replace_numbers(problem.problem, new), steps=steps,
                   answer=new[problem.answer])

def replace_numbers(text: str, new: dict[str, str]) -> str:
    """A text with its numbers replaced; 1,200 keeps its comma and 2.50 its two decimals."""
    def write(match):
        old = match[0]
        value = new.get(calculate(old))
        if value is None:
            return old
        whole, _, decimals = value.partition(".")
        if "," in old or len(whole) > 4 and "," in text:
            whole = f"{int(whole):,}"
        decimals = decimals.ljust(len(old.partition(".")[2]), "0")
        return f"{whole}.{decimals}" if decimals else whole
    return re.sub(NUMBER, write, text)

# ------------------------------------------------------------ demo and world: stories from a table

@cache
def story_table(dataset):
    """The table of stories.toml, which explains it; for the world, with all of world.toml added."""
    table, is_world = copy.deepcopy(read_toml("stories.toml")), dataset == "world"
    more = read_toml("world.toml") if is_world else {}
    table["columns"] |= more.get("columns", {})
    for kind, rows in more.get("words", {}).items():
        table["words"][kind] = table["words"].get(kind, "") + " " + rows
    for kind, texts in more.get("numbers", {}).items():
        table["numbers"].setdefault(kind, {}).update(texts)
    table["distractors"] += more.get("distractors", [])
    for event in more.get("event", []):
        known = [old for old in table["event"] if old["name"] == event["name"]]
        if known:    # more wordings for it
            known[0]["say"] += event["say"]
        else:
            table["event"].append(event)
    for key in ("habits", "limits"):
        table[key] = {name: pair[is_world] for name, pair in table[key].items()}
    for kind, columns in table["columns"].items():
        table["columns"][kind] = columns.split()
        rows = table["words"][kind].split()
        table["words"][kind] = [read_word(row, columns.split()) for row in rows]
    for event in table["event"]:
        text = str(event)    # which kinds of words does it use?
        event["kinds"] = [kind for kind, columns in table["columns"].items() if kind != "item"
                          and any(f"{{{column}}}" in text for column in columns)]
    return table

def read_word(row, columns):
    """
    >>> read_word("box/boxes", ["item", "items"]), read_word("tea_cup", ["item", "items"])
    ({'item': 'box', 'items': 'boxes'}, {'item': 'tea cup', 'items': 'tea cups'})
    """
    texts = row.replace("_", " ").split("/")
    if len(texts) < len(columns):
        texts.append(texts[-1] + "s")
    return dict(zip(columns, texts, strict=True))

def draw_number(rng, rule):
    """A number by its rule in the table: "2-40", "10-90 by 10", or one of "2 5 10"."""
    if "-" not in rule:
        return int(rng.choice(rule.split()))
    low, high, *by = map(int, re.findall(r"\d+", rule))
    return rng.randrange(low, high + 1, *by)

def make_up(rng):
    """A word that does not exist, such as "zadul" or "threekstob"."""
    sounds = [
        "b c d f g h j k l m n p r s t v w z ch br cl dr fl gr pl qu sh st th tr".split(),
        "a e i o u ai ea ee oo ou".split(),
        ["", "", "", "", "", *"n r l m t ck ll ng st x".split()]]
    return "".join(rng.choice(sound) for _ in range(rng.randint(2, 3)) for sound in sounds)

class Story:
    """A story on its way: what has been told so far, and which words it uses."""

    def __init__(self, rng, dataset):
        self.rng, self.table = rng, story_table(dataset)
        self.does = {habit: rng.random() < share for habit, share in self.table["habits"].items()}
        self.state, self.x = "start", 0    # x is the amount so far
        self.numbers = {}                  # {name of an event: its numbers}
        self.sentences, self.steps = [], []
        self.words, self.used = {}, []
        # If A is "she", all others are boys, so that it is clear who she is.
        self.sex, other = rng.sample(["girl", "boy"], 2)
        others = [other] if self.does["pronouns"] else ["girl", "boy"]
        self.people = [self.draw(rng.choice(others))["name"] for _ in range(8)]
        self.people[0] = self.draw(self.sex)["name"]
        self.meet()
        self.words |= self.draw("item")
        if self.does["adjective"]:
            adjective = self.draw("adjective")["adjective"]
            for column in ("item", "items"):
                self.words[column] = f"{adjective} {self.words[column]}"

    def draw(self, kind):
        """A word of this kind that the story has not used yet."""
        while True:
            word = self.rng.choice(self.table["words"][kind])
            if self.does["made_up"] and kind in ("girl", "boy", "item", "box", "gift"):
                text = make_up(self.rng)
                text = text.title() if kind in ("girl", "boy") else text
                word = read_word(text, self.table["columns"][kind])
            if word not in self.used:
                self.used.append(word)
                return word

    def meet(self):
        """The people of the story as words."""
        A = self.people[0]
        pronouns = (A, f"{A}'s", A)
        if self.does["pronouns"]:
            pronouns = ("she", "her", "her") if self.sex == "girl" else ("he", "his", "him")
        self.words |= dict(zip("ABCD", self.people)) | dict(zip(("he", "his", "him"), pronouns))

    def tell(self, n_left) -> bool:
        """Add a random event of at most `n_left` steps. False: the story is at a dead end."""
        events = [event for event in self.table["event"] if self.can_follow(event, n_left)]
        event = self.rng.choice(events) if events else {"kinds": []}
        for kind in event["kinds"]:
            self.words |= self.draw(kind)
        if not events or not any(self.draw_numbers(event) for _ in range(20)):
            return False
        self.sentences.append(self.fill(self.rng.choice(event["say"]), self.does["words"]))
        for step in event.get("step", []):
            expression, result = self.compute(step)
            calculation = f"<<{expression}={result}>>{result}"
            self.words |= {"e": f"{expression} = {calculation}",
                           "$e": f"{expression} = ${calculation}"}
            question = self.fill(self.rng.choice(step["ask"]))
            self.steps.append(Step(question, self.fill(step["solve"])))
        self.move_on(event)
        return True

    def can_follow(self, event, n_left) -> bool:
        """Every event comes once, the person changes once, and "end" brings the last step."""
        n_steps = len(event.get("step", []))
        return (event["before"] == self.state and event["name"] not in self.numbers
                and (n_steps == n_left if event["after"] == "end" else n_steps <= n_left)
                and (" of " not in event["after"] or len(self.people) == 8)
                and not (self.does["present"] and event.get("tense") == "past"))

    def draw_numbers(self, event) -> bool:
        """Draw the event's numbers. Are all that it tells and finds whole and neither 0 nor 1?"""
        draw = event.get("draw", {})
        numbers = {name: draw_number(self.rng, rule) for name, rule in draw.items()}
        self.words |= numbers | {"x": self.x}
        for name, number in numbers.items():
            for kind, texts in self.table["numbers"].items():
                self.words[f"{name}_{kind}"] = texts.get(str(number), "?")
        for name, text in event.get("let", {}).items():
            self.words[name] = calculate(text.format(**self.words))
        found = [self.words[name] for name in event.get("let", {})]
        for step in event.get("step", []):
            _, result = self.compute(step)
            found.append(result if not step.get("decimal") else self.words["up"])
        found += [calculate(text.format(**self.words)) for text in event.get("check", [])]
        self.numbers[event["name"]] = list(numbers.values())
        return all(n and n.isdigit() and 2 <= int(n) <= self.table["limits"]["largest"]
                   for n in found)

    def compute(self, step):
        """(the calculation of a step, its result). Later texts may use the result, and rounded."""
        expression = step["compute"].format(**self.words)
        result = calculate(expression)
        value = float(result or 0)
        self.words |= {"z": result, step.get("result", "z"): result,
                       "down": str(math.floor(value)), "up": str(math.ceil(value))}
        return expression, result

    def move_on(self, event):
        """Choose the person and the things with which the story goes on."""
        self.x = int(self.words["z"] if event.get("step") else self.words["a"])
        after, _, who = event["after"].partition(" of ")
        if who:
            self.people.pop(0)
            self.does["pronouns"] = False
            if who == "both":
                self.people[0] = "the two"
            self.meet()
        if after in self.table["columns"]:    # a box or a gift
            own, other = self.table["columns"]["item"], self.table["columns"][after]
            self.words |= {name: self.words[column] for name, column in zip(own, other)}
            after = "items"
        self.state = after

    def fill(self, text, in_words=False):
        """A text of the table with all its choices made and all its words filled in."""
        text = re.sub(r"\(([^()]*\|[^()]*)\)", lambda m: self.rng.choice(m[1].split("|")), text)
        text = re.sub(r"\[(.*?)\|(.*?)\]", r"\1" if self.does["present"] else r"\2", text)
        words = dict(self.words)
        if in_words:    # but not in $5, 5% or 5:30
            for name in re.findall(r"(?<!\$){([a-d])}(?!%|:| [ap]\.m)", text):
                words[name] = self.table["numbers"]["word"].get(str(words[name]), words[name])
        text = re.sub(r" +(?=[ ?.,])", "", text.format(**words))
        text = re.sub(r"\ba (?=[aeio])", "an ", text)
        return re.sub(r"(^|[.?!] )([a-z])", lambda m: m[1] + m[2].upper(), text)

    def finish(self) -> Problem:
        """The whole story. Half of them ask "in the end?", and some hold a useless number."""
        rng, last = self.rng, self.steps[-1]
        if rng.random() < 0.5:
            last.question = re.sub(r" (then|after that)\?$", " in the end?", last.question)
        sentences, question = self.sentences, last.question
        condition = sentences[-1][:-1]
        if self.does["if"] and re.fullmatch(rf"({self.people[0]}|She|He) [^.?!]*", condition):
            condition = re.sub("^(She|He) ", lambda match: match[0].lower(), condition)
            question = f"If {condition}, {question[0].lower()}{question[1:]}"
            sentences = sentences[:-1]
        if self.does["distractor"]:
            self.words["d"] = rng.randint(3, 50)
            text = self.fill(rng.choice(self.table["distractors"]))
            sentences.insert(rng.randint(min(1, len(sentences)), len(sentences)), text)
        is_first = self.does["first"] and not question.startswith("If ")
        order = [question, *sentences] if is_first else [*sentences, question]
        return Problem("", " ".join(order), self.steps, str(self.x), "generated")

def make_story(rng, n_steps, dataset="demo"):
    """(a problem with `n_steps` steps, the key of its events and numbers), or None: a dead end."""
    story = Story(rng, dataset)
    while len(story.steps) < n_steps:
        if not story.tell(n_steps - len(story.steps)):
            return None
    return story.finish(), "; ".join(f"{name} {ab}" for name, ab in story.numbers.items())

def make_stories(dataset, split, n, seed=0) -> list[Problem]:
    """
    `n` stories of a split, the same ones for the same seed.

    A sha256 of a story's events and numbers decides its split. Names, wording and distractor do
    not count, so a story of the test split cannot be generated for training in other words.
    """
    rng, problems, seen = random.Random(f"{split}-{seed}"), [], set()
    lengths = (7, 8) if split == "long" else story_table(dataset)["limits"]["steps"]
    while len(problems) < n:
        made = make_story(rng, rng.choice(lengths), dataset)
        if made is None:
            continue
        problem, key = made
        if split in ("long", split_of(key)) and key not in seen:
            seen.add(key)
            problem.id = f"{dataset}-{split}-{len(problems)}"
            problems.append(problem)
    return problems

# ------------------------------------------------------------ the command

def positive(text: str) -> int:
    """The type of every flag that counts something."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)

def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Count a data set's problems and show one dialogue for each role.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="demo", help=DATASET_HELP)
    add("--role", choices=ROLES, help="show this role only (None: all)")
    add("--limit", type=positive, default=1, help="how many training problems to show")
    return parser.parse_args(argv)

def main(args):
    for split in splits_of(args.dataset):
        problems = load_problems(args.dataset, split)
        counts = Counter(len(problem.steps) for problem in problems)
        by_steps = " ".join(f"{n}:{count:,}" for n, count in sorted(counts.items()))
        name = f"{run_name(args.dataset)}/{split:5s}"
        print(f"{name} {len(problems):6,} problems | by steps: {by_steps}")
        if split == "train":
            examples = problems
    color = sys.stdout.isatty()
    for role in [args.role] if args.role else ROLES:
        fits = [problem for problem in examples if can_learn(problem, role)]
        print(f"\n{role}: {len(fits):,} of {len(examples):,} training problems hold what it learns "
              f"to write ({'green' if color else 'marked ‹so›'})")
        for problem in fits[:args.limit]:
            ids, targets = encode(segments(problem, role), get_tokenizer("tiny"))
            print(show(segments(problem, role), color))
            print(f"[{len(ids)} tokens, {sum(t != IGNORE for t in targets)} learned]")

if __name__ == "__main__":
    main(parse_args())
