"""
What do we want a student to write? Problems, dialogues, answers, tokens, and the data sets.

    python data.py                    the demo data set: counts, and one dialogue for each role
    python data.py --dataset gsm8k    the same for gsm8k, svamp, strategyqa or your own FILE.jsonl

A solved problem is a dialogue. This text is all that the models ever see:

    Problem: Ava has 3 boxes with 4 pens each. She gives away 5 pens. How many pens are left?
    Subquestion: How many pens are in the boxes?
    Solution: There are 3*4 = <<3*4=12>>12 pens in the boxes.
    Subquestion: How many pens are left?
    Solution: There are 12-5 = <<12-5=7>>7 pens left.
    Answer: 7

A role says who reads and who learns to write which part of it; see `segments`.

Reads   data/ or the folder SOCRATIC_DATA (the authors' files), students/*.toml, your own FILE.jsonl
"""

import argparse
import ast
import base64
import hashlib
import json
import math
import operator as op
import os
import random
import re
import sys
import tomllib
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cache, lru_cache
from pathlib import Path
from xml.etree import ElementTree

import requests
import tiktoken

USUAL = ("train", "valid", "test")
DATASETS = {"demo": (*USUAL, "long"), "world": USUAL, "gsm8k": USUAL, "svamp": (*USUAL, "all"),
            "strategyqa": USUAL}    # long: 7 and 8 steps; all: no split
DATASET_HELP = f"which problems: {', '.join(DATASETS)}, or your own FILE.jsonl"
ROLES = ("answer", "cot", "unified", "decomposer", "solver")
IGNORE = -100    # the target of a token that is only context: cross_entropy skips it by default
HERE = Path(__file__).resolve().parent

for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):
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
    evidence: list[str] = field(default_factory=list)    # a formula (svamp), facts (strategyqa)

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

EXAMPLE = asdict(Problem("", "", [Step()], evidence=[""]))

def check_shape(value, example, name: str) -> None:
    """Raise a ValueError unless the value has the example's keys and types (evidence may lack)."""
    if type(value) is not type(example):
        kind = {dict: "an object", list: "a list", str: "a string"}[type(example)]
        raise ValueError(f"{name} must be {kind}")
    if isinstance(value, str):
        value.encode()    # fails for half of a surrogate pair
    elif isinstance(value, list):
        for item in value:
            check_shape(item, example[0], f"an item of {name}")
    else:
        for key in sorted(value.keys() - example.keys()):
            raise ValueError(f"{name}: the key {key!r} is unknown")
        for key in example:
            if key in value:
                check_shape(value[key], example[key], repr(key))
            elif key != "evidence":
                raise ValueError(f"{name}: the key {key!r} is missing")

def read_lines(path, parse=json.loads, may_be_torn=False) -> list:
    """
    `parse(line)` of every line of a file that is not blank; "-" is the standard input. A broken
    line ends the program with `file:line: reason`. A last line that a kill has torn is skipped.
    """
    if path != "-" and not Path(path).is_file():
        raise SystemExit(f"{path} does not exist.")
    values, n = [], 0
    try:
        with sys.stdin.buffer if path == "-" else open(path, "rb") as file:
            for n, line in enumerate(file, 1):    # noqa: B007 (the error below names n)
                if line.strip() and not (may_be_torn and not line.endswith(b"\n")):
                    values.append(parse(line.decode("utf-8-sig")))    # without a byte order mark
    except (ValueError, RecursionError) as error:
        raise SystemExit(f"{path}:{n}: {error}") from None
    return values

def read_records(path) -> list[Problem]:
    return read_lines(path, Problem.from_json)

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

    | role       | sees                      | learns to write                        |
    | answer     | problem                   | answer                                 |
    | cot        | problem                   | solution 1..n, answer                  |
    | unified    | problem                   | subquestion 1, solution 1, ..., answer |
    | decomposer | problem                   | subquestion 1..n                       |
    | solver     | problem, each subquestion | solution 1..n, answer                  |

    A label such as `Solution:` is learned where the role itself decides what comes next. The text
    after it begins with a space, as most of GPT-2's tokens do. A turn ends with a newline, but the
    last one with the end token, which `encode` adds.
    """
    steps = problem.steps
    if role == "cot" and problem.answer in ("yes", "no") and not any(s.solution for s in steps):
        steps = [Step("", fact) for fact in problem.evidence]    # all that StrategyQA has
    turns = []    # (label, text)
    for step in steps:
        if role in ("unified", "decomposer", "solver"):
            turns.append(("Subquestion:", step.question))
        if role in ("cot", "unified", "solver"):
            turns.append(("Solution:", step.solution))
    if role != "decomposer":
        turns.append(("Answer:", problem.answer))

    parts = [Segment(f"Problem: {clean(problem.problem)}\n", False)]
    writes_labels = role in ("cot", "unified", "decomposer")
    for i, (label, text) in enumerate(turns, 1):
        end = "\n" if i < len(turns) else ""
        is_given = role == "solver" and label == "Subquestion:"
        parts.append(Segment(label, writes_labels))
        parts.append(Segment(f" {clean(text)}{end}", not is_given))
    return parts

def clean(text: str) -> str:
    """The text on one line, with single spaces: a newline would end a turn."""
    return " ".join(text.split())

def can_learn(problem: Problem, role: str) -> bool:
    """Whether the record holds everything that the role reads and learns to write."""
    parts = segments(problem, role)    # the problem, then a label and a text for each turn
    min_turns = 1 if role in ("answer", "decomposer") else 2
    return len(parts) >= 1 + 2 * min_turns and all(part.text.strip() for part in parts)

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
    targets = [token if is_learned else IGNORE for token, is_learned in zip(ids[1:], learned[1:])]
    return ids[:-1], targets

def tokenize(text: str, tokenizer) -> list[int]:
    """The token ids of one segment."""
    # subtle: the text is cut where the calculator starts and stops writing for a student, after
    # the `=` and the `>>` of an annotation. So training sees the same tokens.
    pieces = re.split(r"(?<=>>)|(?<==)(?=[^<>=]*>>)", text)
    return [token for piece in pieces for token in tokenizer.encode_ordinary(piece)]

def show(parts: list[Segment], color=False) -> str:
    """The dialogue with its learned parts marked: green on a terminal, ‹like this› elsewhere."""
    start, stop = ("\033[32m", "\033[0m") if color else ("‹", "›")
    text = "".join(f"{start}{part.text}{stop}" if part.learned else part.text for part in parts)
    return text.replace(f"{stop}{start}", "").replace(f"\n{stop}", f"{stop}\n")

# ------------------------------------------------------------ arithmetic

NUMBER = r"(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)"
OPERATORS = {ast.Add: op.add, ast.Sub: op.sub, ast.Mult: op.mul, ast.Div: op.truediv}

@lru_cache(1 << 16)    # `renumber` asks for the same values again and again
def calculate(expression: str) -> str | None:
    """
    The value of an arithmetic expression as the data writes it, or None if it is not arithmetic.
    It knows + - * / ( ), decimals, percent and thousands commas, up to 200 characters.

    >>> calculate("2*(3+4)"), calculate("1,000*20%"), calculate("1/3"), calculate("3 4")
    ('14', '200', '0.33', None)
    """
    text = expression.translate(str.maketrans("×÷−–", "*/--", "$")).strip()    # without $
    # Python's parser reads the rest, but neither 1,000 nor 007.
    text = re.sub(r"(?<![\d.])\d{1,3}(,\d{3})+(?!\d)", lambda m: m[0].replace(",", ""), text)
    text = re.sub(r"(?<![0-9.])0+(?=[0-9])", "", text)
    text = re.sub(r"([0-9.]+) *%", r"(\1/100)", text)
    if len(expression) > 200 or not re.fullmatch(r"([0-9+*/() -]|\.(?=[0-9]))*", text):
        return None
    try:
        return format_number(value_of(ast.parse(text, mode="eval").body))
    except (SyntaxError, ZeroDivisionError):
        return None

def value_of(node) -> Fraction:
    """The exact value of a node of Python's syntax tree, if it is one of ours. No eval."""
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -value_of(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](value_of(node.left), value_of(node.right))
    raise SyntaxError

def format_number(value: Fraction) -> str:
    """A number as GSM8K writes it. Endless decimals are rounded to 2, or to 2 digits below 0.1."""
    n_decimals = next((n for n in range(13) if (value * 10**n).denominator == 1), None)
    if n_decimals is None:
        n_decimals = min(12, max(2, 1 - math.floor(math.log10(abs(value)))))
    whole, rest = divmod(round(abs(value) * 10**n_decimals), 10**n_decimals)
    text = f"{whole}.{rest:0{n_decimals}d}".rstrip("0").rstrip(".")
    return "-" + text if value < 0 and text != "0" else text

# ------------------------------------------------------------ answers

DASHES = str.maketrans("‐‑‒–−－", "------")    # all that may mean minus
# A minus sign counts only if it does not stand between two numbers, as in "5-10 minutes".
VALUE = rf"(?:(?<![\w.,)])-)?[ $€£]{{0,3}}{NUMBER}(?:/{NUMBER})?"

def extract_answer(text: str, lenient=False) -> str | None:
    r"""
    The answer of the first answer block (`Answer: ...` or `#### ...`), normalised, or None. In an
    equation the last side that says one number counts.
    lenient: if there is no block, the last number, or yes or no at the end of a phrase, counts.

    >>> extract_answer("so\nAnswer: $1,200.\nProblem: ..."), extract_answer("She has 18 apples")
    ('1200', None)
    """
    text = text.translate(DASHES)
    block = re.search(r"(?:\bAnswer:|####)([^\n]*)", text)
    if block:
        sides = re.sub("<<.*?>>", "", block[1]).split("=")
        values = [value for value in map(read_value, sides) if value]
        return values[-1] if values else None
    found = re.findall(rf"(?i){VALUE}|\b(?:yes|no)\b(?=[.,;!]|\W*$)", text)
    return read_value(found[-1]) if lenient and found else None

def read_value(text: str) -> str | None:
    """
    The one number, or the yes or no, that a text says. Of several numbers the first counts, if
    the text begins with it and goes on in words: "18 hats for 3 men", but not "5-10" or "5 x 3".
    """
    word = re.match(r"\W*(yes|no|true|false)\b(?! one\b)", text, re.IGNORECASE)
    if word:
        return "yes" if word[1].lower() in ("yes", "true") else "no"
    found = list(re.finditer(VALUE, text))
    if len(found) > 1:
        before, after = text[:found[0].start()], text[found[0].end():]
        if before.strip() or re.match(r"\s*([-+*/^×÷:]|x ?\d|to\b|or\b|[.,]?\d)", after):
            return None
    return calculate(re.sub(r"[ €£]", "", found[0][0])) if found else None

def same_answer(a: str | None, b: str | None) -> bool:
    """Whether two answers are the same number (18.0 is 18) or word. None equals nothing."""
    if a is None or b is None:
        return False
    x, y = (calculate(text) or text.strip().lower() for text in (a, b))
    return x == y

# ------------------------------------------------------------ tokenizers

# Digits stand alone, so that numbers can be copied digit by digit; so do <<, = and >>.
TINY_PATTERN = (r"<<|>>|[=\n\d<>]|'(?:s|t|re|ve|m|ll|d)\b| ?[^\W\d_]+| ?(?:[^\w\s=<>]|_)+"
                r"| (?=\d)|\s+(?!\S)|\s+")

def get_tokenizer(name: str) -> tiktoken.Encoding:
    """`gpt2`: OpenAI's 50,257 tokens (downloaded once). `tiny`: our own 2,048, in students/."""
    if name == "tiny":
        rows = read_lines(HERE / "students" / "tiny.tiktoken", str.split)
        ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
        return tiktoken.Encoding("tiny", pat_str=TINY_PATTERN, mergeable_ranks=ranks,
                                 special_tokens={"<|endoftext|>": len(ranks)})
    if name != "gpt2":
        raise SystemExit(f"Unknown tokenizer {name!r}. There are: gpt2, tiny")
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:    # no network; a proxy's page in place of the file
        raise SystemExit(f"Cannot load GPT-2's tokenizer: {error}\nOffline? Set TIKTOKEN_CACHE_DIR "
                         "to a folder, here and on a machine with a network; run\nthis there, and "
                         "copy the folder.") from None

# ------------------------------------------------------------ files: found, downloaded, checked

@cache
def read_toml(name):
    """A file of students/, which holds all that is data and not code. Each explains itself."""
    return tomllib.loads((HERE / "students" / name).read_text(encoding="utf-8"))

def sha256_of(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

def find_file(name: str, data_dir=None) -> Path:
    """The path of a data file: downloaded if it is not there, and always checked."""
    path = Path(data_dir or os.environ.get("SOCRATIC_DATA") or "data") / name
    url, sha256 = read_toml("sources.toml")[name]
    if not path.is_file():
        download(url, path, sha256)
    elif sha256_of(path) != sha256:
        raise SystemExit(f"{path} is not the file this code knows: its sha256 is not {sha256}.\n"
                         f"  Delete it to have it downloaded again from {url}")
    return path

def download(url: str, path: Path, sha256: str | None = None) -> None:
    """
    Fetch `url` into `path`: under a temporary name, continuing an interrupted try, then checked.
    Without a sha256, the one that Hugging Face names in its redirection (X-Linked-ETag) is used.
    """
    part = path.with_name(path.name + ".part")
    n_there = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={n_there}-"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with requests.get(url, headers=headers, stream=True, timeout=60) as reply:
            for redirection in reply.history:
                sha256 = sha256 or redirection.headers.get("X-Linked-ETag", "").strip('"')
            if reply.status_code != 416:    # 416: the part was whole already
                reply.raise_for_status()
                if "text/html" in reply.headers.get("Content-Type", ""):    # of a proxy, say
                    raise OSError("a web page came instead of the file")
                save_body(reply, part)
    except OSError as error:    # as all errors of requests
        raise SystemExit(f"\nCannot download {url}\n  {type(error).__name__}: {error}\n"
                         "  The same command continues where it stopped. Offline? Fetch that\n"
                         f"  address on another machine and put the file at {path}") from None
    if sha256 and sha256_of(part) != sha256:
        part.unlink()
        raise SystemExit(f"{url}\n  is not the file this code knows: its sha256 is not {sha256}.\n"
                         f"  Try again; if that does not help, put the right file at {path}")
    part.replace(path)

def save_body(reply, part: Path) -> None:
    """Append what arrives, and show how far it is."""
    with open(part, "ab" if reply.status_code == 206 else "wb") as file:    # 206: only the rest
        total = file.tell() + int(reply.headers.get("Content-Length", 0))
        for chunk in reply.iter_content(1 << 16):
            file.write(chunk)
            print(f"\r{part.parent.name}/{part.stem}: {file.tell() / 1e6:,.1f} of "
                  f"{total / 1e6:,.1f} MB", end="", file=sys.stderr)
        print(file=sys.stderr)

# ------------------------------------------------------------ the data sets

def load_problems(dataset, split, data_dir=None, limit=None, annotations=None) -> list[Problem]:
    """
    The problems of one split, in a fixed order.

    dataset      a built-in one, the path of a file of records, or several to train on: world+gsm8k
    limit        only the first so many of each part; demo and world have any number for training
    annotations  a file of records whose steps replace the data set's own, joined by id; other
                 problems of that data set are left out
    """
    name, splits, problems = run_name(dataset), splits_of(dataset), []
    n_found = n_annotated = 0
    if split not in splits:
        raise SystemExit(f"{name} has no split {split!r}. There are: {', '.join(splits)}")
    by_id = {record.id: record for record in read_records(annotations)} if annotations else {}
    for part in dataset.split("+"):
        found = load_split(part, split, data_dir, limit)
        annotated = [problem for problem in found if problem.id in by_id]
        for problem in annotated:
            problem.steps, problem.source = by_id[problem.id].steps, by_id[problem.id].source
        # In a mixture, a part that the annotations are not about stays as it is.
        problems += annotated if annotated or annotations and part == dataset else found
        n_found, n_annotated = n_found + len(found), n_annotated + len(annotated)
    if annotations:
        print(f"{annotations}: {len(by_id)} annotations, {n_annotated} match the {n_found} "
              f"problems of {name}/{split}", file=sys.stderr)
    return problems

def load_split(dataset, split, data_dir, limit) -> list[Problem]:
    """The same for one data set alone."""
    if dataset in ("demo", "world"):
        n = {"train": limit or 20_000, "valid": 500, "test": 1_000, "long": 500}[split]
        return make_stories(dataset, split, min(n, limit or n))    # there are no more to score
    load = {"gsm8k": load_gsm8k, "svamp": load_svamp, "strategyqa": load_strategyqa}.get(dataset)
    problems = load(split, data_dir) if load else load_file(dataset, split)
    return problems[:limit]

def run_name(dataset: str) -> str:
    """What a data set is called in names of runs: "world+pens" for "world+my/pens.jsonl"."""
    names = []
    for part in dataset.split("+"):
        is_file = part.endswith(".jsonl")
        names.append(Path(part).stem if is_file else part)
        # A file may not be called like a built-in data set; anything else must be one.
        if is_file == (names[-1] in DATASETS):
            raise SystemExit(
                f"Unknown data set {part!r}. There are: {', '.join(DATASETS)}, a path that ends in "
                ".jsonl\n(not the name of a built-in data set), and several joined by +")
    return "+".join(names)

def splits_of(dataset) -> tuple:
    """The splits that a data set has. A mixture is only for training."""
    return ("train", "valid") if "+" in dataset else DATASETS.get(dataset, (*USUAL, "all"))

def split_of(text: str) -> str:
    """The split of a text by its sha256: 1 of 10 is test, 1 of 10 valid, the rest train."""
    bucket = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "valid"}.get(bucket, "train")

def load_file(path, split) -> list[Problem]:
    """One's own records. A problem's text decides its split, whatever else the file holds."""
    problems = read_records(path)
    for name, n in Counter(problem.id for problem in problems).items():
        if n > 1:
            raise SystemExit(f"{path}: the id {name!r} occurs {n} times")
    return [p for p in problems if split in ("all", split_of(clean(p.problem)))]

def load_gsm8k(split, data_dir) -> list[Problem]:
    """Its answers are lines `subquestion ** solution`, then `#### number`."""
    part = "test" if split == "test" else "train"
    problems = []
    for n, row in enumerate(read_lines(find_file(f"gsm8k/{part}_socratic.jsonl", data_dir))):
        *lines, answer = row["answer"].split("\n")
        steps = [Step(*line.split(" ** ")) for line in lines]
        answer = answer.removeprefix("#### ").replace(",", "")
        problems.append(Problem(f"gsm8k-{part}-{n}", row["question"], steps, answer))
    return {"train": problems[:-512], "valid": problems[-512:], "test": problems}[split]

def load_svamp(split, data_dir) -> list[Problem]:
    """Test: SVAMP's 237 problems with two operators. Else ASDiv's: every tenth is for valid."""
    if split in ("train", "valid"):
        asdiv = enumerate(load_asdiv(data_dir))
        return [problem for i, problem in asdiv if (i % 10 == 9) == (split == "valid")]
    problems = []
    for row in json.loads(find_file("svamp/SVAMP.json", data_dir).read_text(encoding="utf-8")):
        text, formula = join_question(row["Body"], row["Question"]), row["Equation"]
        answer = calculate(str(row["Answer"]))
        if split == "all" or len(re.findall(r" [-+*/] ", formula)) == 2:
            problems.append(Problem(f"svamp-{row['ID']}", text, [], answer, evidence=[formula]))
    return problems

def load_asdiv(data_dir) -> list[Problem]:
    """ASDiv's problems whose formula has two or more operators and whose answer is one number."""
    for row in ElementTree.parse(find_file("asdiv/ASDiv.xml", data_dir)).iter("Problem"):
        text = join_question(row.findtext("Body"), row.findtext("Question"))
        formula = row.findtext("Formula").strip()
        match = re.fullmatch(r"\s*(-?\d+(\.\d+)?)\s*(\([^()]*\))?\s*", row.findtext("Answer"))
        if len(re.findall(r"[-+*/]", formula)) < 2 or not match:
            continue
        left, _, right = (side.strip() for side in formula.partition("="))
        value, steps = calculate(left), []
        if value is not None and value == calculate(right):    # not so for "x=3*4; y=x-5"
            steps = [Step("", f"{left} = <<{left}={value}>>{value}")]
        name, answer = f"svamp-asdiv-{row.get('ID')}", calculate(match[1])
        yield Problem(name, text, steps, answer, evidence=[formula])

def join_question(body: str, question: str) -> str:
    """
    >>> join_question("He had 4. If he lost 1", "How many are left?"), join_question("So", "Why?")
    ('He had 4. If he lost 1, how many are left?', 'So. Why?')
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
        name, answer = f"strategyqa-{row['qid']}", "yes" if row["answer"] else "no"
        problems.append(Problem(name, row["question"], steps, answer, evidence=row["facts"]))
    return {"train": problems[:1832], "valid": problems[-229:], "test": problems}[split]

# ------------------------------------------------------------ the same story with other numbers

# A number that may not change: part of a fraction, a time, a percentage or an ordinal
FIXED = rf"[/:]\s?{NUMBER}|{NUMBER}(?=\s?[/:%]| ?percent| ?[ap]\.?m\b|st\b|nd\b|rd\b|th\b)"
CALCULATION = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")

def renumber(problem: Problem, rng) -> Problem | None:
    """
    The same story with other numbers, or None where that cannot be done safely. The numbers of the
    problem that its annotations use are drawn anew, the annotations are computed again, and the new
    numbers are written wherever the old ones stood.

    >>> story = Problem("", "Ava had 8 pens and lost 3.", [Step("", "8-3 = <<8-3=5>>5.")], "5")
    >>> renumber(story, random.Random(1)).steps
    [Step(question='', solution='5-2 = <<5-2=3>>3.')]
    """
    if problem.id.startswith(("demo-", "world-")):    # other numbers could be those of a test story
        return None
    told = "\n".join([problem.problem, *(step.question for step in problem.steps)])
    solved = "\n".join(step.solution for step in problem.steps)
    calculations = CALCULATION.findall(solved)
    solved = CALCULATION.sub("~", solved)    # a number after = and without ~ was not computed
    given, computed, constants, used = set(find_values(problem.problem)), set(), set(), set()
    for expression, result in calculations:
        operands, value = set(find_values(expression)), calculate(result)
        # A value that is both given and computed might stand for either.
        if given & computed & (operands | {value}) or not is_sound(expression, value):
            return None
        constants |= operands - given - computed
        computed.add(value)
        used |= operands
    is_explained = set(find_values(f"{told} {solved}")) <= given | computed | constants
    is_computed = problem.answer in computed and not re.search(rf"=\s*\$?{NUMBER}", solved)
    if not is_explained or not is_computed:
        return None
    free = sorted((given & used) - find_fixed(told, solved, used), key=Fraction)
    unchanged = {value: value for value in (given | constants) - set(free)}
    for _ in range(20):
        drawn = [draw_value(value, rng) for value in free]
        if drawn == free or drawn != sorted(drawn, key=Fraction):    # the smaller one stays smaller
            continue
        new = recompute(calculations, unchanged | dict(zip(free, drawn)))
        text = new and replace_numbers(problem.problem, new)
        if text and split_of(clean(text)) == "train":    # `load_file` may not test on it
            steps = [Step(replace_numbers(step.question, new), replace_numbers(step.solution, new))
                     for step in problem.steps]
            return replace(problem, problem=text, steps=steps, answer=new[problem.answer])
    return None

def find_values(text: str) -> list[str]:
    """The values of all numbers in a text, as `calculate` prints them: 1,200.50 is 1200.5."""
    return [calculate(number) for number in re.findall(NUMBER, text)]

def is_sound(expression: str, value: str | None) -> bool:
    """Whether the calculation is true, not rounded, and its value positive and below a million."""
    is_exact = calculate(f"({expression})-({value})") == "0"
    return is_exact and 0 < Fraction(value) < 1_000_000

def find_fixed(told: str, solved: str, used: set[str]) -> set[str]:
    """The values that must stay: part of a time, a percentage, ..., or said by a word too."""
    marked = re.findall(FIXED, told) + re.findall(rf"{NUMBER}\s?%", solved)
    fixed = {"0", "1", *map(str, range(1900, 2100)), *find_values(" ".join(marked))}
    table = read_toml("numbers.toml")
    words = table["cardinals"] | table["words"]
    for word in re.findall("[a-z]+", f"{told} {solved}".lower()):
        fixed.update(words.get(word, "").split())
    for value in find_values(told):    # 20 stays where 0.2, 1.2, 0.8 or 80 is used
        forms = (f"{value}%", f"1+{value}%", f"1-{value}%", f"100-{value}")
        if not used.isdisjoint(map(calculate, forms)):
            fixed.add(value)
    return fixed

def draw_value(value: str, rng) -> str:
    """A number between half and one and a half of this one, as round and with as many decimals."""
    n_decimals = len(value.partition(".")[2])
    old = int(value.replace(".", ""))
    step = 1 if n_decimals else 10 ** max(0, len(value) - 2)
    while old % step:
        step //= 10
    low = max(1 if n_decimals else 2, old // 2)
    drawn = rng.randint(math.ceil(low / step), max(low, old * 3 // 2) // step) * step
    return calculate(f"{drawn}/{10**n_decimals}")

def recompute(calculations, new: dict[str, str]) -> dict[str, str] | None:
    """{old: new value}, with the results too. None: one is not like the old, or two became one."""
    new = dict(new)
    for expression, result in calculations:
        text, old = replace_numbers(expression, new), calculate(result)
        value = calculate(text)
        is_alike = is_sound(text, value) and ("." in old or "." not in value)
        if not is_alike or new.setdefault(old, value) != value:
            return None
    return new if len(set(new.values())) == len(new) else None

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
    """The table of stories.toml, which explains it; for the world, world.toml is merged into it."""
    table = read_toml("stories.toml")
    if dataset == "world":
        table = merge(table, read_toml("world.toml"))
    columns = {kind: names.split() for kind, names in table["columns"].items()}
    words = {kind: [read_word(row, columns[kind]) for row in rows.split()]
             for kind, rows in table["words"].items()}
    events = [table["unsaid"] | event | {"name": name} for name, event in table["event"].items()]
    return table | {"columns": columns, "words": words, "event": events}

def merge(old, new):
    """Two tables as one: lists and texts of the same name are joined, a number is replaced."""
    if isinstance(old, dict):
        return old | {key: merge(old[key], new[key]) if key in old else new[key] for key in new}
    if isinstance(old, str):
        return f"{old} {new}"
    return old + new if isinstance(old, list) else new

def read_word(row, columns):
    """{column: text} for a word of the table, such as tea_cup/tea_cups, or in short tea_cup."""
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

class Story:
    """A story on its way: what has been told so far, and which words it uses."""

    def __init__(self, rng, dataset):
        self.rng, self.table = rng, story_table(dataset)
        self.does = {habit: rng.random() < share for habit, share in self.table["habits"].items()}
        self.state, self.numbers = "start", {}    # {name of an event: its numbers}
        self.sentences, self.steps = [], []
        self.words, self.used = {"x": 0}, []      # x is the amount so far
        # If A is "she", all others are boys, so that it is clear who she is.
        sex, other = rng.sample(["girl", "boy"], 2)
        others = [other] if self.does["pronouns"] else ["girl", "boy"]
        self.people = [self.draw(rng.choice(others))["name"] for _ in range(8)]
        self.people[0] = self.draw(sex)["name"]
        self.meet()
        if self.does["pronouns"]:
            self.words |= self.table["pronouns"][sex]
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
                sounds = self.table["sounds"] * self.rng.randint(2, 3)
                text = "".join(self.rng.choice(sound.split()) for sound in sounds).replace("_", "")
                text = text.title() if kind in ("girl", "boy") else text
                word = read_word(text, self.table["columns"][kind])
            if word not in self.used:
                self.used.append(word)
                return word

    def meet(self):
        """The people of the story as words."""
        A = self.people[0]
        self.words |= dict(zip("ABCD", self.people)) | {"he": A, "his": f"{A}'s", "him": A}

    def tell(self, n_left) -> bool:
        """Add a random event of at most `n_left` steps. False: the story is at a dead end."""
        events = [event for event in self.table["event"] if self.can_follow(event, n_left)]
        if not events:
            return False
        event = self.rng.choice(events)
        columns = set(re.findall(r"{(\w+)}", str(event)))
        for kind, own in self.table["columns"].items():
            if kind != "item" and not columns.isdisjoint(own):
                self.words |= self.draw(kind)
        if not any(self.draw_numbers(event) for _ in range(20)):
            return False
        self.sentences.append(self.fill(self.rng.choice(event["say"]), self.does["words"]))
        for step in event["step"]:
            self.compute(step)
            question = self.fill(self.rng.choice(step["ask"]))
            self.steps.append(Step(question, self.fill(step["solve"])))
        self.state = event["after"]
        # An event without steps only tells its amount, a.
        self.words["x"] = int(self.words["z" if event["step"] else "a"])
        self.words |= {name: self.words[column] for name, column in event["rename"].items()}
        if event["person"] != "A":
            first = self.people[1:2] if event["person"] == "B" else ["the two"]
            self.people = first + self.people[2:]
            self.meet()
        return True

    def can_follow(self, event, n_left) -> bool:
        """Every event comes once, the person changes once, and "end" brings the last step."""
        n_steps = len(event["step"])
        return (event["before"] == self.state and event["name"] not in self.numbers
                and (n_steps == n_left if event["after"] == "end" else n_steps <= n_left)
                and (event["person"] == "A" or len(self.people) == 8)    # all of them, so far
                and not (self.does["present"] and event["tense"] == "past"))

    def draw_numbers(self, event) -> bool:
        """Draw the event's numbers. Are all that it tells and finds whole and neither 0 nor 1?"""
        numbers = {name: draw_number(self.rng, rule) for name, rule in event["draw"].items()}
        self.numbers[event["name"]] = list(numbers.values())
        self.words |= numbers
        for name, number in numbers.items():
            for kind, texts in self.table["numbers"].items():
                self.words[f"{name}_{kind}"] = texts.get(str(number), "?")
        for name, text in event["let"].items():
            self.words[name] = calculate(text.format(**self.words))
        found = [self.words[name] for name in event["let"]]
        for step in event["step"]:
            self.compute(step)
            found.append(self.words["up" if step.get("decimal") else "z"])
        found += [calculate(text.format(**self.words)) for text in event["check"]]
        return all(n and n.isdigit() and 2 <= int(n) <= self.table["largest"] for n in found)

    def compute(self, step):
        """Calculate a step. Its own texts and all later ones may use the result, also rounded."""
        expression = step["compute"].format(**self.words)
        result = calculate(expression)
        value = float(result or 0)
        self.words |= {"z": result, step.get("result", "z"): result,
                       "down": str(math.floor(value)), "up": str(math.ceil(value)),
                       "e": f"{expression} = <<{expression}={result}>>{result}",
                       "$e": f"{expression} = $<<{expression}={result}>>{result}"}

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
        return re.sub(r"(?:^|[.?!] )[a-z]", lambda m: m[0].upper(), text)

    def finish(self) -> Problem:
        """The whole story. "Then?" is often said as "in the end?"; some hold a useless number."""
        rng, last, sentences = self.rng, self.steps[-1], self.sentences
        if rng.random() < 0.5:
            last.question = re.sub(r" (then|after that)\?$", " in the end?", last.question)
        question, condition = last.question, sentences[-1][:-1]
        if self.does["if"] and re.fullmatch(rf"({self.people[0]}|She|He) [^.?!]*", condition):
            condition = re.sub("^(She|He) ", lambda match: match[0].lower(), condition)
            question = f"If {condition}, {question[0].lower()}{question[1:]}"
            sentences.pop()
        if self.does["distractor"]:
            self.words["d"] = rng.randint(3, 50)
            text = self.fill(rng.choice(self.table["distractors"]))
            sentences.insert(rng.randint(min(1, len(sentences)), len(sentences)), text)
        is_first = self.does["first"] and not question.startswith("If ")
        order = [question, *sentences] if is_first else [*sentences, question]
        return Problem("", " ".join(order), self.steps, str(self.words["x"]), "generated")

def make_story(rng, dataset, lengths):
    """(a problem with one of these numbers of steps, the key of its events and numbers)."""
    n_steps, story = rng.choice(lengths), Story(rng, dataset)
    while len(story.steps) < n_steps:
        if not story.tell(n_steps - len(story.steps)):
            return make_story(rng, dataset, lengths)    # a dead end: tell another story
    return story.finish(), "; ".join(f"{name} {ab}" for name, ab in story.numbers.items())

def make_stories(dataset, split, n, seed=0) -> list[Problem]:
    """
    `n` stories of a split, the same ones for the same seed. A sha256 of a story's events and
    numbers decides its split, so no test story can be generated for training in other words.
    """
    rng, problems, seen = random.Random(f"{split}-{seed}"), [], set()
    lengths = story_table(dataset)["steps"]["long" if split == "long" else dataset]
    wanted = "test" if split == "long" else split
    while len(problems) < n:
        problem, key = make_story(rng, dataset, lengths)
        if split_of(key) == wanted and key not in seen:
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
    splits = {}
    for split in splits_of(args.dataset):
        problems = splits[split] = load_problems(args.dataset, split)
        counts = sorted(Counter(len(problem.steps) for problem in problems).items())
        by_steps = " ".join(f"{n}:{count:,}" for n, count in counts)
        name = f"{run_name(args.dataset)}/{split:5s}"
        print(f"{name} {len(problems):6,} problems | by steps: {by_steps}", flush=True)
    color = sys.stdout.isatty()
    for role in [args.role] if args.role else ROLES:
        fits = [problem for problem in splits["train"] if can_learn(problem, role)]
        print(f"\n{role}: {len(fits):,} of {len(splits['train']):,} training problems hold what it "
              f"learns to write ({'green' if color else 'marked ‹like this›'})")
        for problem in fits[:args.limit]:
            ids, targets = encode(segments(problem, role), get_tokenizer("tiny"))
            print(show(segments(problem, role), color))
            print(f"[{len(ids)} tokens, {sum(t != IGNORE for t in targets)} learned]")

if __name__ == "__main__":
    try:
        main(parse_args())
    except BrokenPipeError:    # of `| head`
        sys.exit(1)
